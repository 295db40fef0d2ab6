# haproxy on 127.0.0.1:$2 and DIR/sock, with four threads, each with a timer on its own CPU clock, and the server $4 on port $3 behind it
. "${BASH_SOURCE%/*}/server.sh"
cat > haproxy.cfg << EOF
global
	nbthread 4
	maxconn 500
	hard-stop-after 30s
	stats socket $dir/stats level admin
defaults
	mode http
	option http-keep-alive
	http-reuse always
	no option http-buffer-request
	timeout connect 1m
	timeout client 1h
	timeout server 1h
	timeout http-keep-alive 1h
frontend in
	bind 127.0.0.1:$2
	bind unix@$dir/sock
	default_backend out
backend out
	server behind 127.0.0.1:$3
EOF
mkdir behind
"$4" "$dir/behind" "$3" 9>&- &
behind=$!
serve haproxy -db -q -f "$dir/haproxy.cfg"
answers test -S behind/sock -a -S sock -a -S stats
clients "$2"
checked
unclient
ended USR1
kill -TERM $behind
wait $behind || finish "the server behind ended with status $?"
finish
