package migration_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/tenant"
)

// seed is that of a random test; CODITECT_TEST_SEED replays one.
func seed(t *testing.T) *rand.Rand {
	n := uint64(time.Now().UnixNano())
	if s := os.Getenv("CODITECT_TEST_SEED"); s != "" {
		var err error
		n, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("CODITECT_TEST_SEED=%d", n)
	return rand.New(rand.NewPCG(n, n))
}

// A tenant of several chunks moves while transactions change it in every way that hurts: rows
// whose key changes from one chunk to another, keys that change places, keys that are deleted and
// inserted again, large values that stay, tables that are emptied, transactions over tables that
// stay open for long. Another one is open from before the first copy to the fence.
func TestALargeTenantMovesWhileItIsUsed(t *testing.T) {
	eachServer(t, func(t *testing.T, w *world) {
		random := seed(t)
		ctx := t.Context()
		id := w.NewTenant(t, tenant.Blue)
		schema := blueSchema(id)
		blue := w.Blue(t)
		exec := func(sql string, args ...any) {
			_, err := blue.Exec(ctx, sql, args...)
			require.NoError(t, err)
		}
		exec(`INSERT INTO `+schema+`.project (tenant_id, id, name, created_at, updated_at) SELECT $1, gen_random_uuid(), i::text, now(), now() FROM generate_series(1, 50) i`, id)
		exec(`INSERT INTO ` + schema + `.task (tenant_id, id, project_id, title, description, status, priority, created_at, updated_at)
			SELECT tenant_id, gen_random_uuid(), id, name || ' ' || i, CASE WHEN i % 50 = 0 THEN (SELECT string_agg(md5(i::text || j), '') FROM generate_series(1, 300) j) ELSE '' END, 'todo', 0, now(), now()
			FROM ` + schema + `.project, generate_series(1, 1200) i`)
		exec(`ANALYZE`)

		stop, cancel := context.WithCancel(ctx)
		var group sync.WaitGroup
		t.Cleanup(func() { cancel(); group.Wait() })
		points := map[string]int{}
		begun := false
		w.Mover = migration.New(w.Migrator, w.Queue, online, migration.WithCrashPoints(func(at string) {
			points[at]++
			if at != "lane joined" || begun {
				return
			}
			begun = true
			old, err := blue.Begin(ctx) // of nobody's tables, but in every snapshot
			require.NoError(t, err)
			t.Cleanup(func() { _ = old.Rollback(context.WithoutCancel(ctx)) })
			_, err = old.Exec(ctx, `SELECT pg_current_xact_id()`)
			require.NoError(t, err)
			for n := range 3 {
				r := rand.New(rand.NewPCG(random.Uint64(), uint64(n)))
				group.Go(func() { hurt(stop, t, w.BlueAdmin, schema, id, r) })
			}
		}))
		run := start(t, w, []tenant.ID{id}, 1)
		recoverByItself(t, w, run)
		status := inspect(t, w, run)
		require.Equal(t, migration.Counts{migration.Green: 1}, status.Counts, "%+v", status.Failed)
		cancel()
		group.Wait()
		require.Greater(t, points["chunk copied"], 6, "the tasks must be more than one chunk")
		require.Positive(t, points["changes applied"])
		require.Positive(t, identical(t, w, w.BlueAdmin, schema, "app", id, true))
		var left int
		require.NoError(t, w.Control.QueryRow(ctx, `SELECT (SELECT count(*) FROM control.pack) + (SELECT count(*) FROM control.unproven) + (SELECT count(*) FROM control.chunk) + (SELECT count(*) FROM control.streamed) + (SELECT count(*) FROM control.applied)`).Scan(&left))
		require.Zero(t, left, "a tenant that has arrived leaves nothing in the stream")
	})
}

// hurt changes a tenant at random until the fence refuses it or the test ends.
func hurt(ctx context.Context, t *testing.T, dsn, schema string, id tenant.ID, r *rand.Rand) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	pick := func(n int) string { // some tasks, anywhere among the keys
		return fmt.Sprintf(`(SELECT id FROM %s.task WHERE id >= md5('%d')::uuid ORDER BY id LIMIT %d)`, schema, r.Int64(), n)
	}
	task := schema + ".task"
	for ctx.Err() == nil {
		var sql string
		switch r.IntN(9) {
		case 0:
			sql = `UPDATE ` + task + ` SET title = title || 'x', version = version + 1 WHERE id IN ` + pick(5)
		case 1: // to another chunk
			sql = `UPDATE ` + task + ` SET id = gen_random_uuid() WHERE id IN ` + pick(3)
		case 2: // and the large value stays
			sql = `UPDATE ` + task + ` SET id = gen_random_uuid(), priority = 1 WHERE length(description) > 0 AND id IN ` + pick(60)
		case 3:
			sql = `WITH gone AS (DELETE FROM ` + task + ` WHERE id IN ` + pick(2) + ` RETURNING *) SELECT count(*) FROM gone`
		case 4: // the same key again, in one transaction
			sql = `DO $$ DECLARE k ` + task + `; BEGIN SELECT * INTO k FROM ` + task + ` WHERE id IN ` + pick(1) + `; DELETE FROM ` + task + ` WHERE id = k.id;
				INSERT INTO ` + task + ` (tenant_id, id, project_id, title, description, status, priority, created_at, updated_at)
				SELECT k.tenant_id, k.id, k.project_id, 'again', k.description, k.status, k.priority, k.created_at, k.updated_at WHERE k.id IS NOT NULL; END $$`
		case 5: // two tables in one transaction, held for a moment
			sql = `DO $$ BEGIN INSERT INTO ` + schema + `.comment (tenant_id, id, task_id, author, body, created_at, updated_at) SELECT tenant_id, gen_random_uuid(), id, 'a', repeat('long ', 30000), now(), now() FROM ` + task + ` WHERE id IN ` + pick(2) + `;
				UPDATE ` + task + ` SET status = 'done' WHERE id IN ` + pick(2) + `; PERFORM pg_sleep(0.02); END $$`
		case 6:
			sql = `TRUNCATE ` + schema + `.comment`
		case 7: // a transaction that is not one of the stream in the end
			sql = `DO $$ BEGIN UPDATE ` + task + ` SET title = 'never' WHERE id IN ` + pick(5) + `; RAISE EXCEPTION 'rolled back'; END $$`
		case 8:
			sql = `UPDATE ` + schema + `.project SET id = gen_random_uuid() WHERE NOT EXISTS (SELECT FROM ` + task + ` k WHERE k.project_id = project.id)`
		}
		_, err := conn.Exec(ctx, sql)
		var refused *pgconn.PgError
		switch {
		case err == nil, citus.StateOf(err) == "P0001", citus.StateOf(err) == "40P01", citus.StateOf(err) == "23503":
		case citus.StateOf(err) == citus.StateFenced, ctx.Err() != nil:
			return
		default:
			t.Errorf("%s: %v %+v", sql, err, refused)
			return
		}
	}
}

