package migration_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/localpg"
	"github.com/coditect/platform/shared/directory"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/tenant"
)

// behindPooler puts a connection pooler in transaction mode before blue, green and the foreign
// database: for the door and for the old application, not for the mover, which reads replication
// slots.
func (w *world) behindPooler(t *testing.T) *localpg.Pooler {
	t.Helper()
	p, err := localpg.StartPooler(t.Context(), localpg.PoolerOptions{
		Databases: map[string]string{"blue": w.BlueAdmin, "green": w.GreenAdmin, "legacy": w.Legacy},
		Roles:     []string{"coditect_app", "legacy_app"},
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Remove()) })
	w.Databases, err = citus.Open(t.Context(), citus.Config{Green: p.DSN("green", "coditect_app"), Blue: p.DSN("blue", "coditect_app"),
		Sources: citus.SourceDSNs{"legacy": p.DSN("legacy", "coditect_app")}, MaxConns: 8})
	require.NoError(t, err)
	t.Cleanup(w.Databases.Close)
	w.Directory = directory.New(w.Databases, 0)
	w.Door = citus.NewDoor(w.Databases, w.Directory)
	return p
}

// noteTaker writes events of a foreign tenant through the door, wherever it lives, and remembers
// which were acknowledged.
type noteTaker struct {
	stop   context.CancelFunc
	group  sync.WaitGroup
	mu     sync.Mutex
	acked  []string
	failed []error
}

func takeNotes(t *testing.T, door *citus.Door, id tenant.ID) *noteTaker {
	ctx, cancel := context.WithCancel(t.Context())
	n := &noteTaker{stop: cancel}
	for writer := range 2 {
		n.group.Go(func() {
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for i := 0; ctx.Err() == nil; i++ {
				<-tick.C
				note := fmt.Sprintf("door %d %d", writer, i)
				n.took(ctx, note, door.InTenant(ctx, id, func(tx *citus.Tx) error {
					_, err := tx.Exec(ctx, `INSERT INTO work_event (object_id, note, at, score, content_type_id) VALUES ('1', $1, now(), 0, 11)`, note)
					return err
				}))
			}
		})
	}
	t.Cleanup(func() { cancel(); n.group.Wait() })
	return n
}

func (n *noteTaker) took(ctx context.Context, note string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case err == nil:
		n.acked = append(n.acked, note)
	case ctx.Err() == nil && fault.KindOf(err) != fault.Uncertain:
		n.failed = append(n.failed, err)
	}
}

func (n *noteTaker) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.acked)
}

// count is how many notes of a schema the old application was told are saved.
func (o *oldApplication) count(schema string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.written[schema])
}

// Tenants move online and come back while everybody who writes comes through a connection pooler
// in transaction mode: the door, and an old application that writes straight into its blue schema.
func TestBehindAPoolerInTransactionMode(t *testing.T) {
	plainServer(t, func(t *testing.T, w *world) {
		w.withLegacy(t)
		pooler := w.behindPooler(t)
		w.Mover = migration.New(w.Migrator, w.Queue, online)
		const schema = "acme00003"
		id := tenant.ImportedID("legacy", schema)
		own := blueTenants(t, w, 2)
		traffic := writeOn(t, w, own)
		old := runOldApplication(t, pooler.DSN("legacy", "legacy_app"), []string{schema})
		notes := takeNotes(t, w.Door, id)
		goesOn := func() {
			before := notes.count()
			traffic.writeEach(t)
			require.Eventually(t, func() bool { return notes.count() > before+10 }, 10*time.Second, time.Millisecond)
		}
		goesOn()
		require.Eventually(t, func() bool { return old.count(schema) > 10 }, 10*time.Second, time.Millisecond)

		ours := start(t, w, own, 10)
		w.drain(t)
		theirs, report, err := w.Mover.Start(t.Context(), migration.Plan{Source: "legacy", Tenants: []tenant.ID{id}, Actor: "test"})
		require.NoError(t, err, "%+v", report.Findings)
		w.drain(t)
		require.Equal(t, migration.Counts{migration.Green: 2}, inspect(t, w, ours).Counts)
		require.Equal(t, migration.Counts{migration.Green: 1}, inspect(t, w, theirs).Counts)
		goesOn()
		comesBack(t, w, theirs, id)
		comesBack(t, w, ours, own[1])
		refused := old.count(schema)
		goesOn()
		require.Eventually(t, func() bool { return old.count(schema) > refused+10 }, 10*time.Second, time.Millisecond, "blue takes the old application's writes again")

		traffic.check(t)
		notes.stop()
		old.stop()
		notes.group.Wait()
		old.group.Wait()
		require.Empty(t, notes.failed)
		require.Empty(t, old.failed)
		require.Positive(t, old.refused[schema])
		times := notesIn(t, w, schema)
		for _, note := range append(old.written[schema], notes.acked...) {
			require.Equal(t, 1, times[note], note)
		}
	})
}

// notesIn counts the notes of a foreign schema's events.
func notesIn(t *testing.T, w *world, schema string) map[string]int {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), w.Legacy)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	rows, err := conn.Query(t.Context(), `SELECT note, count(*) FROM `+pgx.Identifier{schema, "work_event"}.Sanitize()+` GROUP BY 1`)
	require.NoError(t, err)
	times := map[string]int{}
	var (
		note string
		n    int
	)
	_, err = pgx.ForEachRow(rows, []any{&note, &n}, func() error { times[note] = n; return nil })
	require.NoError(t, err)
	return times
}
