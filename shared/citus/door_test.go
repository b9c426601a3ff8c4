package citus_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

func TestMain(m *testing.M) { citustest.Main(m) }

const (
	insertProject = `INSERT INTO project (tenant_id, id, name, created_at, updated_at) VALUES ($1, $2, $3, now(), now())`
	countProjects = `SELECT count(*) FROM project WHERE tenant_id = $1`
)

func addProject(ctx context.Context, door *citus.Door, id tenant.ID, name string) error {
	return door.InTenant(ctx, id, func(tx *citus.Tx) error {
		_, err := tx.Exec(ctx, insertProject, tx.Tenant(), tenant.NewID(), name)
		return err
	})
}

func countIn(t *testing.T, door *citus.Door, id tenant.ID) (n int) {
	t.Helper()
	require.NoError(t, door.ReadTenant(t.Context(), id, func(tx *citus.Tx) error {
		return tx.QueryRow(t.Context(), countProjects, tx.Tenant()).Scan(&n)
	}))
	return n
}

func TestTenantsDoNotSeeEachOther(t *testing.T) {
	citustest.Each(t, func(t *testing.T, env *citustest.Env) {
		ctx := t.Context()
		ids := []tenant.ID{env.NewTenant(t, tenant.Blue), env.NewTenant(t, tenant.Blue), env.NewTenant(t, tenant.Green), env.NewTenant(t, tenant.Green)}
		for i, id := range ids {
			for range i + 1 {
				require.NoError(t, addProject(ctx, env.Door, id, "p"))
			}
		}
		for i, id := range ids {
			require.Equal(t, i+1, countIn(t, env.Door, id))
		}
		// Without the query's own filter, row-level security and the search_path are left.
		for i, id := range ids {
			var n int
			require.NoError(t, env.Door.ReadTenant(ctx, id, func(tx *citus.Tx) error {
				return tx.QueryRow(ctx, `SELECT count(*) FROM project`).Scan(&n)
			}))
			require.Equal(t, i+1, n)
		}
		// Writing a row of another tenant is refused by the database.
		for _, id := range ids {
			err := env.Door.InTenant(ctx, id, func(tx *citus.Tx) error {
				_, err := tx.Exec(ctx, insertProject, tenant.NewID(), tenant.NewID(), "x")
				return err
			})
			require.Equal(t, "42501", citus.StateOf(err), "%v", err)
		}
	})
}

func TestAFailedCallbackRollsBack(t *testing.T) {
	env := citustest.New(t)
	for _, home := range []tenant.Home{tenant.Blue, tenant.Green} {
		id := env.NewTenant(t, home)
		boom := errors.New("boom")
		err := env.Door.InTenant(t.Context(), id, func(tx *citus.Tx) error {
			if _, err := tx.Exec(t.Context(), insertProject, tx.Tenant(), tenant.NewID(), "p"); err != nil {
				return err
			}
			return boom
		})
		require.ErrorIs(t, err, boom)
		require.Zero(t, countIn(t, env.Door, id))
	}
}

func TestAnIgnoredErrorIsNotASuccess(t *testing.T) {
	env := citustest.New(t)
	id := env.NewTenant(t, tenant.Green)
	err := env.Door.InTenant(t.Context(), id, func(tx *citus.Tx) error {
		_, _ = tx.Exec(t.Context(), insertProject, tx.Tenant(), tenant.NewID(), "p")
		_, _ = tx.Exec(t.Context(), `SELECT 1 / (SELECT 0)`)
		return nil
	})
	require.Error(t, err)
	require.Zero(t, countIn(t, env.Door, id))
}

func TestNoTenantIsAnError(t *testing.T) {
	env := citustest.New(t)
	err := addProject(t.Context(), env.Door, tenant.ID{}, "p")
	require.Equal(t, "tenant_missing", fault.CodeOf(err))
	err = addProject(t.Context(), env.Door, tenant.NewID(), "p")
	require.Equal(t, "tenant_not_found", fault.CodeOf(err))
	// Past the door, as the application's role: no name is found, and no row is seen.
	pool, err := env.Databases.Control(t.Context())
	require.NoError(t, err)
	_, err = pool.Exec(t.Context(), `SELECT * FROM project`)
	require.Equal(t, "42P01", citus.StateOf(err))
	id := env.NewTenant(t, tenant.Green)
	require.NoError(t, addProject(t.Context(), env.Door, id, "p"))
	var n int
	require.NoError(t, pool.QueryRow(t.Context(), `SELECT count(*) FROM app.project`).Scan(&n))
	require.Zero(t, n)
}

