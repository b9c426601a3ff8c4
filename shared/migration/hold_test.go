package migration_test

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/tenant"
)

// held is a world with a run that holds its tenants, and somebody who does the queue's and the
// scheduler's work in the background until the test ends.
type held struct {
	*world
	run  migration.Run
	ids  []tenant.ID
	end  func() // of its steps and sweeps
	mu   sync.Mutex
	seen []migration.LagAlarm
}

func hold(t *testing.T, w *world, ids []tenant.ID, batchSize int, cfg migration.Config, opts ...migration.Option) *held {
	t.Helper()
	w.Mover = migration.New(w.Migrator, w.Queue, cfg, opts...)
	run, _, err := w.Mover.Start(t.Context(), migration.Plan{Source: "platform", Tenants: ids, BatchSize: batchSize, Actor: "test", Hold: true, Concurrency: 1})
	require.NoError(t, err)
	stop := make(chan struct{})
	var group sync.WaitGroup
	h := &held{world: w, run: run, ids: ids, end: sync.OnceFunc(func() { close(stop); group.Wait() })}
	t.Cleanup(h.end)
	ctx := t.Context()
	group.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			var due []migration.StepTask // and not those that they name in turn
			for task, ok := w.Queue.take(); ok; task, ok = w.Queue.take() {
				due = append(due, task)
			}
			for _, task := range due {
				if err := mortal(func() error { return w.Mover.Step(ctx, task) }); err != nil && fault.CodeOf(err) != "batch_busy" && ctx.Err() == nil {
					t.Errorf("step: %v", err)
				}
			}
			var swept migration.Swept
			err := mortal(func() (err error) { swept, err = w.Mover.Sweep(ctx, time.Second); return err })
			if err != nil && ctx.Err() == nil {
				t.Errorf("sweep: %v", err)
			}
			h.mu.Lock()
			h.seen = append(h.seen, swept.Alarms...)
			h.mu.Unlock()
		}
	})
	return h
}

// mortal does a piece of work that may die at a crash point.
func mortal(work func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(crashed); !ok {
				panic(r)
			}
		}
	}()
	return work()
}

// become waits until the run's tenants are in these states.
func (h *held) become(t *testing.T, want migration.Counts) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		s, err := h.Mover.Inspect(t.Context(), h.run.ID)
		require.NoError(c, err)
		require.Equal(c, want, s.Counts, "%+v", s.Failed)
	}, 40*time.Second, 50*time.Millisecond)
}

// inStep waits until green has what blue has.
func (h *held) inStep(t *testing.T, id tenant.ID) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		v, err := h.Mover.Verify(t.Context(), id, migration.VerifyOptions{})
		require.NoError(c, err)
		require.Equal(c, migration.InStep, v.Expect)
		require.Empty(c, v.Differences)
		require.Zero(c, v.Pending)
		require.Equal(c, v.BlueRows, v.GreenRows)
	}, 20*time.Second, 100*time.Millisecond)
}

// A whole run is held: its tenants follow blue while they are written, and nobody cuts over
// before the operator says so; then some do, and then all, and no write is lost.
func TestTenantsAreHeldInStep(t *testing.T) {
	t.Parallel()
	eachServer(t, func(t *testing.T, w *world) {
		ids := blueTenants(t, w, 4)
		traffic := writeOn(t, w, ids)
		h := hold(t, w, ids, 2, quick)
		h.become(t, migration.Counts{migration.Following: 4}) // two batches, though one may be at work at a time
		before := traffic.count.Load()
		require.Eventually(t, func() bool { return traffic.count.Load() > before+100 }, 20*time.Second, 10*time.Millisecond)
		s := inspect(t, w, h.run)
		require.Equal(t, migration.Counts{migration.Following: 4}, s.Counts)
		require.Empty(t, s.Failed)
		for _, id := range ids {
			require.Equal(t, tenant.Blue, homeOf(t, w, id))
		}
		traffic.stop()
		traffic.group.Wait()
		for _, id := range ids {
			h.inStep(t, id)
		}

		traffic = writeOn(t, w, ids)
		n, err := w.Mover.LetGo(t.Context(), h.run.ID, ids[2:3], 0, "test")
		require.NoError(t, err)
		require.Equal(t, 1, n)
		h.become(t, migration.Counts{migration.Following: 3, migration.Green: 1})
		require.Equal(t, tenant.Green, homeOf(t, w, ids[2]))
		_, err = w.Mover.LetGo(t.Context(), h.run.ID, ids[2:3], 0, "test")
		require.Equal(t, "tenant_not_held", fault.CodeOf(err))
		n, err = w.Mover.LetGo(t.Context(), h.run.ID, nil, 1, "test")
		require.NoError(t, err)
		require.Equal(t, 1, n)
		n, err = w.Mover.LetGo(t.Context(), h.run.ID, nil, 0, "test")
		require.NoError(t, err)
		require.Equal(t, 2, n)
		h.become(t, migration.Counts{migration.Green: 4})
		traffic.writeEach(t)
		traffic.check(t)
		require.Eventually(t, func() bool { return inspect(t, w, h.run).State == migration.Done }, 10*time.Second, 50*time.Millisecond)
		_, err = w.Mover.LetGo(t.Context(), h.run.ID, nil, 0, "test")
		require.Equal(t, "wrong_run_state", fault.CodeOf(err))
	})
}

