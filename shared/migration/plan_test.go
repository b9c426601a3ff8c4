package migration_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/migration/planner"
	"github.com/coditect/platform/shared/tenant"
)

// planned is a world whose queue keeps the times that steps are due, and whose plans go by a
// clock that the test moves.
type planned struct {
	*world
	now   time.Time
	queue *timed
}

// timed is a queue that delivers nothing before its time.
type timed struct {
	tasks []due
	lost  bool // whatever comes is lost

	received *inbox
}

type due struct {
	at   time.Time
	task migration.StepTask
}

func (q *timed) EnqueueStep(_ context.Context, _ string, body []byte, after time.Time) error {
	d := due{at: after}
	if err := json.Unmarshal(body, &d.task); err != nil || q.lost {
		return err
	}
	q.tasks = append(q.tasks, d)
	slices.SortStableFunc(q.tasks, func(a, b due) int { return a.at.Compare(b.at) })
	return nil
}

// EnqueueReceive has the change stream received in the background, by the machine's clock.
func (q *timed) EnqueueReceive(ctx context.Context, name string, body []byte, after time.Time) error {
	return q.received.EnqueueReceive(ctx, name, body, after)
}

func newPlanned(t *testing.T, env *citustest.Env, cfg migration.Config, opts ...migration.Option) *planned {
	w := &planned{world: newWorld(t, env), now: time.Now().Truncate(time.Minute), queue: &timed{}}
	w.queue.received = w.Queue
	w.Mover = w.mover(cfg, opts...)
	return w
}

func (w *planned) mover(cfg migration.Config, opts ...migration.Option) *migration.Mover {
	return migration.New(w.Migrator, w.queue, cfg, append(opts, migration.WithClock(func() time.Time { return w.now }))...)
}

// deliver delivers the next task that is due by now, if there is one.
func (w *planned) deliver(t *testing.T) bool {
	t.Helper()
	if len(w.queue.tasks) == 0 || w.queue.tasks[0].at.After(w.now) {
		return false
	}
	d := w.queue.tasks[0]
	w.queue.tasks = w.queue.tasks[1:]
	require.NoError(t, w.Mover.Step(t.Context(), d.task))
	return true
}

// drain delivers what is due by now, and what comes of it.
func (w *planned) drain(t *testing.T) {
	t.Helper()
	for w.deliver(t) {
		continue
	}
}

// start begins a run of own tenants.
func (w *planned) start(t *testing.T, p migration.Plan) migration.Run {
	t.Helper()
	p.Source, p.Actor = "platform", "test"
	run, report, err := w.Mover.Start(t.Context(), p)
	require.NoError(t, err, "%+v", report)
	return run
}

// green counts a run's green tenants by wave.
func (w *planned) green(t *testing.T, run migration.Run) []int64 {
	t.Helper()
	var out []int64
	for _, wave := range inspect(t, w.world, run).Waves {
		out = append(out, wave.Green)
	}
	return out
}

// events lists a run's audit trail without the tenants' own entries.
func (w *planned) events(t *testing.T, run migration.Run) (names []string, details map[string]map[string]any) {
	t.Helper()
	details = map[string]map[string]any{}
	var after int64
	for {
		page, err := w.Mover.Events(t.Context(), run.ID, after, 3)
		require.NoError(t, err)
		if len(page) == 0 {
			return names, details
		}
		for _, e := range page {
			require.Greater(t, e.ID, after)
			require.NotZero(t, e.At)
			if after = e.ID; e.Tenant == nil {
				names = append(names, e.Actor+": "+e.Event)
				details[e.Event] = e.Detail
			}
		}
	}
}

// breakOne makes a tenant's move fail: its schema is not what green's tables were made from.
func (w *planned) breakOne(t *testing.T, id tenant.ID) {
	t.Helper()
	execSQL(t, w.BlueAdmin, `ALTER TABLE `+blueSchema(id)+`.project ADD COLUMN odd int`)
}

func ptr[T any](v T) *T { return &v }

func inMinutes(n int) time.Duration { return time.Duration(n) * time.Minute }

