package localpg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// poll is how often a file or a process is looked at; starting a server takes
// some 50 ms.
const poll = 5 * time.Millisecond

// waitReady waits for the word "ready" that the server writes into the eighth
// line of postmaster.pid when it accepts connections (pg_ctl does the same).
func (s *Server) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	for {
		if lines := s.pidFile(); len(lines) >= 8 && lines[0] == strconv.Itoa(s.proc.Pid()) && lines[7] == "ready" {
			return nil
		}
		select {
		case <-s.proc.Done():
			return fmt.Errorf("it ended while starting (%v)", s.proc.Err())
		case <-ctx.Done():
			return fmt.Errorf("it is not ready: %w", ctx.Err())
		case <-time.After(poll):
		}
	}
}

// waitForOld waits until no process works in the data folder any more. After
// kill -9 of the server its processes need a moment to notice; after kill -9
// of a launcher its server is still shutting down.
func (s *Server) waitForOld(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for {
		pid := processIn(s.opts.Dir)
		if pid == 0 {
			// What a killed server leaves would stop the next one, if its number
			// happens to be in use by another program (usual in containers).
			err := os.Remove(filepath.Join(s.opts.Dir, "postmaster.pid"))
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("localpg: process %d is already serving the database in %s; stop it first", pid, s.opts.Dir)
		case <-time.After(poll):
		}
	}
}

func (s *Server) pidFile() []string {
	b, err := os.ReadFile(filepath.Join(s.opts.Dir, "postmaster.pid"))
	if err != nil {
		return nil
	}
	lines := strings.Split(string(b), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return lines
}

// processIn returns a live PostgreSQL process whose working folder is dir (that is
// true of a server and of all its processes), or 0.
func processIn(dir string) int {
	for _, pid := range processes() {
		cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		if err != nil || cwd != dir {
			continue
		}
		if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && strings.HasPrefix(string(comm), "postgres") {
			return pid
		}
	}
	return 0
}

// childrenOf lists the processes that parent started.
func childrenOf(parent int) []int {
	var found []int
	for _, pid := range processes() {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it has ended
		}
		// "pid (name) state ppid …"; the name may hold anything, so cut after it.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(parent) {
			found = append(found, pid)
		}
	}
	return found
}

func processes() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil // no /proc on this system: the server's own lock file must do
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("localpg: no free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// temporaryFolder makes localpg-PID-… in the temporary folder, and deletes
// those that killed processes have left.
func temporaryFolder() (string, error) {
	left, _ := filepath.Glob(filepath.Join(os.TempDir(), "localpg-*-*"))
	for _, dir := range left {
		owner, err := strconv.Atoi(strings.Split(filepath.Base(dir), "-")[1])
		if err == nil && errors.Is(syscall.Kill(owner, 0), syscall.ESRCH) && processIn(filepath.Join(dir, "data")) == 0 {
			_ = os.RemoveAll(dir) // best effort: it may be another user's
		}
	}
	base, err := os.MkdirTemp("", fmt.Sprintf("localpg-%d-", os.Getpid()))
	if err != nil {
		return "", err
	}
	return base, os.Chmod(base, 0o755) // as root, the user postgres must get through
}

// locale is C.UTF-8 where the system has it. Both sort by code point, as Go does.
var locale = sync.OnceValue(func() string {
	out, err := exec.Command("locale", "-a").Output()
	if err != nil {
		return "C"
	}
	for _, l := range strings.Fields(string(out)) {
		if strings.EqualFold(l, "C.UTF-8") || strings.EqualFold(l, "C.utf8") {
			return l
		}
	}
	return "C"
})

// logSince returns what the log at path holds after from, at most its last 4 kB.
func logSince(path string, from int64) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = f.Close() }()
	if end, err := f.Seek(0, io.SeekEnd); err == nil && end-from > 4096 {
		from = end - 4096
	}
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return err.Error()
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b))
}
