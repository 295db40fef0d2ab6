package sockets

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"crpipe/engine/internal/procfs"
)

// holders names the processes that have a TCP socket bound to a port, as far as the caller may see them: "pid 4711 (nginx)".
func holders(port uint16) []string {
	inodes := map[string]bool{}
	for _, name := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		portInodes(name, port, inodes)
	}
	if len(inodes) == 0 {
		return nil
	}
	var who []string
	all, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range all {
		target, err := os.Readlink(link)
		if err != nil || !inodes[target] {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(link, "/")[2])
		if err != nil || pid == os.Getpid() {
			continue
		}
		name := fmt.Sprintf("pid %d", pid)
		if st, err := procfs.ReadStat(pid); err == nil {
			name += " (" + st.Comm + ")"
		}
		if !slices.Contains(who, name) {
			who = append(who, name)
		}
	}
	return who
}

// portInodes adds the links in /proc/PID/fd of the sockets that a table (proc_net_tcp.rst) shows at a port.
func portInodes(table string, port uint16, to map[string]bool) {
	f, err := os.Open(table)
	if err != nil {
		return
	}
	defer f.Close()
	want := fmt.Sprintf(":%04X", port)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		columns := strings.Fields(lines.Text())
		if len(columns) > 9 && strings.HasSuffix(columns[1], want) && columns[9] != "0" {
			to["socket:["+columns[9]+"]"] = true
		}
	}
}