func TestWavesComeInOrder(t *testing.T) {
	t.Parallel()
	citustest.Each(t, func(t *testing.T, env *citustest.Env) {
		w := newPlanned(t, env, quick)
		ids := blueTenants(t, w.world, 10)
		run := w.start(t, migration.Plan{BatchSize: 2, Waves: planner.Waves{10, 50, 100}, Soak: inMinutes(10)})
		require.Equal(t, []int{1, 3}, []int{run.Wave, run.LastWave})
		sample := slices.Clone(ids)
		slices.SortFunc(sample, planner.ByPosition)
		for i, want := range [][]int64{{1, 0, 0}, {1, 4, 0}, {1, 4, 5}} {
			w.drain(t)
			require.Equal(t, want, w.green(t, run), "wave %d", i+1)
			for n, id := range sample {
				home := tenant.Blue
				if int64(n) < want[0]+want[1]+want[2] {
					home = tenant.Green
				}
				require.Equal(t, home, homeOf(t, w.world, id), "%d. of the sample", n)
			}
			if i == 2 {
				break
			}
			// While it soaks nothing moves: not by itself, not by the sweeper, not by a task that comes again.
			w.now = w.now.Add(inMinutes(10) - 1)
			_, err := w.Mover.Sweep(t.Context(), 0)
			require.NoError(t, err)
			require.NoError(t, w.Mover.Step(t.Context(), migration.StepTask{Run: run.ID, Batch: 1, Step: 1}))
			require.NoError(t, w.Mover.Step(t.Context(), migration.StepTask{Run: run.ID, Batch: 5, Step: 1}))
			w.drain(t)
			require.Equal(t, want, w.green(t, run), "wave %d soaks", i+1)
			s := inspect(t, w.world, run)
			require.NotNil(t, s.NextWaveAt)
			require.True(t, s.NextWaveAt.Equal(w.now.Add(1)), "%v %v", s.NextWaveAt, w.now)
			require.NotNil(t, s.ETA)
			require.Equal(t, migration.Measured, s.ETA.Basis)
			w.now = w.now.Add(1)
		}
		s := inspect(t, w.world, run)
		require.Equal(t, migration.Done, s.State)
		require.Nil(t, s.ETA)
		for _, wave := range s.Waves {
			require.NotNil(t, wave.DoneAt, "%+v", wave)
		}
		names, details := w.events(t, run)
		require.Equal(t, []string{"test: started", "mover: wave opened", "mover: wave done", "mover: wave opened", "mover: wave done", "mover: wave opened", "mover: done"}, names)
		require.Equal(t, map[string]any{"wave": 2.0, "green": 4.0, "blue": 0.0, "next_wave_at": details["wave done"]["next_wave_at"]}, details["wave done"])
		require.Equal(t, []any{10.0, 50.0, 100.0}, details["started"]["plan"].(map[string]any)["waves"])
	})
}

// Whatever dies on the way from one wave to the next: the sweeper goes on, and never opens a wave
// before the one before it is done.
func TestAWaveSurvivesACrash(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"run recorded", "batch done", "admitted", "flipped"} {
		t.Run(point, func(t *testing.T) {
			w := newPlanned(t, citustest.New(t), quick)
			blueTenants(t, w.world, 6)
			alive := w.Mover
			armed := true
			w.Mover = w.mover(quick, migration.WithCrashPoints(func(at string) {
				if at == point && armed {
					armed = false
					panic(crashed{at})
				}
			}))
			ctx, cancel := context.WithCancel(t.Context())
			func() {
				defer func() {
					require.Equal(t, crashed{point}, recover())
					cancel()
				}()
				run, _, err := w.Mover.Start(ctx, migration.Plan{Source: "platform", Actor: "test", BatchSize: 1, Waves: planner.Waves{34, 100}, Concurrency: 1})
				require.NoError(t, err)
				for len(w.queue.tasks) > 0 {
					task := w.queue.tasks[0].task
					w.queue.tasks = w.queue.tasks[1:]
					require.NoError(t, w.Mover.Step(ctx, task))
				}
				require.Fail(t, "no crash", run.ID)
			}()
			w.Mover = alive
			w.queue.tasks = nil // and the queue is empty
			runs, err := w.Mover.List(t.Context(), [16]byte{}, 1)
			require.NoError(t, err)
			run := runs[0]
			require.Eventually(t, func() bool {
				_, err := w.Mover.Sweep(t.Context(), 0)
				require.NoError(t, err)
				for len(w.queue.tasks) > 0 {
					task := w.queue.tasks[0].task
					w.queue.tasks = w.queue.tasks[1:]
					if err := w.Mover.Step(t.Context(), task); fault.CodeOf(err) != "batch_busy" {
						require.NoError(t, err)
					}
					green := w.green(t, run)
					require.False(t, green[1] > 0 && green[0] < 3, "%v: the second wave before the end of the first", green)
				}
				return inspect(t, w.world, run).State == migration.Done
			}, 30*time.Second, 10*time.Millisecond)
			require.Equal(t, []int64{3, 3}, w.green(t, run))
		})
	}
}

