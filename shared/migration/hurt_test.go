package migration_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/migration/stream"
	"github.com/coditect/platform/shared/tenant"
)

// withForeign makes a foreign database whose schemas all have what ddl makes, and registers it as
// the source legacy.
func (w *world) withForeign(t *testing.T, ddl string, schemas ...string) {
	t.Helper()
	w.fillForeign(t, citustest.EmptyDatabase(t), ddl, schemas...)
}

// fillForeign is withForeign in a given database.
func (w *world) fillForeign(t *testing.T, dsn, ddl string, schemas ...string) {
	t.Helper()
	w.Legacy = dsn
	var sql strings.Builder
	sql.WriteString(`CREATE TABLE public.tenants (name text, "Schema Name" text);`)
	for _, s := range schemas {
		name := pgx.Identifier{s}.Sanitize()
		fmt.Fprintf(&sql, `CREATE SCHEMA %s; SET search_path = %[1]s; %s; INSERT INTO public.tenants VALUES (%s, %[3]s);`, name, ddl, literal(s))
	}
	execSQL(t, w.Legacy, sql.String())
	execSQL(t, w.Legacy, ownByLegacy)
	execSQL(t, w.Legacy, `ANALYZE`)
	w.register(t, `
name: legacy
database: LEGACY_DSN
tenant_table: public.tenants
schema_column: Schema Name
name_column: name
application_role: legacy_app
`)
	w.Mover = migration.New(w.Migrator, w.Queue, online)
}

func literal(s string) string { return `'` + strings.ReplaceAll(s, `'`, `''`) + `'` }

// startLegacy begins a run over foreign tenants, in one batch.
func startLegacy(t *testing.T, w *world, batch int) migration.Run {
	t.Helper()
	run, report, err := w.Mover.Start(t.Context(), migration.Plan{Source: "legacy", BatchSize: batch, Actor: "test"})
	require.NoError(t, err, "%+v", report.Findings)
	require.Zero(t, report.LeftOut, "%+v", report.Findings)
	return run
}

// quotedTables are tables whose names need quotes, with large values, keys from sequences, and foreign
// keys that are looked at when the transaction ends.
const quotedTables = `
	CREATE TABLE "Größe ""x""" ("Id" serial PRIMARY KEY, "Next" int REFERENCES "Größe ""x""" DEFERRABLE INITIALLY DEFERRED, "select" text NOT NULL,
		"Big" text, twice int GENERATED ALWAYS AS ("Id" * 2) STORED);
	ALTER TABLE "Größe ""x""" ALTER "Big" SET STORAGE EXTERNAL;
	CREATE TABLE child (id bigserial PRIMARY KEY, "Of; --" int NOT NULL REFERENCES "Größe ""x""" DEFERRABLE INITIALLY DEFERRED, note text);
	CREATE TABLE log (at int, "N'" serial, note text, PRIMARY KEY (at, "N'"));
	INSERT INTO "Größe ""x""" ("Next", "select", "Big") SELECT 1, 'row ' || i, CASE WHEN i % 20 = 0 THEN (SELECT string_agg(md5(i::text || j), '') FROM generate_series(1, 3200) j) END FROM generate_series(1, 500) i;
	INSERT INTO child ("Of; --", note) SELECT i, 'child' FROM generate_series(1, 500) i;
	INSERT INTO log (at, note) SELECT i % 10, 'log' FROM generate_series(1, 100) i`

