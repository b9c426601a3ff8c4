package supervisor_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/scripts/internal/supervisor"
)

// shell supervises a shell script; what is said arrives on the channel.
func shell(t *testing.T, script string, change ...func(*supervisor.Spec)) (*supervisor.Program, <-chan string, error) {
	t.Helper()
	said := make(chan string, 100)
	spec := supervisor.Spec{Name: "demo", Path: "/bin/sh", Args: []string{"-c", script}, Log: filepath.Join(t.TempDir(), "log", "demo.log")}
	for _, c := range change {
		c(&spec)
	}
	p, err := supervisor.Start(t.Context(), spec, func(format string, args ...any) { said <- fmt.Sprintf(format, args...) })
	return p, said, err
}

func next(t *testing.T, c <-chan string) string {
	t.Helper()
	select {
	case s := <-c:
		return s
	case <-time.After(10 * time.Second):
		require.Fail(t, "nothing was said")
		return ""
	}
}

func TestCrashedProgramIsStartedAgainAndItIsSaid(t *testing.T) {
	started := make(chan string, 10)
	p, said, err := shell(t, "echo last words; exec sleep 60", func(s *supervisor.Spec) {
		s.Started = func(context.Context) error { started <- "yes"; return nil }
	})
	require.NoError(t, err)
	next(t, started)
	first := p.Pid()
	require.NoError(t, syscall.Kill(first, syscall.SIGKILL))
	require.Contains(t, next(t, said), "demo ended (signal: killed); starting it again")
	next(t, started)
	require.NotEqual(t, first, p.Pid())
	require.NoError(t, p.Stop())
	require.ErrorIs(t, syscall.Kill(p.Pid(), 0), syscall.ESRCH)
}

func TestLastWordsOfAProgramThatDoesNotStart(t *testing.T) {
	_, _, err := shell(t, "echo no database; exit 3", func(s *supervisor.Spec) {
		s.Ready = func(context.Context) error { return errors.New("not yet") }
	})
	require.ErrorContains(t, err, "demo: it ended while starting (exit status 3)")
	require.ErrorContains(t, err, "no database")
}

// Stop leaves nothing behind, also when the program crashes again and again.
func TestStopWhileRestarting(t *testing.T) {
	p, said, err := shell(t, "exit 1")
	require.NoError(t, err)
	next(t, said)
	require.NoError(t, p.Stop())
	require.ErrorIs(t, syscall.Kill(p.Pid(), 0), syscall.ESRCH)
}

func TestTailIsShort(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	require.NoError(t, os.WriteFile(path, []byte("a\nb\nc\n"), 0o600))
	require.Equal(t, "  b\n  c", supervisor.Tail(path, 2))
}
