package migration_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

// writers write to tenants through the door until they are stopped, and remember
// what was acknowledged.
type writers struct {
	w      *world
	stop   context.CancelFunc
	group  sync.WaitGroup
	mu     sync.Mutex
	acked  map[tenant.ID]map[tenant.ID]string // tenant → row → last acknowledged name
	unsure map[tenant.ID]bool                 // rows whose last write had no answer
	failed []error
	count  atomic.Int64
}

// pace is the time between two rounds of a writer: without it, the writers of a test would
// take both cores from what they are to test.
const pace = 5 * time.Millisecond

// writeOn starts two writers per tenant: each inserts a row, changes it, and then deletes some
// and gives others a new key.
func writeOn(t *testing.T, w *world, ids []tenant.ID) *writers {
	ctx, cancel := context.WithCancel(t.Context())
	ws := &writers{w: w, stop: cancel, acked: map[tenant.ID]map[tenant.ID]string{}, unsure: map[tenant.ID]bool{}}
	for _, id := range ids {
		ws.acked[id] = rowsOf(t, w, id) // what was there before; all of it before the first writer reads the map
	}
	for _, id := range ids {
		for n := range 2 {
			ws.group.Go(func() {
				tick := time.NewTicker(pace)
				defer tick.Stop()
				for i := 0; ctx.Err() == nil; i++ {
					ws.write(ctx, id, i, fmt.Sprintf("%d-%d", n, i))
					<-tick.C
				}
			})
		}
	}
	t.Cleanup(func() { cancel(); ws.group.Wait() })
	return ws
}

func (ws *writers) write(ctx context.Context, id tenant.ID, i int, name string) {
	row, err := addProject(ctx, ws.w.Door, id, name)
	ws.note(ctx, id, row, name, err)
	if err != nil {
		return
	}
	changed := name + " changed"
	err = ws.w.Door.OneTrip(ctx, id, func(b *citus.Batch) {
		b.Queue(`UPDATE project SET name = $3, version = version + 1 WHERE tenant_id = $1 AND id = $2`, id, row, changed)
	})
	ws.note(ctx, id, row, changed, err)
	if err != nil {
		return
	}
	switch i % 3 {
	case 0:
		err = ws.w.Door.OneTrip(ctx, id, func(b *citus.Batch) { b.Queue(`DELETE FROM project WHERE tenant_id = $1 AND id = $2`, id, row) })
		ws.gone(ctx, id, row, err)
	case 1:
		moved := tenant.NewID()
		err = ws.w.Door.OneTrip(ctx, id, func(b *citus.Batch) {
			b.Queue(`UPDATE project SET id = $3 WHERE tenant_id = $1 AND id = $2`, id, row, moved)
		})
		ws.gone(ctx, id, row, err)
		ws.note(ctx, id, moved, changed, err)
	}
}

// gone notes that a row was deleted.
func (ws *writers) gone(ctx context.Context, id, row tenant.ID, err error) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	switch {
	case err == nil:
		ws.count.Add(1)
		delete(ws.acked[id], row)
	case ctx.Err() != nil, fault.KindOf(err) == fault.Uncertain:
		ws.unsure[row] = true
	default:
		ws.failed = append(ws.failed, err)
	}
}

// writeEach writes to every tenant, for a test that needs a write at this moment.
func (ws *writers) writeEach(t *testing.T) {
	for id := range ws.acked {
		for i := range 3 { // one is deleted, one gets a new key, one stays
			ws.write(t.Context(), id, i, "now")
		}
	}
}

func (ws *writers) note(ctx context.Context, id, row tenant.ID, name string, err error) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	switch {
	case err == nil:
		ws.count.Add(1)
		ws.acked[id][row] = name
	case ctx.Err() != nil, fault.KindOf(err) == fault.Uncertain:
		ws.unsure[row] = true
	default:
		ws.failed = append(ws.failed, err)
	}
}

// check stops the writers and looks every acknowledged write up where its tenant
// lives now: it is there once, with the value that was acknowledged last.
func (ws *writers) check(t *testing.T) {
	t.Helper()
	ws.stop()
	ws.group.Wait()
	require.Empty(t, ws.failed)
	require.Positive(t, ws.count.Load())
	for id, want := range ws.acked {
		have := rowsOf(t, ws.w, id)
		for row, name := range want {
			if !ws.unsure[row] {
				require.Equal(t, name, have[row], "tenant %s row %s", id, row)
			}
			delete(have, row)
		}
		for row, name := range have {
			require.True(t, ws.unsure[row], "tenant %s has row %s (%s), which nobody wrote", id, row, name)
		}
	}
}

