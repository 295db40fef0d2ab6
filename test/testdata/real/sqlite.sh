# sqlite3 in a transaction: rows inserted by a client that feeds it slowly through a pipe, sums and an integrity check at the end
. "${BASH_SOURCE%/*}/lib.sh"
{
	echo "CREATE TABLE t(id INTEGER PRIMARY KEY, v INTEGER, s TEXT); CREATE INDEX i ON t(s); BEGIN IMMEDIATE;"
	for ((i = 0; i < 150; i++)); do
		echo "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 400) INSERT INTO t(v, s) SELECT x * $i, hex(x * $i) FROM c;"
		sleep 0.02
	done
	echo "COMMIT; SELECT count(*), sum(v) FROM t; PRAGMA integrity_check;"
} | sqlite3 data.db > out 2>&1
# the sum over i < 150 and x <= 400 of i * x
want="60000|$((149 * 150 / 2 * 400 * 401 / 2)) ok"
[ "$(tr '\n' ' ' < out | sed 's/ $//')" = "$want" ] || finish "sqlite3 says $(head -c 300 out), want $want"
[ "$(sqlite3 data.db 'SELECT count(*) FROM t')" = 60000 ] || finish "rows in the file: $(sqlite3 data.db 'SELECT count(*) FROM t')"
finish
