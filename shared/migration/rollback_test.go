package migration_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/tenant"
)

// comesBack rolls a tenant back, again for as long as it is under way.
func comesBack(t *testing.T, w *world, run migration.Run, id tenant.ID) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.NoError(c, w.Mover.Rollback(t.Context(), run.ID, id, "test"))
	}, 30*time.Second, 50*time.Millisecond)
	require.Equal(t, tenant.Blue, homeOf(t, w, id))
}

// leftInGreen counts what green still has of a tenant.
func leftInGreen(t *testing.T, w *world, id tenant.ID) (n int) {
	t.Helper()
	require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM app.project WHERE tenant_id = $1) + (SELECT count(*) FROM coditect.captured WHERE tenant_id = $1)`, id).Scan(&n))
	return n
}

// There, back, and there again, while the tenants are written all the time.
func TestThereAndBackAgain(t *testing.T) {
	t.Parallel()
	eachServer(t, func(t *testing.T, w *world) {
		ids := blueTenants(t, w, 3)
		neighbour := w.NewTenant(t, tenant.Green)
		traffic := writeOn(t, w, append(ids, neighbour))
		run := start(t, w, ids, 10)
		w.drain(t)
		require.Equal(t, migration.Counts{migration.Green: 3}, inspect(t, w, run).Counts)
		traffic.writeEach(t)
		for _, id := range ids[:2] {
			comesBack(t, w, run, id)
			require.NoError(t, w.Mover.Rollback(t.Context(), run.ID, id, "test"), "asked for twice")
			require.Zero(t, leftInGreen(t, w, id))
		}
		require.Equal(t, migration.Counts{migration.Green: 1, migration.Blue: 2}, inspect(t, w, run).Counts)
		traffic.writeEach(t)
		again := start(t, w, ids[:2], 10)
		w.drain(t)
		require.Equal(t, migration.Counts{migration.Green: 2}, inspect(t, w, again).Counts)
		traffic.writeEach(t)
		comesBack(t, w, again, ids[0])
		traffic.writeEach(t)
		traffic.check(t)
		for i, home := range []tenant.Home{tenant.Blue, tenant.Green, tenant.Green} {
			require.Equal(t, home, homeOf(t, w, ids[i]))
		}
		var pause *int64
		require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT max(back_pause_us) FROM control.move`).Scan(&pause))
		require.NotNil(t, pause)
		t.Logf("longest pause on the way back: %d ms", *pause/1000)
	})
}

// backPoints are where a rollback may die, in their order.
var backPoints = []string{"rollback recorded", "rollback claimed", "green again", "blue entered", "changes read", "changes applied in blue", "changes deleted in green", "chunk compared", "compared",
	"fenced back", "gate shut", "writers drained", "proven", "flipped back", "blue's gate told", "fence lifted"}

// A rollback dies after each of its effects, and the sweep finishes it. The tenant is written
// all the time.
func TestARollbackDiesAnywhere(t *testing.T) {
	t.Parallel()
	for i, point := range sample(3, backPoints) {
		t.Run(point, func(t *testing.T) {
			env := citustest.New
			if i%4 == 1 { // a sample of them
				env = citustest.NewCitus
			}
			w := newWorld(t, env(t))
			ids := blueTenants(t, w, 2)
			traffic := writeOn(t, w, ids)
			run := start(t, w, ids, 10)
			w.drain(t)
			traffic.writeEach(t)
			ctx, cancel := context.WithCancel(t.Context())
			dying := w.dying(point)
			require.PanicsWithValue(t, crashed{point}, func() { _ = dying.Rollback(ctx, run.ID, ids[0], "test") })
			cancel()
			require.Eventually(t, func() bool {
				_, err := w.Mover.Sweep(t.Context(), 0)
				require.NoError(t, err)
				return homeOf(t, w, ids[0]) == tenant.Blue && leftInGreen(t, w, ids[0]) == 0 && fenceOf(t, w, ids[0]) == ""
			}, 40*time.Second, 100*time.Millisecond)
			traffic.writeEach(t)
			traffic.check(t)
			require.Equal(t, tenant.Green, homeOf(t, w, ids[1]))
		})
	}
}

