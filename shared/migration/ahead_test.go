package migration_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/tenant"
)

// What is written between the copy and the fence arrives, whatever it does to the number of
// rows and to what their xmin tells.
func TestWritesBetweenCopyAndFence(t *testing.T) {
	for name, sql := range map[string]string{
		"nothing":              `SELECT 1`,
		"update":               `UPDATE project SET name = 'changed' WHERE name = '1'`,
		"insert":               `INSERT INTO project (tenant_id, id, name, created_at, updated_at) SELECT tenant_id, gen_random_uuid(), 'more', now(), now() FROM project`,
		"delete":               `DELETE FROM project WHERE name IN ('1', '3')`,
		"delete and insert":    `DELETE FROM project WHERE name = '1'; INSERT INTO project (tenant_id, id, name, created_at, updated_at) SELECT tenant_id, gen_random_uuid(), 'more', now(), now() FROM project LIMIT 1`,
		"another key":          `UPDATE task SET id = gen_random_uuid() WHERE title = '2'`,
		"keys change places":   `UPDATE project SET name = CASE name WHEN '1' THEN '2' ELSE '1' END WHERE name IN ('1', '2')`,
		"delete and put back":  `WITH d AS (SELECT * FROM project WHERE name = '1') UPDATE project p SET name = p.name FROM d WHERE p.id = d.id`,
		"all rows":             `UPDATE project SET version = version + 1`,
		"truncate":             `TRUNCATE project CASCADE`,
		"children and parents": `DELETE FROM task; DELETE FROM project WHERE name = '4'; INSERT INTO task (tenant_id, id, project_id, title, status, priority, created_at, updated_at) SELECT tenant_id, gen_random_uuid(), id, 'new', 'todo', 0, now(), now() FROM project`,
	} {
		t.Run(name, func(t *testing.T) { writtenBetween(t, quick, sql, false, false) })
		oneByOne := quick
		oneByOne.FenceTenants = 1
		t.Run(name+" to more than is read again", func(t *testing.T) { writtenBetween(t, oneByOne, sql, false, true) })
		t.Run(name+" while an old transaction is open", func(t *testing.T) { writtenBetween(t, quick, sql, true, true) })
		switch name {
		case "another key", "delete and put back", "truncate", "all rows":
			t.Run(name+" online", func(t *testing.T) { writtenBetween(t, online, sql, false, false) })
		}
	}
}

func writtenBetween(t *testing.T, cfg migration.Config, sql string, old, large bool) {
	w := newWorld(t, citustest.New(t))
	ctx := t.Context()
	ids := blueTenants(t, w, 2)
	if old { // from here on every row may be one that the copy has not seen
		tx, err := w.Blue(t).Begin(ctx)
		require.NoError(t, err)
		t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(ctx)) })
		_, err = tx.Exec(ctx, `SELECT pg_current_xact_id()`)
		require.NoError(t, err)
	}
	in := func(id tenant.ID, sql string) {
		conn, err := pgx.Connect(ctx, w.BlueAdmin)
		require.NoError(t, err)
		defer func() { _ = conn.Close(ctx) }()
		_, err = conn.Exec(ctx, `SET search_path = `+blueSchema(id)+`; `+sql, pgx.QueryExecModeSimpleProtocol)
		require.NoError(t, err)
	}
	for _, id := range ids {
		in(id, `INSERT INTO project (tenant_id, id, name, created_at, updated_at) SELECT '`+id.String()+`', gen_random_uuid(), i::text, now(), now() FROM generate_series(1, 5) i;
			INSERT INTO task (tenant_id, id, project_id, title, status, priority, created_at, updated_at) SELECT tenant_id, gen_random_uuid(), id, name, 'todo', 0, now(), now() FROM project`)
		if large { // than is read again under the fence
			in(id, `INSERT INTO label (tenant_id, id, name, color, created_at, updated_at) SELECT '`+id.String()+`', gen_random_uuid(), repeat('x', 200) || i, '#000000', now(), now() FROM generate_series(1, 4000) i`)
		}
	}
	points := map[string]int{}
	between := map[bool]string{true: "copy verified", false: "catching_up"}[cfg.AheadMax >= 0]
	w.Mover = migration.New(w.Migrator, w.Queue, cfg, migration.WithCrashPoints(func(at string) {
		if points[at]++; at == between && points[at] == 1 {
			for _, id := range ids {
				in(id, sql)
			}
		}
	}))
	run := start(t, w, ids, 10)
	w.drain(t)
	status := inspect(t, w, run)
	require.Equal(t, migration.Counts{migration.Green: 2}, status.Counts, "%+v", status.Failed)
	require.Equal(t, map[bool]int{true: 1, false: 2}[cfg.AheadMax >= 0], points[between], "both in one copy, or each in its own, and no second one")
	rows := 0
	for _, id := range ids {
		rows += identical(t, w, w.BlueAdmin, blueSchema(id), "app", id, true)
	}
	if cfg.AheadMax >= 0 { // online, rows are counted as they were copied
		require.EqualValues(t, rows, status.RowsMoved)
	}
}

