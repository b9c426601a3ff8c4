package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/coditect/platform/scripts/internal/ports"
	"github.com/coditect/platform/shared/citus/localpg/child"
)

// function is a function's program, built as for production.
type function struct {
	name, path string
	bytes      int64
}

// build builds functions, each stripped, and returns them in the order of the names.
func (b *bench) build(ctx context.Context, names ...string) ([]function, error) {
	dir, err := os.MkdirTemp("", "functions")
	if err != nil {
		return nil, err
	}
	b.later(func() error { return os.RemoveAll(dir) })
	var out []function
	for _, name := range names {
		f := function{name: name, path: filepath.Join(dir, name)}
		cmd := osexec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", f.path, "./functions/"+name+"/cmd")
		if text, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build function %s: %w: %s", name, err, text)
		}
		info, err := os.Stat(f.path)
		if err != nil {
			return nil, err
		}
		f.bytes = info.Size()
		out = append(out, f)
	}
	return out, nil
}

// allFunctions lists the folders of functions/.
func allFunctions() ([]string, error) {
	mains, err := filepath.Glob("functions/*/cmd/main.go")
	if err != nil || len(mains) == 0 {
		return nil, errors.Join(err, errors.New("no function found: start it from the repository's top folder"))
	}
	var out []string
	for _, m := range mains {
		out = append(out, filepath.Base(filepath.Dir(filepath.Dir(m))))
	}
	return out, nil
}

// process is a function that runs as a process of its own.
type process struct {
	addr    string
	started time.Time
	*child.Process
}

// serve starts a program on a free port; it returns without waiting for it.
func serve(path string, args []string, env []string) (*process, error) {
	port, err := ports.Free(0)
	if err != nil {
		return nil, err
	}
	return serveOn(port, path, args, env)
}

// serveOn starts a program on a port that others were told already.
func serveOn(port int, path string, args []string, env []string) (*process, error) {
	p := &process{addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port))}
	cmd := osexec.Command(path, args...)
	cmd.Env = append(os.Environ(), "HOST=127.0.0.1", "PORT="+strconv.Itoa(port))
	cmd.Env = append(cmd.Env, env...)
	// The request log is written, as in production, but not kept. No file: nobody reads it.
	p.started = time.Now()
	var err error
	p.Process, err = child.Start(cmd, syscall.SIGKILL)
	return p, err
}

// end asks the process to end and waits for it.
func (p *process) end() error {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	return p.Stop(ctx, syscall.SIGTERM)
}

// running starts a function and returns when it takes connections.
func (b *bench) running(ctx context.Context, path string, args, env []string) (*process, error) {
	p, err := serve(path, args, env)
	if err != nil {
		return nil, err
	}
	return p, b.ready(ctx, p)
}

// ready returns when a process takes connections, and has it ended with the benchmark.
func (b *bench) ready(ctx context.Context, p *process) error {
	b.later(p.end)
	conn, err := p.dial(ctx)
	if err != nil {
		return err
	}
	return conn.Close()
}

// dial connects as soon as the process listens.
func (p *process) dial(ctx context.Context) (net.Conn, error) {
	patience := time.NewTimer(20 * time.Second)
	defer patience.Stop()
	retry := time.NewTicker(250 * time.Microsecond)
	defer retry.Stop()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.addr)
		if err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-p.Done():
			return nil, fmt.Errorf("the program ended before it took a connection")
		case <-patience.C:
			return nil, err
		case <-retry.C:
		}
	}
}

// env is the configuration of a function, by environment as in production.
func (p *platform) env(name string, conns int) []string {
	role := "coditect_app"
	if name == "migrations" || name == "migrationstep" || name == "replication" {
		role = "coditect_migrator"
	}
	return []string{
		"K_SERVICE=" + name,
		"CODITECT_GREEN_DSN=" + p.greenDSN(role),
		"CODITECT_BLUE_DSN=" + p.blueDSN(role),
		"CODITECT_MAX_CONNS=" + strconv.Itoa(conns),
		"CODITECT_NEW_TENANT_HOME=blue",
		"CODITECT_TASKS_EMULATOR=127.0.0.1:1", // nothing is enqueued
		"CODITECT_STEP_URL=http://127.0.0.1:1/step",
	}
}
