# xz and sha256sum of a large file in a pipe
. "${BASH_SOURCE%/*}/lib.sh"
seq 1 1500000 > big
xz -2 -T1 -c < big | tee big.xz | sha256sum > sum
[ "$(sha256sum < big.xz)" = "$(cat sum)" ] || finish "what sha256sum read is not what xz wrote"
xz -dc big.xz | sha256sum > back
[ "$(cat back)" = "$(sha256sum < big)" ] || finish "unpacked, it differs from the original"
finish
