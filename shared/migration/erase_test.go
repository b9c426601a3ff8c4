package migration_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/migration"
)

// The dumps of a tenant that was erased are deleted, after a crash in between too; nobody else's are.
func TestArchivesOfErasedTenantsGo(t *testing.T) {
	w := newWorld(t, citustest.New(t))
	dies := true
	d := w.finalising(t, migration.WithCrashPoints(func(at string) {
		if at == "archive erased" && dies {
			dies = false
			panic(crashed{at})
		}
	}))
	ids, run := inGreen(t, w, 2)
	for _, id := range ids {
		_, err := w.Mover.Finalise(t.Context(), run.ID, id, "ada", true)
		require.NoError(t, err)
	}
	_, err := w.Control.Exec(t.Context(), `UPDATE control.tenant SET status = 'deleting', delete_after = now() + interval '1 day' WHERE id = $1`, ids[0])
	require.NoError(t, err)
	_, err = w.Mover.Sweep(t.Context(), 0)
	require.NoError(t, err)
	require.Len(t, d.names(t), 2, "there is a time to come back")
	_, err = w.Control.Exec(t.Context(), `UPDATE control.tenant SET status = 'deleted', delete_after = NULL WHERE id = $1`, ids[0])
	require.NoError(t, err)
	require.Panics(t, func() { _, _ = w.Mover.Sweep(t.Context(), 0) })
	s, err := w.Mover.Sweep(t.Context(), 0)
	require.NoError(t, err)
	require.Equal(t, 1, s.Erased)
	require.Len(t, d.names(t), 1)
	var left []string
	require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT array_agg(tenant_id::text) FROM control.archive`).Scan(&left))
	require.Equal(t, []string{ids[1].String()}, left)
}
