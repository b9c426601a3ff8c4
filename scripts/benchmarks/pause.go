package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/directory"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/project"
	"github.com/coditect/platform/shared/tenant"
)

type pause struct {
	tenants, writers, workers, group, fence, batch int
	low, high                                      float64
	statements                                     bool
	pace                                           time.Duration
	ahead                                          int64
}

func pauseFlags(set *flag.FlagSet) func(context.Context, *bench) (figures, error) {
	o := &pause{}
	set.IntVar(&o.tenants, "tenants", 60, "tenants to move")
	set.IntVar(&o.writers, "writers", 2, "writers of each tenant")
	set.DurationVar(&o.pace, "pace", 50*time.Millisecond, "between two writes of a writer")
	set.Float64Var(&o.low, "from", 50_000, "bytes of the smallest tenant's rows")
	set.Float64Var(&o.high, "to", 5_000_000, "bytes of the biggest tenant's rows")
	set.IntVar(&o.workers, "workers", 2, "steps at a time")
	set.IntVar(&o.batch, "batch", 10, "tenants of a batch")
	set.IntVar(&o.group, "group", 0, "tenants copied together; 0: the default")
	set.IntVar(&o.fence, "fence", 0, "tenants fenced together; 0: the default")
	set.Int64Var(&o.ahead, "ahead-max", 0, "bytes of the largest tenant that is copied before its fence in one step, larger ones move online; 0: the default, -1: all online")
	set.BoolVar(&o.statements, "statements", false, "also report which of the mover's statements took longest; logging them costs time")
	return o.run
}

// written is one tenant and what its writers saw.
type written struct {
	id      tenant.ID
	project project.ID
	bytes   int64

	mu     sync.Mutex
	acked  []time.Time
	took   []time.Duration // of the write that was acknowledged then
	before int             // rows that were there
	failed []error
}

func (o *pause) run(ctx context.Context, b *bench) (figures, error) {
	p, err := b.platform(ctx)
	if err != nil {
		return nil, err
	}
	admin, err := b.open(ctx, p.config("postgres", 4))
	if err != nil {
		return nil, err
	}
	if o.statements {
		if err := p.logStatements(ctx); err != nil {
			return nil, err
		}
	}
	b.say("filling %d tenants …", o.tenants)
	var all []*written
	for _, bytes := range spreadBytes(o.tenants, o.low, o.high) {
		w := &written{bytes: bytes}
		if w.id, err = newTenant(ctx, admin, tenant.Blue); err != nil {
			return nil, err
		}
		filled, err := fillTenant(ctx, admin, w.id, 1, int(max(1, bytes/bytesPerTask)))
		if err != nil {
			return nil, err
		}
		w.project, w.before = filled.projects[0], len(filled.tasks)
		all = append(all, w)
	}
	if err := program(ctx, nil, "vacuumdb", "-q", "-z", "-j", "2", "-d", p.blueDSN("postgres")); err != nil {
		return nil, err
	}
	if err := settle(ctx, p.blueDSN("postgres"), p.greenDSN("postgres")); err != nil {
		return nil, err
	}
	dbs, err := b.open(ctx, p.config("coditect_app", 16))
	if err != nil {
		return nil, err
	}
	store := project.New(citus.NewDoor(dbs, directory.New(dbs, 0)), time.Now)
	writing, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	for i, w := range all {
		for n := range o.writers {
			// Not all at once: as they come.
			first := o.pace * time.Duration(i*o.writers+n) / time.Duration(o.tenants*o.writers)
			group.Go(func() { w.write(writing, store, first, o.pace) })
		}
	}
	defer group.Wait()
	defer stop()
	const calm = 3 * time.Second
	if err := sleep(ctx, calm); err != nil {
		return nil, err
	}
	began := time.Now()
	run, err := o.move(ctx, b, p)
	if err != nil {
		return nil, err
	}
	ended := time.Now()
	if err := sleep(ctx, time.Second); err != nil {
		return nil, err
	}
	stop()
	group.Wait()
	found, err := o.report(ctx, p, all, began, ended)
	if err != nil {
		return nil, err
	}
	found["moved"] = run
	if o.statements {
		found["statements"], err = p.statements(25)
	}
	return found, err
}

