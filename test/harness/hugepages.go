package harness

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// hugePages lets the kernel make huge pages as they are needed, while a fixture runs that has some, and puts back what the machine had
// afterwards. Where it cannot, the fixture says what it lacks.
func hugePages(t testing.TB, n int) {
	t.Helper()
	overcommit.Lock()
	defer overcommit.Unlock()
	data, err := os.ReadFile(overcommitFile)
	if err != nil {
		return
	}
	if now, err := strconv.Atoi(strings.TrimSpace(string(data))); err != nil || overcommit.users == 0 && now >= n {
		return
	}
	if overcommit.users == 0 {
		overcommit.was = data
		if err := os.WriteFile(overcommitFile, []byte(strconv.Itoa(n)), 0); err != nil {
			return
		}
	}
	overcommit.users++
	t.Cleanup(func() {
		overcommit.Lock()
		defer overcommit.Unlock()
		if overcommit.users--; overcommit.users > 0 {
			return
		}
		if err := os.WriteFile(overcommitFile, overcommit.was, 0); err != nil {
			t.Errorf("putting back vm.nr_overcommit_hugepages: %v", err)
		}
	})
}

const overcommitFile = "/proc/sys/vm/nr_overcommit_hugepages"

var overcommit struct {
	sync.Mutex
	users int
	was   []byte
}