func TestTooManyErrorsHaltARun(t *testing.T) {
	t.Parallel()
	citustest.Each(t, func(t *testing.T, env *citustest.Env) {
		w := newPlanned(t, env, quick)
		ids := blueTenants(t, w.world, 10)
		slices.SortFunc(ids, planner.ByPosition)
		run := w.start(t, migration.Plan{BatchSize: 1, Waves: planner.Waves{40, 70, 100}, Budget: planner.Budget{Percent: ptr(25.0)}})
		for _, i := range []int{0, 2, 4} { // two of the four of the first wave, one of the three of the second
			w.breakOne(t, ids[i])
		}
		w.drain(t)
		s := inspect(t, w.world, run)
		require.Equal(t, migration.Paused, s.State)
		require.NotNil(t, s.Halted)
		require.Equal(t, "not moved because of errors: 2 of 4 tenants; allowed: 25 %", *s.Halted)
		require.Nil(t, s.ETA)
		require.Equal(t, []int64{1, 0, 0}, w.green(t, run))
		_, err := w.Mover.Sweep(t.Context(), 0) // leaves it alone
		require.NoError(t, err)
		w.drain(t)
		require.Equal(t, []int64{1, 0, 0}, w.green(t, run))

		// Resuming accepts those errors; the one of the second wave is within the budget.
		resumed, err := w.Mover.Resume(t.Context(), run.ID, "olga")
		require.NoError(t, err)
		require.Nil(t, resumed.Halted)
		require.EqualValues(t, 2, resumed.ErrorsAccepted)
		w.drain(t)
		s = inspect(t, w.world, run)
		require.Equal(t, migration.Done, s.State)
		require.Equal(t, []int64{2, 2, 3}, w.green(t, run))
		names, details := w.events(t, run)
		require.Equal(t, []string{"test: started", "mover: wave opened", "mover: halted", "olga: running", "mover: wave done", "mover: wave opened", "mover: wave done", "mover: wave opened", "mover: done"}, names)
		require.Equal(t, map[string]any{"why": "not moved because of errors: 2 of 4 tenants; allowed: 25 %", "failed": 2.0, "begun": 4.0, "budget": map[string]any{"max_error_percent": 25.0}}, details["halted"])
		require.Equal(t, map[string]any{"errors_accepted": 2.0}, details["running"])
	})
}

// The errors of a single batch are enough, and whoever an operator undoes is no error.
func TestABatchHaltsInTheMiddle(t *testing.T) {
	t.Parallel()
	w := newPlanned(t, citustest.New(t), migration.Config{Lease: time.Second, LockTimeout: 100 * time.Millisecond, GroupTenants: 1})
	ids := blueTenants(t, w.world, 6)
	run := w.start(t, migration.Plan{Tenants: ids, Waves: planner.OneWave, Budget: planner.Budget{Errors: ptr(int64(1))}})
	require.NoError(t, w.Mover.Undo(t.Context(), run.ID, ids[5], "olga"))
	for _, id := range ids[:3] {
		w.breakOne(t, id)
	}
	w.drain(t)
	s := inspect(t, w.world, run)
	require.Equal(t, migration.Paused, s.State)
	require.Equal(t, "not moved because of errors: 2; allowed: 1", *s.Halted)
	require.EqualValues(t, 3, s.Counts[migration.Blue], "two errors and an undone one: %+v", s.Counts)
	require.Positive(t, s.Counts[migration.Planned])

	_, err := w.Mover.ResumeWithin(t.Context(), run.ID, "olga", planner.Budget{Errors: ptr(int64(-1))})
	require.Equal(t, "max_errors must be at least 0", fault.As(err).Message)
	resumed, err := w.Mover.ResumeWithin(t.Context(), run.ID, "olga", planner.Budget{Errors: ptr(int64(0))})
	require.NoError(t, err)
	require.Equal(t, planner.Budget{Errors: ptr(int64(0))}, resumed.Budget)
	w.drain(t)
	require.Equal(t, "not moved because of errors: 1; allowed: 0", *inspect(t, w.world, run).Halted)
	_, err = w.Mover.Cancel(t.Context(), run.ID, "olga")
	require.NoError(t, err)
	w.drain(t)
	require.Equal(t, migration.Cancelled, inspect(t, w.world, run).State)
	_, details := w.events(t, run)
	require.Equal(t, map[string]any{"errors_accepted": 2.0, "budget_was": map[string]any{"max_errors": 1.0}, "budget": map[string]any{"max_errors": 0.0}}, details["running"])
}