// A large tenant is compared in chunks while it is written, and with each what has been
// written comes over: little is left to prove when its writers wait.
func TestALargeTenantComesBack(t *testing.T) {
	t.Parallel()
	eachServer(t, func(t *testing.T, w *world) {
		ids := blueTenants(t, w, 2)[1:] // of one project
		schema := blueSchema(ids[0])
		_, err := w.Blue(t).Exec(t.Context(), `INSERT INTO `+schema+`.task (tenant_id, id, project_id, title, status, priority, created_at, updated_at)
			SELECT tenant_id, gen_random_uuid(), id, i::text, 'todo', 0, now(), now() FROM `+schema+`.project, generate_series(1, 50000) i`)
		require.NoError(t, err)
		run := start(t, w, ids, 10)
		w.drain(t)
		require.Equal(t, tenant.Green, homeOf(t, w, ids[0]))
		traffic := writeOn(t, w, ids)
		chunks := 0
		err = migration.New(w.Migrator, w.Queue, quick, migration.WithCrashPoints(func(at string) {
			if at == "chunk compared" {
				chunks++
				traffic.writeEach(t)
			}
		})).Rollback(t.Context(), run.ID, ids[0], "test")
		require.NoError(t, err)
		require.GreaterOrEqual(t, chunks, 4+2, "the tasks must be two chunks, the other tables one each")
		require.Equal(t, tenant.Blue, homeOf(t, w, ids[0]))
		traffic.writeEach(t)
		traffic.check(t)
		var tasks int64
		require.NoError(t, w.Blue(t).QueryRow(t.Context(), `SELECT count(*) FROM `+schema+`.task`).Scan(&tasks))
		require.EqualValues(t, 50000, tasks)
	})
}

// Whoever reads in green when a tenant goes back reads to the end of its transaction: the rows
// are deleted when nobody can be reading them.
func TestAReaderInGreenReadsToItsEnd(t *testing.T) {
	t.Parallel()
	eachServer(t, func(t *testing.T, w *world) {
		ids, run := inGreen(t, w, 3)
		count := func(tx *citus.Tx) (n int, err error) {
			return n, tx.QueryRow(t.Context(), `SELECT count(*) FROM project WHERE tenant_id = $1`, ids[2]).Scan(&n)
		}
		require.NoError(t, w.Door.InTenant(t.Context(), ids[2], func(tx *citus.Tx) error {
			n, err := count(tx)
			if err != nil {
				return err // the door did not know yet where the tenant is
			}
			require.Equal(t, 2, n)
			comesBack(t, w, run, ids[2])
			_, err = w.Mover.Sweep(t.Context(), 0)
			require.NoError(t, err)
			n, err = count(tx)
			require.NoError(t, err)
			require.Equal(t, 2, n)
			return nil
		}))
		require.Eventually(t, func() bool {
			_, err := w.Mover.Sweep(t.Context(), 0)
			require.NoError(t, err)
			return leftInGreen(t, w, ids[2]) == 0
		}, 10*time.Second, 100*time.Millisecond)
	})
}

// fenceOf says what is shut for a tenant in blue.
func fenceOf(t *testing.T, w *world, id tenant.ID) (what string) {
	t.Helper()
	require.NoError(t, w.Blue(t).QueryRow(t.Context(), `SELECT concat(CASE WHEN fenced THEN 'fenced ' END, CASE WHEN closed THEN 'closed ' END, CASE WHEN suspended THEN 'suspended' END)
		FROM coditect.gate WHERE tenant_id = $1`, id).Scan(&what))
	return what
}

