package migration_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/migration/source"
	"github.com/coditect/platform/shared/tenant"
)

// A source moves in parts: the tenant whose schema is the template goes first, all
// others in a second run.
func TestTheTemplateMovesFirst(t *testing.T) {
	w := newWorld(t, citustest.New(t)) // what green is makes no difference here
	w.withLegacy(t)
	var described source.Source
	require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT descriptor FROM control.source WHERE name = 'legacy'`).Scan(&described))
	template := tenant.ImportedID("legacy", described.TemplateSchema)

	move := func(want int64, tenants ...tenant.ID) {
		run, report, err := w.Mover.Start(t.Context(), migration.Plan{Source: "legacy", Tenants: tenants, Actor: "test"})
		require.NoError(t, err, "%+v", report.Findings)
		require.Zero(t, report.LeftOut, "%+v", report.Findings)
		w.drain(t)
		status := inspect(t, w, run)
		require.Equal(t, migration.Counts{migration.Green: want}, status.Counts, "%+v", status.Failed)
	}
	move(1, template)
	move(1, tenant.ImportedID("legacy", "acme00007"))
	move(18)
	for _, s := range []string{described.TemplateSchema, "acme00007", "acme00019"} {
		id := tenant.ImportedID("legacy", s)
		require.Equal(t, tenant.Green, homeOf(t, w, id))
		require.Positive(t, identical(t, w, w.Legacy, s, "legacy", id, false))
	}
}
