package statedir_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/scripts/internal/statedir"
)

func TestSecondLauncherIsRefused(t *testing.T) {
	path := t.TempDir()
	first, err := statedir.Open(path)
	require.NoError(t, err)
	_, err = statedir.Open(path)
	require.ErrorContains(t, err, fmt.Sprintf("already runs on the state folder %s (process %d)", path, os.Getpid()))
	require.NoError(t, first.Close())
	second, err := statedir.Open(path)
	require.NoError(t, err)
	require.NoError(t, second.Close())
}

func TestStateIsKeptUntilCleared(t *testing.T) {
	d, err := statedir.Open(t.TempDir())
	require.NoError(t, err)
	defer func() { _ = d.Close() }()
	ports := map[string]int{}
	require.NoError(t, d.Load("ports.json", &ports), "nothing there yet is no error")
	require.NoError(t, d.Save("ports.json", map[string]int{"blue": 5432}))
	require.NoError(t, d.Load("ports.json", &ports))
	require.Equal(t, 5432, ports["blue"])
	info, err := os.Stat(d.Path("ports.json"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	require.NoError(t, d.Clear())
	require.NoFileExists(t, d.Path("ports.json"))
	_, err = statedir.Open(d.Path())
	require.Error(t, err, "clearing keeps the lock")
}
