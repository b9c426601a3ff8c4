package migration_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/tenant"
)

// A long backlog, in which most rows are changed more than once, is compared while it is applied: a row
// when its last change has come. Whichever row of green is not what it should be, and wherever its
// change was, is found; without one, the tenant moves.
func TestARowThatDiffersIsFoundInABacklog(t *testing.T) {
	eachServer(t, func(t *testing.T, w *world) {
		const rows = 12_000                                           // three times as many changes, applied in several transactions
		for name, c := range map[string]struct{ spoil, when string }{ // when: a row has just come
			"none":                     {``, ``},
			"changed in the beginning": {`UPDATE app.project SET name = 'spoiled' WHERE tenant_id = $1 AND name = 'first 7'`, "first 7"},
			"inserted, never changed":  {`UPDATE app.project SET version = 9 WHERE tenant_id = $1 AND name = 'new 3'`, "new 3"},
			"missing":                  {`DELETE FROM app.project WHERE tenant_id = $1 AND name = 'new 5'`, "new 5"},
			"deleted, and there again": {`INSERT INTO app.project SELECT tenant_id, $2, name, description, archived, version, created_at, updated_at FROM app.project WHERE tenant_id = $1 AND name = 'new 4'`, "new 4"},
			"changed in the end":       {`UPDATE app.project SET name = 'spoiled' WHERE tenant_id = $1 AND name = 'last 11500'`, "last 11500"},
		} {
			if w.Citus && c.when != "new 3" && c.when != "" {
				continue // what is found does not depend on the server, and each takes its time
			}
			t.Run(name, func(t *testing.T) {
				id := w.NewTenant(t, tenant.Blue)
				schema, gone := blueSchema(id), tenant.NewID()
				blue := w.Blue(t)
				exec := func(sql string, args ...any) {
					_, err := blue.Exec(t.Context(), sql, args...)
					require.NoError(t, err)
				}
				insert := `INSERT INTO ` + schema + `.project (tenant_id, id, name, created_at, updated_at) `
				exec(insert+`VALUES ($1, $2, 'to be deleted', now(), now())`, id, gone)
				spoiled, backlog := false, false
				w.Mover = migration.New(w.Migrator, w.Queue, online, migration.WithCrashPoints(func(at string) {
					switch {
					case at == "catching_up" && !backlog:
						backlog = true
						exec(insert+fmt.Sprintf(`SELECT $1, gen_random_uuid(), 'first ' || i, now(), now() FROM generate_series(1, %d) i`, rows), id)
						exec(`DELETE FROM `+schema+`.project WHERE id = $1`, gone)
						exec(insert+`SELECT $1, gen_random_uuid(), 'new ' || i, now(), now() FROM generate_series(1, 10) i`, id)
						exec(`UPDATE ` + schema + `.project SET version = version + 1 WHERE name LIKE 'first %' AND name <> 'first 7'`)
						exec(`UPDATE ` + schema + `.project SET name = replace(name, 'first', 'last') WHERE name LIKE 'first %' AND name <> 'first 7'`)
						w.flushed(t)
					case at == "changes applied" && !spoiled && c.spoil != "":
						var ready bool
						require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM app.project WHERE tenant_id = $1 AND name = $2)`, id, c.when).Scan(&ready))
						if !ready {
							return
						}
						spoiled = true
						args := []any{id}
						if strings.Contains(c.spoil, "$2") {
							args = append(args, gone)
						}
						tag, err := w.Control.Exec(t.Context(), c.spoil, args...)
						require.NoError(t, err)
						require.EqualValues(t, 1, tag.RowsAffected())
					}
				}))
				run := start(t, w, []tenant.ID{id}, 1)
				w.drain(t)
				s := inspect(t, w, run)
				if c.spoil == "" {
					require.Equal(t, migration.Counts{migration.Green: 1}, s.Counts, "%+v", s.Failed)
					require.Positive(t, identical(t, w, w.BlueAdmin, schema, "app", id, true))
					return
				}
				require.True(t, spoiled, "or this test proves nothing")
				require.Equal(t, migration.Counts{migration.Blue: 1}, s.Counts)
				require.Contains(t, s.Failed[0].Error, "table project")
			})
		}
	})
}

// flushed waits until what blue has committed is on its disk, and so in the stream.
func (w *world) flushed(t *testing.T) {
	_, err := w.Blue(t).Exec(t.Context(), `DO $$ BEGIN SET LOCAL synchronous_commit = on; PERFORM pg_logical_emit_message(true, 'test', 'flush'); END $$`)
	require.NoError(t, err)
}
