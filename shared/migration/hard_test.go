package migration_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/tenant"
)

// Tasks come twice, late, out of turn and from several workers at once.
func TestDoubledAndReorderedTasks(t *testing.T) {
	w := newWorld(t, citustest.New(t))
	ids := blueTenants(t, w, 12)
	traffic := writeOn(t, w, ids)
	run := start(t, w, ids, 3)
	var first []migration.StepTask
	for {
		task, ok := w.Queue.take()
		if !ok {
			break
		}
		first = append([]migration.StepTask{task}, first...)
	}
	require.Len(t, first, 4)
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() {
			for _, task := range first {
				err := w.Mover.Step(t.Context(), task)
				if fault.CodeOf(err) != "batch_busy" { // that one the queue delivers again
					require.NoError(t, err)
				}
			}
		})
	}
	group.Wait()
	w.drain(t)
	for _, task := range first { // and a day late
		require.NoError(t, w.Mover.Step(t.Context(), task))
	}
	require.Equal(t, migration.Counts{migration.Green: 12}, inspect(t, w, run).Counts)
	traffic.check(t)
}

// fencedFirst is a configuration that copies every tenant under its fence.
var fencedFirst = func() migration.Config { c := quick; c.AheadMax, c.Lanes = -1, -1; return c }()

// online is a configuration that moves every tenant the online way.
var online = func() migration.Config { c := quick; c.AheadMax = -1; return c }()

// onlinePoints are those of the online way, in their order.
var onlinePoints = []string{"lane entered", "lane joined", "copying", "chunk copied", "catching_up", "changes applied", "fence raised", "fence recorded", "changes copied", "verified", "gates closed"}

// sample takes one in so many points; scripts/soak goes through all of them.
func sample(oneIn int, points []string) (out []string) {
	if everything {
		return points
	}
	for i, p := range points {
		if i%oneIn == oneIn-1 {
			out = append(out, p)
		}
	}
	return out
}

// everyPoint runs f for each crash point of the ways to move a tenant.
func everyPoint(t *testing.T, ahead, fenced, streamed []string, f func(t *testing.T, cfg migration.Config, point string)) {
	for _, p := range sample(3, ahead) {
		t.Run("ahead/"+p, func(t *testing.T) { f(t, quick, p) })
	}
	for _, p := range sample(2, fenced) {
		t.Run("fenced/"+p, func(t *testing.T) { f(t, fencedFirst, p) })
	}
	for _, p := range sample(5, streamed) {
		t.Run("online/"+p, func(t *testing.T) { f(t, online, p) })
	}
}

// zombie returns a world and a mover that stops at a crash point until it is let go.
func zombie(t *testing.T, env *citustest.Env, cfg migration.Config, point string) (w *world, sleeper *migration.Mover, asleep <-chan struct{}, wake func()) {
	w = newWorld(t, env)
	w.Mover = migration.New(env.Migrator, w.Queue, cfg)
	reached, release := make(chan struct{}), make(chan struct{})
	var once, let sync.Once
	sleeper = migration.New(env.Migrator, w.Queue, cfg, migration.WithCrashPoints(func(at string) {
		w.reached(cfg, at)
		if at == point {
			once.Do(func() { close(reached); <-release })
		}
	}))
	wake = func() { let.Do(func() { close(release) }) }
	t.Cleanup(wake)
	return w, sleeper, reached, wake
}

// fallsAsleep waits until a zombie's step stands at its point.
func fallsAsleep(t *testing.T, asleep <-chan struct{}, finished <-chan error) {
	t.Helper()
	select {
	case <-asleep:
	case err := <-finished:
		require.FailNow(t, "the step ended before it came to the point", "%v", err)
	}
}