// No more batches are at work than the plan allows, whatever is lost or comes twice.
func TestConcurrencyIsBounded(t *testing.T) {
	t.Parallel()
	w := newPlanned(t, citustest.New(t), quick)
	blueTenants(t, w.world, 9)
	run := w.start(t, migration.Plan{BatchSize: 1, Concurrency: 2})
	atWork := func() (batches []int) {
		for _, d := range w.queue.tasks {
			batches = append(batches, d.task.Batch)
		}
		slices.Sort(batches)
		return slices.Compact(batches)
	}
	require.Equal(t, []int{1, 2}, atWork())
	for n := 1; n <= 9; n++ { // a task for each batch comes out of nowhere
		if n > 2 {
			require.NoError(t, w.Mover.Step(t.Context(), migration.StepTask{Run: run.ID, Batch: n, Step: 1}))
		}
	}
	require.EqualValues(t, 9, inspect(t, w.world, run).Counts[migration.Planned])
	for done := 1; len(w.queue.tasks) > 0; done++ {
		if done == 4 { // the queue loses everything
			w.queue.tasks = nil
			swept, err := w.Mover.Sweep(t.Context(), 0)
			require.NoError(t, err)
			require.Equal(t, 2, swept.Enqueued)
		}
		require.True(t, w.deliver(t))
		require.LessOrEqual(t, len(atWork()), 2)
		require.EqualValues(t, done, inspect(t, w.world, run).Counts[migration.Green])
	}
	require.Equal(t, migration.Done, inspect(t, w.world, run).State)

	// Cancelling undoes those that were never admitted, too.
	ids := blueTenants(t, w.world, 4)
	run = w.start(t, migration.Plan{Tenants: ids, BatchSize: 1, Concurrency: 1})
	_, err := w.Mover.Cancel(t.Context(), run.ID, "test")
	require.NoError(t, err)
	w.drain(t)
	s := inspect(t, w.world, run)
	require.Equal(t, migration.Cancelled, s.State)
	require.Equal(t, migration.Counts{migration.Blue: 4}, s.Counts)
}

