# MariaDB, which reads and writes its files by io_uring, on 127.0.0.1:$2 and DIR/sock, with clients inside of the tree
. "${BASH_SOURCE%/*}/server.sh"
PATH=$PATH:/usr/sbin
mariadb-install-db --no-defaults --user=root --datadir="$dir/data" --auth-root-authentication-method=normal --skip-test-db > install.log 2>&1 || finish "mariadb-install-db: $(tail -3 install.log)"
serve mariadbd --no-defaults --user=root --datadir="$dir/data" --socket="$dir/sock" --port="$2" --bind-address=127.0.0.1 --tmpdir="$dir" --skip-name-resolve \
	--innodb-buffer-pool-size=16M --innodb-log-file-size=8M --innodb-flush-log-at-trx-commit=2 --log-error="$dir/error.log"
sql() { mariadb --no-defaults --socket="$dir/sock" --user=root --batch --skip-column-names --execute="$*"; }
answers sql "SELECT 1"
sql "CREATE DATABASE t; CREATE USER anybody; GRANT ALL ON t.* TO anybody" || finish "the database could not be made"
clients "$2"
checked
unclient
for counted in counted-*; do
	want=$(cat "$counted") table=${counted#counted-}
	have=$(sql "SELECT COUNT(*), MAX(n), COUNT(DISTINCT n), SUM(LENGTH(text) = 1 + n % 3000) FROM t.$table")
	[ "$have" = "$want	$want	$want	$want" ] || finish "the table $table has $have, want $want four times"
	said=$(sql "CHECK TABLE t.$table EXTENDED")
	[[ $said == *"	OK" ]] || finish "$said"
done
ended TERM
grep -F -e '[ERROR]' -e crash error.log && finish "mariadbd says: $(grep -F -e '[ERROR]' -e crash error.log | head -5)"
finish
