package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	osexec "os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/localpg/child"
	"github.com/coditect/platform/shared/directory"
	"github.com/coditect/platform/shared/project"
	"github.com/coditect/platform/shared/tenant"
)

// overhead measures what moves take from the other users of blue.
type overhead struct {
	neighbours, clients, rounds, small, writers int
	size, large                                 float64
	calm, pace, warmUp, decoding                time.Duration
	apart                                       bool

	*bench
	platform *platform
	deployed *deployment
	load     *load
}

func overheadFlags(set *flag.FlagSet) func(context.Context, *bench) (figures, error) {
	o := &overhead{}
	set.IntVar(&o.neighbours, "neighbours", 8, "tenants that stay in blue; pgbench writes them")
	set.Float64Var(&o.size, "size", 4e7, "bytes of each of them")
	set.IntVar(&o.clients, "clients", 8, "clients of pgbench, as fast as they can")
	set.IntVar(&o.rounds, "rounds", 2, "rounds: calm, PostgreSQL decodes, calm, a large tenant moves, calm, many small ones move, calm")
	set.Float64Var(&o.large, "large", 1e8, "bytes of the large tenant of a round, which moves online; 0: none")
	set.IntVar(&o.small, "small", 200, "small tenants of a round, which move the short way; 0: none")
	set.IntVar(&o.writers, "writers", 2, "writers of each large tenant, before, during and after its move")
	set.DurationVar(&o.pace, "pace", 50*time.Millisecond, "between two writes of such a writer")
	set.DurationVar(&o.warmUp, "warm-up", 40*time.Second, "load before the first phase: it writes faster at first, into tables and caches that are new")
	set.DurationVar(&o.calm, "calm", 60*time.Second, "length of a phase without a move: autovacuum comes once a minute")
	set.DurationVar(&o.decoding, "decoding", 30*time.Second, "length of a phase of a round in which PostgreSQL decodes what blue writes, and nothing moves; 0: none")
	set.BoolVar(&o.apart, "apart", false, "blue and its users have one processor, green and the functions another, as if on machines of their own (Linux, with taskset)")
	return func(ctx context.Context, b *bench) (figures, error) {
		o.bench = b
		return o.run(ctx)
	}
}

const smallBytes = 50_000 // of each small tenant

// movePhase is one move, between two calm phases.
type movePhase struct {
	Seconds   float64 `json:"seconds"`
	Before    float64 `json:"tps_before"`
	During    float64 `json:"tps_during"`
	After     float64 `json:"tps_after"`
	Ratio     float64 `json:"ratio"` // to the mean of before and after
	MeanMS    float64 `json:"mean_latency_ms"`
	CalmMS    float64 `json:"mean_latency_before_ms"`
	WorstRate float64 `json:"tps_of_the_worst_second"`
	RowsMoved int64   `json:"rows_moved"`
}

