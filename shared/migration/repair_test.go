package migration_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
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

// repaired repairs a tenant to the end, call by call.
func repaired(t *testing.T, m *migration.Mover, id tenant.ID) (all migration.Verification) {
	t.Helper()
	for cursor := ""; ; {
		v, err := m.Repair(t.Context(), id, "ada", migration.VerifyOptions{Cursor: cursor})
		require.NoError(t, err)
		v.Differences, v.Failed = append(all.Differences, v.Differences...), append(all.Failed, v.Failed...)
		all = v
		if cursor = v.Cursor; cursor == "" {
			return all
		}
	}
}

// without leaves the values out.
func without(all []migration.Difference) (out []migration.Difference) {
	for _, d := range all {
		d.Blue, d.Green = nil, nil
		out = append(out, d)
	}
	return out
}

// at names a row that differs.
func at(table, where string, key map[string]string, columns ...string) migration.Difference {
	return migration.Difference{Table: table, Where: where, Key: key, Columns: columns}
}

// behindFence changes a tenant's rows in blue, which nobody should.
func behindFence(t *testing.T, dsn string, id tenant.ID, statements ...string) {
	t.Helper()
	inOne(t, dsn, append([]string{`SELECT coditect.enter_reverse(tenant_id, token) FROM coditect.gate WHERE tenant_id = '` + id.String() + `'`,
		`SET LOCAL session_replication_role = 'replica'`}, statements...))
}

// behindCapture changes rows in green in a way that is not written down.
func behindCapture(t *testing.T, w *world, statements ...string) {
	t.Helper()
	before := []string{`SET LOCAL session_replication_role = 'replica'`}
	if w.Citus {
		before = append([]string{`SET LOCAL citus.propagate_set_commands = 'local'`}, before...)
	}
	inOne(t, w.GreenAdmin, append(before, statements...))
}

func inOne(t *testing.T, dsn string, statements []string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	require.NoError(t, pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		for _, sql := range statements {
			tag, err := tx.Exec(t.Context(), sql)
			if err != nil {
				return fmt.Errorf("%s: %w", sql, err)
			}
			if tag.RowsAffected() == 0 && !tag.Select() && !strings.HasPrefix(sql, "SET") {
				return errors.New(sql + " has changed nothing")
			}
		}
		return nil
	}))
}

// versions are the transactions that have written the rows of one of a tenant's tables in blue.
func versions(t *testing.T, w *world, id tenant.ID, table string) map[string]string {
	t.Helper()
	rows, err := w.Blue(t).Query(t.Context(), `SELECT id::text, xmin::text FROM `+blueSchema(id)+`.`+table)
	require.NoError(t, err)
	out := map[string]string{}
	var row, by string
	_, err = pgx.ForEachRow(rows, []any{&row, &by}, func() error { out[row] = by; return nil })
	require.NoError(t, err)
	return out
}

// follow brings what is written in green to blue, again and again, until the test stops it.
func follow(t *testing.T, w *world, run migration.Run, id tenant.ID) (end func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		for ctx.Err() == nil {
			if _, err := w.Mover.Reverse(ctx, run.ID, id); err != nil && ctx.Err() == nil && fault.CodeOf(err) != "blue_differs" {
				t.Errorf("reverse: %v", err)
			}
			time.Sleep(time.Millisecond)
		}
	})
	end = func() { cancel(); group.Wait() }
	t.Cleanup(end)
	return end
}