func TestATxIsDeadAfterItsCallback(t *testing.T) {
	env := citustest.New(t)
	id := env.NewTenant(t, tenant.Green)
	var kept *citus.Tx
	require.NoError(t, env.Door.InTenant(t.Context(), id, func(tx *citus.Tx) error {
		kept = tx
		_, err := tx.Exec(t.Context(), insertProject, tx.Tenant(), tenant.NewID(), "p")
		return err
	}))
	_, err := kept.Exec(t.Context(), countProjects, id)
	require.Error(t, err)
}

func TestOneTrip(t *testing.T) {
	citustest.Each(t, func(t *testing.T, env *citustest.Env) {
		for _, home := range []tenant.Home{tenant.Blue, tenant.Green} {
			id := env.NewTenant(t, home)
			for range 3 { // the first prepares, the others are one trip
				var n int
				require.NoError(t, env.Door.OneTrip(t.Context(), id, func(b *citus.Batch) {
					b.Queue(insertProject, id, tenant.NewID(), "p")
					b.Queue(countProjects, id).QueryRow(scanInto(&n))
				}))
			}
			require.Equal(t, 3, countIn(t, env.Door, id))
			// A statement that fails takes the whole trip with it, and the connection stays usable.
			err := env.Door.OneTrip(t.Context(), id, func(b *citus.Batch) {
				b.Queue(insertProject, id, tenant.NewID(), "p")
				b.Queue(insertProject, id, tenant.NewID(), nil)
			})
			require.Error(t, err)
			require.Equal(t, 3, countIn(t, env.Door, id))
			// A read trip may not write.
			err = env.Door.ReadTrip(t.Context(), id, func(b *citus.Batch) { b.Queue(insertProject, id, tenant.NewID(), "p") })
			require.Equal(t, "25006", citus.StateOf(err))
		}
	})
}

// What is only checked at the end of a transaction is checked at the end of a trip too: the
// answers to its statements do not yet say that it is saved.
func TestATripThatFailsAtItsEnd(t *testing.T) {
	env := citustest.New(t)
	for _, home := range []tenant.Home{tenant.Blue, tenant.Green} {
		id := env.NewTenant(t, home)
		table := "app.project"
		if home == tenant.Blue {
			require.NoError(t, env.Blue(t).QueryRow(t.Context(), `SELECT quote_ident(schema_name) || '.project' FROM coditect.gate WHERE tenant_id = $1`, id).Scan(&table))
		}
		admin, err := pgx.Connect(t.Context(), map[tenant.Home]string{tenant.Blue: env.BlueAdmin, tenant.Green: env.GreenAdmin}[home])
		require.NoError(t, err)
		_, err = admin.Exec(t.Context(), `
			CREATE FUNCTION coditect.test_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION USING ERRCODE = '23514', MESSAGE = 'refused at the end'; END $$;
			CREATE CONSTRAINT TRIGGER test_refuse AFTER INSERT ON `+table+` DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.name = 'bad') EXECUTE FUNCTION coditect.test_refuse()`)
		require.NoError(t, err)
		require.NoError(t, admin.Close(t.Context()))
		for n := range 3 { // the first prepares, the others are one trip
			for _, name := range []string{"good", "bad"} {
				inserted := false
				err := env.Door.OneTrip(t.Context(), id, func(b *citus.Batch) {
					b.Queue(insertProject, id, tenant.NewID(), name).Exec(func(pgconn.CommandTag) error { inserted = true; return nil })
				})
				require.True(t, inserted)
				if name == "bad" {
					require.Equal(t, "23514", citus.StateOf(err), "%v", err)
				} else {
					require.NoError(t, err)
				}
			}
			require.Equal(t, n+1, countIn(t, env.Door, id))
		}
	}
}

func scanInto(dest ...any) func(pgx.Row) error {
	return func(row pgx.Row) error { return row.Scan(dest...) }
}
