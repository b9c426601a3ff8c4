package stream_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/migration/stream"
	"github.com/coditect/platform/shared/tenant"
)

func TestMain(m *testing.M) { citustest.Main(m) }

// world is a blue database with a lane and a tenant in it.
type world struct {
	*citustest.Env
	lane   stream.Lane
	slot   string
	blue   *citus.Pool // as a superuser
	id     tenant.ID
	schema string
}

func newWorld(t *testing.T) *world {
	env := citustest.New(t)
	w := &world{Env: env, lane: stream.Lane{Database: citus.BlueDatabase, Number: 1}, blue: env.Blue(t), id: env.NewTenant(t, tenant.Blue)}
	w.schema = w.schemaOf(w.id)
	p, err := stream.Open(t.Context(), env.Migrator, w.lane)
	require.NoError(t, err)
	w.slot = p.Slot
	w.exec(t, `CREATE TABLE `+w.schema+`.thing (tenant_id uuid, id text, note text, n numeric, at timestamptz, big text, PRIMARY KEY (tenant_id, id))`)
	w.exec(t, `ALTER TABLE `+w.schema+`.thing OWNER TO coditect_owner`)
	w.exec(t, `ALTER TABLE `+w.schema+`.thing ALTER big SET STORAGE EXTERNAL`)
	w.join(t, w.id, "thing", "project")
	return w
}

func (w *world) schemaOf(id tenant.ID) string { return "t_" + strings.ReplaceAll(id.String(), "-", "") }

func (w *world) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	_, err := w.blue.Exec(t.Context(), sql, args...)
	require.NoError(t, err)
}

func (w *world) join(t *testing.T, id tenant.ID, tables ...string) {
	t.Helper()
	control, err := w.Migrator.Control(t.Context())
	require.NoError(t, err)
	blue, err := w.Migrator.Pool(t.Context(), citus.BlueDatabase)
	require.NoError(t, err)
	m := stream.Member{Tenant: id, Run: uuid.New(), Schema: w.schemaOf(id), Tables: tables, Token: 1}
	require.NoError(t, stream.Enter(t.Context(), control, w.lane, w.slot, m))
	require.NoError(t, stream.Join(t.Context(), blue, w.slot, m, time.Second))
	require.NoError(t, stream.Join(t.Context(), blue, w.slot, m, time.Second), "joining again changes nothing")
}

// receive receives until everything that blue has written by now is spooled.
func (w *world) receive(t *testing.T, crash func(string)) {
	t.Helper()
	var end int64
	// The test's server commits asynchronously; blue sends what is flushed.
	w.exec(t, `DO $$ BEGIN SET LOCAL synchronous_commit = on; PERFORM pg_logical_emit_message(true, 'test', 'flush'); END $$`)
	require.NoError(t, w.blue.QueryRow(t.Context(), `SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint`).Scan(&end))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := stream.NewReceiver(w.Migrator, stream.Config{Budget: 15 * time.Second}, crash).Receive(ctx, w.lane)
		done <- err
	}()
	require.Eventually(t, func() bool {
		p, err := stream.PositionOf(t.Context(), w.Control, w.lane)
		return err == nil && p.Spooled >= end
	}, 15*time.Second, 5*time.Millisecond, "%s", lazy(func() string {
		p, err := stream.PositionOf(t.Context(), w.Control, w.lane)
		return fmt.Sprintf("position %+v %v, wanted %d", p, err, end)
	}))
	cancel()
	err := <-done
	require.True(t, err == nil || errors.Is(err, context.Canceled), "%v", err)
}

// lazy is a message that is made when it is printed.
type lazy func() string

func (l lazy) String() string { return l() }

// spooled reads a tenant's changes.
func (w *world) spooled(t *testing.T, id tenant.ID) (out []stream.Change) {
	t.Helper()
	rows, err := w.Control.Query(t.Context(), `SELECT changes, lsn, seq, data FROM control.pack WHERE tenant_id = $1 ORDER BY lsn, seq`, id)
	require.NoError(t, err)
	var (
		n        int
		lsn, seq int64
		data     []byte
	)
	_, err = pgx.ForEachRow(rows, []any{&n, &lsn, &seq, &data}, func() error {
		changes, err := stream.Unpack(string(data))
		if err != nil {
			return err
		}
		require.Len(t, changes, n)
		require.Equal(t, [2]int64{lsn, seq}, [2]int64{changes[n-1].LSN, changes[n-1].Seq})
		out = append(out, changes...)
		return nil
	})
	require.NoError(t, err)
	return out
}

