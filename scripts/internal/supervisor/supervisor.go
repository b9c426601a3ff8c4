// Package supervisor keeps programs running on a developer's machine: each is
// started, watched, started again when it ends by itself, and stopped in order.
package supervisor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/coditect/platform/shared/citus/localpg/child"
)

// Spec says what to run.
type Spec struct {
	Name string
	Path string
	Args []string
	Env  []string // added to the launcher's own
	Log  string   // file that gets what the program prints
	// Ready returns nil once the program can be used; it is asked again and again
	// until then. Nil: at once.
	Ready func(context.Context) error
	// Started is called after each start, when the program is ready: for what a
	// program forgets when it ends. Nil: nothing.
	Started func(context.Context) error
}

const (
	readyPatience = 20 * time.Second
	readyPoll     = 5 * time.Millisecond
	stopPatience  = 12 * time.Second // a function drains for up to 10 s
	steady        = 30 * time.Second // who ran so long starts with short pauses again
)

// Program is a supervised program.
type Program struct {
	spec Spec
	say  func(format string, args ...any)

	stop context.CancelFunc // of the watching goroutine
	done chan struct{}      // closed when it has ended

	mu   sync.Mutex
	proc *child.Process
}

// Start runs the program and returns when it is ready. From then on it is
// started again whenever it ends, until Stop; say tells the user.
func Start(ctx context.Context, spec Spec, say func(format string, args ...any)) (*Program, error) {
	p := &Program{spec: spec, say: say, done: make(chan struct{})}
	if err := p.start(ctx); err != nil {
		return nil, err
	}
	watch, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p.stop = cancel
	go p.watch(watch)
	return p, nil
}

// Pid is the number of the current process.
func (p *Program) Pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.proc.Pid()
}

// Stop asks the program to end and waits for it; one that does not is killed.
func (p *Program) Stop() error {
	p.stop()
	<-p.done
	p.mu.Lock()
	defer p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	if err := p.proc.Stop(ctx, syscall.SIGTERM); err != nil {
		return fmt.Errorf("%s: %w", p.spec.Name, err)
	}
	return nil
}

func (p *Program) start(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(p.spec.Log), 0o755); err != nil {
		return err
	}
	log, err := os.OpenFile(p.spec.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the program has its own copy
	cmd := exec.Command(p.spec.Path, p.spec.Args...)
	cmd.Env = append(os.Environ(), p.spec.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	proc, err := child.Start(cmd, syscall.SIGKILL)
	if err != nil {
		return fmt.Errorf("%s: %w", p.spec.Name, err)
	}
	p.mu.Lock()
	p.proc = proc
	p.mu.Unlock()
	if err := p.waitReady(ctx, proc); err != nil {
		_ = proc.KillGroup() // the first error is the one to tell
		<-proc.Done()
		return fmt.Errorf("%s: %w; it last said:\n%s", p.spec.Name, err, Tail(p.spec.Log, 5))
	}
	return nil
}

func (p *Program) waitReady(ctx context.Context, proc *child.Process) error {
	ctx, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	for p.spec.Ready != nil {
		err := p.spec.Ready(ctx)
		if err == nil {
			break
		}
		select {
		case <-proc.Done():
			return fmt.Errorf("it ended while starting (%v)", proc.Err())
		case <-ctx.Done():
			return fmt.Errorf("it is not ready: %w", errors.Join(ctx.Err(), err))
		case <-time.After(readyPoll):
		}
	}
	if p.spec.Started == nil {
		return nil
	}
	return p.spec.Started(ctx)
}

func (p *Program) watch(ctx context.Context) {
	defer close(p.done)
	pauses := backoff.NewExponentialBackOff()
	pauses.InitialInterval, pauses.MaxInterval = 100*time.Millisecond, 5*time.Second
	for {
		p.mu.Lock()
		proc := p.proc
		p.mu.Unlock()
		began := time.Now()
		select {
		case <-ctx.Done():
			return
		case <-proc.Done():
		}
		if time.Since(began) > steady {
			pauses.Reset()
		}
		pause := pauses.NextBackOff()
		p.say("%s ended (%s); starting it again in %v. It last said:\n%s", p.spec.Name, ending(proc), pause.Round(time.Millisecond), Tail(p.spec.Log, 3))
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		if err := p.start(ctx); err != nil && ctx.Err() == nil {
			p.say("%v", err)
		}
	}
}

func ending(proc *child.Process) string {
	if proc.Err() == nil {
		return "exit status 0"
	}
	return proc.Err().Error()
}

// Tail returns the last n lines of a file, indented.
func Tail(path string, n int) string {
	f, err := os.Open(path)
	if err != nil {
		return "  " + err.Error()
	}
	defer func() { _ = f.Close() }()
	if end, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, end-16<<10), io.SeekStart) // on failure: the whole file
	}
	var lines []string
	for s := bufio.NewScanner(f); s.Scan(); {
		lines = append(lines, "  "+s.Text())
	}
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
