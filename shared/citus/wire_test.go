package citus_test

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/directory"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

// wire is a proxy in front of a database that counts round trips, and can lose the
// answer to what the client sends next.
type wire struct {
	target string
	l      net.Listener
	trips  atomic.Int64
	cut    atomic.Bool
	mu     sync.Mutex
	open   []net.Conn
}

func newWire(t *testing.T, dsn string) (*wire, string) {
	t.Helper()
	u, err := url.Parse(dsn)
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	w := &wire{target: u.Host, l: l}
	go w.serve()
	t.Cleanup(func() {
		_ = l.Close()
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, c := range w.open {
			_ = c.Close()
		}
	})
	u.Host = l.Addr().String()
	return w, u.String()
}

func (w *wire) serve() {
	for {
		client, err := w.l.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", w.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		w.mu.Lock()
		w.open = append(w.open, client, server)
		w.mu.Unlock()
		w.pipe(client, server)
	}
}

// pipe copies both ways. A round trip begins when the client sends after the server
// has answered.
func (w *wire) pipe(client, server net.Conn) {
	var answered atomic.Bool
	answered.Store(true)
	go func() {
		defer func() { _ = server.Close() }()
		b := make([]byte, 64<<10)
		for {
			n, err := client.Read(b)
			if err != nil {
				return
			}
			if answered.Swap(false) {
				w.trips.Add(1)
			}
			if _, err := server.Write(b[:n]); err != nil {
				return
			}
		}
	}()
	go func() {
		defer func() { _ = client.Close() }()
		b := make([]byte, 64<<10)
		for {
			n, err := server.Read(b)
			if err != nil {
				return
			}
			if w.cut.Swap(false) {
				return // the server has done it, the client will never know
			}
			answered.Store(true)
			if _, err := client.Write(b[:n]); err != nil {
				return
			}
		}
	}()
}

// doorThrough is a door whose green database is behind a wire. The directory is not. Options are
// added to the connection string.
func doorThrough(t *testing.T, env *citustest.Env, options ...string) (*wire, *citus.Door) {
	t.Helper()
	w, dsn := newWire(t, env.Config.Green)
	cfg := env.Config
	cfg.Green, cfg.MaxConns = strings.Join(append([]string{dsn}, options...), "&"), 1
	dbs, err := citus.Open(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(dbs.Close)
	return w, citus.NewDoor(dbs, directory.New(env.Databases, 0))
}

func TestRoundTrips(t *testing.T) {
	t.Run("prepared", func(t *testing.T) { roundTrips(t) })
	t.Run("for a pooler", func(t *testing.T) { roundTrips(t, unprepared) })
}

func roundTrips(t *testing.T, options ...string) {
	env := citustest.New(t)
	w, door := doorThrough(t, env, options...)
	id := env.NewTenant(t, tenant.Green)
	ctx := t.Context()
	insert := func(tx *citus.Tx) error {
		_, err := tx.Exec(ctx, insertProject, tx.Tenant(), tenant.NewID(), "p")
		return err
	}
	count := func(tx *citus.Tx) error {
		var n int
		return tx.QueryRow(ctx, countProjects, tx.Tenant()).Scan(&n)
	}
	cases := []struct {
		name  string
		trips int64
		call  func() error
	}{
		{"one trip with two statements", 1, func() error {
			return door.OneTrip(ctx, id, func(b *citus.Batch) {
				b.Queue(insertProject, id, tenant.NewID(), "p")
				b.Queue(countProjects, id)
			})
		}},
		{"read trip", 1, func() error { return door.ReadTrip(ctx, id, func(b *citus.Batch) { b.Queue(countProjects, id) }) }},
		{"one statement", 2, func() error { return door.InTenant(ctx, id, insert) }},
		{"one query", 1, func() error { return door.ReadTenant(ctx, id, count) }},
		{"two queries", 2, func() error {
			return door.ReadTenant(ctx, id, func(tx *citus.Tx) error { return errors.Join(count(tx), count(tx)) })
		}},
		{"a query in a transaction that writes", 2, func() error { return door.InTenant(ctx, id, count) }},
		{"three statements", 4, func() error {
			return door.InTenant(ctx, id, func(tx *citus.Tx) error {
				for range 3 {
					if err := insert(tx); err != nil {
						return err
					}
				}
				return nil
			})
		}},
		{"a batch", 2, func() error {
			return door.InTenant(ctx, id, func(tx *citus.Tx) error {
				b := tx.NewBatch()
				for range 5 {
					b.Queue(insertProject, tx.Tenant(), tenant.NewID(), "p")
				}
				return tx.Send(ctx, b)
			})
		}},
		{"nothing", 0, func() error { return door.InTenant(ctx, id, func(*citus.Tx) error { return nil }) }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for range 2 { // a new connection prepares its statements, then BEGIN and COMMIT
				require.NoError(t, c.call())
			}
			before := w.trips.Load()
			require.NoError(t, c.call())
			require.Equal(t, c.trips, w.trips.Load()-before)
		})
	}
}

