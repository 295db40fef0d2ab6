#!/bin/sh
# Runs every fuzz target of the module for a time, one after the other.
# Usage: fuzz.sh TIME
set -eu
time=${1:-30s}
go=${GO:-go}

# The package and name of each target, read from the sources: compiling every
# test binary only to ask it would take longer than the fuzzing.
targets=$(find . -name '*_test.go' -not -path './.git/*' | xargs grep -Ho '^func Fuzz[A-Za-z0-9_]*' |
	sed 's,/[^/]*:func , ,' | sort -u)
[ -n "$targets" ] || { echo "no fuzz target found" >&2; exit 1; }
said=$(mktemp)
trap 'rm -f "$said"' EXIT
echo "$targets" | while read -r package target; do
	echo "fuzz $package $target"
	# Now and then go's own end of the time is reported as a failure (context deadline exceeded), without an input that fails: then
	# once more.
	for try in 1 2 3; do
		status=0
		"$go" test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$package" </dev/null >"$said" 2>&1 || status=$?
		cat "$said"
		[ $status = 0 ] && break
		if [ $try = 3 ] || ! grep -q 'context deadline exceeded' "$said" || grep -q 'Failing input' "$said"; then
			exit $status
		fi
	done
done
