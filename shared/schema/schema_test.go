package schema_test

import (
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/schema"
	"github.com/coditect/platform/shared/tenant"
)

func TestMain(m *testing.M) { citustest.Main(m) }

// Everything may be applied again: nothing is left to do.
func TestApplyingAgainChangesNothing(t *testing.T) {
	citustest.Each(t, func(t *testing.T, env *citustest.Env) {
		res, err := schema.ApplyGreen(t.Context(), env.GreenAdmin)
		require.NoError(t, err)
		require.Empty(t, res.Applied)
		require.Equal(t, env.Citus, res.Citus)
		res, err = schema.ApplyHome(t.Context(), schema.Database{DSN: env.BlueAdmin, Name: citus.BlueDatabase, Kind: tenant.Blue})
		require.NoError(t, err)
		require.Empty(t, res.Applied)
		n, err := schema.UpgradeBlue(t.Context(), env.Blue(t).Pool, 4, nil)
		require.NoError(t, err)
		require.Zero(t, n)
	})
}

// Every tenant table of both homes has row-level security that not even its owner
// escapes, an owner that is not the application, and on Citus a place on the workers.
func TestEveryTableIsProtected(t *testing.T) {
	citustest.Each(t, func(t *testing.T, env *citustest.Env) {
		id := env.NewTenant(t, tenant.Blue)
		var name string
		require.NoError(t, env.Control.QueryRow(t.Context(), `SELECT schema_name FROM control.tenant WHERE id = $1`, id).Scan(&name))
		for pool, schemaName := range map[*citus.Pool]string{env.Blue(t): name, env.Control: schema.GreenSchema} {
			rows, err := pool.Query(t.Context(), `SELECT relname::text, relrowsecurity AND relforcerowsecurity, relowner::regrole::text,
				(SELECT count(*) FROM pg_policy WHERE polrelid = c.oid) FROM pg_class c WHERE relnamespace = $1::regnamespace AND relkind IN ('r', 'p')`, schemaName)
			require.NoError(t, err)
			var (
				table, owner string
				secured      bool
				policies, n  int
			)
			_, err = pgx.ForEachRow(rows, []any{&table, &secured, &owner, &policies}, func() error {
				require.True(t, secured, table)
				require.Equal(t, "coditect_owner", owner, table)
				require.Positive(t, policies, table)
				n++
				return nil
			})
			require.NoError(t, err)
			require.GreaterOrEqual(t, n, 4)
		}
		if env.Citus {
			var local int
			require.NoError(t, env.Control.QueryRow(t.Context(), `SELECT count(*) FROM pg_class c WHERE relnamespace = 'app'::regnamespace AND relkind = 'r'
				AND NOT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = c.oid)`).Scan(&local))
			require.Zero(t, local, "a tenant table is not distributed")
		}
	})
}

// The roles are apart: the application owns nothing and cannot switch the fence off.
func TestTheApplicationCannotLiftAFence(t *testing.T) {
	env := citustest.New(t)
	id := env.NewTenant(t, tenant.Blue)
	_, err := env.Blue(t).Exec(t.Context(), `SELECT coditect.fence($1, 1, 1000)`, id)
	require.NoError(t, err)
	app, err := env.Databases.Pool(t.Context(), citus.BlueDatabase)
	require.NoError(t, err)
	var name string
	require.NoError(t, app.QueryRow(t.Context(), `SELECT schema_name FROM coditect.gate WHERE tenant_id = $1`, id).Scan(&name))
	for _, sql := range []string{
		`ALTER TABLE ` + name + `.project DISABLE TRIGGER ALL`, `DROP TRIGGER coditect_fence ON ` + name + `.project`,
		`SELECT coditect.unfence('` + id.String() + `', 2, 1000)`, `UPDATE coditect.gate SET fenced = false`,
		`SET session_replication_role = replica`, `ALTER TABLE ` + name + `.project NO FORCE ROW LEVEL SECURITY`, `CREATE TABLE ` + name + `.mine (id int)`,
	} {
		_, err := app.Exec(t.Context(), sql)
		require.Equal(t, "42501", citus.StateOf(err), sql)
	}
}

