package test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// postgresServer is PostgreSQL, which insists on not being root, under pgbench, on four connections that last for seconds and inside of the tree on one for each
// transaction, and with a psql that counts.
var postgresServer = server{name: "postgres", script: "postgres.sh", needs: []string{"/usr/lib/postgresql/*/bin/postgres", "pgbench", "psql"}, user: 65534, load: postgresLoad}

func postgresLoad(l *load, dir, port string) {
	l.start("psql", func(c *client) error {
		return countBySQL(c, postgresClient(port, "psql", "-qAtX", "-v", "ON_ERROR_STOP=1"),
			func(int) string { return "UPDATE counter SET n = n + 1 RETURNING n;" }, filepath.Join(dir, "counted"))
	})
	outside, longest := 0, 0
	l.start("pgbench", func(c *client) error {
		for run := 0; !c.stopped(); run++ {
			n, err := pgbench(c, port, filepath.Join(dir, fmt.Sprintf("transactions-%d", run)), &longest)
			if err != nil {
				return err
			}
			outside += n
		}
		l.t.Logf("pgbench: %d transactions, the longest took %v", outside, time.Duration(longest)*time.Microsecond)
		return os.WriteFile(filepath.Join(dir, "outside"), fmt.Appendf(nil, "%d\n", outside), 0o644)
	})
}

// postgresClient is a program on a TCP connection.
func postgresClient(port, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8", "PGHOST=127.0.0.1", "PGPORT=" + port, "PGUSER=postgres", "PGDATABASE=postgres"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}

// pgbench works for some seconds and returns how many transactions were made, all of them acknowledged.
func pgbench(c *client, port, log string, longest *int) (int, error) {
	cmd := postgresClient(port, "pgbench", "--no-vacuum", "--client=4", "--jobs=2", "--time=3", "--progress=1", "--log", "--log-prefix="+log)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	cmd.Stderr = cmd.Stdout // what it says while it works
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	hung := time.AfterFunc(time.Until(deadline()), func() { _ = cmd.Process.Kill() })
	defer hung.Stop()
	var said strings.Builder
	made, failed := -1, -1
	for lines := bufio.NewScanner(out); lines.Scan(); {
		line := lines.Text()
		fmt.Fprintln(&said, line)
		if strings.HasPrefix(line, "progress: ") && !strings.Contains(line, " 0.0 tps") {
			c.answered()
		}
		_, _ = fmt.Sscanf(line, "number of transactions actually processed: %d", &made) // another line
		_, _ = fmt.Sscanf(line, "number of failed transactions: %d", &failed)
	}
	if err := cmd.Wait(); err != nil || made < 0 || failed != 0 {
		return 0, fmt.Errorf("%v:\n%s", err, said.String())
	}
	logs, err := filepath.Glob(log + ".*")
	if err != nil {
		return 0, err
	}
	for _, name := range logs {
		data, err := os.ReadFile(name)
		if err != nil {
			return 0, err
		}
		for _, line := range strings.Split(string(data), "\n") {
			var id, nr, took int
			if _, err := fmt.Sscan(line, &id, &nr, &took); err == nil {
				*longest = max(*longest, took)
			}
		}
	}
	return made, nil
}