// A foreign tenant whose schema's name needs quotes moves online while transactions change it in
// every way that hurts, and comes back as green has it: keys that change, that change places,
// that are deleted and inserted again, with what refers to them following in the same transaction;
// rows of 100 kB whose large value stays; children before their parents; subtransactions that are
// rolled back; tables that are emptied; ids from sequences.
func TestASchemaThatNeedsQuotesMovesWhileItIsUsed(t *testing.T) {
	plainServer(t, func(t *testing.T, w *world) {
		random := seed(t)
		const schema = `Tenant "A"-ümlaut`
		w.withForeign(t, quotedTables, schema)
		id := tenant.ImportedID("legacy", schema)
		stop, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		t.Cleanup(func() { cancel(); group.Wait() })
		var applied int
		begun := false
		w.Mover = migration.New(w.Migrator, w.Queue, online, migration.WithCrashPoints(func(at string) {
			switch {
			case at == "changes applied":
				applied++
			case at == "lane joined" && !begun:
				begun = true
				for n := range 2 {
					r := rand.New(rand.NewPCG(random.Uint64(), uint64(n)))
					group.Go(func() { hurtQuoted(stop, t, w.Legacy, schema, r) })
				}
			}
		}))
		run := startLegacy(t, w, 1)
		recoverByItself(t, w, run)
		status := inspect(t, w, run)
		require.Equal(t, migration.Counts{migration.Green: 1}, status.Counts, "%+v", status.Failed)
		group.Wait() // the fence has ended them
		require.Positive(t, applied)
		require.Positive(t, identical(t, w, w.Legacy, schema, "legacy", id, false))

		require.NoError(t, w.Door.InTenant(t.Context(), id, func(tx *citus.Tx) error {
			var last, next int64
			if err := tx.QueryRow(t.Context(), `SELECT max("Id") FROM "Größe ""x""" WHERE tenant_id = $1`, tx.Tenant()).Scan(&last); err != nil {
				return err
			}
			if err := tx.QueryRow(t.Context(), `INSERT INTO "Größe ""x""" (tenant_id, "select") VALUES ($1, 'green') RETURNING "Id"`, tx.Tenant()).Scan(&next); err != nil {
				return err
			}
			require.Greater(t, next, last, "ids go on after blue's")
			_, err := tx.Exec(t.Context(), `UPDATE "Größe ""x""" SET "select" = 'changed' WHERE tenant_id = $1 AND "Big" IS NOT NULL`, tx.Tenant())
			return err
		}))
		want := tableRows(t, w, schema, true, id)
		comesBack(t, w, run, id)
		require.Equal(t, want, tableRows(t, w, schema, false, id))
	})
}

// hurtQuoted changes a tenant of quotedTables at random until the fence refuses it.
func hurtQuoted(ctx context.Context, t *testing.T, dsn, schema string, r *rand.Rand) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	_, err = conn.Exec(ctx, `SET search_path = `+pgx.Identifier{schema}.Sanitize())
	if err != nil {
		return
	}
	const (
		things = `"Größe ""x"""`
		move   = `UPDATE ` + things + ` SET "Id" = %[2]s WHERE "Id" = %[1]s; UPDATE child SET "Of; --" = %[2]s WHERE "Of; --" = %[1]s; UPDATE ` + things + ` SET "Next" = %[2]s WHERE "Next" = %[1]s;`
		fresh  = `nextval(pg_get_serial_sequence('` + things + `', 'Id'))`
	)
	statements := []string{
		`UPDATE ` + things + ` SET "select" = "select" || 'x' WHERE "Id" BETWEEN a - 30 AND a;`, // large values stay
		fmt.Sprintf(move, `a`, `(-a)`), // another key
		fmt.Sprintf(move, `a`, `0`) + fmt.Sprintf(move, `b`, `a`) + fmt.Sprintf(move, `0`, `b`), // two keys change places
		`SELECT * INTO k FROM ` + things + ` WHERE "Id" = a; IF FOUND THEN DELETE FROM ` + things + ` WHERE "Id" = a; INSERT INTO ` + things + ` ("Id", "Next", "select", "Big") VALUES (a, k."Next", 'again', k."Big"); END IF;`,
		`INSERT INTO child ("Of; --", note) VALUES (-1000000 - a, 'before its parent'); DELETE FROM ` + things + ` WHERE "Id" = -1000000 - a; INSERT INTO ` + things + ` ("Id", "select") VALUES (-1000000 - a, 'late');`,
		`INSERT INTO ` + things + ` ("Next", "select", "Big") SELECT "Id", 'new', repeat(md5(random()::text), 3200) FROM ` + things + ` WHERE "Id" = a;`, // 100 kB
		`UPDATE ` + things + ` SET "Big" = reverse("Big") WHERE "Big" IS NOT NULL AND "Id" BETWEEN a - 30 AND a;`,
		`DELETE FROM child WHERE "Of; --" = a; DELETE FROM ` + things + ` WHERE "Id" = a;`,
		`TRUNCATE log;`,
		`INSERT INTO log (at, note) SELECT i % 7, 'more' FROM generate_series(1, 20) i; UPDATE log SET at = at + 1 WHERE at % 2 = 0; DELETE FROM log WHERE at > 20;`,
	}
	tick := time.NewTicker(3 * time.Millisecond)
	defer tick.Stop()
	for ; ctx.Err() == nil; <-tick.C {
		a, b := 1+r.IntN(500), 1+r.IntN(500)
		first, second, undone := statements[r.IntN(len(statements))], statements[r.IntN(len(statements))], statements[r.IntN(len(statements))]
		sql := fmt.Sprintf(`DO $do$ DECLARE a int := %d; b int := %d; k record; BEGIN %s
			BEGIN %s RAISE EXCEPTION SQLSTATE 'P0002'; EXCEPTION WHEN SQLSTATE 'P0002' THEN NULL; END;
			BEGIN %s END; END $do$`, a, b, first, undone, second)
		_, err := conn.Exec(ctx, sql)
		switch state := citus.StateOf(err); {
		case err == nil, state == "23503", state == "23505", state == "40P01": // of each other's rows
		case state == citus.StateFenced, ctx.Err() != nil:
			return
		default:
			t.Errorf("%s: %v", sql, err)
			return
		}
	}
}

