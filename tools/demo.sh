#!/bin/bash
# The main job: a counting program is checkpointed, killed, restored, and counts on.
# Usage: demo.sh BINDIR
set -eu
bin=$(cd "$1" && pwd)

# An ordinary user may not choose pids but in a namespace of his own.
ns=
[ "$(id -u)" -eq 0 ] || ns=--userns
PATH=$bin:$PATH
dir=$(mktemp -d)
pid=
cleanup() {
	[ -z "$pid" ] || kill -9 "$pid" 2>/dev/null || :
	rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 1' INT TERM HUP
cd "$dir"

show() { printf '\n$ %s\n' "$*"; }
last() {
	n=$(tail -n 1 count)
	echo "${n:-0}"
}
# Waits until the last line of the file is over $1.
past() {
	tries=0
	until [ "$(last)" -gt "$1" ]; do
		tries=$((tries + 1))
		[ $tries -lt 100 ] || { echo "demo: it does not count" >&2; exit 1; }
		sleep 0.1
	done
}
gone() { ! kill -0 "$1" 2>/dev/null || grep -q '^State:.Z' "/proc/$1/status" 2>/dev/null; }

show "a program that counts: every number once, into a file that it holds open"
cat >counter.sh <<'END'
i=0
while :; do
	i=$((i + 1))
	echo $i
	sleep 0.1
done
END
(
	# Whatever else this script may have been given, a pipe of a CI runner say, is not the job's.
	for fd in /proc/self/fd/*; do
		fd=${fd##*/}
		[ "$fd" -le 2 ] || eval "exec $fd>&-"
	done
	exec setsid sh counter.sh >count 2>/dev/null </dev/null
) &
pid=$!
disown "$pid"
past 5
echo "pid $pid has counted to $(last)"

show "cr-dump --kill $pid > job.cr"
cr-dump --kill "$pid" >job.cr
gone "$pid" || { echo "demo: it still runs" >&2; exit 1; }
before=$(last)
echo "the image has $(wc -c <job.cr) bytes; pid $pid is gone; the count stands at $before"

show "cr-filter list < job.cr | head -n 5"
cr-filter list <job.cr >list
head -n 5 list

show "cr-restore${ns:+ $ns} < job.cr"
# A zombie of that pid would be in the way; the shell reaps it in a moment.
tries=0
while kill -0 "$pid" 2>/dev/null && [ $tries -lt 50 ]; do
	tries=$((tries + 1))
	sleep 0.1
done
old=$pid
cr-restore $ns --pid-file pid <job.cr >job.ticket
pid=$(cat pid)
past $((before + 5))
echo "pid $old is back and has counted on to $(last)"

# Nothing was counted twice or left out.
kill -9 "$pid"
lines=$(wc -l <count)
seq "$lines" | cmp - count
echo
echo "Every number from 1 to $lines once: it never noticed."
