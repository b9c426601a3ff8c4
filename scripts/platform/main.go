// Command platform runs the whole platform on one machine: two PostgreSQL servers,
// Pub/Sub, the Cloud Tasks emulator, every function as a process of its own, one
// address in front of them, and the demo that moves tenants while they are
// written to. scripts/dev builds everything and executes it.
//
// It reads top-down: run → (*platform).start → the demo.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/coditect/platform/scripts/internal/statedir"
	"github.com/coditect/platform/scripts/internal/terminal"
)

type options struct {
	state   string
	bin     string
	fresh   bool
	port    int
	exit    bool
	report  string
	workers int
	tenants int
	demo    bool
}

func main() {
	var o options
	flag.StringVar(&o.state, "state", ".state/dev", "`folder` that keeps databases, keys and logs between starts")
	flag.StringVar(&o.bin, "bin", ".bin", "`folder` with the built programs")
	flag.BoolVar(&o.fresh, "fresh", false, "start over: delete the state folder first")
	flag.IntVar(&o.port, "port", 8080, "`port` of the one address in front of all functions")
	flag.BoolVar(&o.exit, "exit", false, "stop after the report, with a non-zero status if anything was lost, duplicated, different or failed")
	flag.StringVar(&o.report, "report", "", "`file` to write the report to, as JSON")
	flag.IntVar(&o.workers, "workers", 0, "make green a Citus coordinator with `N` workers, where this PostgreSQL offers Citus")
	flag.IntVar(&o.tenants, "tenants", 100, "`number` of our own tenants that the demo makes and moves, beside the 20 imported ones")
	flag.BoolVar(&o.demo, "demo", true, "import, write to and move the demo tenants; =false only serves")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "unknown argument %q; scripts/dev --help lists what there is\n", flag.Arg(0))
		os.Exit(2)
	}

	// The first Ctrl-C stops everything in order. The second ends this process at
	// once, and the kernel ends the children with it (see package child).
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop)

	console := terminal.New(os.Stdout)
	err := run(ctx, o, console)
	stop()
	switch {
	case err == nil:
	case errors.Is(err, errUnclean):
		os.Exit(1) // the report has said why
	case errors.Is(err, errInterrupted):
		os.Exit(130)
	default:
		console.Done()
		fmt.Fprintf(os.Stderr, "\nerror: %v\n", err)
		os.Exit(1)
	}
}

var (
	errUnclean     = errors.New("the report is not clean")
	errInterrupted = errors.New("interrupted before the report")
)

func run(ctx context.Context, o options, console *terminal.Console) (err error) {
	began := time.Now()
	state, err := statedir.Open(o.state)
	if err != nil {
		return err
	}
	defer func() { _ = state.Close() }()
	p := &platform{options: o, state: state, console: console}
	if o.fresh {
		if err := p.clear(); err != nil {
			return err
		}
	}
	defer func() {
		if ctx.Err() != nil {
			console.Done()
			console.Say("\nStopping …")
			if err != nil {
				err = errInterrupted // what was cut off has failed, of course
			}
		}
		err = errors.Join(err, p.stop())
	}()
	if err := p.start(ctx); err != nil {
		return err
	}
	console.Say("Serving at http://localhost:%d after %.1f s. Logs: %s", p.port, time.Since(began).Seconds(), state.Path("log"))
	if err := p.runDemo(ctx); err != nil || o.exit {
		return err
	}
	<-ctx.Done()
	return nil
}
