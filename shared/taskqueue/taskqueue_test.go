package taskqueue_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/taskqueue"
	"github.com/coditect/platform/shared/taskqueue/tasktest"
)

// call is one delivery as the handler saw it.
type call struct {
	body     string
	delivery taskqueue.Delivery
	fromTask bool
	auth     string
	at       time.Time
}

// receiver answers deliveries with the statuses it is given, then with 200.
func receiver(t *testing.T, statuses ...int) (string, <-chan call) {
	calls, answers := make(chan call, 100), make(chan int, len(statuses))
	for _, s := range statuses {
		answers <- s
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		d, ok := taskqueue.DeliveryOf(r.Header)
		calls <- call{body: string(body), delivery: d, fromTask: ok, auth: r.Header.Get("Authorization"), at: time.Now()}
		select {
		case s := <-answers:
			w.WriteHeader(s)
		default:
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL, calls
}

func next(t *testing.T, calls <-chan call) call {
	t.Helper()
	select {
	case c := <-calls:
		return c
	case <-time.After(15 * time.Second):
		require.Fail(t, "no delivery in 15 s")
		return call{}
	}
}

func TestNamedTaskIsDeliveredOnce(t *testing.T) {
	url, calls := receiver(t)
	q := tasktest.Start(t).Open(url)
	for range 2 {
		require.NoError(t, q.Enqueue(t.Context(), taskqueue.Task{Name: "t1-e1-copy", Body: []byte(`{"step":"copy"}`)}))
	}
	c := next(t, calls)
	require.JSONEq(t, `{"step":"copy"}`, c.body)
	require.True(t, c.fromTask)
	require.Equal(t, "t1-e1-copy", c.delivery.Task)

	// The name is remembered after completion as well. The marker behind it shows
	// that nothing else was delivered in between.
	require.NoError(t, q.Enqueue(t.Context(), taskqueue.Task{Name: "t1-e1-copy"}))
	require.NoError(t, q.Enqueue(t.Context(), taskqueue.Task{Name: "marker"}))
	require.Equal(t, "marker", next(t, calls).delivery.Task)
}

func TestFailedDeliveryIsRepeated(t *testing.T) {
	url, calls := receiver(t, 500, 503)
	q := tasktest.Start(t).Open(url)
	require.NoError(t, q.Enqueue(t.Context(), taskqueue.Task{Name: "flaky"}))
	for _, retry := range []string{"0", "1", "2"} {
		require.Equal(t, taskqueue.Delivery{Task: "flaky", Retry: retry}, next(t, calls).delivery)
	}
}

// Steps wait for what the receiver receives: as many of them as the queue delivers must not keep it waiting.
func TestTheReceiverDoesNotWaitBehindSteps(t *testing.T) {
	release := make(chan struct{})
	busy := make(chan struct{}, 10)
	steps := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { busy <- struct{}{}; <-release }))
	t.Cleanup(steps.Close)
	t.Cleanup(func() { close(release) }) // before that
	url, calls := receiver(t)
	cfg := tasktest.Start(t).Config(steps.URL)
	cfg.ReceiveURL = url
	q, err := taskqueue.Open(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, q.Close()) })
	require.NoError(t, q.EnsureQueues(t.Context(), 1))
	for _, name := range []string{"1", "2", "3"} {
		require.NoError(t, q.EnqueueStep(t.Context(), name, nil, time.Time{}))
	}
	<-busy
	require.NoError(t, q.EnqueueReceive(t.Context(), "lane", nil, time.Time{}))
	require.Equal(t, "lane", next(t, calls).delivery.Task)
	require.Empty(t, busy, "one step at a time")
}

func TestTaskWaitsForItsTime(t *testing.T) {
	url, calls := receiver(t)
	q := tasktest.Start(t).Open(url)
	due := time.Now().Add(300 * time.Millisecond)
	require.NoError(t, q.Enqueue(t.Context(), taskqueue.Task{After: due}))
	require.False(t, next(t, calls).at.Before(due))
}

// A killed emulator loses its tasks and its queue: that is why there is a
// sweeper. Enqueue works again as soon as the queue is there.
func TestKilledEmulatorForgets(t *testing.T) {
	url, calls := receiver(t)
	e := tasktest.Start(t)
	q := e.Open(url)
	require.NoError(t, q.Enqueue(t.Context(), taskqueue.Task{Name: "lost", After: time.Now().Add(time.Second)}))
	e.Kill()
	require.Equal(t, fault.Unavailable, fault.KindOf(q.Enqueue(t.Context(), taskqueue.Task{Name: "early"})))
	e.Restart()
	require.NoError(t, q.EnsureQueues(t.Context(), 8))
	// Due after "lost" would have been.
	require.NoError(t, q.Enqueue(t.Context(), taskqueue.Task{Name: "kept", After: time.Now().Add(1500 * time.Millisecond)}))
	require.Equal(t, "kept", next(t, calls).delivery.Task)
}

func TestDeliveryCarriesIdentityToken(t *testing.T) {
	url, calls := receiver(t)
	e := tasktest.Start(t)
	e.Open(url) // creates the queue
	cfg := e.Config(url)
	cfg.ServiceAccount = "steps@example.iam.gserviceaccount.com"
	q, err := taskqueue.Open(t.Context(), cfg)
	require.NoError(t, err)
	defer func() { require.NoError(t, q.Close()) }()
	require.NoError(t, q.Enqueue(t.Context(), taskqueue.Task{}))
	require.Regexp(t, `^Bearer [\w-]+\.[\w-]+\.[\w-]+$`, next(t, calls).auth)
}

func TestBadTasksAreRefusedByField(t *testing.T) {
	q, err := taskqueue.Open(t.Context(), taskqueue.Config{Emulator: "127.0.0.1:1", Queue: tasktest.QueueName})
	require.NoError(t, err)
	defer func() { require.NoError(t, q.Close()) }()
	for field, task := range map[string]taskqueue.Task{
		"url":      {Name: "a"},
		"name":     {Name: "no spaces", URL: "http://localhost/"},
		"deadline": {URL: "http://localhost/", Deadline: time.Second},
	} {
		f := fault.As(q.Enqueue(t.Context(), task))
		require.NotNil(t, f)
		require.Equal(t, field, f.Fields[0].Name)
	}
	_, err = taskqueue.Open(t.Context(), taskqueue.Config{Queue: "migration"})
	require.ErrorContains(t, err, "projects/P/locations/L/queues/Q")
	for _, wrong := range []string{"receive", tasktest.QueueName} {
		_, err = taskqueue.Open(t.Context(), taskqueue.Config{Queue: tasktest.QueueName, ReceiveQueue: wrong})
		require.ErrorContains(t, err, "CODITECT_RECEIVE_QUEUE must look like projects/P/locations/L/queues/Q and be another queue")
	}
}
