package events_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2/pstest"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	files "github.com/coditect/platform/infra/schema"
	"github.com/coditect/platform/shared/citus/localpg"
	"github.com/coditect/platform/shared/events"
)

var server *localpg.Server

func TestMain(m *testing.M) {
	var err error
	if server, err = localpg.Start(context.Background(), localpg.Options{}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := server.Remove(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// outbox returns a fresh database that holds the outbox and nothing else.
func outbox(t *testing.T) *pgxpool.Pool {
	t.Helper()
	admin, err := pgx.Connect(t.Context(), server.DSN("postgres", "postgres"))
	require.NoError(t, err)
	defer admin.Close(context.Background())
	name := strings.ToLower(t.Name())
	_, err = admin.Exec(t.Context(), "CREATE DATABASE "+name)
	require.NoError(t, err)
	for _, role := range []string{"coditect_app", "coditect_migrator", "coditect_readonly"} {
		_, err = admin.Exec(t.Context(), "DO $$ BEGIN CREATE ROLE "+role+" LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
		require.NoError(t, err)
	}
	sql, err := files.Control.ReadFile("control/0003_outbox.sql")
	require.NoError(t, err)
	owner, err := pgx.Connect(t.Context(), server.DSN(name, "postgres"))
	require.NoError(t, err)
	defer owner.Close(context.Background())
	_, err = owner.Exec(t.Context(), "CREATE SCHEMA control; GRANT USAGE ON SCHEMA control TO coditect_app;"+string(sql))
	require.NoError(t, err)
	// The rights are part of what is tested: everything below runs as the application.
	pool, err := pgxpool.New(t.Context(), server.DSN(name, "coditect_app"))
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

func record(t *testing.T, pool *pgxpool.Pool, e events.Event) string {
	t.Helper()
	var id string
	require.NoError(t, pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		u, err := events.Record(t.Context(), tx, e)
		id = u.String()
		return err
	}))
	return id
}

func pubSub(t *testing.T) (*events.PubSub, *pstest.Server) {
	t.Helper()
	srv := pstest.NewServerWithAddress("127.0.0.1:0")
	t.Cleanup(func() { _ = srv.Close() })
	p, err := events.Open(t.Context(), events.Config{Project: "dev", Emulator: srv.Addr})
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.Close() })
	return p, srv
}

func TestCommittedEventIsPublishedOnce(t *testing.T) {
	pool := outbox(t)
	p, srv := pubSub(t)
	require.NoError(t, p.EnsureTopic(t.Context(), "tenant-events"))
	require.NoError(t, p.EnsureTopic(t.Context(), "tenant-events"), "creating it again is fine")

	id := record(t, pool, events.Event{
		Topic: "tenant-events", OrderingKey: "t1",
		Payload: map[string]string{"tenant": "t1"}, Attributes: map[string]string{"type": "tenant.created"},
	})
	// A transaction that is rolled back publishes nothing.
	undone := errors.New("undone")
	require.ErrorIs(t, pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		_, err := events.Record(t.Context(), tx, events.Event{Topic: "tenant-events", Payload: 1})
		require.NoError(t, err)
		return undone
	}), undone)

	n, err := events.Relay(t.Context(), pool, p)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	n, err = events.Relay(t.Context(), pool, p)
	require.NoError(t, err)
	require.Zero(t, n, "a second relay finds nothing")

	got := srv.Messages()
	require.Len(t, got, 1)
	require.JSONEq(t, `{"tenant":"t1"}`, string(got[0].Data))
	require.Equal(t, "t1", got[0].OrderingKey)
	require.Equal(t, map[string]string{"type": "tenant.created", events.IDAttribute: id}, got[0].Attributes)
}

func TestUnknownTopicKeepsTheEventAndTheReason(t *testing.T) {
	pool := outbox(t)
	p, srv := pubSub(t)
	require.NoError(t, p.EnsureTopic(t.Context(), "there"))
	record(t, pool, events.Event{Topic: "nowhere", OrderingKey: "k", Payload: 1})
	record(t, pool, events.Event{Topic: "there", Payload: 2})

	n, err := events.Relay(t.Context(), pool, p)
	require.ErrorContains(t, err, "NotFound")
	require.Equal(t, 1, n, "one topic does not stop the others")
	var attempts int
	var reason string
	require.NoError(t, pool.QueryRow(t.Context(), "SELECT attempts, error FROM control.outbox WHERE published_at IS NULL").Scan(&attempts, &reason))
	require.Equal(t, 1, attempts)
	require.Contains(t, reason, "NotFound")

	require.NoError(t, p.EnsureTopic(t.Context(), "nowhere"))
	n, err = events.Relay(t.Context(), pool, p)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Len(t, srv.Messages(), 2)
}

// recorder remembers what was published, per key.
type recorder struct {
	mu   sync.Mutex
	seen map[string][]int
}

func (r *recorder) Publish(_ context.Context, messages []events.Message) []error {
	errs := make([]error, len(messages))
	for i, m := range messages {
		r.mu.Lock()
		var n int
		errs[i] = json.Unmarshal(m.Data, &n)
		r.seen[m.OrderingKey] = append(r.seen[m.OrderingKey], n)
		r.mu.Unlock()
	}
	return errs
}

// Relays that run at once neither repeat nor overtake each other.
func TestRelaysKeepOrderWithinAKey(t *testing.T) {
	pool := outbox(t)
	const keys, each = 5, 100
	for n := range each {
		for k := range keys {
			record(t, pool, events.Event{Topic: "topic", OrderingKey: fmt.Sprint("key", k), Payload: n})
		}
	}
	r := &recorder{seen: map[string][]int{}}
	var relays sync.WaitGroup
	for range 4 {
		relays.Go(func() {
			_, err := events.Relay(t.Context(), pool, r)
			require.NoError(t, err)
		})
	}
	relays.Wait()
	require.Len(t, r.seen, keys)
	for key, got := range r.seen {
		require.Len(t, got, each, key)
		require.IsIncreasing(t, got, key)
	}
}

func TestPruneDeletesOnlyWhatWasPublished(t *testing.T) {
	pool := outbox(t)
	record(t, pool, events.Event{Topic: "topic", Payload: 1})
	_, err := events.Relay(t.Context(), pool, &recorder{seen: map[string][]int{}})
	require.NoError(t, err)
	record(t, pool, events.Event{Topic: "topic", Payload: 2})
	n, err := events.Prune(t.Context(), pool, time.Now().Add(time.Hour))
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
}
