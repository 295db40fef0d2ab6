# What the scripts of servers share. The server runs until there is DIR/check; then what works with it inside the tree is waited for, it is told to end, and
# has to end well.
. "${BASH_SOURCE%/*}/lib.sh"
mkfifo tick
exec 9<> tick
pause() { read -r -t "$1" -u 9 || :; }

server=
serve() { "$@" 9>&- & server=$!; } # serve COMMAND...

# answers COMMAND...: waits until it succeeds
answers() {
	local i
	for ((i = 0; i < 1200; i++)); do
		"$@" > /dev/null 2>&1 && return
		kill -0 "$server" || finish "the server has ended"
		pause 0.05
	done
	finish "the server does not answer to: $*"
}

clients=
# clients PORT: starts those inside of the tree, a test's own
clients() {
	"$CLIENTS" "$dir" "$1" 9>&- &
	clients=$!
	answers test -e clients
}

unclient() { # ends them
	kill -TERM $clients
	wait $clients || finish "the clients inside of the tree ended with status $?"
}

checked() { # says that all is ready and waits for the end of the test
	: > ready
	until [ -e check ]; do
		kill -0 "$server" || finish "the server has ended"
		[ -z "$clients" ] || kill -0 $clients || unclient
		pause 0.05
	done
}

ended() { # ended SIGNAL: ends the server
	kill "-$1" "$server"
	wait "$server" || finish "the server ended with status $?"
}
