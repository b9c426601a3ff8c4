package migration_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/tenant"
)

// blueTenants makes tenants with a few rows each.
func blueTenants(t *testing.T, w *world, n int) []tenant.ID {
	t.Helper()
	var ids []tenant.ID
	for i := range n {
		id := w.NewTenant(t, tenant.Blue)
		ids = append(ids, id)
		for range i {
			_, err := addProject(t.Context(), w.Door, id, "p")
			require.NoError(t, err)
		}
	}
	return ids
}

// inGreen makes tenants as blueTenants does, and moves them in one run.
func inGreen(t *testing.T, w *world, n int) ([]tenant.ID, migration.Run) {
	t.Helper()
	ids := blueTenants(t, w, n)
	run := start(t, w, ids, 10)
	w.drain(t)
	return ids, run
}

// start begins a run over own tenants.
func start(t *testing.T, w *world, ids []tenant.ID, batch int) migration.Run {
	t.Helper()
	run, report, err := w.Mover.Start(t.Context(), migration.Plan{Source: "platform", Tenants: ids, BatchSize: batch, Actor: "test"})
	require.NoError(t, err, "%+v", report)
	require.Zero(t, report.LeftOut, "%+v", report.Findings)
	return run
}

func inspect(t *testing.T, w *world, run migration.Run) migration.Status {
	t.Helper()
	s, err := w.Mover.Inspect(t.Context(), run.ID)
	require.NoError(t, err)
	return s
}

func homeOf(t *testing.T, w *world, id tenant.ID) (home tenant.Home) {
	t.Helper()
	require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT home FROM control.tenant WHERE id = $1`, id).Scan(&home))
	return home
}

func blueSchema(id tenant.ID) string {
	return "t_" + fmt.Sprintf("%x", [16]byte(id))
}

func TestOwnTenantsMove(t *testing.T) {
	eachServer(t, func(t *testing.T, w *world) {
		ids := blueTenants(t, w, 5)
		staying := w.NewTenant(t, tenant.Blue)
		_, err := addProject(t.Context(), w.Door, staying, "p")
		require.NoError(t, err)

		run := start(t, w, ids, 2)
		w.drain(t)

		status := inspect(t, w, run)
		require.Equal(t, migration.Done, status.State)
		require.Equal(t, migration.Counts{migration.Green: 5}, status.Counts, "%+v", status.Failed)
		require.EqualValues(t, 0+1+2+3+4, status.RowsMoved)
		for i, id := range ids {
			require.Equal(t, tenant.Green, homeOf(t, w, id))
			require.Equal(t, i, identical(t, w, w.BlueAdmin, blueSchema(id), "app", id, true))
			require.Equal(t, i, projects(t, w.Door, id))
			_, err := addProject(t.Context(), w.Door, id, "after")
			require.NoError(t, err)
			require.Equal(t, i+1, projects(t, w.Door, id))
		}
		require.Equal(t, tenant.Blue, homeOf(t, w, staying))
		require.Equal(t, 1, projects(t, w.Door, staying))
	})
}

func TestNothingIsLostUnderTraffic(t *testing.T) {
	t.Run("ahead", func(t *testing.T) { nothingIsLost(t, quick) })
	together := quick
	together.FenceTenants = 3
	t.Run("ahead, three together", func(t *testing.T) { nothingIsLost(t, together) })
	t.Run("fenced", func(t *testing.T) { nothingIsLost(t, fencedFirst) })
	t.Run("online", func(t *testing.T) { nothingIsLost(t, online) })
}

func nothingIsLost(t *testing.T, cfg migration.Config) {
	eachServer(t, func(t *testing.T, w *world) {
		w.Mover = migration.New(w.Migrator, w.Queue, cfg)
		ids := blueTenants(t, w, 6)
		neighbour := blueTenants(t, w, 1)
		traffic := writeOn(t, w, append(neighbour, ids...))
		run := start(t, w, ids, 3)
		w.drain(t)
		status := inspect(t, w, run)
		require.Equal(t, migration.Counts{migration.Green: 6}, status.Counts, "%+v", status.Failed)
		traffic.check(t)
		// The blue home takes nothing any more, not even from a superuser who knows nothing of the move.
		for _, id := range ids {
			_, err := w.Blue(t).Exec(t.Context(), `INSERT INTO `+blueSchema(id)+`.project (tenant_id, id, name, created_at, updated_at) VALUES ($1, $1, 'x', now(), now())`, id)
			require.Equal(t, citus.StateFenced, citus.StateOf(err))
			_, err = w.Blue(t).Exec(t.Context(), `TRUNCATE `+blueSchema(id)+`.project CASCADE`)
			require.Equal(t, citus.StateFenced, citus.StateOf(err))
		}
	})
}

func TestLegacyTenantsArriveIdentical(t *testing.T) {
	eachServer(t, func(t *testing.T, w *world) {
		w.withLegacy(t)
		var schemas []string
		for i := range 20 {
			schemas = append(schemas, fmt.Sprintf("acme%05d", i))
		}
		old := runOldApplication(t, citustest.As(t, w.Legacy, "legacy_app"), schemas)
		run, report, err := w.Mover.Start(t.Context(), migration.Plan{Source: "legacy", Actor: "test"})
		require.NoError(t, err)
		require.Zero(t, report.LeftOut, "%+v", report.Findings)
		w.drain(t)
		status := inspect(t, w, run)
		require.Equal(t, migration.Counts{migration.Green: 20}, status.Counts, "%+v", status.Failed)
		old.stop()
		old.group.Wait()
		require.Empty(t, old.failed)
		var rows int64
		for _, s := range schemas {
			id := tenant.ImportedID("legacy", s)
			rows += int64(identical(t, w, w.Legacy, s, "legacy", id, false))
			// Everything the old application was told is saved has arrived.
			var have []string
			require.NoError(t, w.Door.ReadTenant(t.Context(), id, func(tx *citus.Tx) error {
				rows, err := tx.Query(t.Context(), `SELECT note FROM work_event WHERE note LIKE '`+s+` old %' ORDER BY id`)
				if err != nil {
					return err
				}
				have, err = pgx.CollectRows(rows, pgx.RowTo[string])
				return err
			}))
			require.NotEmpty(t, have)
			require.True(t, slices.Equal(old.written[s], have), "%s: %d acknowledged, %d here", s, len(old.written[s]), len(have))
			require.Positive(t, old.refused[s])
			// The application's own statement, through the door: the id is past all of blue's.
			require.NoError(t, w.Door.InTenant(t.Context(), id, func(tx *citus.Tx) error {
				_, err := tx.Exec(t.Context(), `INSERT INTO work_label (tenant_id, name) VALUES ($1, 'new')`, tx.Tenant())
				return err
			}))
		}
		require.Equal(t, rows, status.RowsMoved)
	})
}