// A rollback falls asleep, another one finishes, and the tenant moves on and is written: the
// sleeper wakes and changes nothing.
func TestAZombieRollbackIsHarmless(t *testing.T) {
	t.Parallel()
	for _, point := range sample(3, []string{"rollback claimed", "changes read", "changes applied in blue", "compared", "fenced back", "gate shut", "proven", "flipped back"}) {
		for _, moved := range []bool{false, true} {
			t.Run(fmt.Sprint(point, moved), func(t *testing.T) {
				w, sleeper, asleep, wake := zombie(t, citustest.New(t), quick, point)
				ids := blueTenants(t, w, 1)
				traffic := writeOn(t, w, ids)
				run := start(t, w, ids, 10)
				w.drain(t)
				traffic.writeEach(t)
				finished := make(chan error, 1)
				go func() { finished <- sleeper.Rollback(t.Context(), run.ID, ids[0], "test") }()
				fallsAsleep(t, asleep, finished)
				require.Eventually(t, func() bool {
					_, err := w.Mover.Sweep(t.Context(), 0)
					require.NoError(t, err)
					err = w.Mover.Rollback(t.Context(), run.ID, ids[0], "test")
					return err == nil && fenceOf(t, w, ids[0]) == "" && leftInGreen(t, w, ids[0]) == 0
				}, 30*time.Second, 50*time.Millisecond)
				traffic.writeEach(t)
				home := tenant.Blue
				if moved {
					home = tenant.Green
					start(t, w, ids, 10)
					w.drain(t)
					traffic.writeEach(t)
				}
				wake()
				t.Logf("the sleeper says: %v", <-finished)
				traffic.writeEach(t)
				require.Equal(t, home, homeOf(t, w, ids[0]))
				traffic.check(t)
			})
		}
	}
}

// A writer that holds its transaction open is waited for a little; then green opens again for
// the others, and the rollback is tried later.
func TestARollbackDoesNotCutATransactionOff(t *testing.T) {
	t.Parallel()
	eachServer(t, func(t *testing.T, w *world) {
		ids, run := inGreen(t, w, 1)
		held, release, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
		row := tenant.NewID()
		go func() {
			done <- w.Door.InTenant(t.Context(), ids[0], func(tx *citus.Tx) error {
				_, err := tx.Exec(t.Context(), `INSERT INTO project (tenant_id, id, name, created_at, updated_at) VALUES ($1, $2, 'held', $3, $3)`, tx.Tenant(), row, time.Unix(1, 0))
				close(held)
				<-release
				return err
			})
		}()
		<-held
		err := w.Mover.Rollback(t.Context(), run.ID, ids[0], "test")
		require.Equal(t, fault.Unavailable, fault.KindOf(err), "%v", err)
		require.Equal(t, tenant.Green, homeOf(t, w, ids[0]))
		_, err = addProject(t.Context(), w.Door, ids[0], "meanwhile")
		require.NoError(t, err, "the others go on")
		close(release)
		require.NoError(t, <-done)
		require.Eventually(t, func() bool {
			_, err := w.Mover.Sweep(t.Context(), 0)
			require.NoError(t, err)
			return homeOf(t, w, ids[0]) == tenant.Blue
		}, 20*time.Second, 100*time.Millisecond, "the sweep finishes what was asked for")
		require.Equal(t, "held", rowsOf(t, w, ids[0])[row])
		require.Equal(t, 2, projects(t, w.Door, ids[0]))
	})
}

// A transaction that entered green before the rollback and has not written yet is refused
// when it writes, however long it waits and whatever snapshot it has.
func TestStaleTransactionsAreRefusedInGreen(t *testing.T) {
	t.Parallel()
	eachServer(t, func(t *testing.T, w *world) {
		ids, run := inGreen(t, w, 1)
		var stale []pgx.Tx
		for _, level := range []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead} {
			conn, err := pgx.Connect(t.Context(), citustest.As(t, w.GreenAdmin, "coditect_app"))
			require.NoError(t, err)
			defer func() { _ = conn.Close(context.Background()) }()
			tx, err := conn.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: level})
			require.NoError(t, err)
			_, err = tx.Exec(t.Context(), `SET LOCAL app.tenant_id = '`+ids[0].String()+`'`)
			require.NoError(t, err)
			_, err = tx.Exec(t.Context(), `SELECT count(*) FROM app.project WHERE tenant_id = '`+ids[0].String()+`'`)
			require.NoError(t, err)
			stale = append(stale, tx)
		}
		comesBack(t, w, run, ids[0])
		of := `tenant_id = '` + ids[0].String() + `'`
		statements := []string{`INSERT INTO app.project (tenant_id, id, name, created_at, updated_at) VALUES ('` + ids[0].String() + `', '` + tenant.NewID().String() + `', 'stale', '2026-01-01', '2026-01-01')`,
			`UPDATE app.project SET name = 'stale' WHERE ` + of, `DELETE FROM app.project WHERE ` + of} // its rows are gone: these would find none
		for i, tx := range stale {
			for _, sql := range statements {
				_, err := tx.Exec(t.Context(), `SAVEPOINT s`)
				require.NoError(t, err)
				_, err = tx.Exec(t.Context(), sql)
				require.Contains(t, []string{"CD001", "40001"}, citus.StateOf(err), "%d: %s: %v", i, sql, err)
				_, err = tx.Exec(t.Context(), `ROLLBACK TO s`)
				require.NoError(t, err)
			}
		}
		require.Zero(t, leftInGreen(t, w, ids[0]))
	})
}

