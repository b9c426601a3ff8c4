package citus_test

import (
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/citus/localpg"
	"github.com/coditect/platform/shared/directory"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

// unprepared is the option of a connection string that lets the door prepare nothing.
const unprepared = "default_query_exec_mode=exec"

// doorBehindPooler is a door behind a PgBouncer in transaction mode that shares a single
// connection to each database among all.
func doorBehindPooler(t *testing.T, env *citustest.Env) *citus.Door {
	t.Helper()
	p, err := localpg.StartPooler(t.Context(), localpg.PoolerOptions{
		Databases: map[string]string{"blue": env.BlueAdmin, "green": env.GreenAdmin}, Roles: []string{"coditect_app"}, Connections: 1,
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Remove()) })
	dbs, err := citus.Open(t.Context(), citus.Config{Green: p.DSN("green", "coditect_app"), Blue: p.DSN("blue", "coditect_app"), MaxConns: 4})
	require.NoError(t, err)
	t.Cleanup(dbs.Close)
	return citus.NewDoor(dbs, directory.New(dbs, 0))
}

// Four clients share one connection, and each statement finds its own tenant's rows: what enters a
// tenant ends with its transaction.
func TestBehindAPoolerInTransactionMode(t *testing.T) {
	citustest.Each(t, func(t *testing.T, env *citustest.Env) {
		door := doorBehindPooler(t, env)
		var ids []tenant.ID
		for _, home := range []tenant.Home{tenant.Blue, tenant.Blue, tenant.Green, tenant.Green} {
			ids = append(ids, env.NewTenant(t, home))
		}
		var group sync.WaitGroup
		for client, id := range ids {
			group.Go(func() {
				for i := range 20 {
					if err := useEveryWay(t, door, id, 2*i); err != nil {
						t.Errorf("client %d: %v", client, err)
						return
					}
				}
			})
		}
		group.Wait()
		for _, id := range ids {
			require.Equal(t, 40, countIn(t, door, id))
			require.Equal(t, "duplicate", fault.CodeOf(door.InTenant(t.Context(), id, func(tx *citus.Tx) error {
				_, err := tx.Exec(t.Context(), `INSERT INTO project SELECT * FROM project WHERE tenant_id = $1 LIMIT 1`, tx.Tenant())
				return err
			})))
			// The connection that they share is nobody's afterwards.
			var n int
			require.NoError(t, door.ReadTenant(t.Context(), id, func(tx *citus.Tx) error {
				return tx.QueryRow(t.Context(), `SELECT count(*) FROM pg_prepared_statements WHERE NOT from_sql`).Scan(&n)
			}))
			require.Zero(t, n)
		}
	})
}

// useEveryWay inserts two projects of a tenant that has n, in each way that the door has, and counts them in each.
func useEveryWay(t *testing.T, door *citus.Door, id tenant.ID, n int) error {
	ctx := t.Context()
	if err := addProject(ctx, door, id, "p"); err != nil {
		return err
	}
	var counts [4]int
	err := door.OneTrip(ctx, id, func(b *citus.Batch) {
		b.Queue(insertProject, id, tenant.NewID(), "p")
		b.Queue(countProjects, id).QueryRow(func(row pgx.Row) error { return row.Scan(&counts[0]) })
	})
	if err != nil {
		return err
	}
	err = door.ReadTrip(ctx, id, func(b *citus.Batch) {
		b.Queue(countProjects, id).QueryRow(func(row pgx.Row) error { return row.Scan(&counts[1]) })
	})
	if err != nil {
		return err
	}
	err = door.ReadTenant(ctx, id, func(tx *citus.Tx) error { return tx.QueryRow(ctx, countProjects, id).Scan(&counts[2]) })
	if err != nil {
		return err
	}
	err = door.InTenant(ctx, id, func(tx *citus.Tx) error {
		if _, err := tx.Exec(ctx, `UPDATE project SET name = $2 WHERE tenant_id = $1 AND name = ANY ($3)`, id, "q", []string{"p"}); err != nil {
			return err
		}
		return tx.QueryRow(ctx, countProjects, id).Scan(&counts[3])
	})
	if err == nil {
		require.Equal(t, [4]int{n + 2, n + 2, n + 2, n + 2}, counts)
	}
	return err
}

// Of the ways to send a statement that pgx has, those that look at it outside of the tenant are refused.
func TestWaysToSendAStatement(t *testing.T) {
	for mode, allowed := range map[string]bool{"cache_statement": true, "exec": true, "cache_describe": false, "describe_exec": false, "simple_protocol": false} {
		_, err := citus.Open(t.Context(), citus.Config{Green: "postgres://localhost/green?default_query_exec_mode=" + mode})
		if allowed {
			require.NoError(t, err)
		} else {
			require.ErrorContains(t, err, "default_query_exec_mode must be cache_statement or exec")
		}
	}
}