// openTx is a transaction that has changed several tables of a tenant and stays open.
type openTx struct {
	conn *pgx.Conn
	name string
}

// keepOpen begins a transaction that inserts, changes and deletes rows of a tenant.
func keepOpen(t *testing.T, w *world, id tenant.ID, name string) openTx {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), w.BlueAdmin)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	_, err = conn.Exec(t.Context(), fmt.Sprintf(`SET search_path = %s; BEGIN;
		INSERT INTO project (tenant_id, id, name, created_at, updated_at) VALUES ('%s', gen_random_uuid(), '%s', now(), now());
		INSERT INTO task (tenant_id, id, project_id, title, status, priority, created_at, updated_at) SELECT tenant_id, gen_random_uuid(), id, '%[3]s', 'todo', 0, now(), now() FROM project WHERE name = '%[3]s';
		UPDATE project SET id = gen_random_uuid() WHERE name = 'changed by %[3]s';
		DELETE FROM project WHERE name = 'deleted by %[3]s'`, blueSchema(id), id, name), pgx.QueryExecModeSimpleProtocol)
	require.NoError(t, err)
	return openTx{conn, name}
}

func (h openTx) end(t *testing.T, how string) {
	t.Helper()
	_, err := h.conn.Exec(t.Context(), how)
	require.NoError(t, err)
}

// A transaction over several tables is open in every phase of an online move: one from before the
// lane is entered, one that spans the copy, one from before the fence. Each ends late, and what it
// did is in green as a whole or not at all. What began before the switch and writes after it is
// refused: Vitess let it write to the old home (vitessio/vitess #9400, mended in #9481).
func TestATransactionIsOpenInEveryPhase(t *testing.T) {
	for _, how := range []string{"COMMIT", "ROLLBACK"} {
		t.Run(how, func(t *testing.T) { openInEveryPhase(t, how) })
	}
}

func openInEveryPhase(t *testing.T, how string) {
	cfg := online
	cfg.LockTimeout = 20 * time.Millisecond
	w := newWorld(t, citustest.New(t))
	ids := blueTenants(t, w, 2)
	id := ids[1]
	phases := []string{"before the lane", "before the copy", "before the fence"}
	for _, phase := range phases {
		for _, what := range []string{"changed by ", "deleted by "} {
			_, err := addProject(t.Context(), w.Door, id, what+phase)
			require.NoError(t, err)
		}
	}
	w.Mover = migration.New(w.Migrator, w.Queue, cfg)
	start(t, w, ids[:1], 1) // opens the lane: a slot is made only when no transaction is open
	w.drain(t)

	var spans, late openTx
	w.Mover = migration.New(w.Migrator, w.Queue, cfg, migration.WithCrashPoints(func(at string) {
		switch {
		case at == "lane joined" && spans.conn == nil:
			spans = keepOpen(t, w, id, "before the copy")
		case at == "catching_up" && late.conn == nil:
			late = keepOpen(t, w, id, "before the fence")
		}
	}))

	var stale []*pgx.Conn
	for _, level := range []string{"READ COMMITTED", "REPEATABLE READ"} {
		conn, err := pgx.Connect(t.Context(), w.BlueAdmin)
		require.NoError(t, err)
		defer func() { _ = conn.Close(context.Background()) }()
		_, err = conn.Exec(t.Context(), `BEGIN ISOLATION LEVEL `+level+`; SELECT count(*) FROM `+blueSchema(id)+`.project`, pgx.QueryExecModeSimpleProtocol)
		require.NoError(t, err)
		stale = append(stale, conn)
	}
	first := keepOpen(t, w, id, "before the lane")
	run := start(t, w, ids[1:], 1)
	step := func(state migration.State, why string) {
		t.Helper()
		task, ok := w.Queue.take()
		require.True(t, ok)
		require.NoError(t, w.Mover.Step(t.Context(), task))
		status := inspect(t, w, run)
		require.Equal(t, migration.Counts{state: 1}, status.Counts)
		require.Len(t, status.Failed, 1)
		require.Contains(t, status.Failed[0].Error, why)
	}
	step(migration.Planned, "the barrier")
	first.end(t, how)
	step(migration.CatchingUp, "the fence may wait")
	require.NotNil(t, spans.conn, "and still open")
	spans.end(t, how)
	step(migration.CatchingUp, "the fence may wait")
	late.end(t, how)
	w.drain(t)
	status := inspect(t, w, run)
	require.Equal(t, migration.Counts{migration.Green: 1}, status.Counts, "%+v", status.Failed)

	for _, conn := range stale {
		_, err := conn.Exec(t.Context(), fmt.Sprintf(`INSERT INTO %s.project (tenant_id, id, name, created_at, updated_at) VALUES ('%s', gen_random_uuid(), 'stale', now(), now())`, blueSchema(id), id))
		require.Equal(t, citus.StateFenced, citus.StateOf(err), "%v", err)
	}
	names := map[string]int{}
	for _, name := range rowsOf(t, w, id) {
		names[name]++
	}
	for _, phase := range phases {
		committed := 0
		if how == "COMMIT" {
			committed = 1
		}
		require.Equal(t, committed, names[phase])
		require.Equal(t, 1-committed, names["deleted by "+phase])
		require.Equal(t, 1, names["changed by "+phase])
	}
	require.Positive(t, identical(t, w, w.BlueAdmin, blueSchema(id), "app", id, true))
}