// A lane whose slot blue has lost is noticed, its tenant is copied again under another one, and
// nothing is missing.
func TestALostSlotIsCopiedAgain(t *testing.T) {
	w := newWorld(t, citustest.New(t))
	ids := blueTenants(t, w, 2)
	traffic := writeOn(t, w, ids)
	blue := w.Blue(t)
	lost := false
	w.Mover = migration.New(w.Migrator, w.Queue, online, migration.WithCrashPoints(func(at string) {
		if at != "catching_up" || lost {
			return
		}
		lost = true
		for range 200 {
			_, err := blue.Exec(t.Context(), `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = current_database() AND active_pid IS NOT NULL`)
			require.NoError(t, err)
			if _, err = blue.Exec(t.Context(), `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()`); err == nil {
				return
			}
		}
		t.Error("the slot could not be dropped")
	}))
	run := start(t, w, ids, 2)
	recoverByItself(t, w, run)
	require.True(t, lost)
	require.Equal(t, migration.Counts{migration.Green: 2}, inspect(t, w, run).Counts)
	traffic.check(t)
}

// While a tenant catches up, its run says how far it is behind; a blue that is under pressure is
// left alone, and the run says why.
func TestLagAndPressureAreSeen(t *testing.T) {
	w := newWorld(t, citustest.New(t))
	ids := blueTenants(t, w, 3)[2:]
	cfg := online
	cfg.Limits.MaxLatency = time.Nanosecond
	w.Mover = migration.New(w.Migrator, w.Queue, cfg)
	run := start(t, w, ids, 1)
	task, _ := w.Queue.take()
	require.NoError(t, w.Mover.Step(t.Context(), task))
	s := inspect(t, w, run)
	require.Equal(t, migration.Counts{migration.Copying: 1}, s.Counts)
	require.Contains(t, s.Failed[0].Error, "CODITECT_BLUE_MAX_LATENCY")

	var lagged migration.Status
	w.Mover = migration.New(w.Migrator, w.Queue, online, migration.WithCrashPoints(func(at string) {
		if at != "catching_up" {
			return
		}
		for range 5 {
			_, err := addProject(t.Context(), w.Door, ids[0], "late")
			require.NoError(t, err)
		}
		require.Eventually(t, func() bool {
			lagged = inspect(t, w, run)
			return len(lagged.Streams) == 1 && lagged.Streams[0].Changes >= 5
		}, 20*time.Second, 20*time.Millisecond)
	}))
	w.drain(t)
	require.Equal(t, migration.Counts{migration.Green: 1}, inspect(t, w, run).Counts)
	require.Len(t, lagged.Lanes, 1)
	require.Equal(t, "blue", lagged.Lanes[0].Database)
	require.Equal(t, migration.CatchingUp, lagged.Streams[0].State)
	require.EqualValues(t, 2, lagged.Streams[0].Rows)
	require.Positive(t, lagged.Streams[0].Seconds)
	require.Empty(t, inspect(t, w, run).Streams)
}