// write inserts tasks at a pace until ctx ends.
func (w *written) write(ctx context.Context, store *project.Store, first, pace time.Duration) {
	if sleep(ctx, first) != nil {
		return
	}
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for ctx.Err() == nil {
		began := time.Now()
		_, _, err := store.CreateTask(context.WithoutCancel(ctx), w.id, w.project, "", project.NewTask{Title: "written", Status: project.Todo})
		w.mu.Lock()
		if err != nil {
			w.failed = append(w.failed, err)
		} else {
			w.acked = append(w.acked, time.Now())
			w.took = append(w.took, time.Since(began))
		}
		w.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func (o *pause) move(ctx context.Context, b *bench, p *platform) (any, error) {
	dbs, err := b.open(ctx, p.config("coditect_migrator", int32(4*o.workers)))
	if err != nil {
		return nil, err
	}
	queue := newQueue()
	mover := migration.New(dbs, queue, migration.Config{GroupTenants: o.group, FenceTenants: o.fence, AheadMax: o.ahead})
	run, report, err := mover.Start(ctx, migration.Plan{Source: "platform", BatchSize: o.batch, Actor: "benchmark"})
	if err != nil {
		return nil, fmt.Errorf("%w: %+v", err, report.Findings)
	}
	if err := queue.work(ctx, mover, o.workers); err != nil {
		return nil, err
	}
	status, err := mover.Inspect(ctx, run.ID)
	if err != nil {
		return nil, err
	}
	if status.Counts[migration.Green] != int64(o.tenants) {
		return nil, fmt.Errorf("%v of %d tenants: %+v; left out: %+v", status.Counts, o.tenants, status.Failed, report.Findings)
	}
	b.say("moved: pauses %+v", status.Pause)
	return map[string]any{"seconds": round(status.Seconds, 2), "rows": status.RowsMoved, "workers": o.workers, "batch": o.batch}, nil
}

// report puts what the writers saw beside what the mover measured.
func (o *pause) report(ctx context.Context, p *platform, all []*written, began, ended time.Time) (figures, error) {
	conn, err := pgx.Connect(ctx, p.greenDSN("postgres"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var (
		pauses, stalls, gaps, calmGaps, calmWrites, sizes []float64
		acknowledged                                      int
		worst                                             struct {
			Pause float64 `json:"pause_ms"`
			Bytes int64   `json:"bytes"`
			Tries int     `json:"attempts"`
		}
	)
	for _, w := range all {
		if len(w.failed) > 0 {
			return nil, fmt.Errorf("tenant %s: %d writes failed: %w", w.id, len(w.failed), errors.Join(w.failed[:min(3, len(w.failed))]...))
		}
		var (
			us, bytes   int64
			tries, rows int
			fenced, ok  time.Time
		)
		err := conn.QueryRow(ctx, `SELECT pause_us, bytes, attempts, fenced_at, green_at FROM control.move WHERE tenant_id = $1 AND state = 'green'`, w.id).Scan(&us, &bytes, &tries, &fenced, &ok)
		if err != nil {
			return nil, err
		}
		if err := conn.QueryRow(ctx, `SELECT count(*) FROM app.task WHERE tenant_id = $1`, w.id).Scan(&rows); err != nil {
			return nil, err
		}
		if rows != w.before+len(w.acked) {
			return nil, fmt.Errorf("tenant %s: %d rows and %d acknowledged writes, and %d rows in the end", w.id, w.before, len(w.acked), rows)
		}
		acknowledged += len(w.acked)
		if ms := float64(us) / 1000; ms > worst.Pause {
			worst.Pause, worst.Bytes, worst.Tries = ms, bytes, tries
		}
		pauses, sizes = append(pauses, float64(us)/1000), append(sizes, float64(bytes))
		margin := time.Second
		stall, gap := w.longest(fenced.Add(-margin), ok.Add(margin))
		calmStall, calmGap := w.longest(began.Add(-2*time.Second), began)
		stalls, gaps = append(stalls, milliseconds(stall)), append(gaps, milliseconds(gap))
		calmWrites, calmGaps = append(calmWrites, milliseconds(calmStall)), append(calmGaps, milliseconds(calmGap))
	}
	pause := spreadOf(pauses)
	stall := spreadOf(stalls)
	return figures{
		"sizes": map[string]any{"tenants": o.tenants, "bytes_asked_for": []float64{o.low, o.high}, "bytes_estimated": []float64{slices.Min(sizes), slices.Max(sizes)},
			"writers_per_tenant": o.writers, "pace_ms": milliseconds(o.pace), "writes_acknowledged": acknowledged,
			"writes_per_second": round(float64(acknowledged)/(ended.Sub(began).Seconds()+4), 0)},
		"pause_ms": pause, "worst": worst,
		"longest_write_ms": stall, "longest_write_before_ms": spreadOf(calmWrites),
		"longest_gap_ms": spreadOf(gaps), "longest_gap_before_ms": spreadOf(calmGaps),
		"how": "pause_ms: measured by the mover, from the request for the fence to the flip. longest_write_ms: the slowest write of each tenant from 1 s before its fence to 1 s after its flip, as its writer saw it. " +
			"longest_gap_ms: between two acknowledged writes in that time, the writers' pace included. Both also over 2 calm seconds before. Every acknowledged write was counted in green afterwards",
		"goals": map[string]goal{"pause p99": below(pause.P99, 250, " ms"), "longest write p99": below(stall.P99, 250, " ms")},
	}, nil
}

// longest returns the slowest write and the longest gap between two acknowledged
// writes between two times.
func (w *written) longest(from, to time.Time) (stall, gap time.Duration) {
	// Two writers append in the order of their lock, which is nearly that of time.
	type write struct {
		at   time.Time
		took time.Duration
	}
	var in []write
	for i, at := range w.acked {
		if at.After(from) && at.Add(-w.took[i]).Before(to) {
			in = append(in, write{at, w.took[i]})
		}
	}
	slices.SortFunc(in, func(a, b write) int { return a.at.Compare(b.at) })
	for i, v := range in {
		stall = max(stall, v.took)
		if i > 0 {
			gap = max(gap, v.at.Sub(in[i-1].at))
		}
	}
	return stall, gap
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
