// Package taskqueue is the only code that speaks to Cloud Tasks.
//
// # What is guaranteed, and what is not
//
//   - At least once: a task that Enqueue accepted is POSTed to its URL until a 2xx
//     answers, with growing pauses. It may be delivered twice, late, and beside
//     another delivery of the same task. A handler must be harmless when it is
//     run again; the queue proves nothing.
//   - A task's name is a saving, not a lock: Cloud Tasks remembers a name for some
//     hours after the task has ended (its manual: "can take up to 24 hours"), then
//     takes it again; the emulator remembers until it ends. Enqueue of a name it
//     remembers is success. So a step that must be able to run again needs a new
//     name: put an attempt or a time slot into it.
//   - Not durable in development: the emulator keeps everything in memory and
//     forgets all tasks and queues when it dies. The real service is durable but can
//     be purged. Either way somebody has to look at the database now and then and
//     enqueue again what is due: `POST /sweep` of the migrations function.
//   - A handler has Task.Deadline to answer. The emulator (v1.2.0) honours it as
//     the real service does: at the deadline the connection is closed and the attempt
//     counts as failed; without one it waits 10 minutes. The real service accepts
//     15 s to 30 min; the emulator anything. The handler may still be running when
//     the next attempt begins.
//
// Emulator oddities that EnsureQueues's settings avoid: a rate below one a second
// panics it; MaxAttempts -1 ("for ever") means never retry; after MaxAttempts the
// task is silently gone; a retry's pause counts from when the attempt was due, not from
// when it failed, so a slow failure is retried at once.
package taskqueue

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"regexp"
	"time"

	cloudtasks "cloud.google.com/go/cloudtasks/apiv2"
	"cloud.google.com/go/cloudtasks/apiv2/cloudtaskspb"
	"github.com/googleapis/gax-go/v2"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coditect/platform/shared/fault"
)

// Config is read from the environment by go-envconfig.
type Config struct {
	// Emulator is the host:port of an emulator, spoken to in plain text. Empty
	// means the real service, with the credentials of the environment.
	Emulator string `env:"CODITECT_TASKS_EMULATOR"`
	// Queue is the full name: projects/P/locations/L/queues/Q.
	Queue string `env:"CODITECT_TASKS_QUEUE,default=projects/dev/locations/local/queues/migration"`
	// ReceiveQueue is the full name of another one, in which the calls of the change stream's receiver do not
	// wait behind steps: those wait for what it receives. Empty means Queue with -receive behind its name.
	ReceiveQueue string `env:"CODITECT_RECEIVE_QUEUE"`
	// URL is where a task without a URL of its own goes: the step function.
	URL string `env:"CODITECT_STEP_URL"`
	// ReceiveURL is where the calls of the change stream's receiver go.
	ReceiveURL string `env:"CODITECT_RECEIVE_URL"`
	// ReceiveAudience is the audience of their token; empty means ReceiveURL.
	ReceiveAudience string `env:"CODITECT_RECEIVE_AUDIENCE"`
	// ServiceAccount is the e-mail of the account whose signed identity token each
	// delivery carries. Empty: none, which only an emulator's receiver accepts.
	ServiceAccount string `env:"CODITECT_TASKS_SERVICE_ACCOUNT"`
	// StepDeadline is how long the step function may take; keep it above the step's own budget.
	StepDeadline time.Duration `env:"CODITECT_STEP_DEADLINE,default=30s"`
	// Audience is the token's audience; empty means the task's URL.
	Audience string `env:"CODITECT_TASKS_AUDIENCE"`
}

// The bounds of Task.Deadline that the real service sets.
const (
	MinDeadline = 15 * time.Second
	MaxDeadline = 30 * time.Minute
)

// Task is one call to be made.
type Task struct {
	// Name makes the task known by name: letters, digits, - and _, at most 500. A
	// second Enqueue of the same name is success and adds nothing. Names that
	// differ in their first characters are stored faster by the real service.
	// Empty: each Enqueue is a new task.
	Name string
	// URL to POST to; empty means Config.URL.
	URL string
	// Queue is the full name of the queue; empty means Config.Queue.
	Queue string
	// Body is JSON.
	Body []byte
	// After is the earliest time to deliver; zero means now.
	After time.Time
	// Audience of the token; empty means Config.Audience, or the URL when URL is set.
	Audience string
	// Deadline is how long the handler may take, MinDeadline to MaxDeadline; zero
	// means 10 minutes, the service's default.
	Deadline time.Duration
}

// Queue enqueues tasks. It is safe for concurrent use.
type Queue struct {
	cfg    Config
	client *cloudtasks.Client
}