// rowsOf reads a tenant's projects where it lives.
func rowsOf(t *testing.T, w *world, id tenant.ID) map[tenant.ID]string {
	t.Helper()
	have := map[tenant.ID]string{}
	require.NoError(t, w.Door.ReadTenant(t.Context(), id, func(tx *citus.Tx) error {
		rows, err := tx.Query(t.Context(), `SELECT id, name FROM project WHERE tenant_id = $1`, tx.Tenant())
		if err != nil {
			return err
		}
		var (
			row  tenant.ID
			name string
		)
		_, err = pgx.ForEachRow(rows, []any{&row, &name}, func() error { have[row] = name; return nil })
		return err
	}))
	return have
}

// oldApplication writes into a foreign schema as it always did: it knows nothing of
// the platform. The fence's refusal is the only failure it may see.
type oldApplication struct {
	stop    context.CancelFunc
	group   sync.WaitGroup
	mu      sync.Mutex
	written map[string][]string // schema → acknowledged notes
	refused map[string]int
	failed  []error
}

func runOldApplication(t *testing.T, dsn string, schemas []string) *oldApplication {
	ctx, cancel := context.WithCancel(t.Context())
	o := &oldApplication{stop: cancel, written: map[string][]string{}, refused: map[string]int{}}
	for _, s := range schemas {
		o.group.Go(func() {
			conn, err := pgx.Connect(ctx, dsn)
			if err != nil {
				o.fail(ctx, err)
				return
			}
			defer func() { _ = conn.Close(context.Background()) }()
			pace := time.NewTicker(5 * time.Millisecond)
			defer pace.Stop()
			for i := 0; ctx.Err() == nil; i++ {
				<-pace.C
				note := fmt.Sprintf("%s old %d", s, i)
				_, err := conn.Exec(ctx, `INSERT INTO `+pgx.Identifier{s, "work_event"}.Sanitize()+` (object_id, note, at, score, content_type_id)
					VALUES ('1', $1, now(), 0, 11)`, note)
				o.mu.Lock()
				switch {
				case err == nil:
					o.written[s] = append(o.written[s], note)
				case citus.StateOf(err) == citus.StateFenced:
					o.refused[s]++
				}
				o.mu.Unlock()
				if err != nil && citus.StateOf(err) != citus.StateFenced {
					o.fail(ctx, err)
					return
				}
			}
		})
	}
	t.Cleanup(func() { cancel(); o.group.Wait() })
	return o
}

func (o *oldApplication) fail(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.failed = append(o.failed, err)
}

// identical compares every row of every table of a tenant between its frozen blue
// schema and green, by the text of the rows: not by the mover's own hashes.
func identical(t *testing.T, w *world, blueDSN, schema, green string, id tenant.ID, own bool) (rows int) {
	t.Helper()
	ctx := t.Context()
	blue, err := pgx.Connect(ctx, blueDSN)
	require.NoError(t, err)
	defer func() { _ = blue.Close(context.Background()) }()
	cols, err := blue.Query(ctx, `SELECT c.relname::text, array_agg(quote_ident(a.attname) ORDER BY a.attname)::text[] FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
		WHERE c.relnamespace = to_regnamespace(quote_ident($1)) AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped GROUP BY 1`, schema)
	require.NoError(t, err)
	tables := map[string][]string{}
	var (
		name    string
		columns []string
	)
	_, err = pgx.ForEachRow(cols, []any{&name, &columns}, func() error { tables[name] = append([]string{}, columns...); return nil })
	require.NoError(t, err)
	require.NotEmpty(t, tables)
	for table, columns := range tables {
		list := ""
		for _, c := range columns {
			if list != "" {
				list += ", "
			}
			list += c + "::text"
		}
		read := func(conn interface {
			Query(context.Context, string, ...any) (pgx.Rows, error)
		}, sql string, args ...any) []string {
			rows, err := conn.Query(ctx, sql, args...)
			require.NoError(t, err)
			out, err := pgx.CollectRows(rows, pgx.RowTo[string])
			require.NoError(t, err)
			return out
		}
		query := `SELECT r FROM (SELECT array_to_string(ARRAY[` + list + `], '|', '<null>') AS r FROM `
		want := read(blue, query+pgx.Identifier{schema, table}.Sanitize()+`) x ORDER BY r COLLATE "C"`)
		have := read(w.Control, query+pgx.Identifier{green, table}.Sanitize()+` WHERE tenant_id = $1) x ORDER BY r COLLATE "C"`, id)
		require.Equal(t, want, have, "%s.%s", schema, table)
		rows += len(want)
	}
	return rows
}