// The connection breaks after COMMIT was sent: the row is there, and the caller is told
// that it may be. Nothing is repeated.
func TestACommitWithoutAnAnswerIsUncertain(t *testing.T) {
	env := citustest.New(t)
	w, door := doorThrough(t, env)
	id := env.NewTenant(t, tenant.Green)
	for i, call := range []func() error{
		func() error {
			return door.OneTrip(t.Context(), id, func(b *citus.Batch) { b.Queue(insertProject, id, tenant.NewID(), "p"); w.cut.Store(true) })
		},
		func() error {
			return door.InTenant(t.Context(), id, func(tx *citus.Tx) error {
				_, err := tx.Exec(t.Context(), insertProject, id, tenant.NewID(), "p")
				w.cut.Store(true)
				return err
			})
		},
	} {
		for range 2 { // everything is prepared
			require.NoError(t, door.OneTrip(t.Context(), id, func(b *citus.Batch) { b.Queue(insertProject, id, tenant.NewID(), "warm") }))
		}
		err := call()
		require.Equal(t, fault.Uncertain, fault.KindOf(err), "%d: %v", i, err)
		require.Equal(t, 3*(i+1), countIn(t, env.Door, id))
	}
	// A read is simply repeated, and so is a write whose COMMIT was not sent yet.
	w.cut.Store(true)
	require.Equal(t, 6, countIn(t, door, id))
	w.cut.Store(true)
	require.NoError(t, addProject(t.Context(), door, id, "p"))
	require.Equal(t, 7, countIn(t, env.Door, id))
}

// A route that is stale is found out by the gate, whatever the directory's memory says.
func TestAStaleRouteIsFollowed(t *testing.T) {
	env := citustest.New(t)
	id := env.NewTenant(t, tenant.Blue)
	require.NoError(t, addProject(t.Context(), env.Door, id, "p")) // now it is remembered
	moveToGreen(t, env, id)
	require.Zero(t, countIn(t, env.Door, id), "reads go to the new home at once")
	require.NoError(t, addProject(t.Context(), env.Door, id, "p"))
	var inBlue int
	require.NoError(t, env.Blue(t).QueryRow(t.Context(), fmt.Sprintf(`SELECT count(*) FROM t_%x.project`, [16]byte(id))).Scan(&inBlue))
	require.Equal(t, 1, inBlue)
}

// moveToGreen moves an empty-handed tenant: its rows stay behind, so that it shows who
// still reads them.
func moveToGreen(t *testing.T, env *citustest.Env, id tenant.ID) {
	t.Helper()
	_, err := env.Control.Exec(t.Context(), `WITH moved AS (UPDATE control.tenant SET home = 'green', database_name = 'green', schema_name = 'app', epoch = 2 WHERE id = $1)
		INSERT INTO coditect.gate (tenant_id, schema_name, epoch) VALUES ($1, 'app', 2)`, id)
	require.NoError(t, err)
	_, err = env.Blue(t).Exec(t.Context(), `UPDATE coditect.gate SET closed = true WHERE tenant_id = $1`, id)
	require.NoError(t, err)
}