func TestNothingBeginsOutsideOfTheHours(t *testing.T) {
	t.Parallel()
	w := newPlanned(t, citustest.New(t), quick)
	ids := blueTenants(t, w.world, 3)
	evening, err := planner.ParseHours("22:00-06:00@Europe/Berlin")
	require.NoError(t, err)
	w.now = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	opening := time.Date(2026, 11, 24, 21, 0, 0, 0, time.UTC)
	run := w.start(t, migration.Plan{Tenants: ids, BatchSize: 1, Hours: evening})
	eta := inspect(t, w.world, run).ETA
	require.NotNil(t, eta)
	require.Equal(t, migration.Estimated, eta.Basis)
	require.True(t, eta.At.After(opening) && eta.At.Before(opening.Add(time.Minute)), "%v", eta.At)
	w.drain(t)
	require.EqualValues(t, 3, inspect(t, w.world, run).Counts[migration.Planned])
	for _, d := range w.queue.tasks {
		require.True(t, d.at.Equal(opening), "%v", d.at)
	}
	require.Len(t, w.queue.tasks, 3)
	swept, err := w.Mover.Sweep(t.Context(), 0)
	require.NoError(t, err)
	require.Zero(t, swept.Enqueued, "the run is not silent, it waits")
	require.True(t, inspect(t, w.world, run).WaitsUntil.Equal(opening))

	// One tenant's fence is up when the hours end: it is finished.
	dying := w.mover(fencedFirst, migration.WithCrashPoints(func(at string) {
		if at == "fence recorded" {
			panic(crashed{at})
		}
	}))
	w.now = opening
	ctx, cancel := context.WithCancel(t.Context())
	func() {
		defer func() { require.NotNil(t, recover()); cancel() }()
		_ = dying.Step(ctx, w.queue.tasks[0].task)
	}()
	w.now = time.Date(2026, 11, 25, 5, 0, 0, 0, time.UTC) // 06:00 in Berlin
	require.Eventually(t, func() bool {
		_, err := w.Mover.Sweep(t.Context(), 0)
		require.NoError(t, err)
		for len(w.queue.tasks) > 0 && !w.queue.tasks[0].at.After(w.now) {
			d := w.queue.tasks[0]
			w.queue.tasks = w.queue.tasks[1:]
			if err := w.Mover.Step(t.Context(), d.task); fault.CodeOf(err) != "batch_busy" {
				require.NoError(t, err)
			}
		}
		return inspect(t, w.world, run).Counts[migration.Green] == 1
	}, 20*time.Second, 20*time.Millisecond)
	require.Equal(t, migration.Counts{migration.Green: 1, migration.Planned: 2}, inspect(t, w.world, run).Counts)
	require.Zero(t, fencesUp(t, w.world, ids))

	// The queue loses the calls for the next evening: then the sweeper makes them.
	w.queue.tasks = nil
	_, err = w.Mover.Sweep(t.Context(), 0)
	require.NoError(t, err)
	require.Empty(t, w.queue.tasks)
	w.now = time.Date(2026, 11, 25, 21, 0, 0, 0, time.UTC)
	_, err = w.Mover.Sweep(t.Context(), 0)
	require.NoError(t, err)
	w.drain(t)
	require.Equal(t, migration.Counts{migration.Green: 3}, inspect(t, w.world, run).Counts)
	names, details := w.events(t, run)
	require.Equal(t, []string{"test: started", "mover: wave opened", "mover: waiting", "mover: waiting", "mover: done"}, names, "each opening is waited for once")
	require.Equal(t, map[string]any{"hours": "22:00-06:00@Europe/Berlin", "until": "2026-11-25T21:00:00Z"}, details["waiting"])
}

// fencesUp counts the fences that refuse writes to tenants that live in blue.
func fencesUp(t *testing.T, w *world, ids []tenant.ID) (n int) {
	t.Helper()
	for _, id := range ids {
		if homeOf(t, w, id) == tenant.Blue {
			_, err := addProject(t.Context(), w.Door, id, "p")
			if err != nil {
				n++
			}
		}
	}
	return n
}

// A run moves no more rows in a minute than it may, and one group.
func TestRowsPerSecondHold(t *testing.T) {
	t.Parallel()
	cfg := quick
	cfg.GroupTenants = 2
	w := newPlanned(t, citustest.New(t), cfg)
	const each, rate = 30, 2 // a tenant's rows are a quarter of a minute's
	ids := blueTenants(t, w.world, 1)
	for range 7 {
		ids = append(ids, w.NewTenant(t, tenant.Blue))
	}
	for _, id := range ids {
		execSQL(t, w.BlueAdmin, fmt.Sprintf(`INSERT INTO %s.project (tenant_id, id, name, created_at, updated_at) SELECT '%s', gen_random_uuid(), 'p' || n, now(), now() FROM generate_series(1, %d) n`,
			blueSchema(id), id, each))
	}
	run := w.start(t, migration.Plan{Tenants: ids, BatchSize: 4, RowsPerSecond: rate})
	begin := w.now
	type moved struct {
		at   time.Time
		rows int64
	}
	var all []moved
	last := int64(0)
	for len(w.queue.tasks) > 0 {
		w.now = slices.MaxFunc([]time.Time{w.now, w.queue.tasks[0].at}, time.Time.Compare)
		swept, err := w.Mover.Sweep(t.Context(), time.Hour)
		require.NoError(t, err)
		require.Zero(t, swept.Enqueued)
		require.True(t, w.deliver(t))
		if now := inspect(t, w.world, run).RowsMoved; now > last {
			all = append(all, moved{w.now, now - last})
			last = now
		}
	}
	require.EqualValues(t, each*len(ids), last)
	for i, m := range all {
		var minute int64
		for _, o := range all[i:] {
			if o.at.Sub(m.at) < time.Minute {
				minute += o.rows
			}
		}
		require.LessOrEqual(t, minute, int64(rate*60+2*each), "%+v", all)
	}
	took := w.now.Sub(begin)
	want := time.Duration(each*len(ids)/rate) * time.Second
	require.InDelta(t, want.Seconds(), took.Seconds(), float64(2*2*each/rate), "not slower either")
	require.Equal(t, migration.Done, inspect(t, w.world, run).State)
}