// While a lane's tenants are copied, nobody reads its slot for most of the time; from when one catches up, somebody does.
func TestBlueIsLeftAloneWhileATenantIsCopied(t *testing.T) {
	w := newWorld(t, citustest.New(t))
	ids := blueTenants(t, w, 3)[2:]
	blue := w.Blue(t)
	reader := func() (pid int) {
		require.NoError(t, blue.QueryRow(t.Context(), `SELECT coalesce(active_pid, 0) FROM pg_replication_slots WHERE database = current_database() AND NOT temporary`).Scan(&pid))
		return pid
	}
	pressed := online
	pressed.Limits.MaxLatency = time.Nanosecond // nothing is copied
	w.Mover = migration.New(w.Migrator, w.Queue, pressed)
	run := start(t, w, ids, 1)
	task, _ := w.Queue.take()
	require.NoError(t, w.Mover.Step(t.Context(), task))
	require.Equal(t, migration.Counts{migration.Copying: 1}, inspect(t, w, run).Counts)
	require.Eventually(t, func() bool { return reader() == 0 }, 5*time.Second, 5*time.Millisecond)

	w.Mover = migration.New(w.Migrator, w.Queue, online, migration.WithCrashPoints(func(at string) {
		if at != "catching_up" {
			return
		}
		pid, since := 0, time.Now()
		require.Eventually(t, func() bool { // one that stays
			if now := reader(); now == 0 || now != pid {
				pid, since = now, time.Now()
			}
			return pid != 0 && time.Since(since) > 700*time.Millisecond
		}, 5*time.Second, 5*time.Millisecond)
	}))
	w.drain(t)
	require.Equal(t, migration.Counts{migration.Green: 1}, inspect(t, w, run).Counts)
}

// A run that is paused and resumed goes on from what is copied.
func TestAPausedOnlineMoveGoesOn(t *testing.T) {
	w := newWorld(t, citustest.New(t))
	ids := blueTenants(t, w, 4)[3:]
	traffic := writeOn(t, w, ids)
	var run migration.Run
	points := map[string]int{}
	w.Mover = migration.New(w.Migrator, w.Queue, online, migration.WithCrashPoints(func(at string) {
		if points[at]++; at == "catching_up" {
			_, err := w.Mover.Pause(t.Context(), run.ID, "test")
			require.NoError(t, err)
			panic(crashed{at})
		}
	}))
	run = start(t, w, ids, 1)
	task, _ := w.Queue.take()
	ctx, cancel := context.WithCancel(t.Context())
	func() {
		defer func() { require.Equal(t, crashed{"catching_up"}, recover()); cancel() }()
		_ = w.Mover.Step(ctx, task)
	}()
	w.Mover = migration.New(w.Migrator, w.Queue, online, migration.WithCrashPoints(func(at string) { points[at]++ }))
	_, err := w.Control.Exec(t.Context(), `UPDATE control.batch SET lease_until = NULL`)
	require.NoError(t, err)
	require.NoError(t, w.Mover.Step(t.Context(), task))
	require.Equal(t, migration.Counts{migration.CatchingUp: 1}, inspect(t, w, run).Counts)
	chunks := points["chunk copied"]
	_, err = w.Mover.Resume(t.Context(), run.ID, "test")
	require.NoError(t, err)
	recoverByItself(t, w, run)
	require.Equal(t, migration.Counts{migration.Green: 1}, inspect(t, w, run).Counts)
	require.Equal(t, chunks, points["chunk copied"], "nothing is copied twice")
	traffic.check(t)
}