func (o *overhead) run(ctx context.Context) (figures, error) {
	if o.large == 0 && o.small == 0 || o.rounds < 1 || o.calm < 5*time.Second {
		return nil, fmt.Errorf("--large or --small must be more than 0, --rounds at least 1 and --calm at least 5s")
	}
	var err error
	if o.platform, err = o.bench.platform(ctx); err != nil {
		return nil, err
	}
	admin, err := o.open(ctx, o.platform.config("postgres", 4))
	if err != nil {
		return nil, err
	}
	var scripts []string
	o.say("filling %d neighbours with %.0f MB each …", o.neighbours, o.size/1e6)
	for range o.neighbours {
		t, err := newFilled(ctx, o.bench, o.platform, admin, o.size)
		if err != nil {
			return nil, err
		}
		scripts = append(scripts, t.neighbourScript())
	}
	large, small := make([]filledTenant, o.rounds), make([][]tenant.ID, o.rounds)
	for r := range o.rounds {
		if o.large > 0 {
			if large[r], err = newFilled(ctx, o.bench, o.platform, admin, o.large); err != nil {
				return nil, err
			}
		}
		o.say("filling %d small tenants …", o.small)
		for range o.small {
			t, err := newFilled(ctx, o.bench, o.platform, admin, smallBytes)
			if err != nil {
				return nil, err
			}
			small[r] = append(small[r], t.id)
		}
	}
	if err := settle(ctx, o.platform.blueDSN("postgres"), o.platform.greenDSN("postgres")); err != nil {
		return nil, err
	}
	if o.deployed, err = o.deploy(ctx, o.platform); err != nil {
		return nil, err
	}
	idle, err := o.deployed.memory()
	if err != nil {
		return nil, err
	}
	if o.apart {
		if err := o.part(); err != nil {
			return nil, err
		}
	}
	background, stop := context.WithCancel(ctx)
	swept := sweep(background, o.deployed.mover)
	writers, err := o.writeLarge(background, large)
	if err != nil {
		stop()
		return nil, err
	}
	defer func() { _ = writers() }()
	defer stop()
	if o.load, err = startLoad(ctx, o.platform.blueDSN("coditect_app"), o.clients, scripts); err != nil {
		return nil, err
	}
	defer func() { _ = o.load.stop() }()
	if o.apart {
		if err := pin(0, o.load.proc.Pid()); err != nil {
			return nil, err
		}
	}
	o.say("warming up for %v …", o.warmUp)
	if err := sleep(ctx, o.warmUp); err != nil {
		return nil, err
	}
	phases := map[string][]movePhase{}
	before, err := o.quiet(ctx)
	if err != nil {
		return nil, err
	}
	for r := range o.rounds {
		if o.decoding > 0 {
			var p movePhase
			if p, before, err = o.decode(ctx, before); err != nil {
				return nil, err
			}
			o.say("%s: %+v", decodingAlone, p)
			phases[decodingAlone] = append(phases[decodingAlone], p)
		}
		for _, kind := range []struct {
			name string
			ids  []tenant.ID
		}{{"large_online", []tenant.ID{large[r].id}}, {"small_short_way", small[r]}} {
			if kind.name == "large_online" && o.large == 0 || len(kind.ids) == 0 {
				continue
			}
			var p movePhase
			if p, before, err = o.phase(ctx, kind.ids, before); err != nil {
				return nil, err
			}
			o.say("%s: %+v", kind.name, p)
			phases[kind.name] = append(phases[kind.name], p)
		}
	}
	if err := o.load.stop(); err != nil {
		return nil, err
	}
	stop()
	if err := writers(); err != nil {
		return nil, err
	}
	if err := swept(); err != nil {
		return nil, err
	}
	most, err := o.deployed.memory()
	if err != nil {
		return nil, err
	}
	ratios, goals := map[string]float64{}, map[string]goal{}
	for name, list := range phases {
		var each []float64
		for _, p := range list {
			each = append(each, p.Ratio)
		}
		ratios[name] = round(median(each), 3)
		if name != decodingAlone {
			goals[name] = atLeast(ratios[name], 0.9)
		}
	}
	return figures{
		"ratios": ratios, "phases": phases, "goals": goals,
		"memory": map[string]any{"peak": most, "idle": idle},
		"sizes": map[string]any{"neighbours": o.neighbours, "bytes_of_each": o.size, "clients": o.clients, "rounds": o.rounds, "large_bytes": o.large, "small_tenants": o.small, "small_bytes": smallBytes,
			"writers_of_a_large_tenant": o.writers, "pace_ms": milliseconds(o.pace), "calm_seconds": o.calm.Seconds(), "apart": o.apart},
		"how": "pgbench against blue's neighbours, unthrottled, from the first phase to the last: one transaction enters a tenant, reads a row, updates another and inserts a third. tps by its own count of each second. " +
			"A move's phase lasts from its start to its end; the calm ones before and after it begin when blue has no replication slot. The functions are processes of their own in their default configuration. " +
			decodingAlone + ": pg_recvlogical reads a slot of pgoutput with a publication of no table, which is the least that any change stream takes. " +
			"Blue, green, the functions, pgbench and the writers of the large tenants share the processors of one machine: what the move costs green and itself is taken from blue, too, " +
			"unless they are apart: then blue and pgbench share one processor, and all others another",
	}, nil
}

// part gives blue a processor of its own. The load follows it when it runs.
func (o *overhead) part() error {
	if runtime.NumCPU() < 2 {
		return fmt.Errorf("--apart needs two processors")
	}
	if err := pin(1, os.Getpid()); err != nil {
		return err
	}
	blue, err := postmasterOf(o.platform.blue)
	if err != nil {
		return err
	}
	return pin(0, blue)
}

const decodingAlone = "decoding_alone"

