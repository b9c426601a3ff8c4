package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	osexec "os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coditect/platform/shared/citus/localpg/child"
)

// load is a pgbench that runs until it is stopped, and what it says of each second.
type load struct {
	proc *child.Process
	read sync.WaitGroup

	mu      sync.Mutex
	seconds []second
	said    []string // all other lines
}

// second is one line of pgbench's progress.
type second struct {
	end           time.Time
	rate, latency float64 // transactions a second; milliseconds
}

// window is what a load did in some time.
type window struct {
	rate, worst, latency float64
}

// neighbourScript is one transaction of a tenant, as the door makes it: enter, read, update, insert.
func (t filledTenant) neighbourScript() string {
	task, comment := t.schema+".task", t.schema+".comment" // prepared before the tenant is entered: its search_path is not set yet
	id := "'" + t.id.String() + "'"
	one := func(i string) string {
		return `id = (SELECT id FROM ` + task + ` WHERE tenant_id = ` + id + ` AND id >= ` + taskFrom(i) + ` ORDER BY id LIMIT 1)`
	}
	return fmt.Sprintf(`\set a random(1, %d)
\set b random(1, %[1]d)
\startpipeline
BEGIN;
%s
SELECT id, title, description, status, priority, version FROM %s WHERE tenant_id = %s AND %s;
UPDATE %[3]s SET priority = :a %% 5, version = version + 1, updated_at = now() WHERE tenant_id = %[4]s AND %[6]s;
INSERT INTO %[7]s (tenant_id, id, task_id, author, body, created_at, updated_at) SELECT %[4]s, gen_random_uuid(), id, 'pgbench', 'A comment of some length, written while others move', now(), now() FROM %[3]s WHERE tenant_id = %[4]s AND %[6]s;
COMMIT;
\endpipeline
`, t.tasks, strings.ReplaceAll(strings.ReplaceAll(enterPlain, "\n", " "), ":a1", id), task, id, one(":a"), one(":b"), comment)
}

// startLoad starts pgbench with scripts that it chooses from at random.
func startLoad(ctx context.Context, dsn string, clients int, scripts []string) (*load, error) {
	dir, err := os.MkdirTemp("", "pgbench")
	if err != nil {
		return nil, err
	}
	const longer = 24 * 60 * 60 // seconds: than any benchmark
	args := []string{"-n", "-M", "prepared", "-c", strconv.Itoa(clients), "-j", "1", "-P", "1", "--progress-timestamp", "-T", strconv.Itoa(longer)}
	for i, text := range scripts {
		path := filepath.Join(dir, strconv.Itoa(i)+".sql")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
		args = append(args, "-f", path)
	}
	path, err := serverProgram("pgbench")
	if err != nil {
		return nil, err
	}
	cmd := osexec.Command(path, append(args, dsn)...)
	out, in := io.Pipe()
	cmd.Stdout, cmd.Stderr = in, in
	l := &load{}
	if l.proc, err = child.Start(cmd, syscall.SIGKILL); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	l.read.Go(func() {
		defer func() { _ = os.RemoveAll(dir) }()
		for lines := bufio.NewScanner(out); lines.Scan(); {
			l.take(lines.Text())
		}
	})
	go func() { <-l.proc.Done(); _ = in.Close() }()
	if err := l.running(ctx); err != nil {
		return nil, errors.Join(err, l.stop())
	}
	return l, nil
}

var stamped = regexp.MustCompile(`^progress: ([0-9.]+) s, ([0-9.]+) tps, lat ([0-9.]+) ms`)

func (l *load) take(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := stamped.FindStringSubmatch(line)
	if m == nil {
		l.said = append(l.said, line)
		return
	}
	var v [3]float64
	for i := range v {
		v[i], _ = strconv.ParseFloat(m[1+i], 64) // digits, by the expression
	}
	l.seconds = append(l.seconds, second{time.UnixMilli(int64(v[0] * 1000)), v[1], v[2]})
}

// running returns when pgbench has told of its first second.
func (l *load) running(ctx context.Context) error {
	for {
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
		l.mu.Lock()
		n, err := len(l.seconds), l.complaint()
		l.mu.Unlock()
		select {
		case <-l.proc.Done():
			return errors.Join(err, errors.New("pgbench ended early"))
		default:
		}
		if err != nil || n > 0 {
			return err
		}
	}
}

// complaint is an error if pgbench has said that a client gave up; the caller holds the lock.
func (l *load) complaint() error {
	for _, line := range l.said {
		if aborted.MatchString(line) {
			return fmt.Errorf("pgbench: %.1500s", strings.Join(l.said, "\n"))
		}
	}
	return nil
}

// between tells of the seconds that are wholly between two times.
func (l *load) between(from, to time.Time) (w window, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.complaint(); err != nil {
		return w, err
	}
	n := 0.0
	for _, s := range l.seconds {
		if s.end.Add(-time.Second).Before(from) || s.end.After(to) {
			continue
		}
		if n == 0 || s.rate < w.worst {
			w.worst = s.rate
		}
		w.rate += s.rate
		w.latency += s.latency
		n++
	}
	if n < 3 {
		return w, fmt.Errorf("the phase took %.1f s: too short to count; move more", to.Sub(from).Seconds())
	}
	w.rate, w.latency = w.rate/n, w.latency/n
	return w, nil
}

// stop ends pgbench; it may be called twice.
func (l *load) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := l.proc.Stop(ctx, syscall.SIGTERM)
	l.read.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(err, l.complaint())
}
