package localpg_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus/localpg"
)

func start(t *testing.T, opts localpg.Options) *localpg.Server {
	t.Helper()
	s, err := localpg.Start(t.Context(), opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Remove()) })
	return s
}

func connect(t *testing.T, s *localpg.Server) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(t.Context(), s.DSN("postgres", "postgres"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close(context.Background()) }) // the server may be dead on purpose
	return c
}

// What was acknowledged before kill -9 is there after a restart.
func TestKillAndRestartKeepData(t *testing.T) {
	s := start(t, localpg.Options{})
	c := connect(t, s)
	_, err := c.Exec(t.Context(), "CREATE TABLE kept (id int PRIMARY KEY); INSERT INTO kept VALUES (42)")
	require.NoError(t, err)

	require.NoError(t, s.Kill())
	<-s.Exited()
	require.Error(t, c.Ping(t.Context()))
	require.NoError(t, s.Restart(t.Context()))

	var got int
	require.NoError(t, connect(t, s).QueryRow(t.Context(), "SELECT id FROM kept").Scan(&got))
	require.Equal(t, 42, got)
}

// A folder that holds a database already is adopted.
func TestStateSurvives(t *testing.T) {
	dir := filepath.Join(serverFolder(t), "blue")
	first, err := localpg.Start(t.Context(), localpg.Options{Dir: dir})
	require.NoError(t, err)
	_, err = connect(t, first).Exec(t.Context(), "CREATE DATABASE kept")
	require.NoError(t, err)
	require.NoError(t, first.Stop(t.Context()))

	second := start(t, localpg.Options{Dir: dir, Settings: map[string]string{"fsync": "on"}})
	var found bool
	var fsync string
	require.NoError(t, connect(t, second).QueryRow(t.Context(),
		"SELECT EXISTS (SELECT FROM pg_database WHERE datname = 'kept'), current_setting('fsync')").Scan(&found, &fsync))
	require.True(t, found)
	require.Equal(t, "on", fsync)
}

func TestTakenPortIsNamed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	_, err = localpg.Start(t.Context(), localpg.Options{Port: port})
	require.ErrorIs(t, err, localpg.ErrPortTaken)
	require.ErrorContains(t, err, strconv.Itoa(port))
}

func TestLogicalReplicationIsOn(t *testing.T) {
	var level, encoding string
	require.NoError(t, connect(t, start(t, localpg.Options{})).QueryRow(t.Context(),
		"SELECT current_setting('wal_level'), current_setting('server_encoding')").Scan(&level, &encoding))
	require.Equal(t, "logical", level)
	require.Equal(t, "UTF8", encoding)
}

// TestServerDiesWithItsParent starts this test binary again as a parent, kills
// it with kill -9 and waits for its server to be gone.
func TestServerDiesWithItsParent(t *testing.T) {
	if os.Getenv("LOCALPG_TEST_PARENT") != "" {
		s, err := localpg.Start(t.Context(), localpg.Options{})
		require.NoError(t, err)
		fmt.Printf("port=%d\n", s.Port())
		select {} // until killed
	}
	parent := exec.Command(os.Args[0], "-test.run", "^TestServerDiesWithItsParent$", "-test.v")
	parent.Env = append(os.Environ(), "LOCALPG_TEST_PARENT=1")
	out, err := parent.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, parent.Start())
	port := ""
	for lines := bufio.NewScanner(out); port == "" && lines.Scan(); {
		port, _ = strings.CutPrefix(lines.Text(), "port=")
		if !strings.HasPrefix(lines.Text(), "port=") {
			port = ""
		}
	}
	require.NotEmpty(t, port, "the parent did not start its server")
	require.NoError(t, parent.Process.Signal(syscall.SIGKILL))
	_ = parent.Wait() // "signal: killed"
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	}, 10*time.Second, 10*time.Millisecond, "the server outlived its parent")
}

// serverFolder is a folder that the user postgres may enter, also when tests
// run as root: t.TempDir's is not.
func serverFolder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "localpgtest-")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}
