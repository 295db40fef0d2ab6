# bash: a loop of pipelines, command substitutions, here-strings and background jobs with wait
. "${BASH_SOURCE%/*}/lib.sh"
n=60 sum=0 text=0
trap 'caught=1' USR1
for ((i = 1; i <= n; i++)); do
	s=$(seq 1 $i | awk '{ s += $1 } END { print s }')
	sum=$((sum + s))
	word=$(tr 0-9 a-j <<< "$i" | rev | tr -d '\n')
	text=$((text + ${#word}))
	(sleep 0.02; echo "$i" >> background) &
	if ((i % 15 == 0)); then wait; fi
done
wait
want=$((n * (n + 1) * (n + 2) / 6))
[ "$sum" = $want ] || finish "sum $sum, want $want"
[ "$text" = 111 ] || finish "length of all words $text, want 111"
[ "$(sort -n background | tr '\n' ' ')" = "$(seq 1 $n | tr '\n' ' ')" ] || finish "background jobs are missing or came twice: $(wc -l < background)"
finish
