package citus_test

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/citustest"
)

// A connection ends after so many uses, and nobody who uses the pool notices.
func TestConnectionsRetire(t *testing.T) {
	dbs, err := citus.Open(t.Context(), citus.Config{Green: citustest.New(t).Config.Green})
	require.NoError(t, err)
	t.Cleanup(dbs.Close)
	green, err := dbs.Control(t.Context())
	require.NoError(t, err)
	used := func(n int) map[int]int {
		by := map[int]int{}
		for range n {
			var pid int
			require.NoError(t, green.QueryRow(t.Context(), `SELECT pg_backend_pid()`).Scan(&pid))
			by[pid]++
		}
		return by
	}
	require.Len(t, used(1500), 1)
	dbs.ForMoves()
	by := used(3000)
	require.Len(t, by, 3)
	var mode string
	require.NoError(t, green.QueryRow(t.Context(), `SHOW plan_cache_mode`, pgx.QueryExecModeExec).Scan(&mode))
	require.Equal(t, "force_custom_plan", mode)
	for _, n := range by {
		require.Equal(t, 1000, n)
	}
}

// Where a server does not wait until a commit is on its disk, those who need that wait; where
// commits wait for more than that, it stays so.
func TestMovesCommitDurably(t *testing.T) {
	env := citustest.New(t)
	for set, want := range map[string]string{"off": "local", "on": "on", "remote_apply": "remote_apply"} {
		dbs, err := citus.Open(t.Context(), citus.Config{Green: env.Config.Green + "&synchronous_commit=" + set})
		require.NoError(t, err)
		t.Cleanup(dbs.Close)
		green, err := dbs.Control(t.Context())
		require.NoError(t, err)
		waits := func() (s string) {
			require.NoError(t, green.QueryRow(t.Context(), `SHOW synchronous_commit`, pgx.QueryExecModeExec).Scan(&s))
			return s
		}
		require.Equal(t, set, waits())
		dbs.ForMoves()
		require.Equal(t, want, waits(), "of connections that were open, too")
	}
}
