package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/functions/projects"
	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/directory"
	"github.com/coditect/platform/shared/edge"
	"github.com/coditect/platform/shared/project"
	"github.com/coditect/platform/shared/tenant"
)

// capture records the statements that shared/project sends, so that what is
// measured stays what is used.
type capture struct {
	mu    sync.Mutex
	sqls  []string
	store *project.Store
}

func newCapture(dbs *citus.Databases, dir *directory.Directory) *capture {
	c := &capture{}
	c.store = project.New(citus.NewDoor(dbs, dir, citus.WithRewrite(func(sql string) string {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.sqls = append(c.sqls, sql)
		return sql
	})), time.Now)
	return c
}

// statement returns the statement that an operation is about: the first it sends.
func (c *capture) statement(ctx context.Context, op operation, t target) (string, error) {
	c.mu.Lock()
	c.sqls = nil
	c.mu.Unlock()
	if err := op.store(ctx, c.store, t); err != nil {
		return "", err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sqls[0], nil
}

// compared is what one operation in one home came to.
type compared struct {
	Statement     string             `json:"statement"`
	PerSecond     map[string]float64 `json:"per_second"`     // median of the rounds, by side
	ToStatement   map[string]float64 `json:"to_statement"`   // ratio to pgbench's bare statement, median of each round's
	ToTransaction map[string]float64 `json:"to_transaction"` // ratio to pgbench's same transaction
	Latency       map[string]spread  `json:"latency_ms"`
	CPU           map[string]cost    `json:"cpu_us_per_call"` // median of the rounds: what a call costs, however busy the machine is
}

// sides in the order of their turns.
var sides = []string{"statement", "transaction", "in_tenant", "one_trip", "store", "http"}

func (d *door) compare(ctx context.Context, home tenant.Home, op operation, targets []target) (compared, error) {
	out := compared{PerSecond: map[string]float64{}, ToStatement: map[string]float64{}, ToTransaction: map[string]float64{}, Latency: map[string]spread{}, CPU: map[string]cost{}}
	sql, err := d.captured.statement(ctx, op, targets[0])
	if err != nil {
		return out, err
	}
	out.Statement = sql
	rates, costs := map[string][]float64{}, map[string][]cost{}
	server := d.platform.green
	if home == tenant.Blue {
		server = d.platform.blue
	}
	for round := range d.rounds {
		for _, side := range sides {
			var (
				rate  float64
				calls int64
			)
			meter := newMeter(server, d.server)
			switch side {
			case "statement", "transaction":
				rate, calls, err = d.pgbench(ctx, home, op, sql, targets, side == "transaction")
			default:
				done := d.profile(fmt.Sprintf("%s-%s-%s", home, op.name, side), round == 0 && side != "http")
				var took []float64
				rate, calls, took, err = d.load(ctx, d.clientOf(side, op, sql, targets))
				done()
				out.Latency[side] = spreadOf(took)
			}
			if err != nil {
				return out, fmt.Errorf("%s: %w", side, err)
			}
			rates[side] = append(rates[side], rate)
			costs[side] = append(costs[side], meter.per(calls))
		}
	}
	line := ""
	for _, side := range sides {
		out.PerSecond[side] = round(median(rates[side]), 0)
		out.CPU[side] = medianCost(costs[side])
		line += fmt.Sprintf(" %s %.0f", side, out.PerSecond[side])
		if side != "statement" {
			out.ToStatement[side] = ratioOfRounds(rates[side], rates["statement"])
		}
		if side != "statement" && side != "transaction" {
			out.ToTransaction[side] = ratioOfRounds(rates[side], rates["transaction"])
		}
	}
	d.say("%s %s:%s; InTenant/statement %.2f, InTenant/transaction %.2f, HTTP/statement %.2f", home, op.name, line, out.ToStatement["in_tenant"], out.ToTransaction["in_tenant"], out.ToStatement["http"])
	return out, nil
}

// ratioOfRounds is the median of each round's ratio.
func ratioOfRounds(a, b []float64) float64 {
	out := make([]float64, len(a))
	for i := range a {
		out[i] = ratio(a[i], b[i])
	}
	return round(median(out), 3)
}

// clientOf returns what makes a client of a side: a function to call again and
// again, and one to end it.
func (d *door) clientOf(side string, op operation, sql string, targets []target) func(ctx context.Context) (func(i int) error, func(), error) {
	at := func(i int) target { return targets[i*31%len(targets)] }
	return func(ctx context.Context) (func(int) error, func(), error) {
		none := func() {}
		switch side {
		case "in_tenant":
			visit := d.through.InTenant
			if op.reads {
				visit = d.through.ReadTenant
			}
			return func(i int) error {
				t := at(i)
				return visit(ctx, t.tenant, func(tx *citus.Tx) error {
					rows, err := tx.Query(ctx, sql, op.args(t)...)
					if err != nil {
						return err
					}
					return discard(rows, op)
				})
			}, none, nil
		case "one_trip":
			trip := d.through.OneTrip
			if op.reads {
				trip = d.through.ReadTrip
			}
			return func(i int) error {
				t := at(i)
				return trip(ctx, t.tenant, func(b *citus.Batch) {
					b.Queue(sql, op.args(t)...).Query(func(rows pgx.Rows) error { return discard(rows, op) })
				})
			}, none, nil
		case "store":
			return func(i int) error { return op.store(ctx, d.store, at(i)) }, none, nil
		default:
			c, err := dial(ctx, d.server.addr)
			if err != nil {
				return nil, nil, err
			}
			type prepared struct {
				request request
				status  int
			}
			requests := make([]prepared, len(targets))
			for i, t := range targets {
				requests[i].request, requests[i].status = op.request(t)
			}
			return func(i int) error {
				r := &requests[i*31%len(requests)]
				return c.do(r.request, r.status)
			}, func() { _ = c.Close() }, nil
		}
	}
}

// discard reads rows without decoding them, as pgbench does, and fails when a read
// finds none.
func discard(rows pgx.Rows, op operation) error {
	n := 0
	for rows.Next() {
		n++
	}
	rows.Close()
	if err := rows.Err(); err != nil {
		return err
	}
	if op.reads && n == 0 {
		return fmt.Errorf("%s: no row", op.name)
	}
	return nil
}

// load runs all clients for the seconds of a turn, after one to warm up, and counts
// what was done.
func (d *door) load(ctx context.Context, open func(context.Context) (func(int) error, func(), error)) (rate float64, calls int64, took []float64, err error) {
	const warmUp = time.Second
	from := time.Now().Add(warmUp)
	until := from.Add(time.Duration(d.seconds) * time.Second)
	var (
		group sync.WaitGroup
		total atomic.Int64 // in the turn's seconds
		all   atomic.Int64 // with the warm-up
		mu    sync.Mutex
		first error
	)
	for client := range d.clients {
		group.Go(func() {
			call, end, err := open(ctx)
			var mine []float64
			if err == nil {
				defer end()
				for i := client * 1000; ctx.Err() == nil; i++ {
					began := time.Now()
					if began.After(until) {
						break
					}
					if err = call(i); err != nil {
						break
					}
					all.Add(1)
					if ended := time.Now(); began.After(from) && ended.Before(until) {
						mine = append(mine, milliseconds(ended.Sub(began)))
					}
				}
			}
			total.Add(int64(len(mine)))
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
			if first == nil {
				first = err
			}
		})
	}
	group.Wait()
	if first == nil {
		first = ctx.Err()
	}
	return float64(total.Load()) / float64(d.seconds), all.Load(), took, first
}

// chosen reads the flags that choose.
func (d *door) chosen() (ops []operation, homes []tenant.Home, err error) {
	for name := range strings.SplitSeq(d.operations, ",") {
		found := false
		for _, op := range operations {
			if op.name == name {
				ops, found = append(ops, op), true
			}
		}
		if !found {
			return nil, nil, fmt.Errorf("--operations must be some of point,page,update,insert; it is %q", d.operations)
		}
	}
	for name := range strings.SplitSeq(d.homes, ",") {
		home := tenant.Home(name)
		if home != tenant.Blue && home != tenant.Green {
			return nil, nil, fmt.Errorf("--homes must be blue, green or both with a comma; it is %q", d.homes)
		}
		homes = append(homes, home)
	}
	return ops, homes, nil
}

// profiledFunction is the word that makes this program be the function projects with
// a CPU profile: the function itself has no door for that.
const profiledFunction = "profiled-function"

// program is the function to measure: as built for production, or with a profile.
func (d *door) program(ctx context.Context) (path string, args []string, err error) {
	if d.cpuprofile == "" {
		functions, err := d.build(ctx, "projects")
		if err != nil {
			return "", nil, err
		}
		return functions[0].path, nil, nil
	}
	if err := os.MkdirAll(d.cpuprofile, 0o755); err != nil {
		return "", nil, err
	}
	path, err = os.Executable()
	return path, []string{profiledFunction, filepath.Join(d.cpuprofile, "function-projects.pprof")}, err
}

func serveProfiled(file string) {
	out, err := os.Create(file)
	if err == nil {
		err = pprof.StartCPUProfile(out)
	}
	h, stop, e := projects.Handler()
	if err != nil || e != nil {
		fmt.Fprintln(os.Stderr, "error:", err, e)
		os.Exit(1)
	}
	edge.Serve(h, stop, func() { pprof.StopCPUProfile(); _ = out.Close() })
}

// profile begins a profile of this process where one was asked for.
func (d *door) profile(name string, wanted bool) (done func()) {
	if d.cpuprofile == "" || !wanted {
		return func() {}
	}
	out, err := os.Create(filepath.Join(d.cpuprofile, name+".pprof"))
	if err == nil {
		err = pprof.StartCPUProfile(out)
	}
	if err != nil {
		d.say("no profile: %v", err)
		return func() {}
	}
	return func() { pprof.StopCPUProfile(); _ = out.Close() }
}
