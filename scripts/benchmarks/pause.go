package main

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/directory"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/project"
	"github.com/coditect/platform/shared/tenant"
)

type pause struct {
	tenants, writers, workers, group, fence, batch int
	low, high                                      float64
	statements, back                               bool
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
	set.BoolVar(&o.back, "back", false, "roll the tenants back afterwards, one after the other, while they are written, and measure those pauses too")
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

	there, back fencing
}

// fill gives the tenant its rows.
func (w *written) fill(ctx context.Context, p *platform, admin *citus.Databases) error {
	if w.bytes <= 5e7 {
		w.before = int(max(1, w.bytes/bytesPerTask))
		filled, err := fillTenant(ctx, admin, w.id, 1, w.before)
		if err == nil {
			w.project = filled.projects[0]
		}
		return err
	}
	w.project = project.ID(w.id)
	conn, err := pgx.Connect(ctx, p.blueDSN("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	w.before, err = fillBytes(ctx, conn, schemaOf(w.id), w.id, float64(w.bytes))
	return err
}

// fencing is one pause of a tenant: of its move, or of its rollback.
type fencing struct {
	began, ended time.Time
	pause        time.Duration // as the mover measured it
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
		if bytes > 5e7 {
			b.say("filling a tenant with %.0f MB …", float64(bytes)/1e6)
		}
		if err := w.fill(ctx, p, admin); err != nil {
			return nil, err
		}
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
	m := &pauseMoves{o: o, b: b, p: p, all: all}
	began := time.Now()
	moved, err := m.move(ctx)
	if err != nil {
		return nil, err
	}
	var returned any
	if o.back {
		swept := sweep(writing, m.mover)
		if err := sleep(ctx, calm); err != nil {
			return nil, err
		}
		if returned, err = m.rollBack(ctx); err != nil {
			return nil, err
		}
		defer func() { _ = swept() }() // nothing depends on it here: a rollback that needs it is tried again
	}
	ended := time.Now()
	if err := sleep(ctx, time.Second); err != nil {
		return nil, err
	}
	stop()
	group.Wait()
	if err := m.count(ctx); err != nil {
		return nil, err
	}
	found := o.report(all, began, ended)
	found["moved"] = moved
	if o.back {
		found["rolled_back"] = returned
	}
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

// pauseMoves moves the tenants, and back.
type pauseMoves struct {
	o     *pause
	b     *bench
	p     *platform
	all   []*written
	mover *migration.Mover
	run   uuid.UUID
	worst worstPause
}

// worstPause is the tenant that waited longest.
type worstPause struct {
	Pause float64 `json:"pause_ms"`
	Bytes int64   `json:"bytes"`
	Tries int     `json:"attempts"`
}

// move moves all tenants and reads what the mover has measured.
func (m *pauseMoves) move(ctx context.Context) (any, error) {
	o := m.o
	dbs, err := m.b.open(ctx, m.p.config("coditect_migrator", int32(4*o.workers)))
	if err != nil {
		return nil, err
	}
	queue := newQueue()
	m.mover = migration.New(dbs, queue, migration.Config{GroupTenants: o.group, FenceTenants: o.fence, AheadMax: o.ahead, Limits: migration.Limits{Busy: -1}}) // its own writers would hold it up
	run, report, err := m.mover.Start(ctx, migration.Plan{Source: "platform", BatchSize: o.batch, Actor: "benchmark"})
	if err != nil {
		return nil, fmt.Errorf("%w: %+v", err, report.Findings)
	}
	m.run = run.ID
	if err := queue.work(ctx, m.mover, o.workers); err != nil {
		return nil, err
	}
	status, err := m.mover.Inspect(ctx, run.ID)
	if err != nil {
		return nil, err
	}
	if status.Counts[migration.Green] != int64(o.tenants) {
		return nil, fmt.Errorf("%v of %d tenants: %+v; left out: %+v", status.Counts, o.tenants, status.Failed, report.Findings)
	}
	m.b.say("moved: pauses %+v", status.Pause)
	control, err := dbs.Control(ctx)
	if err != nil {
		return nil, err
	}
	var (
		least, most int64
		online      int
	)
	for _, w := range m.all {
		var (
			us, bytes int64
			tries     int
			isOnline  bool
		)
		if err := control.QueryRow(ctx, `SELECT pause_us, bytes, attempts, online, fenced_at, green_at FROM control.move WHERE tenant_id = $1 AND run_id = $2`, w.id, run.ID).
			Scan(&us, &bytes, &tries, &isOnline, &w.there.began, &w.there.ended); err != nil {
			return nil, err
		}
		w.there.pause = time.Duration(us) * time.Microsecond
		if ms := milliseconds(w.there.pause); ms > m.worst.Pause {
			m.worst = worstPause{ms, bytes, tries}
		}
		if isOnline {
			online++
		}
		if least == 0 || bytes < least {
			least = bytes
		}
		most = max(most, bytes)
	}
	return map[string]any{"seconds": round(status.Seconds, 2), "rows": status.RowsMoved, "workers": o.workers, "batch": o.batch, "online": online, "bytes_estimated": []int64{least, most}, "worst": m.worst}, nil
}

// rollBack rolls all tenants back. What one call leaves undone the sweep finishes, as in production.
func (m *pauseMoves) rollBack(ctx context.Context) (any, error) {
	dbs, err := m.b.open(ctx, m.p.config("coditect_migrator", 4))
	if err != nil {
		return nil, err
	}
	control, err := dbs.Control(ctx)
	if err != nil {
		return nil, err
	}
	began, again := time.Now(), 0
	for _, w := range m.all {
		w.back.began = time.Now()
		err := m.mover.Rollback(ctx, m.run, w.id, "benchmark")
		for ; fault.CodeOf(err) == "rollback_under_way"; again++ {
			m.b.say("the rollback of %s is tried again: %v", w.id, err)
			if err := sleep(ctx, time.Second); err != nil {
				return nil, err
			}
			err = m.mover.Rollback(ctx, m.run, w.id, "benchmark")
		}
		if err != nil {
			return nil, fmt.Errorf("roll %s back: %w", w.id, err)
		}
		w.back.ended = time.Now()
		var us int64
		if err := control.QueryRow(ctx, `SELECT back_pause_us FROM control.move WHERE tenant_id = $1 AND run_id = $2 AND state = 'blue'`, w.id, m.run).Scan(&us); err != nil {
			return nil, err
		}
		w.back.pause = time.Duration(us) * time.Microsecond
	}
	m.b.say("rolled back")
	return map[string]any{"seconds": round(time.Since(began).Seconds(), 2), "tried_again": again}, nil
}

// count compares every tenant's rows, where it lives now, with what was acknowledged.
func (m *pauseMoves) count(ctx context.Context) error {
	dsn := m.p.greenDSN("postgres")
	if m.o.back {
		dsn = m.p.blueDSN("postgres")
	}
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for _, w := range m.all {
		table := "app.task"
		if m.o.back {
			table = schemaOf(w.id) + ".task"
		}
		var rows int
		if err := conn.QueryRow(ctx, `SELECT count(*) FROM `+table+` WHERE tenant_id = $1`, w.id).Scan(&rows); err != nil {
			return err
		}
		// A write that failed may have been committed all the same: its caller was told that nobody knows.
		if least := w.before + len(w.acked); rows < least || rows > least+len(w.failed) {
			return fmt.Errorf("tenant %s: %d rows and %d acknowledged writes, and %d rows in the end", w.id, w.before, len(w.acked), rows)
		}
	}
	return nil
}

// report puts what the writers saw beside what the mover measured.
func (o *pause) report(all []*written, began, ended time.Time) figures {
	var (
		there, back          pausesSeen
		acknowledged, failed int
		why                  []string
		calmWrites, calmGaps []float64
	)
	for _, w := range all {
		acknowledged += len(w.acked)
		failed += len(w.failed)
		if len(w.failed) > 0 && len(why) < 5 {
			why = append(why, w.failed[0].Error())
		}
		there.add(w, w.there)
		if o.back {
			back.add(w, w.back)
		}
		stall, gap := w.longest(began.Add(-2*time.Second), began)
		calmWrites, calmGaps = append(calmWrites, milliseconds(stall)), append(calmGaps, milliseconds(gap))
	}
	goals := map[string]goal{"requests failed": below(float64(failed), 1, "")}
	there.goals(goals, "")
	found := figures{
		"sizes": map[string]any{"tenants": o.tenants, "bytes_asked_for": []float64{o.low, o.high},
			"writers_per_tenant": o.writers, "pace_ms": milliseconds(o.pace), "writes_acknowledged": acknowledged,
			"writes_per_second": round(float64(acknowledged)/(ended.Sub(began).Seconds()+4), 0)},
		"requests_failed":         failed,
		"pause_ms":                spreadOf(there.pauses),
		"longest_write_ms":        spreadOf(there.stalls),
		"longest_gap_ms":          spreadOf(there.gaps),
		"longest_write_before_ms": spreadOf(calmWrites), "longest_gap_before_ms": spreadOf(calmGaps),
		"how": "pause_ms: measured by the mover, from the request for the fence to the flip. longest_write_ms: the slowest write of each tenant from 1 s before its fence to 1 s after its flip, as its writer saw it. " +
			"longest_gap_ms: between two acknowledged writes in that time, the writers' pace included. Both also over 2 calm seconds before. back_…: the same of the rollback, from the closing of green's gate to the opening of blue's, " +
			"and the writes from 1 s before it was asked for to 1 s after its end. Every acknowledged write was counted afterwards",
		"goals": goals,
	}
	if why != nil {
		found["failures"] = why
	}
	if o.back {
		found["back_pause_ms"], found["back_longest_write_ms"], found["back_longest_gap_ms"] = spreadOf(back.pauses), spreadOf(back.stalls), spreadOf(back.gaps)
		back.goals(goals, "rollback's ")
	}
	return found
}

// pausesSeen are the pauses of all tenants, in milliseconds.
type pausesSeen struct{ pauses, stalls, gaps []float64 }

func (s *pausesSeen) add(w *written, f fencing) {
	const margin = time.Second
	stall, gap := w.longest(f.began.Add(-margin), f.ended.Add(margin))
	s.pauses, s.stalls, s.gaps = append(s.pauses, milliseconds(f.pause)), append(s.stalls, milliseconds(stall)), append(s.gaps, milliseconds(gap))
}

func (s *pausesSeen) goals(goals map[string]goal, whose string) {
	p := spreadOf(s.pauses)
	goals[whose+"pause p99"], goals[whose+"pause max"] = below(p.P99, 100, " ms"), below(p.Max, 500, " ms")
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
