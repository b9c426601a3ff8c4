package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"cloud.google.com/go/pubsub/v2/pstest"
	"golang.org/x/sync/errgroup"

	"github.com/coditect/platform/scripts/internal/demo"
	"github.com/coditect/platform/scripts/internal/gateway"
	"github.com/coditect/platform/scripts/internal/ports"
	"github.com/coditect/platform/scripts/internal/statedir"
	"github.com/coditect/platform/scripts/internal/terminal"
	"github.com/coditect/platform/shared/events"
	"github.com/coditect/platform/shared/taskqueue/issuer"
)

// platform is everything that runs.
type platform struct {
	options
	state   *statedir.Dir
	console *terminal.Console

	remembered struct {
		Ports   map[string]int `json:"ports"`
		Workers *int           `json:"workers"` // nil before the first start
	}
	portsMu sync.Mutex

	databases databases
	pubsub    *pstest.Server
	issuer    *issuer.Issuer // of the queue's identity tokens
	functions []*function
	operator  string // an operator's API key

	stops []func() error // in the order things were started
}

const memory = "launcher.json" // in the state folder

// onStop remembers how to stop what was just started.
func (p *platform) onStop(f func() error) { p.stops = append(p.stops, f) }

// stop stops everything in the reverse order of starting.
func (p *platform) stop() error {
	var errs []error
	for i := len(p.stops) - 1; i >= 0; i-- {
		errs = append(errs, p.stops[i]())
	}
	p.stops = nil
	return errors.Join(errs...)
}

// start starts everything, from the databases to the gateway.
func (p *platform) start(ctx context.Context) error {
	if err := p.state.Load(memory, &p.remembered); err != nil {
		return err
	}
	if p.remembered.Ports == nil {
		p.remembered.Ports = map[string]int{}
	}
	listener, err := p.listen() // first: when the one fixed port is taken, nothing else need start
	if err != nil {
		return err
	}
	p.onStop(func() error { return closed(listener.Close()) })
	if err := p.findFunctions(); err != nil {
		return err
	}
	if err := p.startDatabases(ctx); err != nil {
		return err
	}
	if err := p.applySchema(ctx); err != nil {
		return err
	}
	if err := p.prepareDemo(ctx); err != nil {
		return err
	}
	if err := p.startPubSub(ctx); err != nil {
		return err
	}
	if err := p.startQueue(ctx); err != nil {
		return err
	}
	if err := p.startFunctions(ctx); err != nil {
		return err
	}
	if err := p.state.Save(memory, p.remembered); err != nil {
		return err
	}
	p.startSweeper(ctx)
	return p.serve(listener)
}

// tenantEvents is the topic that the function tenants publishes to.
const tenantEvents = "tenant-events"

// startPubSub starts Pub/Sub in this process; it forgets its topics when it ends.
func (p *platform) startPubSub(ctx context.Context) error {
	p.pubsub = pstest.NewServerWithAddress("127.0.0.1:0")
	p.onStop(p.pubsub.Close)
	publisher, err := events.Open(ctx, events.Config{Project: pubsubProject, Emulator: p.pubsub.Addr})
	if err != nil {
		return err
	}
	defer func() { _ = publisher.Close() }()
	return publisher.EnsureTopic(ctx, tenantEvents)
}

func closed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// listen takes the gateway's port on both loopback addresses that localhost may mean.
func (p *platform) listen() (net.Listener, error) {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port)))
	if err != nil {
		return nil, fmt.Errorf("port %d, wanted by the gateway, is %s: stop that, or choose another port with --port", p.port, ports.Taken(p.port))
	}
	return l, nil
}

// portFor returns the port that name had the last time, or another free one when
// that is taken now.
func (p *platform) portFor(name string) (int, error) {
	p.portsMu.Lock()
	defer p.portsMu.Unlock()
	before := p.remembered.Ports[name]
	port, err := ports.Free(before)
	if err != nil {
		return 0, err
	}
	if before != 0 && port != before {
		p.console.Say("Port %d, which %s had the last time, is %s; it gets %d.", before, name, ports.Taken(before), port)
	}
	p.remembered.Ports[name] = port
	return port, nil
}

// serve opens the gateway.
func (p *platform) serve(l net.Listener) error {
	targets := map[string]*url.URL{}
	for _, f := range p.functions {
		targets[f.name] = f.url
	}
	srv := &http.Server{Handler: gateway.New(targets), ReadHeaderTimeout: 5 * time.Second}
	go func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			p.console.Say("The gateway ended: %v", err)
		}
	}()
	p.onStop(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			return srv.Close() // requests that do not end are cut
		}
		return nil
	})
	return nil
}

// sweeps is Cloud Scheduler's part: which functions are asked, how often, to do what
// is due and what a crash has left undone.
var sweeps = map[string]time.Duration{"migrations": 2 * time.Second, "tenants": 30 * time.Second}

func (p *platform) startSweeper(ctx context.Context) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var sweepers sync.WaitGroup
	for name, interval := range sweeps {
		if target := p.functionURL(name); target != "" {
			sweepers.Go(func() { p.sweepAgain(ctx, name, target, interval) })
		}
	}
	p.onStop(func() error { cancel(); sweepers.Wait(); return nil })
}

func (p *platform) sweepAgain(ctx context.Context, name, target string, interval time.Duration) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	healthy := true
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := p.sweep(ctx, target)
		if err != nil && healthy && ctx.Err() == nil {
			p.console.Say("The sweep of %s failed: %v", name, err)
		}
		healthy = err == nil // said once, not every two seconds
	}
}

func (p *platform) sweep(ctx context.Context, target string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target+"/sweep", http.NoBody)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+p.operator)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("it answered %s", resp.Status)
	}
	return nil
}

// clear deletes the state, wherever the databases are.
func (p *platform) clear() error {
	return errors.Join(p.state.Clear(), os.RemoveAll(p.refuge()))
}

// each runs fn for 0 … n-1 at once and returns the first error.
func each(n int, fn func(i int) error) error {
	var g errgroup.Group
	for i := range n {
		g.Go(func() error { return fn(i) })
	}
	return g.Wait()
}

func (p *platform) log(name string) string { return filepath.Join(p.state.Path("log"), name+".log") }

// environment is what the demo works with.
func (p *platform) environment() demo.Environment {
	return demo.Environment{
		Gateway:     fmt.Sprintf("http://localhost:%d", p.port),
		OperatorKey: p.operator,
		Databases:   p.databases.config("coditect_app"),
		Migrator:    p.databases.config("coditect_migrator"),
		Green:       p.databases.green.DSN("green", "postgres"),
		Blue:        p.databases.blue,
		State:       p.state,
		Console:     p.console,
		Tenants:     p.tenants,
	}
}

func (p *platform) prepareDemo(ctx context.Context) error {
	var err error
	if p.operator, err = demo.OperatorKey(ctx, p.databases.green.DSN("green", "postgres"), p.state); err != nil {
		return err
	}
	if !p.demo {
		return nil
	}
	return demo.Prepare(ctx, p.environment())
}

// runDemo moves the tenants, prints the report and says what to try next.
func (p *platform) runDemo(ctx context.Context) error {
	if !p.demo {
		p.console.Say("An operator's API key: %s", p.operator)
		return nil
	}
	report, err := demo.Run(ctx, p.environment())
	if err != nil {
		return err
	}
	report.Print(p.console)
	if p.report != "" {
		if err := report.WriteFile(p.report); err != nil {
			return err
		}
	}
	if !report.Clean() && p.exit {
		return errUnclean
	}
	if !p.exit {
		demo.TryNext(ctx, p.environment())
	}
	return nil
}
