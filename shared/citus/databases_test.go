package citus_test

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/citustest"
)

// Where a server does not wait until a commit is on its disk, those who need that wait; where
// commits wait for more than that, it stays so.
func TestCommitDurably(t *testing.T) {
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
		dbs.CommitDurably()
		require.Equal(t, want, waits(), "of connections that were open, too")
	}
}
