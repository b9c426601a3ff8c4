package localpg

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// ErrNoPrograms says that no PostgreSQL server is installed.
var ErrNoPrograms = errors.New("localpg: no PostgreSQL server programs found: looked for initdb and postgres in PATH, " +
	"/usr/lib/postgresql/*/bin, /usr/pgsql-*/bin and `pg_config --bindir`; install PostgreSQL 15 or later " +
	"(Debian, Ubuntu: apt-get install postgresql)")

// MinVersion is the oldest major version the platform works with.
const MinVersion = 15

// Programs returns the folder with the newest server programs of this machine.
var Programs = sync.OnceValues(findPrograms)

func findPrograms() (string, error) {
	var candidates []string
	if p, err := exec.LookPath("initdb"); err == nil {
		if real, err := filepath.EvalSymlinks(p); err == nil { // the extensions are beside the real program
			p = real
		}
		candidates = append(candidates, filepath.Dir(p))
	}
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin"} {
		found, _ := filepath.Glob(pattern) // the only error is a bad pattern
		candidates = append(candidates, found...)
	}
	if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
		candidates = append(candidates, strings.TrimSpace(string(out)))
	}
	best, bestVersion := "", 0
	for _, dir := range candidates {
		if v := serverVersion(dir); v > bestVersion {
			best, bestVersion = dir, v
		}
	}
	switch {
	case best == "":
		return "", ErrNoPrograms
	case bestVersion < MinVersion:
		return "", fmt.Errorf("localpg: the newest PostgreSQL on this machine is %d (%s); %d or later is needed", bestVersion, best, MinVersion)
	}
	return best, nil
}

// serverVersion is the major version of the server in dir, 0 when dir is not
// a complete set of server programs.
func serverVersion(dir string) int {
	if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil {
		return 0
	}
	out, err := exec.Command(filepath.Join(dir, "postgres"), "--version").Output() // "postgres (PostgreSQL) 15.20 (Debian …)"
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(out), "(PostgreSQL) ")
	major := strings.FieldsFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if len(major) == 0 {
		return 0
	}
	v, _ := strconv.Atoi(major[0])
	return v
}

// HasCitus reports whether the installation that Programs found offers the
// citus extension.
func HasCitus() bool {
	bin, err := Programs()
	if err != nil {
		return false
	}
	libs := []string{filepath.Join(bin, "..", "lib"), filepath.Join(bin, "..", "lib", "postgresql")}
	if out, err := exec.Command(filepath.Join(bin, "pg_config"), "--pkglibdir").Output(); err == nil {
		libs = append(libs, strings.TrimSpace(string(out)))
	}
	for _, dir := range libs {
		if _, err := os.Stat(filepath.Join(dir, "citus.so")); err == nil {
			return true
		}
	}
	return false
}