// A step that was thought dead wakes up after another one has finished its work, and
// writes go on in green. Whatever it still does must change nothing.
func TestAZombieStepIsHarmless(t *testing.T) {
	everyPoint(t, []string{"claimed", "copying", "copied", "copy verified", "fence raised", "fence recorded", "changes copied", "verified", "gates closed"},
		[]string{"fence recorded", "chunk copied", "copied", "verified"}, onlinePoints, func(t *testing.T, cfg migration.Config, point string) {
			w, sleeper, asleep, wake := zombie(t, citustest.New(t), cfg, point)
			ids := blueTenants(t, w, 3)
			traffic := writeOn(t, w, ids)
			w.between = func() { traffic.writeEach(t) } // so that something has changed since the copy
			run := start(t, w, ids, 10)
			task, ok := w.Queue.take()
			require.True(t, ok)
			finished := make(chan error, 1)
			go func() { finished <- sleeper.Step(t.Context(), task) }()
			fallsAsleep(t, asleep, finished)
			// Its lease runs out as if it had lost its connection.
			_, err := w.Control.Exec(t.Context(), `UPDATE control.batch SET lease_until = NULL, lease_token = NULL`)
			require.NoError(t, err)
			require.NoError(t, w.Mover.Step(t.Context(), task))
			w.drain(t)
			require.Equal(t, migration.Counts{migration.Green: 3}, inspect(t, w, run).Counts)
			_, err = addProject(t.Context(), w.Door, ids[0], "after the move")
			require.NoError(t, err)
			before := traffic.count.Load()
			wake()
			require.NoError(t, <-finished)
			w.drain(t)
			require.Equal(t, migration.Counts{migration.Green: 3}, inspect(t, w, run).Counts)
			require.Eventually(t, func() bool { return traffic.count.Load() > before }, 10*time.Second, time.Millisecond)
			traffic.mu.Lock()
			extra := rowsOf(t, w, ids[0])
			for row, name := range extra {
				if name == "after the move" {
					traffic.acked[ids[0]][row] = name
				}
			}
			traffic.mu.Unlock()
			traffic.check(t)
		})
}