// A row that came between copy and fence and refers to none that exists, because somebody has switched blue's keys off,
// stops the flip of its tenant and of no other.
func TestARowWithoutItsPartnerStopsTheFlip(t *testing.T) {
	for name, together := range map[string]int{"one by one": 1, "together": 2} {
		t.Run(name, func(t *testing.T) {
			eachServer(t, func(t *testing.T, w *world) { withoutPartner(t, w, together) })
		})
	}
}

func withoutPartner(t *testing.T, w *world, together int) {
	ids := blueTenants(t, w, 2)
	cfg := quick
	cfg.FenceTenants = together
	written := false
	w.Mover = migration.New(w.Migrator, w.Queue, cfg, migration.WithCrashPoints(func(at string) {
		if at == "copy verified" && !written {
			written = true
			execSQL(t, w.BlueAdmin, `SET session_replication_role = 'replica'; INSERT INTO `+blueSchema(ids[0])+`.task (tenant_id, id, project_id, title, status, priority, created_at, updated_at)
				VALUES ('`+ids[0].String()+`', gen_random_uuid(), gen_random_uuid(), 'lost', 'todo', 0, now(), now())`)
			_, err := addProject(t.Context(), w.Door, ids[1], "more")
			require.NoError(t, err)
		}
	}))
	run := start(t, w, ids, 10)
	w.drain(t)
	status := inspect(t, w, run)
	require.Equal(t, migration.Counts{migration.Green: 1, migration.Blue: 1}, status.Counts, "%+v", status.Failed)
	require.Equal(t, ids[0], status.Failed[0].Tenant)
	require.Regexp(t, `table task: a row refers by \w+ to a row of project that does not exist`, status.Failed[0].Error)
	var captured int
	require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT count(*) FROM coditect.captured`).Scan(&captured))
	require.Zero(t, captured, "what the mover writes is no change to bring back, though the gate is armed")
}

// Rows that look otherwise than when they were copied, though nobody has written them, are found: here, by a label that
// got another name.
func TestALabelRenamedBetweenCopyAndFence(t *testing.T) {
	w := newWorld(t, citustest.New(t))
	w.Legacy = citustest.EmptyDatabase(t)
	execSQL(t, w.Legacy, `CREATE TABLE public.tenants AS SELECT 'one' AS name; CREATE SCHEMA one; SET search_path = one; CREATE TYPE mood AS ENUM ('ok', 'bad');
		CREATE TABLE feeling (id serial PRIMARY KEY, mood mood); INSERT INTO feeling (mood) VALUES ('ok'), ('bad')`)
	execSQL(t, w.Legacy, ownByLegacy)
	execSQL(t, w.Legacy, `ANALYZE`)
	w.register(t, `
name: moods
database: MOODS
tenant_table: public.tenants
schema_column: name
name_column: name
template_schema: one
application_role: legacy_app
`)
	w.Mover = migration.New(w.Migrator, w.Queue, quick, migration.WithCrashPoints(func(at string) {
		if at == "copy verified" {
			execSQL(t, w.Legacy, `ALTER TYPE one.mood RENAME VALUE 'ok' TO 'fine'`)
		}
	}))
	run, report, err := w.Mover.Start(t.Context(), migration.Plan{Source: "moods", Actor: "test"})
	require.NoError(t, err, "%+v", report.Findings)
	w.drain(t)
	status := inspect(t, w, run)
	require.Equal(t, migration.Counts{migration.Blue: 1}, status.Counts)
	require.Contains(t, status.Failed[0].Error, "table feeling: rows in blue are not what they were when they were copied")
	execSQL(t, w.Legacy, `INSERT INTO one.feeling (mood) VALUES ('fine')`) // the fence is down again
}