// Nobody but the mover gets through the fence of a tenant that has left, and the mover only
// with the tenant's own token.
func TestNobodyElseWritesBehindTheFence(t *testing.T) {
	t.Parallel()
	w := newWorld(t, citustest.New(t))
	ids := blueTenants(t, w, 2)
	start(t, w, ids, 10)
	w.drain(t)
	token := func(id tenant.ID) (n int64) {
		require.NoError(t, w.Blue(t).QueryRow(t.Context(), `SELECT token FROM coditect.gate WHERE tenant_id = $1`, id).Scan(&n))
		return n
	}
	insert := func(role string, before ...string) error {
		conn, err := pgx.Connect(t.Context(), citustest.As(t, w.BlueAdmin, role))
		require.NoError(t, err)
		defer func() { _ = conn.Close(context.Background()) }()
		return pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
			for _, sql := range append(before, fmt.Sprintf(`SET LOCAL app.tenant_id = '%s'`, ids[0]),
				fmt.Sprintf(`INSERT INTO %s.project (tenant_id, id, name, created_at, updated_at) VALUES ('%s', '%s', 'x', now(), now())`, blueSchema(ids[0]), ids[0], tenant.NewID())) {
				if _, err := tx.Exec(t.Context(), sql); err != nil {
					return err
				}
			}
			return nil
		})
	}
	set := func(id tenant.ID, token int64) string {
		return fmt.Sprintf(`SELECT set_config('coditect.reverse', '%s %d', true)`, id, token)
	}
	enter := func(id tenant.ID, token int64) string {
		return fmt.Sprintf(`SELECT coditect.enter_reverse('%s', %d)`, id, token)
	}
	require.Equal(t, "CD001", citus.StateOf(insert("coditect_app", set(ids[0], token(ids[0])))))
	require.Equal(t, "CD001", citus.StateOf(insert("coditect_owner", set(ids[0], token(ids[0])))))
	require.Equal(t, "42501", citus.StateOf(insert("coditect_app", enter(ids[0], token(ids[0])))))
	require.Equal(t, "CD001", citus.StateOf(insert("coditect_migrator")))
	require.Equal(t, "CD001", citus.StateOf(insert("coditect_migrator", set(ids[0], token(ids[0])-1))))
	require.Equal(t, "CD004", citus.StateOf(insert("coditect_migrator", enter(ids[0], token(ids[0])-1))))
	require.Equal(t, "CD001", citus.StateOf(insert("coditect_migrator", enter(ids[1], token(ids[1])))), "of another tenant")
	require.NoError(t, insert("coditect_migrator", enter(ids[0], token(ids[0]))))
	require.Equal(t, "CD001", citus.StateOf(insert("coditect_migrator")), "it ends with its transaction")
	staying := w.NewTenant(t, tenant.Blue)
	require.Equal(t, "CD004", citus.StateOf(insert("coditect_migrator", enter(staying, token(staying)))), "of a tenant that lives here")
}