// The same, but while it slept an operator has undone the move: the zombie must not
// fence the tenant again, nor bring rows to green.
func TestAZombieAfterAnUndo(t *testing.T) {
	everyPoint(t, []string{"claimed", "copying", "copied", "fence recorded", "changes copied", "verified", "gates closed"},
		[]string{"fence recorded", "chunk copied", "copied"}, onlinePoints, func(t *testing.T, cfg migration.Config, point string) {
			w, sleeper, asleep, wake := zombie(t, citustest.New(t), cfg, point)
			ids := blueTenants(t, w, 3)
			traffic := writeOn(t, w, ids)
			w.between = func() { traffic.writeEach(t) } // so that something has changed since the copy
			run := start(t, w, ids, 10)
			task, _ := w.Queue.take()
			finished := make(chan error, 1)
			go func() { finished <- sleeper.Step(t.Context(), task) }()
			fallsAsleep(t, asleep, finished)
			for _, id := range ids {
				require.NoError(t, w.Mover.Undo(t.Context(), run.ID, id, "test"))
				require.NoError(t, w.Mover.Undo(t.Context(), run.ID, id, "test")) // twice is once
			}
			_, err := addProject(t.Context(), w.Door, ids[0], "p")
			require.NoError(t, err)
			wake()
			require.NoError(t, <-finished)
			require.Equal(t, migration.Counts{migration.Blue: 3}, inspect(t, w, run).Counts)
			before := traffic.count.Load()
			require.Eventually(t, func() bool { return traffic.count.Load() > before+20 }, 10*time.Second, time.Millisecond)
			var left int
			require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM app.project) + (SELECT count(*) FROM coditect.gate)`).Scan(&left))
			require.Zero(t, left, "green keeps nothing of an undone move")
			require.Zero(t, fencesIn(t, w))
			// And the tenants can be moved after all.
			again := start(t, w, ids, 10)
			w.drain(t)
			require.Equal(t, migration.Counts{migration.Green: 3}, inspect(t, w, again).Counts)
		})
}

// An undo sleeps before it deletes what green has. Meanwhile the sweeper has finished it, and
// another run has moved the tenant: the rows that are there now are its only ones.
func TestAZombieUndoDeletesNothing(t *testing.T) {
	w, sleeper, asleep, wake := zombie(t, citustest.New(t), quick, "fence lifted")
	ids := blueTenants(t, w, 1)
	run := start(t, w, ids, 1)
	_, err := w.Control.Exec(t.Context(), `UPDATE control.move SET fence_up = true WHERE run_id = $1`, run.ID) // as a step that has claimed it
	require.NoError(t, err)
	finished := make(chan error, 1)
	go func() { finished <- sleeper.Undo(t.Context(), run.ID, ids[0], "test") }()
	fallsAsleep(t, asleep, finished)
	_, err = w.Control.Exec(t.Context(), `UPDATE control.move SET updated_at = '-infinity' WHERE run_id = $1`, run.ID)
	require.NoError(t, err)
	swept, err := w.Mover.Sweep(t.Context(), time.Hour)
	require.NoError(t, err)
	require.Equal(t, 1, swept.Lifted)
	again := start(t, w, ids, 1)
	w.drain(t)
	require.Equal(t, migration.Counts{migration.Green: 1}, inspect(t, w, again).Counts)
	_, err = addProject(t.Context(), w.Door, ids[0], "after the move")
	require.NoError(t, err)
	before := rowsOf(t, w, ids[0])
	require.NotEmpty(t, before)
	wake()
	require.NoError(t, <-finished)
	require.Equal(t, before, rowsOf(t, w, ids[0]))
}

func fencesIn(t *testing.T, w *world) (n int) {
	t.Helper()
	require.NoError(t, w.Blue(t).QueryRow(t.Context(), `SELECT count(*) FROM pg_trigger WHERE tgname = 'coditect_fence' AND tgenabled <> 'D'`).Scan(&n))
	return n
}

// crashed stands for a process that died: everything after the point does not happen.
type crashed struct{ point string }

// dying is a mover that panics with crashed at a point.
func (w *world) dying(point string) *migration.Mover {
	return migration.New(w.Migrator, w.Queue, quick, migration.WithCrashPoints(func(at string) {
		if at == point {
			panic(crashed{at})
		}
	}))
}

// A step dies after each of its effects; the next one finishes. The tenants are written
// all the time. (functions/migrationstep does the same with a real process and kill -9.)
func TestAStepDiesAnywhere(t *testing.T) {
	everyPoint(t, []string{"claimed", "copying", "copied", "copy verified", "fence raised", "fence recorded", "changes copied", "verified", "gates closed", "flipped", "step named", "batch done"},
		[]string{"fence recorded", "chunk copied", "copied", "verified"}, onlinePoints,
		func(t *testing.T, cfg migration.Config, point string) { diesAt(t, cfg, point, 4) })
}

// diesAt lets a step that moves so many tenants die at a point. The next ones finish.
func diesAt(t *testing.T, cfg migration.Config, point string, tenants int) {
	w := newWorld(t, citustest.New(t))
	w.Mover = migration.New(w.Migrator, w.Queue, cfg)
	ids := blueTenants(t, w, tenants)
	traffic := writeOn(t, w, ids)
	w.between = func() { traffic.writeEach(t) } // so that something has changed since the copy
	run := start(t, w, ids, 10)
	task, _ := w.Queue.take()
	ctx, cancel := context.WithCancel(t.Context())
	tiny := cfg
	tiny.GroupTenants, tiny.StepBudget = 2, time.Nanosecond // two groups, and a step that is named
	reached := false
	dying := migration.New(w.Migrator, w.Queue, tiny, migration.WithCrashPoints(func(at string) {
		w.reached(cfg, at)
		if at == point {
			reached = true
			panic(crashed{at})
		}
	}))
	func() {
		defer func() {
			if p := recover(); p != nil {
				require.Equal(t, crashed{point}, p)
			}
			cancel() // its connections and its lease's heartbeat end with it
		}()
		for {
			if err := dying.Step(ctx, task); err != nil {
				t.Fatalf("step: %v", err)
			}
			next, ok := w.Queue.take()
			if !ok {
				return
			}
			task = next
		}
	}()
	require.True(t, reached, "the step never came to the point")
	recoverByItself(t, w, run)
	require.Equal(t, migration.Counts{migration.Green: int64(tenants)}, inspect(t, w, run).Counts)
	traffic.check(t)
}

// recoverByItself does what the scheduler does: it sweeps until the run is over.
func recoverByItself(t *testing.T, w *world, run migration.Run) {
	t.Helper()
	require.Eventually(t, func() bool {
		_, err := w.Mover.Sweep(t.Context(), 0)
		require.NoError(t, err)
		w.drainBusy(t)
		s := inspect(t, w, run)
		return s.State == migration.Done || s.State == migration.Cancelled
	}, 30*time.Second, 50*time.Millisecond)
}

// drainBusy is drain, where a batch whose lease a dead step left behind is not an error.
func (w *world) drainBusy(t *testing.T) {
	t.Helper()
	for {
		task, ok := w.Queue.take()
		if !ok {
			return
		}
		if err := w.Mover.Step(t.Context(), task); fault.CodeOf(err) != "batch_busy" {
			require.NoError(t, err)
		}
	}
}

// An undo dies between its commit and lifting the fence: the sweeper lifts it.
func TestTheSweeperLiftsALeftFence(t *testing.T) {
	w, sleeper, asleep, _ := zombie(t, citustest.New(t), quick, "verified")
	ids := blueTenants(t, w, 1)
	run := start(t, w, ids, 1)
	task, _ := w.Queue.take()
	finished := make(chan error, 1)
	go func() { finished <- sleeper.Step(t.Context(), task) }()
	fallsAsleep(t, asleep, finished)
	dying := w.dying("undone")
	require.Panics(t, func() { _ = dying.Undo(t.Context(), run.ID, ids[0], "test") })
	require.Positive(t, fencesIn(t, w))
	require.Eventually(t, func() bool {
		_, err := w.Mover.Sweep(t.Context(), time.Hour)
		require.NoError(t, err)
		return fencesIn(t, w) == 0
	}, 10*time.Second, 100*time.Millisecond)
	_, err := addProject(t.Context(), w.Door, ids[0], "p")
	require.NoError(t, err)
}

// A writer that holds its transaction open is waited for a little, again and again, and
// does not make the others wait for long.
func TestALongTransactionIsNotCutOff(t *testing.T) {
	w := newWorld(t, citustest.New(t))
	ids := blueTenants(t, w, 2)
	held, release, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	var once, let sync.Once
	letGo := func() { let.Do(func() { close(release) }) }
	t.Cleanup(letGo)
	go func() {
		done <- w.Door.InTenant(t.Context(), ids[0], func(tx *citus.Tx) error {
			_, err := tx.Exec(t.Context(), `INSERT INTO project (tenant_id, id, name, created_at, updated_at) VALUES ($1, $2, 'held', now(), now())`, tx.Tenant(), tenant.NewID())
			once.Do(func() { close(held) })
			<-release
			return err
		})
	}()
	<-held
	run := start(t, w, ids, 10)
	task, _ := w.Queue.take()
	require.NoError(t, w.Mover.Step(t.Context(), task))
	require.Equal(t, migration.Counts{migration.Green: 1, migration.Copying: 1}, inspect(t, w, run).Counts)
	_, err := addProject(t.Context(), w.Door, ids[0], "meanwhile")
	require.NoError(t, err, "the others go on")
	letGo()
	require.NoError(t, <-done)
	w.drain(t)
	require.Equal(t, migration.Counts{migration.Green: 2}, inspect(t, w, run).Counts)
	require.Equal(t, 2, projects(t, w.Door, ids[0]))
}

func TestPauseResumeCancel(t *testing.T) {
	w := newWorld(t, citustest.New(t))
	ids := blueTenants(t, w, 6)
	run := start(t, w, ids, 2)
	task, _ := w.Queue.take()
	require.NoError(t, w.Mover.Step(t.Context(), task))
	_, err := w.Mover.Pause(t.Context(), run.ID, "test")
	require.NoError(t, err)
	w.drain(t)
	require.Equal(t, migration.Counts{migration.Green: 2, migration.Planned: 4}, inspect(t, w, run).Counts)
	_, err = w.Mover.Resume(t.Context(), run.ID, "test")
	require.NoError(t, err)
	task, _ = w.Queue.take()
	require.NoError(t, w.Mover.Step(t.Context(), task))
	_, err = w.Mover.Cancel(t.Context(), run.ID, "test")
	require.NoError(t, err)
	w.drain(t)
	s := inspect(t, w, run)
	require.Equal(t, migration.Cancelled, s.State)
	require.Equal(t, migration.Counts{migration.Green: 4, migration.Blue: 2}, s.Counts)
	_, err = w.Mover.Resume(t.Context(), run.ID, "test")
	require.Equal(t, "wrong_run_state", fault.CodeOf(err))
	err = w.Mover.Undo(t.Context(), run.ID, ids[0], "test")
	require.Equal(t, "already_green", fault.CodeOf(err))
	for _, id := range ids {
		_, err := addProject(t.Context(), w.Door, id, "after")
		require.NoError(t, err)
	}
}

// A suspension during the move comes along.
func TestSuspensionDuringAMove(t *testing.T) {
	w, sleeper, asleep, wake := zombie(t, citustest.New(t), quick, "verified")
	ids := blueTenants(t, w, 1)
	start(t, w, ids, 1)
	task, _ := w.Queue.take()
	finished := make(chan error, 1)
	go func() { finished <- sleeper.Step(t.Context(), task) }()
	fallsAsleep(t, asleep, finished)
	_, err := w.Control.Exec(t.Context(), `UPDATE control.tenant SET status = 'suspended' WHERE id = $1`, ids[0])
	require.NoError(t, err)
	wake()
	require.NoError(t, <-finished)
	require.Equal(t, tenant.Green, homeOf(t, w, ids[0]))
	var suspended bool
	require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT suspended FROM coditect.gate WHERE tenant_id = $1`, ids[0]).Scan(&suspended))
	require.True(t, suspended)
	w.Directory.Forget(ids[0])
	_, err = addProject(t.Context(), w.Door, ids[0], "p")
	require.Equal(t, "tenant_suspended", fault.CodeOf(err))
}

