// Package traffic writes to tenants while they move, records every write that
// was acknowledged, and looks each of them up afterwards. It is the proof that
// moving loses nothing, made before the user's eyes.
//
// Each [Client] is one way in: HTTP through the gateway, the data layer's door, or
// an old application that writes straight into blue and knows nothing of the
// move. A writer owns the rows it makes, so it knows what each must read.
package traffic

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Client is one way to write to one tenant. Every method is one request.
type Client interface {
	// Kind is what the rows are, see Key.
	Kind() string
	// Create makes a row that carries the text, and returns its id. Key is unique to the row.
	Create(ctx context.Context, key, text string) (id string, err error)
	Update(ctx context.Context, id, text string) error
	Read(ctx context.Context, id string) (text string, err error)
	// Page reads a page of rows, whatever they are.
	Page(ctx context.Context) error
}

// ErrFenced is what a client returns that was refused by the fence: the tenant is
// moving or has moved, and the client does not know how to follow.
var ErrFenced = errors.New("refused by the fence")

// Refusal marks an error after which the write has certainly not happened. Any other
// error leaves it open.
type Refusal struct{ error }

// Unwrap returns what the refusal says.
func (r Refusal) Unwrap() error { return r.error }

// Writer is one writer and the tenant it writes to.
type Writer struct {
	Name   string // unique: part of the tokens
	Target Key    // Tenant only
	Client Client
	// MayBeFenced: a refusal by the fence is no failure of this writer.
	MayBeFenced bool
}

// Figures is what the traffic has been so far.
type Figures struct {
	Requests int64 // made by all writers, reads included
	Failed   int64 // that a user would have seen as an error
	Fenced   int64 // refused by the fence, where that is allowed
	Acked    int64 // acknowledged writes
	Stale    int64 // reads that returned something older than acknowledged, or never written
	// Slowest is the longest that a caller waited for a write that was acknowledged.
	Slowest time.Duration
}

// Traffic is a running generator.
type Traffic struct {
	journal *Journal
	pause   time.Duration
	stop    context.CancelFunc
	writers sync.WaitGroup

	requests, failed, fenced, acked, stale, slowest atomic.Int64

	mu     sync.Mutex
	errors []string
}

// requestPatience is what a user would wait: a move's pause must fit well within it.
const requestPatience = 15 * time.Second

// Start starts all writers; each makes a request and then pauses, on average for
// pause.
func Start(ctx context.Context, journal *Journal, writers []Writer, pause time.Duration) *Traffic {
	ctx, cancel := context.WithCancel(ctx)
	t := &Traffic{journal: journal, pause: pause, stop: cancel}
	start := time.Now().Unix()
	for _, w := range writers {
		prefix := fmt.Sprintf("%s-%x", w.Name, start) // no token of an earlier start comes again
		t.writers.Go(func() { t.run(ctx, w, prefix) })
	}
	return t
}

// Stop lets every request under way end and returns when all writers have.
func (t *Traffic) Stop() {
	t.stop()
	t.writers.Wait()
}

// Figures returns what has been so far.
func (t *Traffic) Figures() Figures {
	return Figures{
		Requests: t.requests.Load(), Failed: t.failed.Load(), Fenced: t.fenced.Load(),
		Acked: t.acked.Load(), Stale: t.stale.Load(), Slowest: time.Duration(t.slowest.Load()),
	}
}

// Errors returns the first errors that a user would have seen.
func (t *Traffic) Errors() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]string(nil), t.errors...)
}

// mine is a row that a writer made.
type mine struct {
	key     Key
	id      string
	version int // newest tried
}

func (t *Traffic) run(ctx context.Context, w Writer, prefix string) {
	var rows []*mine
	for n := 0; ; n++ {
		// Spread over the pause, so that writers do not march in step.
		select {
		case <-ctx.Done():
			return
		case <-time.After(t.pause/2 + rand.N(t.pause)):
		}
		// A request that was begun is finished: cutting it would only make its outcome unknown.
		rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestPatience)
		rows = t.request(rctx, w, rows, fmt.Sprintf("%s-%d", prefix, n))
		cancel()
	}
}

// request makes one request: of ten four create, three change, two read and one pages.
func (t *Traffic) request(ctx context.Context, w Writer, rows []*mine, token string) []*mine {
	dice := rand.IntN(10)
	if len(rows) == 0 {
		dice = 0
	}
	switch {
	case dice < 4:
		row := &mine{key: Key{Tenant: w.Target.Tenant, Kind: w.Client.Kind(), Token: token}}
		if t.write(w, row, 0, func(text string) (err error) {
			row.id, err = w.Client.Create(ctx, token, text)
			return err
		}) {
			rows = append(rows, row)
		}
	case dice < 7:
		row := rows[rand.IntN(len(rows))]
		row.version++
		t.write(w, row, row.version, func(text string) error { return w.Client.Update(ctx, row.id, text) })
	case dice < 9:
		t.read(ctx, w, rows[rand.IntN(len(rows))])
	default:
		t.count(w, w.Client.Page(ctx))
	}
	return rows
}

// write tries one version of a row and records what became of it.
func (t *Traffic) write(w Writer, row *mine, version int, do func(text string) error) bool {
	t.journal.record(row.key, version, tried)
	began := time.Now()
	err := do(Text(row.key.Token, version))
	var refusal Refusal
	switch {
	case err == nil:
		t.journal.record(row.key, version, acknowledged)
		t.acked.Add(1)
		t.wait(time.Since(began))
	case errors.Is(err, ErrFenced), errors.As(err, &refusal):
		t.journal.record(row.key, version, refused)
	}
	t.count(w, err)
	return err == nil
}

// wait remembers d if it is the longest so far.
func (t *Traffic) wait(d time.Duration) {
	for {
		old := t.slowest.Load()
		if int64(d) <= old || t.slowest.CompareAndSwap(old, int64(d)) {
			return
		}
	}
}

func (t *Traffic) read(ctx context.Context, w Writer, row *mine) {
	text, err := w.Client.Read(ctx, row.id)
	if t.count(w, err); err != nil {
		return
	}
	token, version, ok := Parse(text)
	allowed, acked := t.journal.allows(row.key, version)
	// An old application reads blue, which stops at the fence; so do its writes.
	if !ok || token != row.key.Token || !allowed {
		t.stale.Add(1)
		t.note("%s read %q of %s, acknowledged was version %d", w.Name, text, row.key.Token, acked)
	}
}

func (t *Traffic) count(w Writer, err error) {
	t.requests.Add(1)
	switch {
	case err == nil:
	case errors.Is(err, ErrFenced) && w.MayBeFenced:
		t.fenced.Add(1)
	default:
		t.failed.Add(1)
		t.note("%s: %v", w.Name, err)
	}
}

func (t *Traffic) note(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.errors) < maxExamples {
		t.errors = append(t.errors, fmt.Sprintf(format, args...))
	}
}