// A large tenant pays for its rows chunk by chunk, rests when the hours are over, and goes on
// with what it has when they open.
func TestALargeTenantRests(t *testing.T) {
	t.Parallel()
	citustest.Each(t, func(t *testing.T, env *citustest.Env) {
		w := newPlanned(t, env, online)
		id := w.NewTenant(t, tenant.Blue)
		execSQL(t, w.BlueAdmin, fmt.Sprintf(`INSERT INTO %s.project (tenant_id, id, name, created_at, updated_at) SELECT '%s', gen_random_uuid(), 'p' || n, now(), now() FROM generate_series(1, 5000) n; ANALYZE`,
			blueSchema(id), id))
		night, err := planner.ParseHours("22:00-06:00@UTC")
		require.NoError(t, err)
		w.now = time.Date(2026, 11, 24, 5, 59, 45, 0, time.UTC)
		run := w.start(t, migration.Plan{Tenants: []tenant.ID{id}, Hours: night, RowsPerSecond: 100})
		copied := func() (rows int64, state migration.State, fenceUp bool) {
			t.Helper()
			require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT (SELECT coalesce(sum(rows), 0)::bigint FROM control.chunk WHERE tenant_id = $1), state, fence_up FROM control.move WHERE tenant_id = $1`, id).
				Scan(&rows, &state, &fenceUp))
			return rows, state, fenceUp
		}
		for want := int64(1000); want <= 2000; want += 1000 { // at 05:59:45 and :55
			w.drain(t)
			rows, state, _ := copied()
			require.Equal(t, want, rows)
			require.Equal(t, migration.Copying, state)
			require.NotEmpty(t, w.queue.tasks)
			swept, err := w.Mover.Sweep(t.Context(), 0)
			require.NoError(t, err)
			require.Zero(t, swept.Enqueued, "it waits for its rows to be paid")
			require.Equal(t, 10*time.Second, w.queue.tasks[0].at.Sub(w.now).Round(time.Millisecond))
			w.now = w.queue.tasks[0].at
		}
		w.drain(t) // 06:00:05
		rows, state, fenceUp := copied()
		require.EqualValues(t, 2000, rows)
		require.Equal(t, migration.Copying, state, "its copy is kept")
		require.False(t, fenceUp)
		_, err = addProject(t.Context(), w.Door, id, "at noon")
		require.NoError(t, err)
		for range 3 { // the sweeper, and calls that come again
			swept, err := w.Mover.Sweep(t.Context(), 0)
			require.NoError(t, err)
			require.Zero(t, swept.Enqueued)
			require.NoError(t, w.Mover.Step(t.Context(), migration.StepTask{Run: run.ID, Batch: 1, Step: 1}))
		}
		require.Len(t, w.queue.tasks, 1, "one call for the opening, however often it is asked for")
		require.True(t, w.queue.tasks[0].at.Equal(time.Date(2026, 11, 24, 22, 0, 0, 0, time.UTC)))

		began, before := w.queue.tasks[0].at, int64(2000)
		for w.now = began; len(w.queue.tasks) > 0; w.now = slices.MaxFunc([]time.Time{w.now, w.queue.tasks[0].at}, time.Time.Compare) {
			require.True(t, w.deliver(t))
			if rows, _, _ := copied(); rows > 0 {
				require.LessOrEqual(t, rows-before, int64(1000), "a chunk at a time")
				before = rows
			}
			if len(w.queue.tasks) == 0 {
				break
			}
		}
		s := inspect(t, w.world, run)
		require.Equal(t, migration.Counts{migration.Green: 1}, s.Counts, "%+v", s.Failed)
		require.GreaterOrEqual(t, w.now.Sub(began), 20*time.Second)
		require.Equal(t, 5001, projects(t, w.Door, id))
	})
}

func TestRulesChooseTenants(t *testing.T) {
	t.Parallel()
	citustest.Each(t, func(t *testing.T, env *citustest.Env) {
		w := newPlanned(t, env, quick)
		ids := blueTenants(t, w.world, 5)
		set := func(column string, id tenant.ID, value any) {
			t.Helper()
			_, err := w.Control.Exec(t.Context(), `UPDATE control.tenant SET `+column+` = $2 WHERE id = $1`, id, value)
			require.NoError(t, err)
		}
		for _, id := range ids {
			set("created_at", id, w.now.AddDate(0, 0, -30))
		}
		set("created_at", ids[1], w.now.AddDate(0, 0, -3))
		set("plan", ids[2], "team")
		execSQL(t, w.BlueAdmin, fmt.Sprintf(`INSERT INTO %s.project (tenant_id, id, name, created_at, updated_at) SELECT '%s', gen_random_uuid(), repeat('x', 200), now(), now() FROM generate_series(1, 30000) n`,
			blueSchema(ids[3]), ids[3]))
		execSQL(t, w.BlueAdmin, `ANALYZE`)
		check := func(r planner.Rules) (chosen []tenant.ID, reasons map[string]int) {
			t.Helper()
			report, err := w.Mover.Check(t.Context(), migration.Plan{Source: "platform", Rules: r})
			require.NoError(t, err)
			require.Equal(t, len(ids), report.Plan.Chosen+report.Plan.LeftOut)
			require.Len(t, report.Plan.Others, report.Plan.LeftOut)
			require.Equal(t, report.Plan.Chosen, report.Tenants)
			for _, p := range report.Plan.Tenants {
				chosen = append(chosen, p.Tenant)
			}
			slices.SortFunc(chosen, func(a, b tenant.ID) int { return cmp.Compare(slices.Index(ids, a), slices.Index(ids, b)) })
			return chosen, report.Plan.Reasons
		}
		chosen, reasons := check(planner.Rules{})
		require.Equal(t, ids, chosen)
		require.Empty(t, reasons)
		chosen, reasons = check(planner.Rules{NewSince: w.now.AddDate(0, 0, -7)})
		require.Equal(t, ids[1:2], chosen)
		require.Equal(t, map[string]int{planner.NotNew: 4}, reasons)
		chosen, _ = check(planner.Rules{Plans: []string{"team"}})
		require.Equal(t, ids[2:3], chosen)
		chosen, reasons = check(planner.Rules{MaxBytes: 1 << 20, Exclude: ids[:1]})
		require.Equal(t, []tenant.ID{ids[1], ids[2], ids[4]}, chosen)
		require.Equal(t, map[string]int{planner.TooLarge: 1, planner.Excluded: 1}, reasons)

		// Percentages are nested, and the same for another run.
		half, _ := check(planner.Rules{Percent: 50})
		all, _ := check(planner.Rules{Percent: 100})
		require.Subset(t, all, half)
		again, _ := check(planner.Rules{Percent: 50})
		require.Equal(t, half, again)

		// Blue counts since a moment ago: how active a tenant is cannot be told, and is not taken for little.
		chosen, reasons = check(planner.Rules{MaxActivity: ptr(int64(1_000_000))})
		require.Empty(t, chosen)
		require.Equal(t, map[string]int{planner.ActivityUnknown: 5}, reasons)
		_, _, err := w.Mover.Start(t.Context(), migration.Plan{Source: "platform", Rules: planner.Rules{MaxActivity: ptr(int64(5))}, Actor: "test"})
		require.Equal(t, "nobody_chosen", fault.CodeOf(err))
		require.Contains(t, fault.As(err).Message, "5 activity unknown")

		// Ten days later it can. The statistics of a session arrive when it ends or is idle.
		w.now = w.now.AddDate(0, 0, 10)
		require.Eventually(t, func() bool {
			chosen, reasons = check(planner.Rules{MaxActivity: ptr(int64(1000))})
			return reasons[planner.TooActive] == 1
		}, 10*time.Second, 10*time.Millisecond)
		require.Equal(t, []tenant.ID{ids[0], ids[1], ids[2], ids[4]}, chosen)
		execSQL(t, w.BlueAdmin, `SELECT pg_stat_reset()`) // what was counted before is forgotten, and that is noticed
		w.now = time.Now()
		_, reasons = check(planner.Rules{MaxActivity: ptr(int64(1000))})
		require.Equal(t, map[string]int{planner.ActivityUnknown: 5}, reasons)

		_, err = w.Mover.Check(t.Context(), migration.Plan{Source: "platform", Rules: planner.Rules{Exclude: []tenant.ID{ids[0], tenant.NewID()}}})
		require.Equal(t, "tenants_unknown", fault.CodeOf(err))
		require.Equal(t, "exclude[1]", fault.As(err).Fields[0].Name)
	})
}

// A dry run says what a start then does.
func TestAPlanIsWhatComes(t *testing.T) {
	t.Parallel()
	w := newPlanned(t, citustest.New(t), quick)
	ids := blueTenants(t, w.world, 8)
	plan := migration.Plan{Source: "platform", Rules: planner.Rules{Exclude: ids[:1]}, BatchSize: 2, Concurrency: 2, Soak: inMinutes(1), Actor: "test"}
	report, err := w.Mover.Check(t.Context(), plan)
	require.NoError(t, err)
	var runs int
	require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT count(*) FROM control.run`).Scan(&runs))
	require.Zero(t, runs)
	p := report.Plan
	require.Equal(t, 7, p.Chosen)
	require.Len(t, p.Waves, 3, "1 %% and 10 %% of seven are the same one: %+v", p.Waves)
	require.InDelta(t, 120, p.Seconds, 20, "two soaks")
	require.Positive(t, p.Pause.P50)
	require.GreaterOrEqual(t, p.Pause.Max, p.Pause.P50)

	run := w.start(t, plan)
	rows, err := w.Control.Query(t.Context(), `SELECT m.tenant_id, m.batch, b.wave FROM control.move m JOIN control.batch b ON b.run_id = m.run_id AND b.number = m.batch ORDER BY m.batch`)
	require.NoError(t, err)
	type place struct{ batch, wave int }
	got, want := map[tenant.ID]place{}, map[tenant.ID]place{}
	for rows.Next() {
		var (
			id tenant.ID
			at place
		)
		require.NoError(t, rows.Scan(&id, &at.batch, &at.wave))
		got[id] = at
	}
	require.NoError(t, rows.Err())
	for _, one := range p.Tenants {
		want[one.Tenant] = place{one.Batch, one.Wave}
	}
	require.Equal(t, want, got)
	require.Equal(t, planner.Budget{Percent: ptr(planner.DefaultErrorPercent)}, run.Budget, "several waves have a budget")
	_, details := w.events(t, run)
	require.Equal(t, 7.0, details["started"]["tenants"])
	require.Equal(t, map[string]any{"excluded": 1.0}, details["started"]["left_out_by_rules"])

	for name, p := range map[string]migration.Plan{
		"waves": {Waves: planner.Waves{10, 5}}, "percent": {Rules: planner.Rules{Percent: 101}}, "new_since": {Rules: planner.Rules{NewSince: w.now.Add(inMinutes(1))}},
		"max_bytes": {Rules: planner.Rules{MaxBytes: -1}}, "max_activity": {Rules: planner.Rules{MaxActivity: ptr(int64(-1))}}, "plans": {Rules: planner.Rules{Plans: []string{""}}},
		"soak_seconds": {Soak: -1}, "concurrency": {Concurrency: -1}, "rows_per_second": {RowsPerSecond: -1}, "max_errors": {Budget: planner.Budget{Errors: ptr(int64(-1))}},
		"max_error_percent": {Budget: planner.Budget{Percent: ptr(100.5)}},
	} {
		p.Source = "platform"
		_, err := w.Mover.Check(t.Context(), p)
		require.Equal(t, "invalid_field", fault.CodeOf(err), name)
		require.Equal(t, name, fault.As(err).Fields[0].Name)
	}
	_, err = w.Mover.Events(t.Context(), [16]byte{1}, 0, 10)
	require.Equal(t, "run_not_found", fault.CodeOf(err))
}