// A schema that changes between plan and fence, or under the fence, is not copied.
func TestASchemaThatChangesIsRefused(t *testing.T) {
	w := newWorld(t, citustest.New(t))
	ids := blueTenants(t, w, 2)
	run := start(t, w, ids, 10)
	_, err := w.Blue(t).Exec(t.Context(), `ALTER TABLE `+blueSchema(ids[1])+`.project ADD COLUMN colour text DEFAULT 'red'`)
	require.NoError(t, err)
	w.drain(t)
	s := inspect(t, w, run)
	require.Equal(t, migration.Counts{migration.Green: 1, migration.Blue: 1}, s.Counts)
	require.Equal(t, ids[1], s.Failed[0].Tenant)
	require.Contains(t, s.Failed[0].Error, "colour")
	_, err = addProject(t.Context(), w.Door, ids[1], "still here")
	require.NoError(t, err)
	// Under the fence the event trigger refuses any change.
	_, err = w.Blue(t).Exec(t.Context(), `ALTER TABLE `+blueSchema(ids[0])+`.project ADD COLUMN colour text`)
	require.Equal(t, citus.StateFenced, citus.StateOf(err))
	_, err = w.Blue(t).Exec(t.Context(), `DROP TABLE `+blueSchema(ids[0])+`.comment`)
	require.Equal(t, citus.StateFenced, citus.StateOf(err))
}