// spool reads a tenant's changes as text.
func (w *world) spool(t *testing.T, id tenant.ID) (out []string) {
	t.Helper()
	for _, c := range w.spooled(t, id) {
		words := []string{string(c.Op)}
		if c.Op == stream.Fence {
			words = append(words, fmt.Sprint(c.FenceID))
		} else {
			var table string
			require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT table_name FROM control.change_shape WHERE id = $1`, c.Shape).Scan(&table))
			words = append(words, table)
		}
		for _, row := range []stream.Tuple{c.Old, c.New} {
			if row == "" {
				continue
			}
			values, err := row.Values(nil)
			require.NoError(t, err)
			var texts []string
			for _, v := range values {
				texts = append(texts, map[byte]string{stream.Null: "NULL", stream.Unchanged: "same", stream.Text: v.Text}[v.Kind])
			}
			words = append(words, "{"+strings.Join(texts, ",")+"}")
		}
		out = append(out, strings.Join(words, " "))
	}
	return out
}

func TestChangesAreSpooledInTheOrderOfTheirCommits(t *testing.T) {
	w := newWorld(t)
	other := w.NewTenant(t, tenant.Blue)
	first, err := pgx.Connect(t.Context(), w.BlueAdmin)
	require.NoError(t, err)
	defer func() { _ = first.Close(context.Background()) }()
	thing := w.schema + ".thing"

	late, err := first.Begin(t.Context())
	require.NoError(t, err)
	_, err = late.Exec(t.Context(), `INSERT INTO `+thing+` VALUES ($1, 'late', NULL, 'NaN', '2020-02-03 04:05:06.7+09', NULL)`, w.id)
	require.NoError(t, err)
	w.exec(t, `INSERT INTO `+thing+` VALUES ($1, 'a', 'ü "quoted", {x}', 1.50, NULL, repeat('x', 9000))`, w.id)
	require.NoError(t, late.Commit(t.Context()))
	w.exec(t, `UPDATE `+thing+` SET note = 'changed' WHERE id = 'a'`)
	w.exec(t, `UPDATE `+thing+` SET id = 'b' WHERE id = 'late'`)
	w.exec(t, `DELETE FROM `+thing+` WHERE id = 'b'`)
	w.exec(t, `INSERT INTO `+w.schemaOf(other)+`.project (tenant_id, id, name, created_at, updated_at) VALUES ($1, $1, 'of nobody in the lane', now(), now())`, other)
	w.exec(t, `TRUNCATE `+thing)
	w.exec(t, `SELECT coditect.fence($1, 7, 1000)`, w.id)
	w.receive(t, nil)

	id := w.id.String()
	want := []string{
		`I thing {` + id + `,a,ü "quoted", {x},1.50,NULL,xxx`,
		`I thing {` + id + `,late,NULL,NaN,2020-02-02 19:05`,
		`U thing {` + id + `,a,changed,1.50,NULL,same}`,
		`U thing {` + id + `,late,NULL,NULL,NULL,NULL} {` + id + `,b,NULL,NaN,2020-02-02 19:05:0`,
		`D thing {` + id + `,b,NULL,NULL,NULL,NULL}`,
		`T thing`,
		`F 1`,
	}
	got := w.spool(t, w.id)
	require.Len(t, got, len(want), "%s", strings.Join(got, "\n"))
	for i := range want {
		require.True(t, strings.HasPrefix(got[i], want[i]), "%d: %s\nwant %s", i, got[i], want[i])
	}
	require.Empty(t, w.spool(t, other))

	w.receive(t, nil)
	require.Equal(t, got, w.spool(t, w.id), "received again, nothing is spooled twice")
}

// A hundred tenants that each write a little are not a hundred commits a moment in green; but whoever
// raises a fence has writers waiting.
func TestChangesOfManyTransactionsAreSpooledTogether(t *testing.T) {
	w := newWorld(t)
	insert := func(id int) {
		w.exec(t, fmt.Sprintf(`DO $$ BEGIN SET LOCAL synchronous_commit = on; INSERT INTO %s.thing (tenant_id, id) VALUES ('%s', '%d'); END $$`, w.schema, w.id, id))
	}
	insert(0)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var commits atomic.Int64
	first := make(chan struct{})
	began, done := time.Now(), make(chan error, 1)
	go func() {
		_, err := stream.NewReceiver(w.Migrator, stream.Config{}, func(string) {
			if commits.Add(1) == 1 {
				close(first)
			}
		}).Receive(ctx, w.lane)
		done <- err
	}()
	<-first
	const n = 300
	for id := range n {
		insert(1 + id)
	}
	w.exec(t, `DO $$ BEGIN SET LOCAL synchronous_commit = on; PERFORM pg_logical_emit_message(true, 'coditect', 'probe'); END $$`)
	require.Eventually(t, func() bool { return len(w.spooled(t, w.id)) == n+1 }, 15*time.Second, 5*time.Millisecond)
	took := time.Since(began)
	require.LessOrEqual(t, commits.Load(), 4+int64(took/(50*time.Millisecond)), "%d transactions in %v", n, took)
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
}

// A receiver that ends between the commit of a part and the next one, in the middle of one large
// transaction, and one that ends before it could confirm, are followed by one that goes on.
func TestReceiverDiesInTheMiddleOfATransaction(t *testing.T) {
	w := newWorld(t)
	const rows = 12_000
	w.exec(t, `INSERT INTO `+w.schema+`.thing SELECT $1, 'before ' || i FROM generate_series(1, 10) i`, w.id)
	w.exec(t, `INSERT INTO `+w.schema+`.thing SELECT $1, 'row ' || i, repeat('y', 100) FROM generate_series(1, $2::int) i`, w.id, rows)
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := stream.NewReceiver(w.Migrator, stream.Config{Budget: 10 * time.Second}, func(string) {
			if p, err := stream.PositionOf(t.Context(), w.Control, w.lane); err == nil && p.PartSeq > 0 {
				cancel() // inside the transaction
			}
		}).Receive(ctx, w.lane)
		require.Error(t, err)
		cancel()
	}
	require.Less(t, len(w.spooled(t, w.id)), rows+10, "the receivers must have died before the end")
	p, err := stream.PositionOf(t.Context(), w.Control, w.lane)
	require.NoError(t, err)
	require.NotZero(t, p.PartSeq, "and one of them inside the transaction")
	w.receive(t, nil)
	distinct := map[string]bool{}
	all := w.spooled(t, w.id)
	for _, c := range all {
		values, err := c.New.Values(nil)
		require.NoError(t, err)
		distinct[values[1].Text] = true
	}
	require.Len(t, all, rows+10)
	require.Len(t, distinct, rows+10)
}

// Two receivers of one lane at the same time: the second waits, takes over, and nothing is
// spooled twice.
func TestTwoReceiversAtOnce(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 3)
	for range 3 {
		go func() {
			_, err := stream.NewReceiver(w.Migrator, stream.Config{Budget: 400 * time.Millisecond}, nil).Receive(ctx, w.lane)
			done <- err
		}()
	}
	for i := range 200 {
		w.exec(t, `INSERT INTO `+w.schema+`.thing VALUES ($1, $2)`, w.id, fmt.Sprint(i))
	}
	for range 3 {
		if err := <-done; err != nil {
			require.Contains(t, err.Error(), "another receiver is at work")
		}
	}
	w.receive(t, nil)
	require.Len(t, w.spool(t, w.id), 200)
}

// The barrier waits for a writer that is in the middle of its transaction: what it has written
// before would be in no stream.
func TestJoinWaitsForOpenWriters(t *testing.T) {
	w := newWorld(t)
	id := w.NewTenant(t, tenant.Blue)
	schema := w.schemaOf(id)
	conn, err := pgx.Connect(t.Context(), w.BlueAdmin)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `INSERT INTO `+schema+`.project (tenant_id, id, name, created_at, updated_at) VALUES ($1, $1, 'x', now(), now())`, id)
	require.NoError(t, err)
	blue, err := w.Migrator.Pool(t.Context(), citus.BlueDatabase)
	require.NoError(t, err)
	m := stream.Member{Tenant: id, Schema: schema, Tables: []string{"project"}, Token: 1}
	err = stream.Join(t.Context(), blue, w.slot, m, 50*time.Millisecond)
	require.Equal(t, "55P03", citus.StateOf(err))
	require.NoError(t, tx.Commit(t.Context()))
	require.NoError(t, stream.Join(t.Context(), blue, w.slot, m, time.Second))
	require.NoError(t, stream.Leave(t.Context(), blue, w.slot, m))
	require.NoError(t, stream.Leave(t.Context(), blue, w.slot, m), "leaving again changes nothing")

	// A step that was thought dead neither takes a newer one's tables out nor puts its own in.
	newer := m
	newer.Token = 2
	require.NoError(t, stream.Join(t.Context(), blue, w.slot, newer, time.Second))
	require.ErrorIs(t, stream.Leave(t.Context(), blue, w.slot, m), stream.ErrOutdated)
	require.NoError(t, stream.Leave(t.Context(), blue, w.slot, newer))
	require.ErrorIs(t, stream.Join(t.Context(), blue, w.slot, m, time.Second), stream.ErrOutdated)
}

func TestALostSlotIsNoticedAndNamed(t *testing.T) {
	w := newWorld(t)
	lost, err := stream.Check(t.Context(), w.Migrator, w.lane, 1<<30)
	require.NoError(t, err)
	require.Empty(t, lost)

	w.exec(t, `SELECT pg_logical_emit_message(false, 'filler', repeat('z', 1000000)) FROM generate_series(1, 3)`)
	lost, err = stream.Check(t.Context(), w.Migrator, w.lane, 1_000_000)
	require.NoError(t, err)
	require.Contains(t, lost, "CODITECT_SLOT_MAX_BYTES")
	var slots, publications int
	require.NoError(t, w.blue.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM pg_replication_slots WHERE database = current_database()), (SELECT count(*) FROM pg_publication)`).Scan(&slots, &publications))
	require.Zero(t, slots)
	require.Zero(t, publications)

	p, err := stream.Open(t.Context(), w.Migrator, w.lane)
	require.NoError(t, err)
	require.NotEqual(t, w.slot, p.Slot, "a new slot has a new name: whoever joined the old one must see that it is gone")
	w.exec(t, `SELECT pg_drop_replication_slot($1)`, p.Slot)
	lost, err = stream.Check(t.Context(), w.Migrator, w.lane, 1<<30)
	require.NoError(t, err)
	require.Contains(t, lost, "no slot")
}

func TestALaneWithoutTenantsIsClosed(t *testing.T) {
	w := newWorld(t)
	_, err := w.Control.Exec(t.Context(), `DELETE FROM control.streamed`)
	require.NoError(t, err)
	got, err := stream.NewReceiver(w.Migrator, stream.Config{Budget: 100 * time.Millisecond}, nil).Receive(t.Context(), w.lane)
	require.NoError(t, err)
	require.False(t, got.Closed, "the next move may want it")
	_, err = w.Control.Exec(t.Context(), `UPDATE control.lane SET wanted_at = now() - interval '1 hour'`)
	require.NoError(t, err)
	got, err = stream.NewReceiver(w.Migrator, stream.Config{}, nil).Receive(t.Context(), w.lane)
	require.NoError(t, err)
	require.True(t, got.Closed)
	var slots int
	require.NoError(t, w.blue.QueryRow(t.Context(), `SELECT count(*) FROM pg_replication_slots WHERE database = current_database()`).Scan(&slots))
	require.Zero(t, slots)
	require.NoError(t, stream.DropDue(t.Context(), w.Migrator))
}

// What is cut off or garbled is an error, and never other changes.
func TestGarbledPacks(t *testing.T) {
	w := newWorld(t)
	w.exec(t, `INSERT INTO `+w.schema+`.thing VALUES ($1, 'a', 'some text', 1.5, now(), NULL)`, w.id)
	w.receive(t, nil)
	var data []byte
	require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT data FROM control.pack WHERE tenant_id = $1`, w.id).Scan(&data))
	whole, err := stream.Unpack(string(data))
	require.NoError(t, err)
	require.Len(t, whole, 1)
	for n := 1; n < len(data); n++ {
		_, err := stream.Unpack(string(data[:n]))
		require.Error(t, err, "the first %d bytes", n)
	}
	row := string(whole[0].New)
	for n := range len(row) {
		_, err := stream.Tuple(row[:n]).Values(nil)
		require.Error(t, err, "the first %d bytes of the row", n)
	}
	_, err = stream.Tuple("\x00\x01b\x00\x00\x00\x01x").Values(nil)
	require.ErrorContains(t, err, "not text")
}

// The receiver that follows must not decode again what the one before it has confirmed: with much of it, nobody
// would receive anything for seconds.
func TestTheNextReceiverBeginsNearTheEndOfTheOneBefore(t *testing.T) {
	w := newWorld(t)
	w.exec(t, `CHECKPOINT`)
	w.exec(t, `SELECT pg_logical_emit_message(false, 'filler', repeat('z', 1000000)) FROM generate_series(1, 20)`)
	w.exec(t, `INSERT INTO `+w.schema+`.thing VALUES ($1, 'a')`, w.id)
	var written string
	require.NoError(t, w.blue.QueryRow(t.Context(), `SELECT pg_current_wal_insert_lsn()::text`).Scan(&written))
	_, err := stream.NewReceiver(w.Migrator, stream.Config{Budget: 3 * time.Second}, nil).Receive(t.Context(), w.lane)
	require.NoError(t, err)
	var past bool
	require.NoError(t, w.blue.QueryRow(t.Context(), `SELECT restart_lsn >= $2::pg_lsn FROM pg_replication_slots WHERE slot_name = $1`, w.slot, written).Scan(&past))
	require.True(t, past, "what was written before is decoded again")
	require.Len(t, w.spool(t, w.id), 1)
	var left int
	require.NoError(t, w.blue.QueryRow(t.Context(), `SELECT count(*) FROM pg_replication_slots WHERE temporary`).Scan(&left))
	require.Zero(t, left)
}

// While nobody waits, blue's changes are read in bursts, and between them nobody reads the slot; what a burst has
// read is not decoded again. As soon as somebody waits the receiver reads on and on.
func TestAReceiverRestsWhileNobodyWaits(t *testing.T) {
	w := newWorld(t)
	insert := func(id string) {
		w.exec(t, `DO $$ BEGIN SET LOCAL synchronous_commit = on; INSERT INTO `+w.schema+`.thing (tenant_id, id) VALUES ('`+w.id.String()+`', '`+id+`'); END $$`)
	}
	read := func() (by bool) {
		require.NoError(t, w.blue.QueryRow(t.Context(), `SELECT active FROM pg_replication_slots WHERE slot_name = $1`, w.slot).Scan(&by))
		return by
	}
	spooled := func(n int) func() bool { return func() bool { return len(w.spool(t, w.id)) == n } }
	w.exec(t, `SELECT pg_logical_emit_message(false, 'filler', repeat('z', 1000000)) FROM generate_series(1, 20)`)
	insert("a")
	var written string
	require.NoError(t, w.blue.QueryRow(t.Context(), `SELECT pg_current_wal_insert_lsn()::text`).Scan(&written))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var rest atomic.Int64
	rest.Store(int64(2 * time.Second))
	done := make(chan error, 1)
	go func() {
		_, err := stream.NewReceiver(w.Migrator, stream.Config{}, nil).Rests(func(context.Context, stream.Lane) (time.Duration, error) {
			return time.Duration(rest.Load()), nil
		}).Receive(ctx, w.lane)
		done <- err
	}()
	require.Eventually(t, spooled(1), 5*time.Second, 5*time.Millisecond)
	require.Eventually(t, func() bool { return !read() }, time.Second, 5*time.Millisecond)
	insert("b")
	require.Eventually(t, spooled(2), 5*time.Second, 5*time.Millisecond, "the next burst brings it")
	require.Eventually(t, func() bool { return !read() }, time.Second, 5*time.Millisecond)
	require.Eventually(t, func() (past bool) {
		require.NoError(t, w.blue.QueryRow(t.Context(), `SELECT restart_lsn >= $2::pg_lsn FROM pg_replication_slots WHERE slot_name = $1`, w.slot, written).Scan(&past))
		return past
	}, 10*time.Second, 20*time.Millisecond, "what the first burst has read is read again")
	require.Eventually(t, func() bool { return !read() }, time.Second, 5*time.Millisecond)

	rest.Store(0)
	require.Eventually(t, read, time.Second, 5*time.Millisecond, "long before the end of the rest")
	insert("c")
	require.Eventually(t, spooled(3), time.Second, 5*time.Millisecond)
	require.Never(t, func() bool { return !read() }, 500*time.Millisecond, 20*time.Millisecond)
	rest.Store(int64(2 * time.Second))
	require.Eventually(t, func() bool { return !read() }, 3*time.Second, 5*time.Millisecond, "and rests again when it may")
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
}

// A burst that took long is followed by no rest: another one might take as long.
func TestALongBurstIsNotFollowedByARest(t *testing.T) {
	w := newWorld(t)
	w.exec(t, `DO $$ BEGIN SET LOCAL synchronous_commit = on; INSERT INTO `+w.schema+`.thing (tenant_id, id) VALUES ('`+w.id.String()+`', 'a'); END $$`)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var asked atomic.Int64
	var slow atomic.Bool
	done := make(chan error, 1)
	go func() {
		_, err := stream.NewReceiver(w.Migrator, stream.Config{}, func(string) {
			if slow.CompareAndSwap(false, true) {
				<-time.After(1100 * time.Millisecond)
			}
		}).Rests(func(context.Context, stream.Lane) (time.Duration, error) {
			return 100 * time.Millisecond, nil
		}).Receive(ctx, w.lane)
		done <- err
	}()
	require.Eventually(t, func() bool { return len(w.spool(t, w.id)) == 1 }, 5*time.Second, 5*time.Millisecond)
	require.Never(t, func() bool { return asked.Load() > 1 }, 2*time.Second, 50*time.Millisecond)
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
}