// What is written in green comes to blue by itself, while the tenant stays.
func TestChangesComeBackWithTheSweep(t *testing.T) {
	t.Parallel()
	eachServer(t, func(t *testing.T, w *world) {
		ids, run := inGreen(t, w, 3)
		traffic := writeOn(t, w, ids)
		traffic.writeEach(t)
		_, err := w.Mover.Sweep(t.Context(), 0)
		require.NoError(t, err)
		traffic.writeEach(t)
		traffic.check(t)
		swept, err := w.Mover.Sweep(t.Context(), 0)
		require.NoError(t, err)
		require.Equal(t, 3, swept.Reversed)
		var left int
		require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT count(*) FROM coditect.captured`).Scan(&left))
		require.Zero(t, left)
		for _, id := range ids {
			require.Positive(t, identical(t, w, w.BlueAdmin, blueSchema(id), "app", id, true))
			require.Equal(t, tenant.Green, homeOf(t, w, id))
		}
		more, err := w.Mover.Reverse(t.Context(), run.ID, ids[0])
		require.NoError(t, err)
		require.False(t, more)
	})
}

// A rollback whose process died while writers wait is taken up before the door gives up; one whose writers go on has
// more time.
func TestASweepIsInAHurryWhereWritersWait(t *testing.T) {
	t.Parallel()
	for point, writersWait := range map[string]bool{"blue entered": false, "gate shut": true} {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t, citustest.New(t))
			ids, run := inGreen(t, w, 1)
			require.PanicsWithValue(t, crashed{point}, func() { _ = w.dying(point).Rollback(t.Context(), run.ID, ids[0], "test") })
			_, err := w.Control.Exec(t.Context(), `UPDATE control.move SET updated_at = clock_timestamp() - interval '6 seconds' WHERE tenant_id = $1`, ids[0])
			require.NoError(t, err)
			cfg := quick
			cfg.Lease = 10 * time.Second
			swept, err := migration.New(w.Migrator, w.Queue, cfg).Sweep(t.Context(), 0)
			require.NoError(t, err)
			if writersWait {
				require.Equal(t, 1, swept.Returned)
				require.Equal(t, tenant.Blue, homeOf(t, w, ids[0]))
			} else {
				require.Zero(t, swept.Returned)
			}
		})
	}
}

// A scheduler that calls once a minute asks for a sweep that goes on: what the first one leaves a
// moment, because somebody may be at work on it, the next one finds.
func TestASweepGoesOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, citustest.New(t))
	ids, run := inGreen(t, w, 1)
	dying := w.dying("blue's gate told")
	require.PanicsWithValue(t, crashed{"blue's gate told"}, func() { _ = dying.Rollback(t.Context(), run.ID, ids[0], "test") })
	require.NotEmpty(t, fenceOf(t, w, ids[0]))
	swept, err := w.Mover.SweepFor(t.Context(), 0, 6*time.Second)
	require.NoError(t, err)
	require.Equal(t, 1, swept.Lifted)
	require.Empty(t, fenceOf(t, w, ids[0]))
}

// A tenant that is written without a break does not hold the sweep up: others may be waiting for
// it with their fences.
func TestReverseDoesNotRunAfterWriters(t *testing.T) {
	t.Parallel()
	w := newWorld(t, citustest.New(t))
	ids, run := inGreen(t, w, 1)
	write := func() {
		_, err := addProject(t.Context(), w.Door, ids[0], "again")
		require.NoError(t, err)
	}
	write()
	passes := 0
	_, err := migration.New(w.Migrator, w.Queue, quick, migration.WithCrashPoints(func(at string) {
		if at == "changes deleted in green" {
			passes++
			write()
		}
	})).Reverse(t.Context(), run.ID, ids[0])
	require.NoError(t, err)
	require.Equal(t, 1, passes)
}

// What is left is few when it was all that a pass found: rows may be so large that few of them fill one.
func TestGreenIsShutWhenLittleIsLeft(t *testing.T) {
	t.Parallel()
	w := newWorld(t, citustest.New(t))
	ids, run := inGreen(t, w, 1)
	_, err := w.Control.Exec(t.Context(), `INSERT INTO app.project (tenant_id, id, name, description, created_at, updated_at)
		SELECT $1, gen_random_uuid(), i::text, repeat('x', 1 << 20), now(), now() FROM generate_series(1, 100) i`, ids[0])
	require.NoError(t, err)
	passes, shut := 0, false
	cfg := quick
	cfg.StepBudget = time.Minute // also where others are at work
	require.NoError(t, migration.New(w.Migrator, w.Queue, cfg, migration.WithCrashPoints(func(at string) {
		switch at {
		case "changes deleted in green":
			require.False(t, shut, "rows were left for the pause")
			passes++
		case "fenced back":
			shut = true
		}
	})).Rollback(t.Context(), run.ID, ids[0], "test"))
	require.Greater(t, passes, 100/8)
}

// A pass dies before it has deleted in green what it has applied; then a transaction commits that has drawn smaller ids,
// so that the first changes that are found are not all of those. None is applied twice.
func TestAPassFindsMoreBehindWhatADeadOneApplied(t *testing.T) {
	t.Parallel()
	eachServer(t, func(t *testing.T, w *world) {
		ids, run := inGreen(t, w, 1)
		insert := `INSERT INTO app.project (tenant_id, id, name, created_at, updated_at) SELECT $1, md5($2 || i)::uuid, $2, $3, $3 FROM generate_series(1, $4::int) i`
		require.NoError(t, pgx.BeginFunc(t.Context(), w.Control, func(slow pgx.Tx) error {
			_, err := slow.Exec(t.Context(), insert, ids[0], "slow", time.Unix(1, 0), 10)
			require.NoError(t, err)
			_, err = w.Control.Exec(t.Context(), insert, ids[0], "many", time.Unix(1, 0), 2100)
			require.NoError(t, err)
			dying := w.dying("changes applied in blue")
			require.PanicsWithValue(t, crashed{"changes applied in blue"}, func() { _, _ = dying.Reverse(t.Context(), run.ID, ids[0]) })
			return nil
		}))
		left, err := w.Mover.Reverse(t.Context(), run.ID, ids[0])
		require.NoError(t, err)
		require.False(t, left)
		require.Equal(t, 2110, identical(t, w, w.BlueAdmin, blueSchema(ids[0]), "app", ids[0], true))
	})
}

// A tenant that was suspended in green comes back suspended, one that was suspended before it
// went does not.
func TestSuspensionComesBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, citustest.New(t))
	ids := blueTenants(t, w, 2)
	suspend := func(status string, id tenant.ID) {
		_, err := w.Control.Exec(t.Context(), `WITH s AS (UPDATE control.tenant SET status = $2 WHERE id = $1) UPDATE coditect.gate SET suspended = $2 <> 'active' WHERE tenant_id = $1`, id, status)
		require.NoError(t, err)
	}
	_, err := w.Blue(t).Exec(t.Context(), `UPDATE coditect.gate SET suspended = true WHERE tenant_id = $1`, ids[1])
	require.NoError(t, err)
	suspend("suspended", ids[1])
	run := start(t, w, ids, 10)
	w.drain(t)
	suspend("suspended", ids[0])
	suspend("active", ids[1])
	comesBack(t, w, run, ids[0])
	comesBack(t, w, run, ids[1])
	require.Equal(t, "suspended", fenceOf(t, w, ids[0]))
	require.Empty(t, fenceOf(t, w, ids[1]))
}

// Only what is green can go back, and a request says so.
func TestWhatCannotGoBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, citustest.New(t))
	ids := blueTenants(t, w, 2)
	run := start(t, w, ids, 10)
	code := func(err error) string {
		require.NotNil(t, fault.As(err), "%v", err)
		return fault.As(err).Code
	}
	require.Equal(t, "not_green", code(w.Mover.Rollback(t.Context(), run.ID, ids[0], "test")))
	require.Equal(t, "move_not_found", code(w.Mover.Rollback(t.Context(), run.ID, tenant.NewID(), "test")))
	w.drain(t)
	// Blue was changed behind the fence: the rows that are the way back's are not those that green had.
	execSQL(t, w.BlueAdmin, `SET coditect.mover = 'on'; SET session_replication_role = 'replica'; ALTER TABLE `+blueSchema(ids[1])+`.project DISABLE TRIGGER coditect_fence; DELETE FROM `+blueSchema(ids[1])+`.project;
		ALTER TABLE `+blueSchema(ids[1])+`.project ENABLE ALWAYS TRIGGER coditect_fence`)
	err := w.Mover.Rollback(t.Context(), run.ID, ids[1], "test")
	require.Equal(t, "rows_differ", code(err))
	require.ErrorContains(t, err, "table project")
	require.Equal(t, tenant.Green, homeOf(t, w, ids[1]))
	_, err = addProject(t.Context(), w.Door, ids[1], "still written")
	require.NoError(t, err)
	failed := inspect(t, w, run).Failed
	require.Len(t, failed, 1)
	require.Contains(t, failed[0].Error, "cannot go back")
	swept, err := w.Mover.Sweep(t.Context(), 0)
	require.NoError(t, err)
	require.Zero(t, swept.Returned, "it is not tried again")
}

// tableRows reads a tenant's rows as text, by table, of the columns that blue has.
func tableRows(t *testing.T, w *world, schema string, green bool, id tenant.ID) map[string][]string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), w.Legacy)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	rows, err := conn.Query(t.Context(), `SELECT c.relname::text, array_agg(quote_ident(a.attname) || '::text' ORDER BY a.attname)::text[] FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
		WHERE c.relnamespace = to_regnamespace(quote_ident($1)) AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped GROUP BY 1`, schema)
	require.NoError(t, err)
	columns := map[string][]string{}
	var (
		name string
		list []string
	)
	_, err = pgx.ForEachRow(rows, []any{&name, &list}, func() error { columns[name] = slices.Clone(list); return nil })
	require.NoError(t, err)
	out := map[string][]string{}
	for name, list := range columns {
		query := `SELECT r FROM (SELECT array_to_string(ARRAY[` + strings.Join(list, ", ") + `], '|', '<null>') AS r FROM `
		var rows pgx.Rows
		if green {
			rows, err = w.Control.Query(t.Context(), query+pgx.Identifier{"legacy", name}.Sanitize()+` WHERE tenant_id = $1) x ORDER BY r COLLATE "C"`, id)
		} else {
			rows, err = conn.Query(t.Context(), query+pgx.Identifier{schema, name}.Sanitize()+`) x ORDER BY r COLLATE "C"`)
		}
		require.NoError(t, err)
		out[name], err = pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
	}
	return out
}

// A foreign tenant comes back as it was, whatever types its columns have: every row was
// written in green. Its own application goes on with ids that green has not given out.
func TestALegacyTenantComesBack(t *testing.T) {
	t.Parallel()
	eachServer(t, func(t *testing.T, w *world) {
		w.withLegacy(t)
		const schema = "acme00003"
		id := tenant.ImportedID("legacy", schema)
		before := tableRows(t, w, schema, false, id)
		run, _, err := w.Mover.Start(t.Context(), migration.Plan{Source: "legacy", Tenants: []tenant.ID{id}, Actor: "test"})
		require.NoError(t, err)
		w.drain(t)
		require.Equal(t, tenant.Green, homeOf(t, w, id))
		written := 0
		for table := range before {
			var column *string // not one of the key, if there is another
			require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT (array_agg(quote_ident(attname) ORDER BY attnum = ANY (i.indkey), attnum))[1] FROM pg_attribute a, pg_index i
				WHERE attrelid = $1::regclass AND i.indrelid = attrelid AND i.indisprimary AND attnum > 0 AND NOT attisdropped AND attname <> 'tenant_id' AND attgenerated = ''`,
				pgx.Identifier{"legacy", table}.Sanitize()).Scan(&column))
			tag, err := w.Control.Exec(t.Context(), `UPDATE `+pgx.Identifier{"legacy", table}.Sanitize()+` SET `+*column+` = `+*column+` WHERE tenant_id = $1`, id)
			require.NoError(t, err)
			written += int(tag.RowsAffected())
		}
		var last int64
		require.NoError(t, w.Door.InTenant(t.Context(), id, func(tx *citus.Tx) error {
			if _, err := tx.Exec(t.Context(), `DELETE FROM work_event WHERE tenant_id = $1 AND id = (SELECT min(id) FROM work_event WHERE tenant_id = $1)`, tx.Tenant()); err != nil {
				return err
			}
			return tx.QueryRow(t.Context(), `INSERT INTO work_label (tenant_id, name) VALUES ($1, E'new\t"\\ü') RETURNING id`, tx.Tenant()).Scan(&last)
		}))
		var captured int
		require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT count(*) FROM coditect.captured WHERE tenant_id = $1`, id).Scan(&captured))
		require.GreaterOrEqual(t, captured, written+2)
		want := tableRows(t, w, schema, true, id)
		require.NotEqual(t, want, before)

		comesBack(t, w, run, id)
		require.Equal(t, want, tableRows(t, w, schema, false, id))
		for table, rows := range tableRows(t, w, schema, true, id) {
			require.Empty(t, rows, table)
		}
		app, err := pgx.Connect(t.Context(), citustest.As(t, w.Legacy, "legacy_app"))
		require.NoError(t, err)
		defer func() { _ = app.Close(context.Background()) }()
		var next int64
		require.NoError(t, app.QueryRow(t.Context(), `INSERT INTO `+schema+`.work_label (name) VALUES ('old application') RETURNING id`).Scan(&next))
		require.Greater(t, next, last)
	})
}

// An id that only green is wide enough for keeps its tenant there.
func TestAnIDThatDoesNotFitBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, citustest.New(t))
	w.withLegacy(t)
	id := tenant.ImportedID("legacy", "acme00004")
	run, _, err := w.Mover.Start(t.Context(), migration.Plan{Source: "legacy", Tenants: []tenant.ID{id}, Actor: "test"})
	require.NoError(t, err)
	w.drain(t)
	_, err = w.Control.Exec(t.Context(), `INSERT INTO legacy.auth_group (tenant_id, id, name) VALUES ($1, 3000000000, 'wide')`, id)
	require.NoError(t, err)
	err = w.Mover.Rollback(t.Context(), run.ID, id, "test")
	require.NotNil(t, fault.As(err), "%v", err)
	require.Equal(t, "does_not_fit_back", fault.As(err).Code, "%v", err)
	require.Equal(t, tenant.Green, homeOf(t, w, id))
	_, err = w.Mover.Sweep(t.Context(), 0)
	require.NoError(t, err, "what is one tenant's stops nobody")
	require.NoError(t, w.Door.InTenant(t.Context(), id, func(tx *citus.Tx) error {
		_, err := tx.Exec(t.Context(), `INSERT INTO work_label (tenant_id, name) VALUES ($1, 'still written')`, tx.Tenant())
		return err
	}))
}

// A tenant's shard is moved to another worker and back between its changes: ids are drawn where
// the rows are, and the order of each row's changes holds all the same.
func TestChangesOfAMovedShardStayInOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t, citustest.NewCitus(t))
	ids, run := inGreen(t, w, 1)
	row, err := addProject(t.Context(), w.Door, ids[0], "0")
	require.NoError(t, err)
	for i := range 3 {
		for range 3 {
			require.NoError(t, w.Door.OneTrip(t.Context(), ids[0], func(b *citus.Batch) {
				b.Queue(`UPDATE project SET name = name || $3, version = version + 1 WHERE tenant_id = $1 AND id = $2`, ids[0], row, fmt.Sprint(i))
			}))
		}
		_, err := w.Control.Exec(t.Context(), `SELECT citus_move_shard_placement(s.shardid, s.nodename, s.nodeport, o.nodename, o.nodeport, 'block_writes')
			FROM citus_shards s JOIN pg_dist_node o ON o.noderole = 'primary' AND o.shouldhaveshards AND o.nodeport <> s.nodeport
			WHERE s.shardid = get_shard_id_for_distribution_column('app.project', $1::uuid)`, ids[0])
		require.NoError(t, err)
	}
	var generations, backwards int
	require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT count(DISTINCT generation), count(*) FILTER (WHERE id < before) FROM (
		SELECT generation, id, lag(id) OVER (ORDER BY generation, id) AS before FROM coditect.captured WHERE tenant_id = $1) x`, ids[0]).Scan(&generations, &backwards))
	require.Equal(t, 3, generations)
	require.Positive(t, backwards, "ids alone would be in the wrong order, or this test proves nothing")
	comesBack(t, w, run, ids[0])
	require.Equal(t, "0000111222", rowsOf(t, w, ids[0])[row])
}
