package ports_test

import (
	"fmt"
	"net"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/scripts/internal/ports"
)

func TestTakenPortIsNamedAndAvoided(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	port := l.Addr().(*net.TCPAddr).Port

	require.False(t, ports.IsFree(port))
	require.Contains(t, ports.Taken(port), fmt.Sprintf("(process %d)", os.Getpid()))
	other, err := ports.Free(port)
	require.NoError(t, err)
	require.NotEqual(t, port, other)

	require.NoError(t, l.Close())
	same, err := ports.Free(port)
	require.NoError(t, err)
	require.Equal(t, port, same, "a remembered port is used again")
}
