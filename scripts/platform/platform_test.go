package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/scripts/internal/terminal"
	"github.com/coditect/platform/shared/taskqueue/tasktest"
)

// TestMain makes this program a function when the launcher starts it as one.
func TestMain(m *testing.M) {
	if name := os.Getenv("K_SERVICE"); name != "" {
		http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%d %s %s", os.Getpid(), name, r.URL.Path)
		})
		fmt.Println(http.ListenAndServe(net.JoinHostPort(os.Getenv("HOST"), os.Getenv("PORT")), nil))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// output collects what the launcher prints.
type output struct {
	mu sync.Mutex
	b  strings.Builder
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// launch runs the launcher with two functions that are this test program, until
// the returned function is called.
func launch(t *testing.T, o options) (*output, func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out, ended := &output{}, make(chan error, 1)
	go func() { ended <- run(ctx, o, terminal.NewPlain(out)) }()
	var once sync.Once
	stop := func() (err error) {
		once.Do(func() { cancel(); err = <-ended })
		return err
	}
	t.Cleanup(func() { _ = stop() }) // for a test that failed half-way
	require.Eventually(t, func() bool {
		select {
		case err := <-ended:
			ended <- err
			return true
		default:
			return strings.Contains(out.String(), "API key: ck_") // the last it says
		}
	}, 2*time.Minute, 10*time.Millisecond)
	require.Contains(t, out.String(), "API key: ck_")
	return out, stop
}

func programs(t *testing.T) string {
	t.Helper()
	bin := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(bin, "functions"), 0o755))
	self, err := os.Executable()
	require.NoError(t, err)
	for _, f := range []string{"projects", "tenants"} {
		require.NoError(t, os.Symlink(self, filepath.Join(bin, "functions", f)))
	}
	emulator, err := tasktest.Program()
	require.NoError(t, err)
	require.NoError(t, os.Symlink(emulator, filepath.Join(bin, "cloud-tasks-emulator")))
	return bin
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func get(t *testing.T, port int, path string) (string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), nil)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		err = errors.Join(err, errors.New(resp.Status))
	}
	return string(b), err
}

func pidOf(t *testing.T, body string) int {
	t.Helper()
	var pid int
	_, err := fmt.Sscanf(body, "%d", &pid)
	require.NoError(t, err)
	return pid
}

// One start, a crash, a second launcher, a stop and a second start: everything a
// developer does to it in a day.
func TestLauncher(t *testing.T) {
	state, err := os.MkdirTemp("", "platformtest-") // t.TempDir's parents do not let the user postgres in
	require.NoError(t, err)
	require.NoError(t, os.Chmod(state, 0o755))
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(state)) })
	o := options{state: state, bin: programs(t), port: freePort(t)}

	out, stop := launch(t, o)
	body, err := get(t, o.port, "/projects/tasks/1")
	require.NoError(t, err)
	require.Contains(t, body, "projects /tasks/1")

	// A second launcher is refused with a sentence: on the same state, and on the same port.
	require.ErrorContains(t, run(t.Context(), o, terminal.NewPlain(io.Discard)), "already runs on the state folder")
	other := o
	other.state = t.TempDir()
	require.ErrorContains(t, run(t.Context(), other, terminal.NewPlain(io.Discard)),
		fmt.Sprintf("port %d, wanted by the gateway, is taken by", o.port))

	// A crashed function comes back by itself, and it is said.
	first := pidOf(t, body)
	require.NoError(t, syscall.Kill(first, syscall.SIGKILL))
	require.Eventually(t, func() bool {
		body, err = get(t, o.port, "/projects/x")
		return err == nil && pidOf(t, body) != first
	}, 20*time.Second, 10*time.Millisecond)
	require.Contains(t, out.String(), "function projects ended (signal: killed); starting it again")

	key := out.String()[strings.Index(out.String(), "ck_"):]
	require.NoError(t, stop())
	require.ErrorIs(t, syscall.Kill(pidOf(t, body), 0), syscall.ESRCH, "a function was left running")
	left, err := filepath.Glob(filepath.Join(state, "postgres", "*", "postmaster.pid"))
	require.NoError(t, err)
	require.Empty(t, left, "a database was left running")

	out, stop = launch(t, o)
	require.Contains(t, out.String(), strings.Fields(key)[0], "the second start has the first one's state")
	require.NoError(t, stop())
}
