# What the scripts of real programs share. $1 is the directory to work in.
set -u
dir=$1
cd "$dir" || exit 1
export TMPDIR=$dir
finish() { # finish MESSAGE...: nothing when all is right
	cd "$dir" || exit 1
	if [ $# -eq 0 ]; then echo ok > done.new; else echo "$*" >> report; echo bad > done.new; fi
	mv done.new "done"
	[ $# -eq 0 ]
	exit
}
