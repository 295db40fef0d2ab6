# gcc under make -j2: a generated C project is built; the program then says the sum that it should
. "${BASH_SOURCE%/*}/lib.sh"
mkdir project && cd project || finish "no directory"
n=14
{
	echo 'int main(void) { long s = 0; extern int printf(const char *, ...);'
	for ((i = 0; i < n; i++)); do echo "	{ extern long f$i(long); s += f$i($i); }"; done
	echo '	printf("%ld\n", s); return 0; }'
} > main.c
for ((i = 0; i < n; i++)); do
	echo "#include <stdio.h>"
	echo "#include <stdlib.h>"
	echo "#include <string.h>"
	for ((k = 0; k < 60; k++)); do
		echo "static long g$k(long x, const char *s) { char b[64]; long r = 0; for (int i = 0; i < 50; i++) { snprintf(b, sizeof b, \"%ld%s\", x + i, s); r += strtol(b, NULL, 10) % (i + $k + 2); if (r > 1000) r -= $k; } return r * 0 + x + $k; }"
	done
	echo "long f$i(long x) { long s = 0;"
	for ((k = 0; k < 60; k++)); do echo "	s += g$k(x, \"\");"; done
	echo "	return s; }"
done > all.c
awk -v n=$n 'BEGIN { i = 0; f = "unit0.c" } { print > f } /^\treturn s; }/ { close(f); i++; f = "unit" i ".c" }' all.c
printf 'OBJS := main.o $(patsubst %%,unit%%.o,%s)\nprogram: $(OBJS)\n\tgcc -o $@ $^\n%%.o: %%.c\n\tgcc -O2 -c -o $@ $<\n' "$(seq -s ' ' 0 $((n - 1)))" > Makefile
make -j2 > make.log 2>&1 || finish "make failed: $(tail -3 make.log)"
# the sum over i < n and k < 60 of i + k
want=$((60 * n * (n - 1) / 2 + n * 60 * 59 / 2))
got=$(./program)
[ "$got" = $want ] || finish "the program says $got, want $want"
finish