var (
	queueName = regexp.MustCompile(`^(projects/[a-zA-Z0-9:.-]+/locations/[a-zA-Z0-9-]+)/queues/[a-zA-Z0-9-]{1,100}$`)
	taskName  = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,500}$`)
)

// Open returns a queue. It makes no round trip: an emulator that is not there yet
// is an error of Enqueue, not of Open.
func Open(ctx context.Context, cfg Config) (*Queue, error) {
	if !queueName.MatchString(cfg.Queue) {
		return nil, fault.BadField("CODITECT_TASKS_QUEUE", "must look like projects/P/locations/L/queues/Q, not %q", cfg.Queue)
	}
	if cfg.ReceiveQueue == "" {
		cfg.ReceiveQueue = cfg.Queue + "-receive"
	}
	if !queueName.MatchString(cfg.ReceiveQueue) || cfg.ReceiveQueue == cfg.Queue {
		return nil, fault.BadField("CODITECT_RECEIVE_QUEUE", "must look like projects/P/locations/L/queues/Q and be another queue than CODITECT_TASKS_QUEUE, not %q", cfg.ReceiveQueue)
	}
	var opts []option.ClientOption
	if cfg.Emulator != "" {
		conn, err := grpc.NewClient("passthrough:///"+cfg.Emulator,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			// A restarted emulator is back in milliseconds; the default pause grows to minutes.
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: 5 * time.Second}))
		if err != nil {
			return nil, fault.BadField("CODITECT_TASKS_EMULATOR", "must be host:port: %v", err)
		}
		opts = append(opts, option.WithGRPCConn(conn))
	}
	client, err := cloudtasks.NewClient(ctx, opts...)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "queue_client", "the task queue's client could not be made")
	}
	return &Queue{cfg: cfg, client: client}, nil
}

// Close closes the connection.
func (q *Queue) Close() error { return q.client.Close() }

// EnqueueStep asks for a call of Config.URL that may take Config.StepDeadline.
func (q *Queue) EnqueueStep(ctx context.Context, name string, body []byte, after time.Time) error {
	return q.Enqueue(ctx, Task{Name: name, Body: body, After: after, Deadline: q.cfg.StepDeadline})
}

// EnqueueReceive asks for a call of Config.ReceiveURL that may take Config.StepDeadline.
func (q *Queue) EnqueueReceive(ctx context.Context, name string, body []byte, after time.Time) error {
	if q.cfg.ReceiveURL == "" {
		return fault.BadField("CODITECT_RECEIVE_URL", "must be the URL of the replication function: a tenant of this size moves by the change stream")
	}
	return q.Enqueue(ctx, Task{Name: name, Queue: q.cfg.ReceiveQueue, URL: q.cfg.ReceiveURL, Audience: q.cfg.ReceiveAudience, Body: body, After: after, Deadline: q.cfg.StepDeadline})
}

// Enqueue asks the queue to call the task's URL. See the package for what that
// guarantees. When the queue cannot be reached the error's kind is Unavailable; the
// task may then have been taken all the same, so only a named task should
// be enqueued again.
func (q *Queue) Enqueue(ctx context.Context, t Task) error {
	req, err := q.request(t)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, enqueuePatience)
	defer cancel()
	var opts []gax.CallOption
	if t.Name != "" { // only then is a retry free of duplicates
		opts = append(opts, gax.WithRetry(func() gax.Retryer {
			return gax.OnCodes([]codes.Code{codes.Unavailable}, gax.Backoff{Initial: 50 * time.Millisecond, Max: 500 * time.Millisecond, Multiplier: 2})
		}))
	}
	_, err = q.client.CreateTask(ctx, req, opts...)
	switch status.Code(err) {
	case codes.OK, codes.AlreadyExists:
		return nil
	case codes.InvalidArgument:
		return fault.Wrap(err, fault.Internal, "queue_refused", "the task queue refused the task")
	default: // not reachable, over quota, or its queue is not there (any more)
		return fault.Wrap(err, fault.Unavailable, "queue_unavailable", "the task queue does not take tasks at the moment")
	}
}

// enqueuePatience bounds one Enqueue: who calls it has a request to answer, and the
// sweeper repeats what fails.
const enqueuePatience = 4 * time.Second

func (q *Queue) request(t Task) (*cloudtaskspb.CreateTaskRequest, error) {
	target := t.URL
	if target == "" {
		target = q.cfg.URL
	}
	if u, err := url.Parse(target); err != nil || u.Host == "" {
		return nil, fault.BadField("url", "must be an absolute URL such as https://step.example/, not %q; set it or CODITECT_STEP_URL", target)
	}
	call := &cloudtaskspb.HttpRequest{
		Url: target, HttpMethod: cloudtaskspb.HttpMethod_POST, Body: t.Body,
		Headers: map[string]string{"Content-Type": "application/json"},
	}
	if q.cfg.ServiceAccount != "" {
		audience := t.Audience
		if audience == "" && t.URL == "" {
			audience = q.cfg.Audience
		}
		if audience == "" {
			audience = target
		}
		call.AuthorizationHeader = &cloudtaskspb.HttpRequest_OidcToken{OidcToken: &cloudtaskspb.OidcToken{
			ServiceAccountEmail: q.cfg.ServiceAccount, Audience: audience,
		}}
	}
	queue := cmp.Or(t.Queue, q.cfg.Queue)
	task := &cloudtaskspb.Task{MessageType: &cloudtaskspb.Task_HttpRequest{HttpRequest: call}}
	if t.Name != "" {
		if !taskName.MatchString(t.Name) {
			return nil, fault.BadField("name", "must be 1 to 500 letters, digits, - and _, not %q", t.Name)
		}
		task.Name = queue + "/tasks/" + t.Name
	}
	if !t.After.IsZero() {
		task.ScheduleTime = timestamppb.New(t.After)
	}
	if t.Deadline != 0 {
		if t.Deadline < MinDeadline || t.Deadline > MaxDeadline {
			return nil, fault.BadField("deadline", "must be between %v and %v, not %v", MinDeadline, MaxDeadline, t.Deadline)
		}
		task.DispatchDeadline = durationpb.New(t.Deadline)
	}
	return &cloudtaskspb.CreateTaskRequest{Parent: queue, Task: task}, nil
}

// Delivery is what the queue says about a call it makes. It is information: the
// headers prove nothing, the identity token does.
type Delivery struct {
	Task  string // Task.Name, or one made up by the queue
	Retry string // how often this task was tried before: "0" the first time
}

// DeliveryOf reads the headers of a call; ok is false when it did not come from
// a task queue.
func DeliveryOf(h http.Header) (d Delivery, ok bool) {
	d = Delivery{Task: h.Get("X-CloudTasks-TaskName"), Retry: h.Get("X-CloudTasks-TaskRetryCount")}
	return d, d.Task != ""
}
