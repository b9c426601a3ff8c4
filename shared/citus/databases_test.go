package citus_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/fault"
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

// Who holds a connection while the databases are closed may ask for a pool: it is told, and lets go.
func TestCloseWaitsForWhoAsksForAPool(t *testing.T) {
	env := citustest.New(t)
	dbs, err := citus.Open(t.Context(), citus.Config{Green: env.Config.Green, Blue: env.Config.Blue})
	require.NoError(t, err)
	green, err := dbs.Control(t.Context())
	require.NoError(t, err)
	held, err := green.Acquire(t.Context())
	require.NoError(t, err)
	closed, asked := make(chan struct{}), make(chan error, 1)
	go func() { dbs.Close(); close(closed) }()
	require.Eventually(t, func() bool {
		conn, err := green.Acquire(t.Context())
		if err == nil {
			conn.Release()
		}
		return err != nil
	}, 10*time.Second, time.Millisecond)
	go func() {
		if _, err := dbs.Control(t.Context()); err != nil { // the one there is, although it gives no connection
			asked <- err
			return
		}
		_, err := dbs.Pool(t.Context(), citus.BlueDatabase)
		asked <- err
	}()
	select {
	case err := <-asked:
		require.Equal(t, "shutting_down", fault.CodeOf(err), "%v", err)
	case <-time.After(10 * time.Second):
		t.Fatal("it waits for Close, which waits for its connection")
	}
	held.Release()
	<-closed
	dbs.Close() // once more is no harm
}
