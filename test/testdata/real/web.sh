# A server that is given behind the port, on 127.0.0.1:$2 and DIR/sock
. "${BASH_SOURCE%/*}/server.sh"
serve "${@:3}" "$dir" "$2"
answers test -S sock
clients "$2"
checked
unclient
ended TERM
finish
