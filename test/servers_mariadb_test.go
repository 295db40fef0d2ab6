package test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// mariadbServer is MariaDB: every client counts in a table of its own.
var mariadbServer = server{name: "mariadb", script: "mariadb.sh", needs: []string{"mariadb", "mariadb-install-db", "/usr/sbin/mariadbd"}, load: mariadbLoad}

func mariadbLoad(l *load, dir, port string) {
	for _, network := range l.networks() {
		l.start(l.name("sql", network), func(c *client) error {
			table := strings.ReplaceAll(c.name, ".", "_")
			args := []string{"--no-defaults", "--batch", "--skip-column-names", "--unbuffered", "--skip-reconnect", "--user=anybody", "--database=t"}
			if network == "unix" {
				args = append(args, "--socket="+filepath.Join(dir, "sock"))
			} else {
				args = append(args, "--protocol=tcp", "--host=127.0.0.1", "--port="+port)
			}
			cmd := exec.Command("mariadb", append(args, "--init-command=CREATE TABLE "+table+" (n INT AUTO_INCREMENT PRIMARY KEY, text TEXT)")...)
			return countBySQL(c, cmd, func(n int) string {
				return fmt.Sprintf("INSERT INTO %s (text) VALUES (REPEAT('x', 1 + %d %% 3000)) RETURNING n;", table, n)
			}, filepath.Join(dir, "counted-"+table))
		})
	}
}
