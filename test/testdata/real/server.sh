# What the scripts of servers share. The server runs until there is DIR/check; then what works with it inside the tree is waited for, it is told to end, and
# has to end well.
. "${BASH_SOURCE%/*}/lib.sh"
mkfifo tick
exec 9<> tick
pause() { read -r -t "$1" -u 9 || :; }

server=
serve() { "$@" 9>&- & server=$!; } # serve COMMAND...

# answers COMMAND...: waits until it succeeds, and says that the server is ready
answers() {
	local i
	for ((i = 0; i < 1200; i++)); do
		if "$@" > /dev/null 2>&1; then
			: > ready
			return
		fi
		kill -0 "$server" || finish "the server has ended"
		pause 0.05
	done
	finish "the server does not answer to: $*"
}

checked() { # waits for the end of the test
	until [ -e check ]; do
		kill -0 "$server" || finish "the server has ended"
		pause 0.05
	done
}

ended() { # ended SIGNAL: ends the server
	kill "-$1" "$server"
	wait "$server" || finish "the server ended with status $?"
}