// decode has what blue writes decoded for a while, and nothing of it published, and waits for calm again.
func (o *overhead) decode(ctx context.Context, before window) (p movePhase, after window, err error) {
	conn, err := pgx.Connect(ctx, o.platform.blueDSN("postgres"))
	if err != nil {
		return p, after, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	const name = "bench_decoding"
	for _, sql := range []string{`CREATE PUBLICATION ` + name, `SELECT pg_create_logical_replication_slot('` + name + `', 'pgoutput')`} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return p, after, err
		}
	}
	path, err := serverProgram("pg_recvlogical")
	if err != nil {
		return p, after, err
	}
	reader, err := child.Start(osexec.Command(path, "-d", o.platform.blueDSN("postgres"), "--slot", name, "--start", "-o", "proto_version=1", "-o", "publication_names="+name, "-f", "-"), syscall.SIGKILL)
	if err != nil {
		return p, after, err
	}
	began := time.Now()
	err = sleep(ctx, o.decoding)
	if stopped := reader.Stop(context.WithoutCancel(ctx), syscall.SIGTERM); err == nil {
		err = stopped
	}
	if err != nil {
		return p, after, err
	}
	during, err := o.load.between(began, began.Add(o.decoding))
	if err != nil {
		return p, after, err
	}
	for _, sql := range []string{
		// The server may not have noticed yet that its reader is gone: it is waited for.
		`SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots WHERE slot_name = '` + name + `' AND active_pid IS NOT NULL`,
		`SELECT pg_drop_replication_slot('` + name + `')`, `DROP PUBLICATION ` + name,
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return p, after, err
		}
	}
	if after, err = o.quiet(ctx); err != nil {
		return p, after, err
	}
	return phaseOf(o.decoding.Seconds(), before, during, after, 0), after, nil
}

func phaseOf(seconds float64, before, during, after window, rows int64) movePhase {
	return movePhase{
		Seconds: round(seconds, 1), Before: round(before.rate, 0), During: round(during.rate, 0), After: round(after.rate, 0), Ratio: ratio(during.rate, (before.rate+after.rate)/2),
		MeanMS: round(during.latency, 2), CalmMS: round(before.latency, 2), WorstRate: round(during.worst, 0), RowsMoved: rows,
	}
}

// phase moves tenants, and waits for calm again.
func (o *overhead) phase(ctx context.Context, ids []tenant.ID, before window) (p movePhase, after window, err error) {
	began := time.Now()
	s, err := o.deployed.move(ctx, ids)
	if err != nil {
		return p, after, err
	}
	during, err := o.load.between(began, began.Add(time.Duration(s.Seconds*float64(time.Second)))) // we have heard of its end later
	if err != nil {
		return p, after, err
	}
	if err := o.deployed.laneClosed(ctx); err != nil {
		return p, after, err
	}
	if after, err = o.quiet(ctx); err != nil {
		return p, after, err
	}
	return phaseOf(s.Seconds, before, during, after, s.RowsMoved), after, nil
}

// quiet measures a calm phase; its first seconds are not counted.
func (o *overhead) quiet(ctx context.Context) (window, error) {
	const settling = 3 * time.Second
	if err := sleep(ctx, settling); err != nil {
		return window{}, err
	}
	began := time.Now()
	if err := sleep(ctx, o.calm); err != nil {
		return window{}, err
	}
	return o.load.between(began, time.Now())
}

// writeLarge writes the tenants that will move, a little, wherever they live.
func (o *overhead) writeLarge(ctx context.Context, large []filledTenant) (wait func() error, err error) {
	dbs, err := o.open(ctx, o.platform.config("coditect_app", 4))
	if err != nil {
		return nil, err
	}
	store := project.New(citus.NewDoor(dbs, directory.New(dbs, 0)), time.Now)
	var group sync.WaitGroup
	var all []*written
	for _, t := range large {
		if t.rows == 0 {
			continue
		}
		w := &written{id: t.id, project: project.ID(t.id)}
		all = append(all, w)
		for n := range o.writers {
			group.Go(func() { w.write(ctx, store, o.pace*time.Duration(n)/time.Duration(o.writers), o.pace) })
		}
	}
	return func() error {
		group.Wait()
		for _, w := range all {
			if len(w.failed) > 0 {
				return fmt.Errorf("tenant %s: %d writes failed, the first: %w", w.id, len(w.failed), w.failed[0])
			}
		}
		return nil
	}, nil
}