// What commits while the fence is waiting for it comes before the fence in the stream. Vitess took
// the position to catch up to before it locked the tables, and lost what was written between the
// two (vitessio/vitess #16563).
func TestWhatCommitsWhileTheFenceWaitsIsBeforeIt(t *testing.T) {
	w := newWorld(t, citustest.New(t))
	id := blueTenants(t, w, 1)[0]
	blue := w.Blue(t)
	patient := online
	patient.LockTimeout = 20 * time.Second
	var writer openTx
	committed := make(chan error, 1)
	var last string
	w.Mover = migration.New(w.Migrator, w.Queue, patient, migration.WithCrashPoints(func(at string) {
		switch at {
		case "catching_up":
			writer = keepOpen(t, w, id, "while the fence waits")
			go func() { committed <- commitOnceFenceWaits(t.Context(), blue, writer) }()
		case "verified":
			var end int64
			require.NoError(t, blue.QueryRow(t.Context(), `SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint`).Scan(&end))
			require.Eventually(t, func() bool {
				p, err := stream.PositionOf(t.Context(), w.Control, stream.Lane{Database: citus.BlueDatabase, Number: 1})
				return err == nil && p.Spooled >= end
			}, 10*time.Second, 5*time.Millisecond)
			last = spooledOps(t, w, id)
		}
	}))
	run := start(t, w, []tenant.ID{id}, 1)
	w.drain(t)
	require.NoError(t, <-committed)
	require.Equal(t, migration.Counts{migration.Green: 1}, inspect(t, w, run).Counts)
	require.Equal(t, "IIF", last)
	require.Equal(t, 1, identical(t, w, w.BlueAdmin, blueSchema(id), "app", id, true)-1)
}

// commitOnceFenceWaits commits a transaction when somebody raises a fence and waits for it.
func commitOnceFenceWaits(ctx context.Context, blue *citus.Pool, h openTx) error {
	for {
		var waits bool
		err := blue.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%coditect.fence(%' AND $1 = ANY (pg_blocking_pids(pid)))`,
			h.conn.PgConn().PID()).Scan(&waits)
		if err == nil && waits {
			_, err = h.conn.Exec(ctx, `COMMIT`)
			return err
		}
		if err != nil {
			return err
		}
	}
}

// A switch that dies half-way, with blue's gate shut and green's not yet open, is finished or undone
// without anybody's help; one that dies right after it is a whole one. In Vitess both homes could stay
// shut (vitessio/vitess #17326).
func TestAHalfDoneSwitchIsFinished(t *testing.T) {
	for _, point := range sample(2, []string{"flipped", "gates closed"}) {
		t.Run(point, func(t *testing.T) { diesAt(t, online, point, 2) })
	}
}

