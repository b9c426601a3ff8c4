package schema_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/tenant"
)

// Writes in green pass the tenant's gate, and are written down while it captures: also on
// Citus, where the triggers fire on shards.
func TestGreenGateAndCapture(t *testing.T) {
	citustest.Each(t, func(t *testing.T, env *citustest.Env) {
		ctx := t.Context()
		id, other := env.NewTenant(t, tenant.Green), env.NewTenant(t, tenant.Green)
		do := func(id tenant.ID, sql string, args ...any) error {
			return env.Door.InTenant(ctx, id, func(tx *citus.Tx) error {
				_, err := tx.Exec(ctx, sql, append([]any{tx.Tenant()}, args...)...)
				return err
			})
		}
		add := func(id tenant.ID) (tenant.ID, error) {
			row := tenant.NewID()
			return row, do(id, `INSERT INTO project (tenant_id, id, name, created_at, updated_at) VALUES ($1, $2, 'a', $3, $3)`, row, time.Unix(1, 0).UTC())
		}
		type captured struct{ Table, Op, Old, New string }
		changes := func() []captured {
			rows, err := env.Control.Query(ctx, `SELECT table_name, op::text, coalesce(old, ''), coalesce(new, '') FROM coditect.captured WHERE tenant_id = $1 ORDER BY generation, id`, id)
			require.NoError(t, err)
			out, err := pgx.CollectRows(rows, pgx.RowToStructByPos[captured])
			require.NoError(t, err)
			return out
		}
		row, err := add(id) // no gate: written, and not captured
		require.NoError(t, err)
		require.Empty(t, changes())

		gate := func(closed, capture bool) {
			_, err := env.Control.Exec(ctx, `INSERT INTO coditect.write_gate (tenant_id, closed, capture, token) VALUES ($1, $2, $3, 1)
				ON CONFLICT (tenant_id) DO UPDATE SET closed = excluded.closed, capture = excluded.capture`, id, closed, capture)
			require.NoError(t, err)
		}
		gate(false, false)
		require.NoError(t, do(id, `UPDATE project SET name = 'b' WHERE tenant_id = $1 AND id = $2`, row))
		require.Empty(t, changes())

		gate(false, true)
		_, err = add(other)
		require.NoError(t, err)
		require.NoError(t, do(id, `UPDATE project SET name = $3 WHERE tenant_id = $1 AND id = $2`, row, "c \"x\"\\\n,"))
		moved := tenant.NewID()
		require.NoError(t, do(id, `UPDATE project SET id = $3 WHERE tenant_id = $1 AND id = $2`, row, moved))
		require.NoError(t, do(id, `INSERT INTO task (tenant_id, id, project_id, title, created_at, updated_at) VALUES ($1, $2, $3, 't', $4, $4)`, row, moved, time.Unix(1, 0).UTC()))
		require.NoError(t, do(id, `DELETE FROM project WHERE tenant_id = $1 AND id = $2`, moved)) // and its task by the foreign key
		text := func(key tenant.ID) string {
			return "(" + id.String() + "," + key.String() + `,"c ""x""\\` + "\n" + `,","",f,1,"1970-01-01 00:00:01+00","1970-01-01 00:00:01+00")`
		}
		got := changes()
		require.Len(t, got, 5)
		require.Equal(t, []captured{{"project", "U", "", text(row)}, {"project", "U", text(row), text(moved)}}, got[:2])
		require.Equal(t, [3]string{"task", "I", ""}, [3]string{got[2].Table, got[2].Op, got[2].Old})
		require.ElementsMatch(t, []string{"project D", "task D"}, []string{got[3].Table + " " + got[3].Op, got[4].Table + " " + got[4].Op})

		gate(true, true)
		_, err = env.Control.Exec(ctx, `DELETE FROM coditect.captured`)
		require.NoError(t, err)
		conn, err := pgx.Connect(ctx, citustest.As(t, env.GreenAdmin, "coditect_app"))
		require.NoError(t, err)
		defer func() { _ = conn.Close(ctx) }()
		direct := func(id tenant.ID, sql string) error {
			return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
				for _, s := range []string{`SET LOCAL app.tenant_id = '` + id.String() + `'`, sql} {
					if _, err := tx.Exec(ctx, s); err != nil {
						return err
					}
				}
				return nil
			})
		}
		insert := func(id tenant.ID) string {
			return `INSERT INTO app.project (tenant_id, id, name, created_at, updated_at) VALUES ('` + id.String() + `', '` + tenant.NewID().String() + `', 'a', '2026-01-01', '2026-01-01')`
		}
		require.Equal(t, "CD001", citus.StateOf(direct(id, insert(id))))
		require.NoError(t, direct(other, insert(other)))
		require.Empty(t, changes())
		// The application can neither get around the triggers nor at what they read and write.
		for _, sql := range []string{`TRUNCATE app.project`, `SET LOCAL session_replication_role = 'replica'`, `ALTER TABLE app.project DISABLE TRIGGER coditect_written`,
			`UPDATE coditect.write_gate SET closed = false`, `INSERT INTO coditect.captured (tenant_id, generation, id, table_name, op) VALUES ('` + id.String() + `', 1, 1, 'x', 'D')`,
			`SELECT new FROM coditect.captured`} {
			require.Equal(t, "42501", citus.StateOf(direct(id, sql)), sql)
		}
	})
}
