package edge_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/edge"
)

// asServer makes the test binary a function's process: a signal can only be
// tested on a process of its own.
const asServer = "EDGE_TEST_SERVER"

func TestMain(m *testing.M) {
	if os.Getenv(asServer) != "" {
		started := make(chan struct{})
		edge.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/hang" {
				close(started)
				_, _ = os.Stdout.WriteString("hanging\n")
				_, _ = io.Copy(io.Discard, r.Body) // ends when the test closes its end
			}
			_, _ = w.Write([]byte("done"))
		}), func() { _, _ = os.Stdout.WriteString("closed\n") })
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// start runs the server process and returns it with its address and output.
func start(t *testing.T) (*exec.Cmd, string, *bufio.Reader) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), asServer+"=1", "HOST=127.0.0.1", "PORT=0", "CODITECT_LOG_LEVEL=info")
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(stderr).ReadBytes('\n')
	require.NoError(t, err)
	var serving struct{ Message, Address, Severity string }
	require.NoError(t, json.Unmarshal(line, &serving))
	require.Equal(t, "serving", serving.Message)
	go func() { _, _ = io.Copy(io.Discard, stderr) }()
	return cmd, serving.Address, bufio.NewReader(stdout)
}

func TestSIGTERMLetsARequestEnd(t *testing.T) {
	cmd, address, out := start(t)
	body, feed := io.Pipe()
	answered := make(chan string, 1)
	go func() {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+"/hang", body)
		if err != nil {
			answered <- err.Error()
			return
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			answered <- err.Error()
			return
		}
		defer func() { _ = resp.Body.Close() }()
		b, _ := io.ReadAll(resp.Body)
		answered <- string(b)
	}()
	_, err := feed.Write([]byte("x"))
	require.NoError(t, err)
	line, err := out.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "hanging\n", line)

	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	// New connections are refused while the old request goes on.
	require.Eventually(t, func() bool {
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	}, 5*time.Second, 5*time.Millisecond)
	require.NoError(t, feed.Close())
	require.Equal(t, "done", <-answered)
	line, err = out.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "closed\n", line)
	require.NoError(t, cmd.Wait())
}

func TestSecondSignalKills(t *testing.T) {
	cmd, address, out := start(t)
	c, err := net.Dial("tcp", address)
	require.NoError(t, err)
	_, err = c.Write([]byte("POST /hang HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"))
	require.NoError(t, err)
	_, err = out.ReadString('\n')
	require.NoError(t, err)
	begin := time.Now()
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.Eventually(t, func() bool {
		_, err := net.DialTimeout("tcp", address, time.Second)
		return err != nil
	}, 5*time.Second, 5*time.Millisecond)
	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	require.Error(t, cmd.Wait())
	require.Less(t, time.Since(begin), 5*time.Second)
}

func TestAnswersOverARealConnection(t *testing.T) {
	a, _ := newAPI(t, edge.Config{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- edge.ServeListener(ctx, edge.NewLogger(io.Discard, nil), l, a) }()
	base := "http://" + l.Addr().String()

	// A body over the limit that never ends is refused, not read.
	body, feed := io.Pipe()
	go func() {
		chunk := bytes.Repeat([]byte("a"), 1024)
		for {
			if _, err := feed.Write(chunk); err != nil {
				return
			}
		}
	}()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+"/things", body)
	require.NoError(t, err)
	r.Header.Set("Authorization", "Bearer good")
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	require.Equal(t, 413, resp.StatusCode)
	require.NoError(t, resp.Body.Close())
	require.NoError(t, feed.Close())

	r, err = http.NewRequestWithContext(t.Context(), http.MethodHead, base+"/things/"+someTenant.String(), nil)
	require.NoError(t, err)
	r.Header.Set("Authorization", "Bearer good")
	resp, err = http.DefaultClient.Do(r)
	require.NoError(t, err)
	require.Equal(t, 200, resp.StatusCode)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, `"7"`, resp.Header.Get("ETag"))

	cancel()
	require.NoError(t, <-done)
}

// freePort finds a port for a server that cannot be given a listener.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return port
}