// What an undone move has left in green is found and deleted, and nothing else is.
func TestRepairDeletesWhatIsLeft(t *testing.T) {
	t.Parallel()
	eachServer(t, func(t *testing.T, w *world) {
		ids := blueTenants(t, w, 3)
		other := w.NewTenant(t, tenant.Green)
		_, err := addProject(t.Context(), w.Door, other, "another's")
		require.NoError(t, err)
		left := func(n int) {
			_, err := w.Control.Exec(t.Context(), `INSERT INTO app.project (tenant_id, id, name, created_at, updated_at) SELECT $1, gen_random_uuid(), 'left', now(), now() FROM generate_series(1, $2)`, ids[2], n)
			require.NoError(t, err)
		}
		left(2500)
		v, _ := verified(t, w.Mover, ids[2], migration.VerifyOptions{Limit: 10})
		require.Len(t, v.Differences, 10)
		require.EqualValues(t, 2500, v.GreenRows)
		require.EqualValues(t, 2, v.BlueRows)

		dying := migration.New(w.Migrator, w.Queue, quick, migration.WithCrashPoints(func(at string) { panic(crashed{at}) }))
		require.PanicsWithValue(t, crashed{"part repaired"}, func() { _, _ = dying.Repair(t.Context(), ids[2], "ada", migration.VerifyOptions{}) })
		var repaired int
		for cursor, more := "", true; more; more = cursor != "" {
			r, err := w.Mover.Repair(t.Context(), ids[2], "ada", migration.VerifyOptions{Cursor: cursor})
			require.NoError(t, err)
			repaired += len(r.Differences)
			cursor = r.Cursor
		}
		require.Equal(t, 1500, repaired, "the first thousand was repaired before the crash")
		v, _ = verified(t, w.Mover, ids[2], migration.VerifyOptions{})
		require.Empty(t, v.Differences)
		require.Equal(t, 2, projects(t, w.Door, ids[2]))
		require.Equal(t, 1, projects(t, w.Door, other))
		var rows int
		require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT sum((detail->>'rows')::int) FROM control.move_event WHERE event = 'repaired' AND actor = 'ada' AND tenant_id = $1`, ids[2]).Scan(&rows))
		require.Equal(t, 2500, rows)
	})
}

// Rows that somebody has changed in blue, or in green behind the capture, are made those of green, and no others are
// touched: neither this tenant's nor another's, which has the same keys. The tenant is written, and goes back with all of it.
func TestRepairMakesBluesRowsThoseOfGreen(t *testing.T) {
	t.Parallel()
	eachServer(t, func(t *testing.T, w *world) {
		ids := blueTenants(t, w, 2)
		who, other := ids[0], ids[1]
		rows := make([]string, 8)
		for i := range rows {
			rows[i] = tenant.NewID().String()
			for _, id := range ids {
				require.NoError(t, w.Door.OneTrip(t.Context(), id, func(b *citus.Batch) {
					b.Queue(`INSERT INTO project (tenant_id, id, name, created_at, updated_at) VALUES ($1, $2, $3, $4, $4)`, id, rows[i], fmt.Sprint("still ", i), time.Unix(1, 0))
					b.Queue(`INSERT INTO label (tenant_id, id, name, created_at, updated_at) VALUES ($1, $2, $3, $4, $4)`, id, rows[i], fmt.Sprint("label ", i), time.Unix(1, 0))
				}))
			}
		}
		run := start(t, w, ids, 10)
		w.drain(t)
		before, labels, others := versions(t, w, who, "project"), versions(t, w, who, "label"), versions(t, w, other, "project")
		traffic := writeOn(t, w, ids)
		s := blueSchema(who)
		behindFence(t, w.BlueAdmin, who,
			`UPDATE `+s+`.project SET name = 'wrong', version = 9 WHERE id = '`+rows[0]+`'`,
			`DELETE FROM `+s+`.project WHERE id = '`+rows[1]+`'`,
			`INSERT INTO `+s+`.project SELECT tenant_id, '`+who.String()+`', 'more', description, archived, version, created_at, updated_at FROM `+s+`.project WHERE id = '`+rows[2]+`'`,
			`UPDATE `+s+`.label SET name = 'wrong' WHERE id = '`+rows[7]+`'`)
		behindCapture(t, w,
			`UPDATE app.project SET description = 'true all the same' WHERE tenant_id = '`+who.String()+`' AND id = '`+rows[3]+`'`,
			`DELETE FROM app.project WHERE tenant_id = '`+who.String()+`' AND id = '`+rows[4]+`'`)
		want := []migration.Difference{
			at("project", "both", map[string]string{"id": rows[0]}, "name", "version"),
			at("project", "green", map[string]string{"id": rows[1]}),
			at("project", "blue", map[string]string{"id": who.String()}),
			at("project", "both", map[string]string{"id": rows[3]}, "description"),
			at("project", "blue", map[string]string{"id": rows[4]}),
			at("label", "both", map[string]string{"id": rows[7]}, "name"),
		}
		traffic.mu.Lock()
		delete(traffic.acked[who], idOf(t, rows[4]))
		traffic.mu.Unlock()
		v, _ := verified(t, w.Mover, who, migration.VerifyOptions{})
		require.ElementsMatch(t, want, v.Differences)

		end := follow(t, w, run, who)
		got := repaired(t, w.Mover, who)
		require.ElementsMatch(t, want, got.Differences)
		require.Empty(t, got.Failed)
		v, _ = verified(t, w.Mover, who, migration.VerifyOptions{})
		require.Empty(t, v.Differences)
		require.Empty(t, repaired(t, w.Mover, who).Differences)
		end()
		after, labelsAfter, othersAfter := versions(t, w, who, "project"), versions(t, w, who, "label"), versions(t, w, other, "project")
		for i, row := range rows {
			switch i {
			case 0, 1, 3:
				require.NotEqual(t, before[row], after[row])
			case 4:
				require.NotContains(t, after, row)
			default:
				require.Equal(t, before[row], after[row], "a row that did not differ was written")
			}
			require.Equal(t, i != 7, labels[row] == labelsAfter[row])
			require.Equal(t, others[row], othersAfter[row])
		}
		detail := map[string]int{}
		events, err := w.Mover.Events(t.Context(), run.ID, 0, 1000)
		require.NoError(t, err)
		for _, e := range events {
			if e.Event == "repaired" {
				require.Equal(t, "ada", e.Actor)
				require.Equal(t, who, *e.Tenant)
				require.Equal(t, "blue", e.Detail["changed_in"])
				detail[e.Detail["table"].(string)] += int(e.Detail["rows"].(float64))
			}
		}
		require.Equal(t, map[string]int{"project": 5, "label": 1}, detail)
		traffic.writeEach(t)
		comesBack(t, w, run, who)
		traffic.writeEach(t)
		traffic.check(t)
		require.Equal(t, "still 0", rowsOf(t, w, who)[idOf(t, rows[0])])
	})
}

func idOf(t *testing.T, s string) tenant.ID {
	t.Helper()
	id, err := tenant.ParseID(s)
	require.NoError(t, err)
	return id
}

// A change that does not find its row in blue stops the way back, with all that is written after it. Repair mends that
// row and goes on: also where both sides have the same by now, and where a key has moved.
func TestRepairSetsTheWayBackGoing(t *testing.T) {
	t.Parallel()
	eachServer(t, func(t *testing.T, w *world) {
		ids := blueTenants(t, w, 6)[5:]
		who := ids[0]
		run := start(t, w, ids, 10)
		w.drain(t)
		var rows []string
		for id := range rowsOf(t, w, who) {
			rows = append(rows, id.String())
		}
		s, moved := blueSchema(who), tenant.NewID().String()
		behindFence(t, w.BlueAdmin, who,
			`DELETE FROM `+s+`.project WHERE id IN ('`+rows[0]+`', '`+rows[1]+`')`,
			`UPDATE `+s+`.project SET id = '`+moved+`', name = 'in the way' WHERE id = '`+rows[2]+`'`)
		require.NoError(t, w.Door.OneTrip(t.Context(), who, func(b *citus.Batch) {
			b.Queue(`UPDATE project SET name = 'changed' WHERE tenant_id = $1 AND id = $2`, who, rows[0])
			b.Queue(`DELETE FROM project WHERE tenant_id = $1 AND id = $2`, who, rows[1]) // both sides have the same, and the change finds none
			b.Queue(`UPDATE project SET id = $3 WHERE tenant_id = $1 AND id = $2`, who, rows[2], moved)
			b.Queue(`UPDATE project SET name = 'behind them' WHERE tenant_id = $1 AND id = $2`, who, rows[3])
		}))
		_, err := w.Mover.Reverse(t.Context(), run.ID, who)
		require.Equal(t, "blue_differs", fault.CodeOf(err), "%v", err)
		_, err = w.Mover.Sweep(t.Context(), 0)
		require.NoError(t, err)
		require.Len(t, inspect(t, w, run).Failed, 1)

		got := repaired(t, w.Mover, who)
		require.ElementsMatch(t, []migration.Difference{at("project", "green", map[string]string{"id": rows[0]}), at("project", "both", map[string]string{"id": moved}, "name")}, got.Differences)
		left, err := w.Mover.Reverse(t.Context(), run.ID, who)
		require.NoError(t, err)
		require.False(t, left)
		require.Equal(t, 4, identical(t, w, w.BlueAdmin, s, "app", who, true))
		require.Empty(t, inspect(t, w, run).Failed)
		comesBack(t, w, run, who)
	})
}

// A repair dies anywhere, while the rows that it repairs are changed in green, and another one finishes it: no change is
// lost or applied twice.
func TestARepairDiesAnywhere(t *testing.T) {
	t.Parallel()
	for i, point := range []string{"repair claimed", "repair noted", "rows repaired", "part repaired"} {
		t.Run(point, func(t *testing.T) {
			env := citustest.New
			if i == 2 {
				env = citustest.NewCitus
			}
			w := newWorld(t, env(t))
			ids := blueTenants(t, w, 4)[3:]
			who := ids[0]
			run := start(t, w, ids, 10)
			w.drain(t)
			s := blueSchema(who)
			change := func(name string) {
				require.NoError(t, w.Door.OneTrip(t.Context(), who, func(b *citus.Batch) {
					b.Queue(`UPDATE project SET name = $2, version = version + 1 WHERE tenant_id = $1`, who, name)
				}))
				_, err := addProject(t.Context(), w.Door, who, name)
				require.NoError(t, err)
			}
			var row string
			for id := range rowsOf(t, w, who) {
				row = id.String()
			}
			// A pass has died between blue and green before; and the key moves of a row that blue does not have.
			change("brought")
			dying := func(point string) *migration.Mover {
				return migration.New(w.Migrator, w.Queue, quick, migration.WithCrashPoints(func(at string) {
					if at == point {
						change("while it dies")
						panic(crashed{at})
					}
				}))
			}
			ctx, cancel := context.WithCancel(t.Context())
			require.PanicsWithValue(t, crashed{"changes applied in blue"}, func() { _, _ = dying("changes applied in blue").Reverse(ctx, run.ID, who) })
			moved := tenant.NewID().String()
			behindFence(t, w.BlueAdmin, who, `DELETE FROM `+s+`.project WHERE id = '`+row+`'`)
			require.NoError(t, w.Door.OneTrip(t.Context(), who, func(b *citus.Batch) {
				b.Queue(`UPDATE project SET id = $3 WHERE tenant_id = $1 AND id = $2`, who, row, moved)
			}))
			change("captured, and cannot be applied")
			require.PanicsWithValue(t, crashed{point}, func() { _, _ = dying(point).Repair(ctx, who, "ada", migration.VerifyOptions{}) })
			if point == "rows repaired" || point == "part repaired" { // by one part
				_, err := w.Mover.Reverse(t.Context(), run.ID, who)
				require.NoError(t, err)
				require.Equal(t, 7, identical(t, w, w.BlueAdmin, s, "app", who, true))
			}
			cancel()
			change("afterwards")
			repaired(t, w.Mover, who)
			left, err := w.Mover.Reverse(t.Context(), run.ID, who)
			require.NoError(t, err)
			require.False(t, left)
			require.Equal(t, 8, identical(t, w, w.BlueAdmin, s, "app", who, true))
			v, _ := verified(t, w.Mover, who, migration.VerifyOptions{})
			require.Empty(t, v.Differences)
			comesBack(t, w, run, who)
		})
	}
}

// The same rows are changed in green, deleted in blue, brought to blue and repaired, all at once.
func TestRepairWhileChangesComeBack(t *testing.T) {
	t.Parallel()
	eachServer(t, func(t *testing.T, w *world) {
		ids := blueTenants(t, w, 6)[5:]
		who := ids[0]
		run := start(t, w, ids, 10)
		w.drain(t)
		s := blueSchema(who)
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		t.Cleanup(func() { cancel(); group.Wait() })
		for n := range 2 {
			group.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					if err := w.Door.OneTrip(ctx, who, func(b *citus.Batch) {
						if i%10 == n {
							b.Queue(`UPDATE project SET id = $2 WHERE tenant_id = $1 AND id = (SELECT id FROM project WHERE tenant_id = $1 ORDER BY version, id LIMIT 1)`, who, tenant.NewID())
						}
						b.Queue(`UPDATE project SET version = version + 1 WHERE tenant_id = $1 AND id IN (SELECT id FROM project WHERE tenant_id = $1 ORDER BY id FOR UPDATE)`, who)
					}); err != nil && ctx.Err() == nil && citus.StateOf(err) != "40P01" {
						t.Errorf("write: %v", err)
					}
					time.Sleep(2 * time.Millisecond)
				}
			})
		}
		end := follow(t, w, run, who)
		cfg := quick
		cfg.Settle = 20 * time.Millisecond
		m := migration.New(w.Migrator, w.Queue, cfg)
		did := 0
		for i := range 12 {
			behindFence(t, w.BlueAdmin, who, []string{`DELETE FROM ` + s + `.project WHERE id = (SELECT min(id::text)::uuid FROM ` + s + `.project)`,
				`UPDATE ` + s + `.project SET name = 'wrong'`, `UPDATE ` + s + `.project SET version = 0, name = 'older'`,
				`INSERT INTO ` + s + `.project SELECT tenant_id, gen_random_uuid(), 'more', description, archived, version, created_at, updated_at FROM ` + s + `.project LIMIT 1`}[i%4])
			did += len(repaired(t, m, who).Differences)
		}
		cancel()
		group.Wait()
		end()
		require.Positive(t, did)
		repaired(t, w.Mover, who)
		left, err := w.Mover.Reverse(t.Context(), run.ID, who)
		require.NoError(t, err)
		require.False(t, left)
		require.Equal(t, 5, identical(t, w, w.BlueAdmin, s, "app", who, true))
		comesBack(t, w, run, who)
	})
}

// Rows that blue does not take are told by table and key, and all others are repaired, whatever names and keys they have.
func TestRepairTellsWhatDoesNotFit(t *testing.T) {
	t.Parallel()
	eachServer(t, func(t *testing.T, w *world) {
		const schema = `Tenant "A"-ümlaut`
		w.withForeign(t, quotedTables+`;
			CREATE TABLE flag (yes boolean, code char(4), n serial, name text UNIQUE, PRIMARY KEY (yes, code, n));
			INSERT INTO flag VALUES (true, 'a', 1, 'one'), (false, 'b', 1, 'two'), (true, 'c', 1, 'three'), (false, 'c', 1, 'four')`, schema)
		w.Mover = migration.New(w.Migrator, w.Queue, quick)
		id := tenant.ImportedID("legacy", schema)
		run := startLegacy(t, w, 1)
		w.drain(t)
		require.Equal(t, tenant.Green, homeOf(t, w, id))
		of := `tenant_id = '` + id.String() + `'`
		in := func(table string) string { return pgx.Identifier{schema, table}.Sanitize() }
		behindFence(t, w.Legacy, id,
			`UPDATE `+in("flag")+` SET name = 'three, before' WHERE name = 'three'`, `DELETE FROM `+in("flag")+` WHERE name = 'four'`,
			`UPDATE `+in("log")+` SET note = E'tab\t"\\' WHERE at = 3`, `DELETE FROM `+in(`Größe "x"`)+` WHERE "Id" = 20`)
		// Two change places; and what is captured cannot be brought to blue, because of the first.
		for _, sql := range []string{`INSERT INTO legacy.flag (tenant_id, yes, code, n, name) VALUES ('` + id.String() + `', true, 'd', 3000000000, 'wide')`,
			`INSERT INTO legacy.log (tenant_id, at, "N'", note) VALUES ('` + id.String() + `', 3, 3000000000, 'wide')`,
			`UPDATE legacy.flag SET name = 'x' WHERE ` + of + ` AND name = 'one'`, `UPDATE legacy.flag SET name = 'one' WHERE ` + of + ` AND name = 'two'`,
			`UPDATE legacy.flag SET name = 'two' WHERE ` + of + ` AND name = 'x'`, `DELETE FROM legacy.child WHERE ` + of + ` AND id = 7`} {
			_, err := w.Control.Exec(t.Context(), sql)
			require.NoError(t, err, sql)
		}
		_, err := w.Mover.Reverse(t.Context(), run.ID, id)
		require.Equal(t, "does_not_fit_back", fault.CodeOf(err), "%v", err)
		v, _ := verified(t, w.Mover, id, migration.VerifyOptions{})
		flag, log := at("flag", "green", map[string]string{"yes": "true", "code": "d", "n": "3000000000"}), at("log", "green", map[string]string{"at": "3", "N'": "3000000000"})
		require.Len(t, v.Differences, 10+4+1+1+2)
		require.Contains(t, v.Differences, log)
		got := repaired(t, w.Mover, id)
		require.Len(t, got.Differences, len(v.Differences)-2, "%+v", got)
		require.Len(t, got.Failed, 2)
		for _, d := range got.Failed {
			require.Contains(t, d.Error, "out of range for type integer")
			d.Error = ""
			require.Contains(t, []migration.Difference{flag, log}, d)
		}
		v, _ = verified(t, w.Mover, id, migration.VerifyOptions{})
		require.ElementsMatch(t, []migration.Difference{flag, log}, v.Differences)
		for _, sql := range []string{`DELETE FROM legacy.log WHERE ` + of + ` AND "N'" = 3000000000`, `UPDATE legacy.flag SET n = 5 WHERE ` + of + ` AND name = 'wide'`} {
			_, err := w.Control.Exec(t.Context(), sql)
			require.NoError(t, err)
		}
		got = repaired(t, w.Mover, id)
		require.Empty(t, got.Failed)
		require.Positive(t, identical(t, w, w.Legacy, schema, "legacy", id, false))
		comesBack(t, w, run, id)
	})
}

// Nobody repairs what a rollback or a finalisation is at work on, and whoever of them comes later ends the repair.
func TestARepairGivesWay(t *testing.T) {
	t.Parallel()
	w, sleeper, asleep, wake := zombie(t, citustest.New(t), quick, "repair claimed")
	ids, run := inGreen(t, w, 3)
	refused := func(id tenant.ID, change, undo string) string {
		_, err := w.Control.Exec(t.Context(), change, run.ID, id)
		require.NoError(t, err)
		_, err = w.Mover.Repair(t.Context(), id, "test", migration.VerifyOptions{})
		_, undone := w.Control.Exec(t.Context(), undo, run.ID, id)
		require.NoError(t, undone)
		return fault.CodeOf(err)
	}
	require.Equal(t, "going_back", refused(ids[1], `UPDATE control.move SET back_by = 'test' WHERE run_id = $1 AND tenant_id = $2`, `UPDATE control.move SET back_by = NULL WHERE run_id = $1 AND tenant_id = $2`))
	require.Equal(t, "finalise_busy", refused(ids[1], `INSERT INTO control.archive (run_id, tenant_id, database_name, schema_name, object, attempts, lease_until) VALUES ($1, $2, 'blue', 'x', 'x', 1, now() + interval '1 minute')`,
		`DELETE FROM control.archive WHERE run_id = $1 AND tenant_id = $2`))

	tamper := func() {
		behindFence(t, w.BlueAdmin, ids[2], `DELETE FROM `+blueSchema(ids[2])+`.project WHERE id = (SELECT min(id::text)::uuid FROM `+blueSchema(ids[2])+`.project)`)
	}
	tamper()
	finished := make(chan error, 1)
	go func() {
		_, err := sleeper.Repair(t.Context(), ids[2], "test", migration.VerifyOptions{})
		finished <- err
	}()
	fallsAsleep(t, asleep, finished)
	require.Len(t, repaired(t, w.Mover, ids[2]).Differences, 1)
	comesBack(t, w, run, ids[2])
	_, err := addProject(t.Context(), w.Door, ids[2], "in blue again")
	require.NoError(t, err)
	wake()
	require.Equal(t, "repair_overtaken", fault.CodeOf(<-finished))
	require.Equal(t, 3, projects(t, w.Door, ids[2]))

	// Without a capture blue stays as the flip has left it.
	_, err = w.Control.Exec(t.Context(), `DELETE FROM coditect.write_gate WHERE tenant_id = $1`, ids[1])
	require.NoError(t, err)
	_, err = w.Mover.Repair(t.Context(), ids[1], "test", migration.VerifyOptions{})
	require.Equal(t, "nothing_to_repair", fault.CodeOf(err))
	assert.Equal(t, tenant.Green, homeOf(t, w, ids[1]))
}
