// Command testrun is the heart of scripts/test and scripts/soak: it starts one blue
// and one green PostgreSQL server for all test packages, runs `go test` with the
// arguments it is given, and removes the servers again, whatever happens.
//
// It prints what `go test` prints, and then what `go test` keeps quiet about when
// everything is fine: how many tests ran, which were skipped, and whether those
// that need Citus ran.
//
//	testrun [-live] GO-TEST-ARGUMENTS
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/coditect/platform/shared/citus/localpg"
	"github.com/coditect/platform/shared/citus/localpg/child"
)

func main() {
	args := os.Args[1:]
	live := len(args) > 0 && args[0] == "-live"
	if live {
		args = args[1:]
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code, err := run(args, live, signals)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testrun:", err)
		code = 1
	}
	os.Exit(code)
}

func run(args []string, live bool, signals <-chan os.Signal) (code int, err error) {
	servers, env, err := startServers()
	defer func() {
		for _, s := range servers {
			err = errors.Join(err, s.Remove())
		}
	}()
	if err != nil {
		return 1, err
	}
	out := newReport(os.Stdout, live)
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	cmd.WaitDelay = 5 * time.Second // a test's forgotten child may hold the pipe
	// In a group of its own: a signal reaches everything that go test has started.
	p, err := child.Start(cmd, syscall.SIGINT)
	if err != nil {
		return 1, err
	}
	if !wait(p, signals) {
		return 130, errors.New("interrupted")
	}
	out.summary(localpg.HasCitus())
	if p.Err() != nil || !out.good() {
		return 1, nil
	}
	return 0, nil
}

// wait returns when p has ended: true when by itself, false when by a signal.
func wait(p *child.Process, signals <-chan os.Signal) bool {
	select {
	case <-p.Done():
		return true
	case <-signals:
	}
	_ = syscall.Kill(-p.Pid(), syscall.SIGINT) // it may have ended at this moment
	select {
	case <-p.Done():
	case <-time.After(10 * time.Second):
		_ = p.KillGroup() // as above
		<-p.Done()
	}
	return false
}

// settings give up durability, which a test that is not about crashes does not need,
// and make room for several test binaries at a time.
var settings = map[string]string{"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "max_connections": "400"}

// startServers starts the servers that the environment does not name. It returns
// those it has started also beside an error.
func startServers() (servers []*localpg.Server, env []string, err error) {
	for _, name := range []string{"CODITECT_TEST_BLUE", "CODITECT_TEST_GREEN"} {
		if os.Getenv(name) != "" {
			continue
		}
		s, err := localpg.Start(context.Background(), localpg.Options{Settings: settings})
		if err != nil {
			return servers, nil, err
		}
		servers = append(servers, s)
		env = append(env, name+"="+s.DSN("postgres", "postgres"))
	}
	return slices.Clip(servers), env, nil
}
