#!/bin/sh
# Installs the Debian packages whose programs the tests run. Does nothing when
# all are there. Without root or apt it says what is missing; the tests that need
# it are then skipped, with the reason.
set -eu

# program:package. A program is looked for in PATH, a path as it stands or as a pattern.
wanted='
bash:bash
awk:mawk
gcc:gcc
/usr/include/stdio.h:libc6-dev
/usr/include/gnu/stubs-32.h:gcc-multilib
make:make
xz:xz-utils
sqlite3:sqlite3
perl:perl
python3:python3
node:nodejs
javac:openjdk-17-jdk-headless
redis-server:redis-server
nginx:nginx-light
haproxy:haproxy
/usr/lib/postgresql/*/bin/postgres:postgresql
/usr/sbin/mariadbd:mariadb-server
nc:netcat-openbsd
ip:iproute2
ps:procps
strace:strace
mandoc:mandoc
vim:vim
less:less
tmux:tmux
unshare:util-linux
setsid:util-linux
'

missing=
for pair in $wanted; do
	program=${pair%%:*}
	case $program in
	/*) for found in $program; do [ -e "$found" ] && continue 2; done ;; # a pattern is one here
	*) command -v "$program" >/dev/null 2>&1 && continue ;;
	esac
	package=${pair#*:}
	case " $missing " in
	*" $package "*) ;;
	*) missing="$missing $package" ;;
	esac
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
	echo "some tests will be skipped; they use the Debian packages:$missing" >&2
	exit 0
fi
export DEBIAN_FRONTEND=noninteractive
# Servers are started by the tests alone: invoke-rc.d(8) asks this file whether a package may start what it brings.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	trap 'rm -f "$policy"' EXIT
	printf '#!/bin/sh\nexit 101\n' > "$policy"
	chmod 755 "$policy"
fi
for attempt in 1 2 3; do
	# shellcheck disable=SC2086 # a list of words
	if apt-get -qq update && apt-get -qq install -y --no-install-recommends $missing; then
		exit 0
	fi
	echo "installing$missing: attempt $attempt failed" >&2
	sleep 5
done
exit 1