// Where the operator says so, blue is left alone between two looks at its changes, for longer than a receiver may be
// silent; nobody thinks that it is gone, and a tenant that is let go does not wait for the next look.
func TestTenantsFollowWhileBlueIsLeftAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, citustest.New(t))
	cfg := quick
	cfg.Stream.Budget, cfg.Stream.Rest = 30*time.Second, 20*time.Second
	w.receive(t, cfg)
	ids := blueTenants(t, w, 2)
	h := hold(t, w, ids, 2, quick)
	h.become(t, migration.Counts{migration.Following: 2})
	blue := w.Blue(t)
	free := func() (by bool) {
		require.NoError(t, blue.QueryRow(t.Context(), `SELECT NOT active FROM pg_replication_slots WHERE database = current_database() AND NOT temporary`).Scan(&by))
		return by
	}
	require.Eventually(t, free, 5*time.Second, 20*time.Millisecond)
	require.Never(t, func() bool {
		var silent bool
		require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT heard_at < clock_timestamp() - interval '2 seconds' FROM control.lane`).Scan(&silent))
		return silent || !free()
	}, 4*time.Second, 50*time.Millisecond)
	_, err := w.Mover.LetGo(t.Context(), h.run.ID, nil, 0, "test")
	require.NoError(t, err)
	began := time.Now()
	h.become(t, migration.Counts{migration.Green: 2})
	require.Less(t, time.Since(began), 8*time.Second)
}

// Whoever dies after an effect of holding or letting go is replaced by the next task or sweep.
func TestAHeldRunSurvivesCrashes(t *testing.T) {
	t.Parallel()
	for _, point := range sample(2, []string{"following", "batch held", "let go", "lane joined", "changes applied"}) {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t, citustest.New(t))
			ids := blueTenants(t, w, 2)
			traffic := writeOn(t, w, ids)
			var died atomic.Bool
			h := hold(t, w, ids, 1, quick, migration.WithCrashPoints(func(at string) {
				if at == point && !died.Swap(true) {
					panic(crashed{at})
				}
			}))
			h.become(t, migration.Counts{migration.Following: 2})
			require.NoError(t, mortal(func() error { _, err := w.Mover.LetGo(t.Context(), h.run.ID, nil, 0, "test"); return err }))
			h.become(t, migration.Counts{migration.Green: 2})
			require.True(t, died.Load())
			traffic.writeEach(t)
			traffic.check(t)
		})
	}
}

// A schema changes while its tenant is held: green first (expand), then blue, whose tenant is
// copied again; and the other way round to take a column away (contract). A column that green does
// not have is named and waited for, and nobody cuts over meanwhile.
func TestASchemaChangesWhileItsTenantIsHeld(t *testing.T) {
	t.Parallel()
	eachServer(t, func(t *testing.T, w *world) {
		ids := blueTenants(t, w, 2)
		schema := blueSchema(ids[0])
		h := hold(t, w, ids, 10, quick)
		h.become(t, migration.Counts{migration.Following: 2})
		value := func(column string) (green string) {
			require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT coalesce(string_agg(DISTINCT `+column+`, ','), 'null') FROM app.project WHERE tenant_id = $1`, ids[0]).Scan(&green))
			return green
		}

		execSQL(t, w.GreenAdmin, `ALTER TABLE app.project ADD COLUMN colour text`)
		_, err := addProject(t.Context(), w.Door, ids[0], "after green was expanded")
		require.NoError(t, err)
		h.inStep(t, ids[0])
		_, err = w.Mover.LetGo(t.Context(), h.run.ID, ids[:1], 0, "test")
		require.Equal(t, "schema_drift", fault.CodeOf(err))
		execSQL(t, w.BlueAdmin, `ALTER TABLE `+schema+`.project ADD COLUMN colour text DEFAULT 'blue'`) // no row is sent for this
		require.Eventually(t, func() bool { return value("colour") == "blue" }, 30*time.Second, 50*time.Millisecond, "it is copied again")
		h.become(t, migration.Counts{migration.Following: 2})

		// Blue first: green lacks the column.
		execSQL(t, w.BlueAdmin, `ALTER TABLE `+schema+`.project ADD COLUMN size text DEFAULT 'large'`)
		_, err = addProject(t.Context(), w.Door, ids[0], "after blue was expanded")
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			s := inspect(t, w, h.run)
			return len(s.Failed) == 1 && strings.Contains(s.Failed[0].Error, "green has no column size")
		}, 30*time.Second, 50*time.Millisecond)
		require.Equal(t, tenant.Blue, homeOf(t, w, ids[0]))
		execSQL(t, w.GreenAdmin, `ALTER TABLE app.project ADD COLUMN size text`)
		require.Eventually(t, func() bool { return value("size") == "large" }, 30*time.Second, 50*time.Millisecond)

		// Contract: blue first.
		execSQL(t, w.BlueAdmin, `ALTER TABLE `+schema+`.project DROP COLUMN colour, DROP COLUMN size`)
		require.Eventually(t, func() bool { return value("size") == "null" }, 30*time.Second, 50*time.Millisecond)
		execSQL(t, w.GreenAdmin, `ALTER TABLE app.project DROP COLUMN colour, DROP COLUMN size`)
		h.become(t, migration.Counts{migration.Following: 2})
		h.inStep(t, ids[0])
		require.Empty(t, inspect(t, w, h.run).Failed)
		_, err = w.Mover.LetGo(t.Context(), h.run.ID, nil, 0, "test")
		require.NoError(t, err)
		h.become(t, migration.Counts{migration.Green: 2})
	})
}

