package issuer_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/citus/localpg/child"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/taskqueue"
	"github.com/coditect/platform/shared/taskqueue/issuer"
	"github.com/coditect/platform/shared/taskqueue/tasktest"
)

// A delivery of the real emulator carries a token that the functions' own check
// takes, and takes from nobody else and for no other audience.
func TestEmulatorsTokensAreTaken(t *testing.T) {
	i, err := issuer.Start(0)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, i.Close()) })
	token := deliver(t, i.URL)

	cfg := auth.IdentityConfig{Issuer: i.URL, Audience: "http://step", Callers: []string{"tasks@dev.example"}}
	check := func(cfg auth.IdentityConfig) error {
		identity, err := auth.NewIdentity(cfg, auth.MigrationsWrite)
		require.NoError(t, err)
		_, err = identity.Authenticate(t.Context(), token)
		return err
	}
	require.NoError(t, check(cfg))
	other := cfg
	other.Audience = "http://elsewhere"
	require.Equal(t, fault.Unauthenticated, fault.KindOf(check(other)))
	other = cfg
	other.Callers = []string{"somebody@dev.example"}
	require.Equal(t, fault.Unauthenticated, fault.KindOf(check(other)))
}

// deliver runs the emulator with this issuer and returns the token of one delivery.
func deliver(t *testing.T, issuerURL string) string {
	t.Helper()
	program, err := tasktest.Program()
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	_, port, err := net.SplitHostPort(addr)
	require.NoError(t, err)
	require.NoError(t, l.Close())
	cmd := exec.Command(program, "-host", "127.0.0.1", "-port", port, "-openid-issuer", issuerURL)
	cmd.Stdout, cmd.Stderr = io.Discard, io.Discard
	emulator, err := child.Start(cmd, syscall.SIGKILL)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, emulator.KillGroup()) })

	tokens := make(chan string, 10)
	step := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		tokens <- strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	}))
	t.Cleanup(step.Close)
	q, err := taskqueue.Open(t.Context(), taskqueue.Config{
		Emulator: addr, Queue: tasktest.QueueName, URL: step.URL, ServiceAccount: "tasks@dev.example", Audience: "http://step",
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, q.Close()) })
	require.NoError(t, q.EnsureQueues(t.Context(), 1))
	require.NoError(t, q.Enqueue(t.Context(), taskqueue.Task{}))
	select {
	case token := <-tokens:
		return token
	case <-time.After(15 * time.Second):
		require.Fail(t, "no delivery in 15 s")
		return ""
	}
}
