# redis-server with an append-only file and snapshots, on 127.0.0.1:$2 and DIR/sock, and a client of the latter inside the tree
. "${BASH_SOURCE%/*}/server.sh"
serve redis-server --bind 127.0.0.1 --port "$2" --unixsocket "$dir/sock" --dir "$dir" --appendonly yes --appendfsync everysec --save "1 1" --daemonize no
answers redis-cli -s sock ping
until [ -e check ]; do
	echo "INCR inside"
	pause 0.01
done | redis-cli -s sock > inside &
client=$!
checked
wait $client || finish "redis-cli ended with status $?"
n=$(wc -l < inside)
[ "$n" -gt 0 ] && [ "$(cat inside)" = "$(seq 1 "$n")" ] || finish "redis-cli inside the tree was answered: $(diff <(seq 1 "$n") inside | head -5)"
ended TERM
finish
