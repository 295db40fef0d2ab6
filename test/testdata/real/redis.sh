# redis-server with an append-only file and snapshots, on 127.0.0.1:$2 and DIR/sock, with clients and redis-cli inside of the tree
. "${BASH_SOURCE%/*}/server.sh"
serve redis-server --bind 127.0.0.1 --port "$2" --unixsocket "$dir/sock" --dir "$dir" --appendonly yes --appendfsync everysec --save "1 1" --daemonize no
answers redis-cli -s sock ping
clients "$2"
until [ -e check ]; do
	echo "INCR cli"
	pause 0.01
done | redis-cli -s sock > cli &
cli=$!
checked
unclient
wait $cli || finish "redis-cli ended with status $?"
n=$(wc -l < cli)
[ "$n" -gt 0 ] && [ "$(cat cli)" = "$(seq 1 "$n")" ] || finish "redis-cli was answered: $(diff <(seq 1 "$n") cli | head -5)"
ended TERM
finish
