# awk | sort | uniq, with more lines than sort keeps in memory, so that it has temporary files open
. "${BASH_SOURCE%/*}/lib.sh"
awk 'BEGIN { for (i = 0; i < 1200000; i++) print (i * 7919) % 1000 }' | sort -n -S 4M | uniq -c > out
[ "$(wc -l < out)" = 1000 ] || finish "$(wc -l < out) different lines, want 1000"
[ "$(awk '$1 != 1200 || $2 != NR - 1 { bad++ } END { print bad + 0 }' out)" = 0 ] || finish "$(awk '$1 != 1200 || $2 != NR - 1' out | head -3)"
finish
