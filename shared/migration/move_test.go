package migration_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/tenant"
)

func TestOwnTenantsMove(t *testing.T) {
	eachServer(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		var ids []tenant.ID
		for i := range 5 {
			id := w.NewTenant(t, tenant.Blue)
			ids = append(ids, id)
			for range i * 3 {
				_, err := addProject(ctx, w.Door, id, "p")
				require.NoError(t, err)
			}
		}
		staying := w.NewTenant(t, tenant.Blue)
		_, err := addProject(ctx, w.Door, staying, "p")
		require.NoError(t, err)

		run, report, err := w.Mover.Start(ctx, migration.Plan{Source: "platform", Tenants: ids, BatchSize: 2, Actor: "test"})
		require.NoError(t, err, "%+v", report)
		w.drain(t)

		status, err := w.Mover.Inspect(ctx, run.ID)
		require.NoError(t, err)
		require.Equal(t, migration.Done, status.State)
		require.Equal(t, migration.Counts{migration.Green: 5}, status.Counts, "%+v", status.Failed)
		require.EqualValues(t, 0+3+6+9+12, status.RowsMoved)
		for i, id := range ids {
			require.Equal(t, i*3, projects(t, w.Door, id))
			_, err := addProject(ctx, w.Door, id, "after")
			require.NoError(t, err)
			require.Equal(t, i*3+1, projects(t, w.Door, id))
			p, err := w.Directory.Locate(ctx, id)
			require.NoError(t, err)
			require.Equal(t, tenant.Green, p.Home)
		}
		p, err := w.Directory.Locate(ctx, staying)
		require.NoError(t, err)
		require.Equal(t, tenant.Blue, p.Home)
		require.Equal(t, 1, projects(t, w.Door, staying))
	})
}

func TestLegacyTenantsArriveIdentical(t *testing.T) {
	eachServer(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		w.withLegacy(t)
		run, report, err := w.Mover.Start(ctx, migration.Plan{Source: "legacy", Actor: "test"})
		require.NoError(t, err)
		for _, f := range report.Findings {
			fmt.Println(f.Severity, f.Schema, f.Code, f.Message)
		}
		w.drain(t)
		status, err := w.Mover.Inspect(ctx, run.ID)
		require.NoError(t, err)
		require.Equal(t, migration.Counts{migration.Green: 20}, status.Counts, "%+v", status.Failed)
		fmt.Printf("%+v\n", status)
	})
}
