package citus_test

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/directory"
	"github.com/coditect/platform/shared/tenant"
)

// oneConnection is a door with one connection to each database, and room for so many
// prepared statements on it.
func oneConnection(t *testing.T, env *citustest.Env, statements int) *citus.Door {
	t.Helper()
	cfg := env.Config
	cfg.MaxConns, cfg.StatementCache = 1, statements
	dbs, err := citus.Open(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(dbs.Close)
	return citus.NewDoor(dbs, directory.New(env.Databases, 0))
}

// tenantsWithProjects makes tenants, the first with one project, the second with two …
func tenantsWithProjects(t *testing.T, env *citustest.Env, home tenant.Home, n int) []tenant.ID {
	t.Helper()
	ids := make([]tenant.ID, n)
	for i := range ids {
		ids[i] = env.NewTenant(t, home)
		for range i + 1 {
			require.NoError(t, addProject(t.Context(), env.Door, ids[i], "p"))
		}
	}
	return ids
}

// preparedFor lists the statements that the door has prepared on the connection that
// serves a tenant: name and SQL.
func preparedFor(t *testing.T, door *citus.Door, id tenant.ID) map[string]string {
	t.Helper()
	found := map[string]string{}
	require.NoError(t, door.ReadTenant(t.Context(), id, func(tx *citus.Tx) error {
		rows, err := tx.Query(t.Context(), `SELECT name, statement FROM pg_prepared_statements WHERE name LIKE 'stmt\_%' OR name LIKE 'own\_%'`)
		if err != nil {
			return err
		}
		var name, sql string
		_, err = pgx.ForEachRow(rows, []any{&name, &sql}, func() error { found[name] = sql; return nil })
		return err
	}))
	return found
}

func timesPrepared(t *testing.T, door *citus.Door, id tenant.ID, sql string) (n int) {
	for _, s := range preparedFor(t, door, id) {
		if s == sql {
			n++
		}
	}
	return n
}

func TestASchemaThatKeepsUsingAStatementGetsItsOwn(t *testing.T) {
	env := citustest.New(t)
	for home, want := range map[tenant.Home]int{tenant.Blue: 3, tenant.Green: 1} {
		ids := tenantsWithProjects(t, env, home, 3)
		door := oneConnection(t, env, 100)
		for range 10 {
			require.Equal(t, 1, countIn(t, door, ids[0]))
		}
		require.Equal(t, 1, timesPrepared(t, door, ids[0], countProjects), "a schema alone has nothing planned anew")
		for range 5 {
			for i, id := range ids {
				require.Equal(t, i+1, countIn(t, door, id))
			}
		}
		require.Equal(t, want, timesPrepared(t, door, ids[0], countProjects), "%s: where schemas differ one for each, the first of all now the last schema's", home)
	}
}

func TestPreparedStatementsAreBounded(t *testing.T) {
	env := citustest.New(t)
	ids := tenantsWithProjects(t, env, tenant.Blue, 6)
	const limit = 4
	door := oneConnection(t, env, limit)
	for round := range 6 {
		for i, id := range ids {
			require.Equal(t, i+1, countIn(t, door, id), "round %d", round)
		}
		require.LessOrEqual(t, len(preparedFor(t, door, ids[0])), limit)
	}
	for i := range 3 * limit { // a caller that puts values into SQL
		require.NoError(t, door.ReadTrip(t.Context(), ids[0], func(b *citus.Batch) { b.Queue(fmt.Sprintf(`SELECT %d`, i)) }))
	}
	require.LessOrEqual(t, len(preparedFor(t, door, ids[0])), limit)
	// What one batch needs stays until it is sent, and goes after that.
	require.NoError(t, door.InTenant(t.Context(), ids[0], func(tx *citus.Tx) error {
		b := tx.NewBatch()
		for i := range 2 * limit {
			b.Queue(fmt.Sprintf(`SELECT %d::int`, i)).QueryRow(func(row pgx.Row) error {
				var n int
				require.NoError(t, row.Scan(&n))
				require.Equal(t, i, n)
				return nil
			})
		}
		return tx.Send(t.Context(), b)
	}))
	require.LessOrEqual(t, len(preparedFor(t, door, ids[0])), limit)
}

// PostgreSQL refuses a prepared statement whose result has got another shape ("cached
// plan must not change result type"): what is prepared is forgotten, and the call repeated.
func TestAStatementOfAChangedTableIsForgotten(t *testing.T) {
	env := citustest.New(t)
	ids := tenantsWithProjects(t, env, tenant.Blue, 2) // the second gets a statement of its own
	door := oneConnection(t, env, 100)
	const all = `SELECT * FROM project WHERE tenant_id = $1`
	columns := func(id tenant.ID) (n, runs int) {
		require.NoError(t, door.ReadTenant(t.Context(), id, func(tx *citus.Tx) error {
			runs++
			rows, err := tx.Query(t.Context(), all, id)
			if err != nil {
				return err
			}
			defer rows.Close()
			n = len(rows.FieldDescriptions())
			for rows.Next() {
				if _, err := rows.Values(); err != nil {
					return err
				}
			}
			return rows.Err()
		}))
		return n, runs
	}
	var before int
	for range 5 {
		for _, id := range ids {
			before, _ = columns(id)
		}
	}
	require.Equal(t, 2, timesPrepared(t, door, ids[0], all))
	// Both kinds: first the table behind a schema's own statement, then the one behind the shared.
	for i := len(ids) - 1; i >= 0; i-- {
		_, err := env.Blue(t).Exec(t.Context(), fmt.Sprintf(`ALTER TABLE t_%x.project ADD COLUMN colour text`, [16]byte(ids[i])))
		require.NoError(t, err)
		n, runs := columns(ids[i])
		require.Equal(t, before+1, n)
		require.Equal(t, 2, runs, "refused once, then repeated")
		require.Equal(t, 1, timesPrepared(t, door, ids[0], all), "only the one that was prepared anew")
		if i > 0 {
			n, _ = columns(ids[0])
			require.Equal(t, before, n, "the neighbour's table is what it was")
		}
	}
}

// Between two statements of a reading the tenant moves: the callback is repeated where
// it lives then, and reads nothing in its old home any more.
func TestAReadingFollowsATenantThatMovesMeanwhile(t *testing.T) {
	env := citustest.New(t)
	id := tenantsWithProjects(t, env, tenant.Blue, 1)[0]
	var counts [][2]int
	require.NoError(t, env.Door.ReadTenant(t.Context(), id, func(tx *citus.Tx) error {
		counts = append(counts, [2]int{-1, -1})
		mine := &counts[len(counts)-1]
		if err := tx.QueryRow(t.Context(), countProjects, id).Scan(&mine[0]); err != nil {
			return err
		}
		if len(counts) == 1 {
			moveToGreen(t, env, id)
		}
		return tx.QueryRow(t.Context(), countProjects, id).Scan(&mine[1])
	}))
	require.Equal(t, [][2]int{{1, -1}, {0, 0}}, counts)
}

func TestRowsLeftOpenAreClosed(t *testing.T) {
	env := citustest.New(t)
	door := oneConnection(t, env, 100)
	for _, home := range []tenant.Home{tenant.Blue, tenant.Green} {
		id := tenantsWithProjects(t, env, home, 1)[0]
		leave := func(tx *citus.Tx) error {
			_, err := tx.Query(t.Context(), `SELECT id FROM project WHERE tenant_id = $1`, id) //nolint:sqlclosecheck // left open on purpose
			return err
		}
		pid := func() (n int) {
			require.NoError(t, door.ReadTenant(t.Context(), id, func(tx *citus.Tx) error {
				return tx.QueryRow(t.Context(), `SELECT pg_backend_pid()`).Scan(&n)
			}))
			return n
		}
		before := pid()
		require.NoError(t, door.ReadTenant(t.Context(), id, leave))
		require.NoError(t, door.InTenant(t.Context(), id, leave))
		require.Equal(t, before, pid(), "the connection is still good")
	}
}

func TestAFailedStatementEndsAReading(t *testing.T) {
	env := citustest.New(t)
	id := tenantsWithProjects(t, env, tenant.Green, 1)[0]
	err := env.Door.ReadTenant(t.Context(), id, func(tx *citus.Tx) error {
		_, err := tx.Exec(t.Context(), insertProject, id, tenant.NewID(), "p")
		require.Equal(t, "25006", citus.StateOf(err), "%v", err)
		var n int
		require.Equal(t, err, tx.QueryRow(t.Context(), countProjects, id).Scan(&n), "nothing more is sent")
		return nil
	})
	require.Equal(t, "25006", citus.StateOf(err), "and ignoring it is no success")
	require.Equal(t, 1, countIn(t, env.Door, id))
}
