package traffic

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/tenant"
)

// Verify finds, in real databases and in both homes, what a faulty move would have
// done: a row gone, a row doubled, an old value, a value that nobody wrote.
func TestVerifyFindsFaultsInBothHomes(t *testing.T) {
	env := citustest.New(t)
	for _, home := range []tenant.Home{tenant.Blue, tenant.Green} {
		t.Run(string(home), func(t *testing.T) {
			id := env.NewTenant(t, home)
			j, _ := journal(t)
			exec := func(sql string, args ...any) {
				t.Helper()
				require.NoError(t, env.Door.InTenant(t.Context(), id, func(tx *citus.Tx) error {
					_, err := tx.Exec(t.Context(), sql, append([]any{tx.Tenant()}, args...)...)
					return err
				}))
			}
			insert := func(text string) {
				t.Helper()
				exec(`INSERT INTO task (tenant_id, id, project_id, title, created_at, updated_at)
					SELECT $1, $2, id, $3, $4, $4 FROM project WHERE tenant_id = $1`, tenant.NewID(), text, time.Now())
			}
			exec(`INSERT INTO project (tenant_id, id, name, created_at, updated_at) VALUES ($1, $2, 'p', $3, $3)`, tenant.NewID(), time.Now())
			for _, token := range []string{"a", "b", "c", "d"} {
				k := Key{Tenant: id, Kind: "task", Token: token}
				for version := range 3 {
					j.record(k, version, tried)
					j.record(k, version, acknowledged)
				}
				insert(Text(token, 2))
			}
			insert("Somebody else's task")
			verdict, err := Verify(t.Context(), env.Door, j)
			require.NoError(t, err)
			require.True(t, verdict.Clean(), "%v", verdict.Examples)
			require.Equal(t, 12, verdict.Acknowledged)

			exec(`DELETE FROM task WHERE tenant_id = $1 AND title = $2`, Text("a", 2))
			insert(Text("b", 2))
			exec(`UPDATE task SET title = $3 WHERE tenant_id = $1 AND title = $2`, Text("c", 2), Text("c", 1))
			exec(`UPDATE task SET title = $3 WHERE tenant_id = $1 AND title = $2`, Text("d", 2), Text("d", 9))
			verdict, err = Verify(t.Context(), env.Door, j)
			require.NoError(t, err)
			require.Equal(t, 2, verdict.Lost, "%v", verdict.Examples)
			require.Equal(t, 1, verdict.Duplicated)
			require.Equal(t, 1, verdict.Different)
		})
	}
}

// The old application is told apart from a failure by the fence's SQLSTATE alone.
func TestOldApplicationKnowsTheFence(t *testing.T) {
	env := citustest.New(t)
	blue, err := env.Databases.Pool(t.Context(), citus.BlueDatabase)
	require.NoError(t, err)
	refuse := func(state string) error {
		return OldApplication{Pool: blue.Pool, Schema: "public"}.inSchema(t.Context(), func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), `DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '`+state+`', MESSAGE = 'no'; END $$`)
			return err
		})
	}
	require.ErrorIs(t, refuse("CD001"), ErrFenced)
	var refusal Refusal
	require.ErrorAs(t, refuse("23505"), &refusal)
	require.NotErrorIs(t, refuse("23505"), ErrFenced)
}

func TestMain(m *testing.M) { citustest.Main(m) }