func TestCreatingATenantTwiceIsOnce(t *testing.T) {
	env := citustest.New(t)
	app, err := env.Databases.Pool(t.Context(), citus.BlueDatabase) // as sign-up does: by the application's role
	require.NoError(t, err)
	id := tenant.NewID()
	var group sync.WaitGroup
	names := make([]string, 4)
	for i := range names {
		group.Go(func() {
			var err error
			names[i], err = schema.CreateBlueTenant(t.Context(), app, id, 1)
			require.NoError(t, err)
		})
	}
	group.Wait()
	for _, n := range names {
		require.Equal(t, names[0], n)
	}
}

// A new version reaches all blue schemas; one that fails, and one that is moving, stop
// nobody else, are named, and are taken up by the next call.
func TestUpgrade(t *testing.T) {
	env := citustest.New(t)
	blue := env.Blue(t)
	var ids []tenant.ID
	for range 6 {
		ids = append(ids, env.NewTenant(t, tenant.Blue))
	}
	nameOf := func(id tenant.ID) (name string) {
		require.NoError(t, blue.QueryRow(t.Context(), `SELECT schema_name FROM coditect.tenant_schema WHERE tenant_id = $1`, id).Scan(&name))
		return name
	}
	_, err := blue.Exec(t.Context(), `INSERT INTO coditect.tenant_version (version, name, body) VALUES (900, 'colour', 'ALTER TABLE project ADD COLUMN colour text; CREATE TABLE extra (tenant_id uuid, id uuid, PRIMARY KEY (tenant_id, id))')`)
	require.NoError(t, err)
	_, err = blue.Exec(t.Context(), `SELECT coditect.fence($1, 1, 1000)`, ids[0])
	require.NoError(t, err)
	_, err = blue.Exec(t.Context(), `CREATE TABLE `+nameOf(ids[1])+`.extra (in_the_way int)`)
	require.NoError(t, err)

	var calls, total int
	var mu sync.Mutex
	n, err := schema.UpgradeBlue(t.Context(), blue.Pool, 3, func(_, of int) { mu.Lock(); defer mu.Unlock(); calls++; total = of })
	require.Equal(t, 4, n)
	require.Equal(t, 6, calls)
	require.Equal(t, 6, total)
	require.ErrorContains(t, err, nameOf(ids[0]))
	require.ErrorContains(t, err, nameOf(ids[1]))
	var colours int
	count := `SELECT count(*) FROM information_schema.columns WHERE column_name = 'colour' AND table_name = 'project'`
	require.NoError(t, blue.QueryRow(t.Context(), count).Scan(&colours))
	require.Equal(t, 4, colours, "a schema whose upgrade failed has nothing of it")

	_, err = blue.Exec(t.Context(), `SELECT coditect.unfence($1, 2, 1000)`, ids[0])
	require.NoError(t, err)
	_, err = blue.Exec(t.Context(), `DROP TABLE `+nameOf(ids[1])+`.extra`)
	require.NoError(t, err)
	n, err = schema.UpgradeBlue(t.Context(), blue.Pool, 3, nil)
	require.NoError(t, err)
	require.Equal(t, 2, n)
	// A tenant that is made now has the new version, and the new table's fence is ready.
	fresh := env.NewTenant(t, tenant.Blue)
	require.NoError(t, blue.QueryRow(t.Context(), count).Scan(&colours))
	require.Equal(t, 7, colours)
	for _, id := range append(ids, fresh) {
		_, err = blue.Exec(t.Context(), `SELECT coditect.fence($1, 3, 1000)`, id)
		require.NoError(t, err)
		_, err = blue.Exec(t.Context(), `INSERT INTO `+nameOf(id)+`.extra VALUES ($1, $1)`, id)
		require.Equal(t, citus.StateFenced, citus.StateOf(err))
	}
}