// A receiver that lags behind the copy is no fault of the tenant: until the changes from during the
// copy are applied, one chunk may have rows that refer to rows which a chunk before it has not seen.
func TestKeysAreNotProvedBeforeTheStreamHasReachedTheCopy(t *testing.T) {
	w := newWorld(t, citustest.New(t))
	id := blueTenants(t, w, 2)[1]
	receive := w.Queue.receive
	var waiting []migration.ReceiveTask // nobody is at work yet
	w.Queue.receive = func(task migration.ReceiveTask, _ time.Time) { waiting = append(waiting, task) }
	hasty := online
	hasty.StepBudget = 200 * time.Millisecond
	written := false
	w.Mover = migration.New(w.Migrator, w.Queue, hasty, migration.WithCrashPoints(func(at string) {
		if at == "chunk copied" && !written {
			written = true
			keepOpen(t, w, id, "in the middle of the copy").end(t, "COMMIT")
		}
	}))
	run := start(t, w, []tenant.ID{id}, 1)
	var status migration.Status
	for steps := 0; steps < 20 && status.Counts[migration.CatchingUp] == 0; steps++ { // of a slow machine, several
		task, _ := w.Queue.take()
		require.NoError(t, w.Mover.Step(t.Context(), task))
		status = inspect(t, w, run)
	}
	require.Equal(t, migration.Counts{migration.CatchingUp: 1}, status.Counts, "%+v", status.Failed)
	var orphans int
	require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT count(*) FROM app.task t WHERE NOT EXISTS (SELECT FROM app.project p WHERE p.tenant_id = t.tenant_id AND p.id = t.project_id)`).Scan(&orphans))
	require.Equal(t, 1, orphans, "or this test proves nothing")
	w.Queue.receive = receive
	for _, task := range waiting {
		receive(task, time.Time{})
	}
	w.drain(t)
	require.Equal(t, migration.Counts{migration.Green: 1}, inspect(t, w, run).Counts)
	require.Positive(t, identical(t, w, w.BlueAdmin, blueSchema(id), "app", id, true))
}

// In a table that many tenants share the planner knows a new one by the statistics of the others: it may think that it has
// a row. No step may read all of a tenant's rows for a few, and none all of them for each.
func TestATenantThatThePlannerDoesNotKnow(t *testing.T) {
	const rows, changed = 20_000, 1_000
	w := newWorld(t, citustest.New(t))
	ctx := t.Context()
	id := w.NewTenant(t, tenant.Blue)
	schema := blueSchema(id)
	blue := w.Blue(t)
	exec := func(db interface {
		Exec(context.Context, string, ...any) (pgconn.CommandTag, error)
	}, sql string, args ...any) {
		_, err := db.Exec(ctx, sql, args...)
		require.NoError(t, err)
	}
	const columns = ` (tenant_id, id, project_id, title, description, status, priority, created_at, updated_at) `
	exec(w.Control, `ALTER TABLE app.task SET (autovacuum_enabled = false)`)
	other := w.NewTenant(t, tenant.Green)
	exec(w.Control, `INSERT INTO app.project (tenant_id, id, name, created_at, updated_at) VALUES ($1, $1, 'p', now(), now())`, other)
	exec(w.Control, `INSERT INTO app.task`+columns+`SELECT $1, gen_random_uuid(), $1, 'n', '', 'todo', 0, now(), now() FROM generate_series(1, $2)`, other, rows)
	exec(w.Control, `ANALYZE app.task`)
	exec(blue, `INSERT INTO `+schema+`.project (tenant_id, id, name, created_at, updated_at) VALUES ($1, $1, 'p', now(), now())`, id)
	exec(blue, `ALTER TABLE `+schema+`.task ALTER description SET STORAGE EXTERNAL`)
	exec(blue, `INSERT INTO `+schema+`.task`+columns+`SELECT $1, gen_random_uuid(), $1, i::text, CASE WHEN i <= $2 THEN repeat('large', 1000) ELSE '' END, 'todo', 0, now(), now() FROM generate_series(1, $3) i`, id, changed, rows)
	exec(blue, `ANALYZE`)
	h := hold(t, w, []tenant.ID{id}, 1, online)
	h.become(t, migration.Counts{migration.Following: 1})
	const rounds = 10
	for n := range rounds {
		const some = ` WHERE title::int > $1 AND title::int <= $1 + $2`
		first, each := n*changed/rounds, changed/rounds
		exec(blue, `UPDATE `+schema+`.task SET version = 7`+some, first, each) // the large value is not sent
		exec(blue, `UPDATE `+schema+`.task SET version = 7`+some, first+changed, each)
		exec(blue, `DELETE FROM `+schema+`.task`+some, first+2*changed, each)
		require.Eventually(t, func() (there bool) {
			return w.Control.QueryRow(ctx, `SELECT changes = $2 FROM control.applied WHERE tenant_id = $1`, id, 3*each*(n+1)).Scan(&there) == nil && there
		}, 20*time.Second, 10*time.Millisecond)
	}
	_, err := w.Mover.LetGo(ctx, h.run.ID, nil, 0, "test")
	require.NoError(t, err)
	h.become(t, migration.Counts{migration.Green: 1})
	require.Equal(t, rows-changed+1, identical(t, w, w.BlueAdmin, schema, "app", id, true))
	h.end()
	// What a session has read is counted for all to see at the latest when it ends.
	exec(w.Control, `SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'coditect_migrator' AND datname = current_database()`)
	var read int64
	require.NoError(t, w.Control.QueryRow(ctx, `SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_all_tables WHERE relid = 'app.task'::regclass`).Scan(&read))
	t.Logf("%d rows were read", read)
	require.Less(t, read, int64(6*rows))
	require.Greater(t, read, int64(rows))
}
