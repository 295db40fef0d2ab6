# PostgreSQL with checksums, on 127.0.0.1:$2 and a socket in DIR, and pgbench on the latter inside the tree
. "${BASH_SOURCE%/*}/server.sh"
programs=(/usr/lib/postgresql/*/bin)
PATH=${programs[-1]}:$PATH
export PGHOST=$dir PGPORT=$2 PGUSER=postgres PGDATABASE=postgres
initdb --pgdata data --data-checksums --username postgres --auth trust --no-sync > initdb.log 2>&1 || finish "initdb: $(tail -3 initdb.log)"
serve postgres -D data -k "$dir" -p "$2" -c listen_addresses=127.0.0.1 -c max_connections=30 -c shared_buffers=8MB -c checkpoint_timeout=30s -c autovacuum_naptime=1s -c fsync=off
answers psql -c 'SELECT 1'
psql -qAt -c 'CREATE TABLE counter AS SELECT 0 AS n' || finish "psql: status $?"
pgbench --initialize --quiet > init.log 2>&1 || finish "pgbench -i: $(tail -3 init.log)"
: > ready
# Its connections are many short ones.
n=0
until [ -e check ]; do
	pgbench --no-vacuum --connect --client 2 --transactions 5 --rate 100 > inside.log 2>&1 || finish "pgbench inside the tree: $(cat inside.log)"
	grep -q 'failed transactions: 0 ' inside.log || finish "pgbench inside the tree: $(cat inside.log)"
	n=$((n + 10))
done
echo "$n" > inside
checked
pg_amcheck --all --install-missing --heapallindexed > amcheck.log 2>&1 || finish "pg_amcheck: $(head -20 amcheck.log)"
psql -qAt -c 'SELECT sum(abalance) FROM pgbench_accounts' -c 'SELECT sum(tbalance) FROM pgbench_tellers' -c 'SELECT sum(bbalance) FROM pgbench_branches' \
	-c 'SELECT sum(delta) FROM pgbench_history' > sums || finish "psql: status $?"
[ "$(uniq sums | wc -l)" = 1 ] || finish "the sums of accounts, tellers, branches and history: $(tr '\n' ' ' < sums)"
transactions=$(psql -qAt -c 'SELECT count(*) FROM pgbench_history')
[ "$transactions" = $((n + $(cat outside))) ] || finish "$transactions transactions, want $n of inside and $(cat outside) of outside"
counted=$(psql -qAt -c 'SELECT n FROM counter')
[ "$counted" = "$(cat counted)" ] || finish "the counter is $counted, want $(cat counted)"
ended INT
pg_checksums --check -D data > checksums.log 2>&1 || finish "pg_checksums: $(cat checksums.log)"
finish