// A lane that nobody receives is an alarm, once, and so is its end.
func TestALagIsAnAlarm(t *testing.T) {
	t.Parallel()
	w := newWorld(t, citustest.New(t))
	cfg := quick
	cfg.LagAlarm = 2500 * time.Millisecond // more than the second between two signs of life of a receiver
	ids := blueTenants(t, w, 1)
	var deaf atomic.Bool
	receive := w.Queue.receive
	w.Queue.receive = func(task migration.ReceiveTask, after time.Time) {
		if !deaf.Load() {
			receive(task, after)
		}
	}
	h := hold(t, w, ids, 10, cfg)
	h.become(t, migration.Counts{migration.Following: 1})
	alarms := func(over bool) func() bool {
		return func() bool {
			h.mu.Lock()
			defer h.mu.Unlock()
			for _, a := range h.seen {
				if a.Tenant == nil && a.Over == over && a.Run == h.run.ID && (over || a.Why != "") {
					return true
				}
			}
			return false
		}
	}
	require.False(t, alarms(false)(), "%+v", h.seen)
	deaf.Store(true)
	require.Eventually(t, alarms(false), 20*time.Second, 50*time.Millisecond)
	// A receiver that was called before may still come to hear, and end a first alarm; then there is another, which stays.
	require.Eventually(t, func() bool { return inspect(t, w, h.run).Lanes[0].AlarmedAt != nil }, 30*time.Second, 50*time.Millisecond)
	deaf.Store(false)
	require.Eventually(t, func() bool { return alarms(true)() && inspect(t, w, h.run).Lanes[0].AlarmedAt == nil }, 20*time.Second, 50*time.Millisecond)
	events, err := w.Mover.Events(t.Context(), h.run.ID, 0, 1000)
	require.NoError(t, err)
	var names []string
	for _, e := range events {
		if strings.HasPrefix(e.Event, "lag") {
			names = append(names, e.Event)
		}
	}
	require.Equal(t, []string{"lag alarm", "lag alarm over"}, names[:2])
}
