// Package tasktest starts the real Cloud Tasks emulator for tests. The program is
// built from scripts/tools/cloud-tasks-emulator the first time (20 s on two
// cores) and taken from Go's build cache afterwards.
package tasktest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus/localpg/child"
	"github.com/coditect/platform/shared/taskqueue"
	"github.com/coditect/platform/shared/taskqueue/issuer"
)

// BinaryVariable names a ready-made emulator program, so that a test run builds it once.
const BinaryVariable = "CODITECT_TASKS_EMULATOR_BIN"

// QueueName is the queue that Start creates.
const QueueName = "projects/dev/locations/local/queues/migration"

// Emulator is one running emulator.
type Emulator struct {
	Addr string // host:port, stays the same over Restart
	// Issuer is the URL whose keys sign the identity tokens of deliveries.
	Issuer string
	t      testing.TB
	proc   *child.Process
	log    bytes.Buffer
}

// Start starts an emulator that ends with the test.
func Start(t testing.TB) *Emulator {
	t.Helper()
	i, err := issuer.Start(0)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, i.Close()) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	e := &Emulator{t: t, Addr: l.Addr().String(), Issuer: i.URL}
	require.NoError(t, l.Close())
	e.Restart()
	t.Cleanup(e.Kill)
	return e
}

// Caller and Audience are in the identity token that each delivery carries.
const (
	Caller   = "queue@dev.example"
	Audience = "step"
)

// Config is the configuration of a queue in this emulator whose tasks go to stepURL.
func (e *Emulator) Config(stepURL string) taskqueue.Config {
	return taskqueue.Config{Emulator: e.Addr, Queue: QueueName, URL: stepURL, ServiceAccount: Caller, Audience: Audience}
}

// Open returns a queue whose tasks go to stepURL, at most eight at a time.
func (e *Emulator) Open(stepURL string) *taskqueue.Queue {
	e.t.Helper()
	q, err := taskqueue.Open(context.Background(), e.Config(stepURL))
	require.NoError(e.t, err)
	e.t.Cleanup(func() { require.NoError(e.t, q.Close()) })
	require.NoError(e.t, q.EnsureQueues(context.Background(), 8))
	return q
}

// Kill is kill -9: the emulator forgets everything.
func (e *Emulator) Kill() {
	require.NoError(e.t, e.proc.KillGroup())
	<-e.proc.Done()
}

// Restart starts a killed emulator at the same address. It knows no queue:
// EnsureQueues again.
func (e *Emulator) Restart() {
	e.t.Helper()
	program, err := Program()
	require.NoError(e.t, err)
	host, port, err := net.SplitHostPort(e.Addr)
	require.NoError(e.t, err)
	cmd := exec.Command(program, "-host", host, "-port", port, "-openid-issuer", e.Issuer)
	cmd.Stdout, cmd.Stderr = &e.log, &e.log
	e.proc, err = child.Start(cmd, syscall.SIGKILL)
	require.NoError(e.t, err)
	for deadline := time.Now().Add(20 * time.Second); ; {
		if c, err := net.Dial("tcp", e.Addr); err == nil {
			require.NoError(e.t, c.Close())
			return
		}
		select {
		case <-e.proc.Done():
			e.t.Fatalf("the emulator ended while starting: %v: %s", e.proc.Err(), e.log.String())
		case <-time.After(5 * time.Millisecond):
			require.True(e.t, time.Now().Before(deadline), "the emulator does not listen")
		}
	}
}

// Program returns the emulator's program, built if need be.
var Program = sync.OnceValues(func() (string, error) {
	if p := os.Getenv(BinaryVariable); p != "" {
		return p, nil
	}
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("tasktest: go env GOMOD: %w", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	program := filepath.Join(cache, "coditect", fmt.Sprintf("cloud-tasks-emulator-%d", os.Getpid()))
	source := filepath.Join(filepath.Dir(strings.TrimSpace(string(mod))), "scripts", "tools", "cloud-tasks-emulator")
	cmd := exec.Command("go", "build", "-o", program, "github.com/aertje/cloud-tasks-emulator")
	cmd.Dir = source
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("tasktest: build the emulator in %s: %w: %s", source, err, out)
	}
	// Under one name for all, so that runs do not pile up copies; renamed into place
	// because another test binary may be executing the old one.
	shared := filepath.Join(cache, "coditect", "cloud-tasks-emulator")
	return shared, os.Rename(program, shared)
})
