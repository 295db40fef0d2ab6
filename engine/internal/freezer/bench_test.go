package freezer

import "testing"

// BenchmarkFreezeThaw stops and continues a process of 24 threads, of which one computes.
func BenchmarkFreezeThaw(b *testing.B) {
	for _, way := range allWays {
		b.Run(string(way), func(b *testing.B) {
			needRoot(b, way)
			g := start(b, "", build(b, "blocked"), "LOG", "1", "BEATS")
			for b.Loop() {
				st, err := Freeze(Options{Roots: []int{g.pid}, Way: way})
				if err != nil {
					b.Fatal(err)
				}
				if err := Thaw(st, ThawOptions{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