// Rows that arrived otherwise than they left are never flipped: somebody changes a row of
// green between copy and verification.
func TestADifferenceStopsTheFlip(t *testing.T) {
	eachServer(t, func(t *testing.T, w *world) {
		ids := blueTenants(t, w, 3)
		spoiler := migration.New(w.Migrator, w.Queue, quick, migration.WithCrashPoints(func(at string) {
			if at == "copied" {
				_, err := w.Control.Exec(t.Context(), `UPDATE app.project SET name = 'P' WHERE tenant_id = $1`, ids[1])
				require.NoError(t, err)
			}
		}))
		run := start(t, w, ids, 10)
		for {
			task, ok := w.Queue.take()
			if !ok {
				break
			}
			require.NoError(t, spoiler.Step(t.Context(), task))
		}
		s := inspect(t, w, run)
		require.Equal(t, migration.Counts{migration.Green: 2, migration.Blue: 1}, s.Counts)
		require.Contains(t, s.Failed[0].Error, "table project")
		require.Equal(t, 1, projects(t, w.Door, ids[1]))
		var left int
		require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT count(*) FROM app.project WHERE tenant_id = $1`, ids[1]).Scan(&left))
		require.Zero(t, left)
	})
}

// One tenant of a million rows goes page by page, over several steps.
func TestAMillionRows(t *testing.T) {
	small := quick
	small.StepBudget, small.ChunkPages, small.AheadMax, small.Lanes = 500*time.Millisecond, 512, 1, -1
	streamed := quick
	streamed.AheadMax = 1
	ahead := quick
	ahead.AheadMax = 1 << 30
	t.Run("ahead of the fence", func(t *testing.T) { aMillionRows(t, ahead, 1_000_000) })
	t.Run("online", func(t *testing.T) { aMillionRows(t, streamed, 200_000) })
	t.Run("page by page under the fence", func(t *testing.T) { aMillionRows(t, small, 300_000) })
}

func aMillionRows(t *testing.T, cfg migration.Config, n int) {
	w := newWorld(t, citustest.New(t))
	ids := blueTenants(t, w, 2)
	_, err := w.Blue(t).Exec(t.Context(), fmt.Sprintf(`INSERT INTO %s.project (tenant_id, id, name, created_at, updated_at)
		SELECT '%s', gen_random_uuid(), 'project ' || i, now(), now() FROM generate_series(1, %d) i`, blueSchema(ids[1]), ids[1], n))
	require.NoError(t, err)
	_, err = w.Blue(t).Exec(t.Context(), `ANALYZE`)
	require.NoError(t, err)
	w.Mover = migration.New(w.Migrator, w.Queue, cfg)
	pause := 100 * time.Millisecond
	if cfg.Lanes < 0 || cfg.AheadMax > 1 { // the online way's pause does not grow with the tenant
		_, _, err = w.Mover.Start(t.Context(), migration.Plan{Source: "platform", Tenants: ids[1:], MaxPause: pause, Actor: "test"})
		require.Equal(t, "preflight_failed", fault.CodeOf(err))
		require.Contains(t, err.Error(), blueSchema(ids[1]))
		pause = time.Minute
	}
	run, _, err := w.Mover.Start(t.Context(), migration.Plan{Source: "platform", Tenants: ids, MaxPause: pause, Actor: "test"})
	require.NoError(t, err)
	w.drain(t)
	s := inspect(t, w, run)
	require.Equal(t, migration.Counts{migration.Green: 2}, s.Counts, "%+v", s.Failed)
	require.EqualValues(t, n+1, s.RowsMoved)
	require.Equal(t, n+1, projects(t, w.Door, ids[1]))
}

// ownByLegacy makes legacy_owner the owner of all tables of a foreign database.
const ownByLegacy = `DO $$ DECLARE r record; BEGIN PERFORM pg_advisory_xact_lock(4711);
	IF to_regrole('legacy_owner') IS NULL THEN CREATE ROLE legacy_owner; END IF;
	IF to_regrole('legacy_app') IS NULL THEN CREATE ROLE legacy_app LOGIN; END IF;
	FOR r IN SELECT c.oid::regclass AS t FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND n.nspname !~ '^(pg_|information_schema|public)'
	LOOP EXECUTE format('ALTER TABLE %s OWNER TO legacy_owner', r.t); END LOOP;
	FOR r IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema|public|coditect)' LOOP EXECUTE format('GRANT USAGE, CREATE ON SCHEMA %I TO legacy_owner', r.nspname); END LOOP; END $$`

// A foreign database with everything that makes a copy hard.
func TestStrangeForeignSchemas(t *testing.T) {
	eachServer(t, func(t *testing.T, w *world) {
		w.Legacy = citustest.EmptyDatabase(t)
		execSQL(t, w.Legacy, `CREATE TABLE public.tenants (name text, "Schema Name" text)`)
		conn, err := pgx.Connect(t.Context(), w.Legacy)
		require.NoError(t, err)
		defer func() { _ = conn.Close(context.Background()) }()
		schemas := map[string]string{"plain": "", `we"ird Name`: "", "empty": "", "mehr": `ALTER TABLE "Order" ADD COLUMN extra text`, "weniger": `ALTER TABLE "Order" DROP COLUMN "note"`, "keyless": `ALTER TABLE "Order" DROP CONSTRAINT "Order_pkey" CASCADE`}
		for name, change := range schemas {
			_, err := conn.Exec(t.Context(), fmt.Sprintf(`BEGIN; CREATE SCHEMA %[1]s; SET LOCAL search_path = %[1]s; CREATE TYPE "Mood" AS ENUM ('ok', 'it''s "bad"'); CREATE DOMAIN "Temper" AS "Mood" DEFAULT 'ok'; CREATE TYPE pair AS (a int, b text);
				CREATE TABLE feeling (id serial PRIMARY KEY, mood "Mood" NOT NULL, temper "Temper", size int); INSERT INTO feeling (mood, size) VALUES ('ok', 7);
				CREATE TABLE "Order" (id serial PRIMARY KEY, "select" "Mood" NOT NULL DEFAULT 'ok', moods "Mood"[], two pair DEFAULT '(1,"a b")', "note" text, parent int REFERENCES "Order" DEFERRABLE INITIALLY DEFERRED,
					twice int GENERATED ALWAYS AS (id * 2) STORED);
				%[2]s; COMMIT`, pgx.Identifier{name}.Sanitize(), change), pgx.QueryExecModeSimpleProtocol)
			require.NoError(t, err)
			_, err = conn.Exec(t.Context(), `INSERT INTO public.tenants VALUES ($1, $1)`, name)
			require.NoError(t, err)
		}
		for _, name := range []string{"plain", `we"ird Name`} {
			_, err := conn.Exec(t.Context(), fmt.Sprintf(`INSERT INTO %s."Order" ("select", moods, "note", parent) VALUES ('it''s "bad"', '{ok,"it''s \"bad\""}', E'a\tb\\n"c', 2), ('ok', NULL, NULL, NULL), ('ok', '{}', '', 1), ('ok', NULL, E'\\N', 1), ('ok', NULL, E' (a,b)\r\n\b\v\f', 1), ('ok', NULL, E'\\.', NULL)`,
				pgx.Identifier{name}.Sanitize()))
			require.NoError(t, err)
		}
		execSQL(t, w.Legacy, ownByLegacy)
		execSQL(t, w.Legacy, `ANALYZE`)
		w.register(t, `
name: strange
database: STRANGE
tenant_table: public.tenants
schema_column: Schema Name
name_column: name
template_schema: plain
application_role: legacy_app
`)
		r, report, err := w.Mover.Start(t.Context(), migration.Plan{Source: "strange", Actor: "test"})
		require.NoError(t, err)
		named := map[string]string{}
		for _, f := range report.Findings {
			if f.Severity == "blocker" {
				named[f.Schema] += f.Code + " "
			}
		}
		require.Len(t, named, 3, "%+v", report.Findings)
		require.Contains(t, named["mehr"], "drift")
		require.Contains(t, named["weniger"], "drift")
		require.Contains(t, named["keyless"], "primary_key")
		w.drain(t)
		s := inspect(t, w, r)
		require.Equal(t, migration.Counts{migration.Green: 3}, s.Counts, "%+v", s.Failed)
		var attempts int
		require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT max(attempts) FROM control.move WHERE run_id = $1 AND state = 'green'`, r.ID).Scan(&attempts))
		require.Equal(t, 1, attempts, "types of their own do not keep tenants from being copied together")
		for _, name := range []string{"plain", `we"ird Name`, "empty"} {
			identical(t, w, w.Legacy, name, "strange", tenant.ImportedID("strange", name), false)
		}
		// New ids are past the old ones, and the foreign application's own statement needs no tenant_id.
		require.NoError(t, w.Door.InTenant(t.Context(), tenant.ImportedID("strange", `we"ird Name`), func(tx *citus.Tx) error {
			var id int64
			if err := tx.QueryRow(t.Context(), `INSERT INTO "Order" (tenant_id, "note") VALUES ($1, 'new') RETURNING id`, tx.Tenant()).Scan(&id); err != nil {
				return err
			}
			require.Greater(t, id, int64(2))
			return nil
		}))
	})
}