// oneRow is a tenant of one row.
const oneRow = `CREATE TABLE thing (id int PRIMARY KEY, note text); INSERT INTO thing VALUES (1, current_schema())`

// Many tenants of one row move online, in one batch and one lane, while some are written.
func TestManyTenantsOfOneRow(t *testing.T) {
	tenants := 80
	if everything {
		tenants = 1000
	}
	w := newWorld(t, citustest.New(t))
	var schemas []string
	for i := range tenants {
		schemas = append(schemas, fmt.Sprintf("one %d", i))
	}
	w.withForeign(t, oneRow, schemas...)
	w.Mover = migration.New(w.Migrator, w.Queue, online)
	run := startLegacy(t, w, tenants)
	began := time.Now()
	w.drain(t)
	t.Logf("%d tenants in %v", tenants, time.Since(began))
	status := inspect(t, w, run)
	require.Equal(t, migration.Counts{migration.Green: int64(tenants)}, status.Counts, "%+v", status.Failed)
	want, have := map[tenant.ID]string{}, map[tenant.ID]string{}
	for _, s := range schemas {
		want[tenant.ImportedID("legacy", s)] = s
	}
	rows, err := w.Control.Query(t.Context(), `SELECT tenant_id, note FROM legacy.thing`)
	require.NoError(t, err)
	var (
		id   tenant.ID
		note string
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &note}, func() error { have[id] = note; return nil })
	require.NoError(t, err)
	require.Equal(t, want, have)
}

// spooledOps are the operations of a tenant's changes in the spool, in their order.
func spooledOps(t *testing.T, w *world, id tenant.ID) (ops string) {
	t.Helper()
	rows, err := w.Control.Query(t.Context(), `SELECT data FROM control.pack WHERE tenant_id = $1 ORDER BY lsn, seq`, id)
	require.NoError(t, err)
	packs, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	require.NoError(t, err)
	for _, p := range packs {
		changes, err := stream.Unpack(string(p))
		require.NoError(t, err)
		for _, c := range changes {
			ops += string(c.Op)
		}
	}
	return ops
}

// Autovacuum is at work on a tenant's table, and would be for minutes: it gives way, before anybody waits for the fence.
func TestAutovacuumGivesWay(t *testing.T) {
	t.Parallel()
	for _, way := range []struct {
		name string
		cfg  migration.Config
	}{{"ahead", quick}, {"online", online}} {
		t.Run(way.name, func(t *testing.T) {
			w := newWorld(t, citustest.New(t))
			id := blueTenants(t, w, 2)[1]
			table := blueSchema(id) + ".project"
			_, err := w.Blue(t).Exec(t.Context(), `INSERT INTO `+table+` (tenant_id, id, name, created_at, updated_at) SELECT $1, gen_random_uuid(), i::text, now(), now() FROM generate_series(1, 5000) i`, id)
			require.NoError(t, err)
			execSQL(t, w.BlueAdmin, `ALTER SYSTEM SET autovacuum_naptime = '1s'`)
			execSQL(t, w.BlueAdmin, `SELECT pg_reload_conf()`)
			t.Cleanup(func() {
				ctx := context.WithoutCancel(t.Context())
				conn, err := pgx.Connect(ctx, w.BlueAdmin)
				require.NoError(t, err)
				defer func() { _ = conn.Close(ctx) }()
				for _, sql := range []string{`ALTER SYSTEM RESET autovacuum_naptime`, `SELECT pg_reload_conf()`} {
					_, err := conn.Exec(ctx, sql)
					require.NoError(t, err)
				}
			})
			execSQL(t, w.BlueAdmin, `SET coditect.mover = 'on'; ALTER TABLE `+table+` SET (autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1)`)
			execSQL(t, w.BlueAdmin, `UPDATE `+table+` SET name = name || '.'`)
			working := func() (yes bool) {
				require.NoError(t, w.Blue(t).QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = $1::regclass AND mode = 'ShareUpdateExclusiveLock' AND granted)`, table).Scan(&yes))
				return yes
			}
			require.Eventually(t, working, 60*time.Second, 20*time.Millisecond)
			traffic := writeOn(t, w, []tenant.ID{id})
			w.Mover = migration.New(w.Migrator, w.Queue, way.cfg)
			run := start(t, w, []tenant.ID{id}, 10)
			w.drain(t)
			status := inspect(t, w, run)
			require.Equal(t, migration.Counts{migration.Green: 1}, status.Counts, "%+v", status.Failed)
			traffic.check(t)
		})
	}
}
