# nginx on 127.0.0.1:$2 and DIR/sock, with two workers, files, and the server $4 on port $3 behind it
. "${BASH_SOURCE%/*}/server.sh"
cat > nginx.conf << EOF
daemon off;
user nobody nogroup;
worker_processes 2;
pid $dir/nginx.pid;
error_log $dir/error.log;
events { worker_connections 200; }
http {
	access_log off;
	keepalive_requests 1000000;
	keepalive_timeout 1h;
	send_timeout 1h;
	sendfile on;
	client_body_temp_path $dir/t1; proxy_temp_path $dir/t2; fastcgi_temp_path $dir/t3; uwsgi_temp_path $dir/t4; scgi_temp_path $dir/t5;
	client_max_body_size 100m;
	upstream behind { server 127.0.0.1:$3; keepalive 4; }
	server {
		listen 127.0.0.1:$2;
		listen unix:$dir/sock;
		location / { proxy_pass http://behind; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; proxy_read_timeout 1h; }
		location /files/ { alias $dir/files/; }
	}
}
EOF
mkdir behind files
for ((i = 0; i < 5; i++)); do
	yes "file $i" | head -c $((100 * 13 ** i / 7)) > "files/$i"
done
"$4" "$dir/behind" "$3" 9>&- &
behind=$!
serve nginx -c "$dir/nginx.conf" -e "$dir/error.log"
answers test -S behind/sock -a -S sock -a -s nginx.pid
clients "$2"
checked
unclient
ended QUIT
[ -s error.log ] && grep -q -v -F -e '[notice]' error.log && finish "nginx says: $(grep -v -F '[notice]' error.log | head -5)"
kill -TERM $behind
wait $behind || finish "the server behind ended with status $?"
finish
