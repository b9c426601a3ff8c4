package migration

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/migration/convert"
)

// canonical are the settings of a copy and of what verifies it: one text for a value, and no
// surprise from the planner, for a fresh table has no statistics yet.
var canonical = append(convert.CanonicalText(), `SET LOCAL jit = off`)

// frozen begins a transaction that reads blue's rows as of one moment: the moment does
// not matter for a fenced tenant.
func frozen(ctx context.Context, blue interface {
	BeginTx(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error)
}, work func(tx pgx.Tx) error) error {
	// Blue is no Citus: all in one message.
	begin := `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; ` + strings.Join(canonical, "; ")
	return pgx.BeginTxFunc(ctx, blue, pgx.TxOptions{BeginQuery: begin}, work)
}

// readGreen begins a transaction that sees green's committed rows past row-level security.
func (m *Mover) readGreen(ctx context.Context, work func(tx pgx.Tx) error) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, control, func(tx pgx.Tx) error {
		// Without statistics the planner would rather read everybody's rows than a few tenants'.
		if err := execAll(ctx, tx, append([]string{`SET LOCAL enable_seqscan = off`}, canonical...)); err != nil {
			return err
		}
		return work(tx)
	})
}

// writeGreen begins a transaction that writes green's rows of moves in a state. It
// holds the moves' rows, and leaves foreign keys alone: the rows were checked where
// they come from, and are checked once more by verify.
func (m *Mover) writeGreen(ctx context.Context, state State, moves []Move, work func(tx pgx.Tx) error) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, control, func(tx pgx.Tx) error {
		b := &pgx.Batch{}
		b.Queue(`SET LOCAL lock_timeout = '10s'`)
		queueLock(b, state, moves)
		b.Queue(`SET LOCAL session_replication_role = 'replica'`)
		b.Queue(`SET LOCAL enable_seqscan = off`) // as in readGreen
		for _, s := range canonical {
			b.Queue(s)
		}
		if err := tx.SendBatch(ctx, b).Close(); err != nil {
			return err
		}
		return work(tx)
	})
}

// execAll runs statements without arguments in one round trip.
func execAll(ctx context.Context, tx pgx.Tx, statements []string) error {
	b := &pgx.Batch{}
	for _, s := range statements {
		b.Queue(s)
	}
	return tx.SendBatch(ctx, b).Close()
}

// pipe copies one query's rows into one of green's tables and counts them. Memory
// is bounded by the pipe, whatever the size.
func pipe(ctx context.Context, from, to *pgx.Conn, l convert.Layout, t convert.Table, query string) (int64, error) {
	return pipeWhen(ctx, nil, from, to, l, t, query)
}

// pipeBuffer is how many bytes go through a pipe at once: COPY gives row by row, and each would be
// a message of its own to green, handed from one goroutine to the other.
const pipeBuffer = 60 << 10

// pipeWhen is pipe for rows that nobody waits for: it stands still while somebody does.
func pipeWhen(ctx context.Context, calm *calm, from, to *pgx.Conn, l convert.Layout, t convert.Table, query string) (int64, error) {
	format := "text"
	if t.Binary {
		format = "binary"
	}
	return fillGreen(ctx, calm, to, l, t, format, func(ctx context.Context, w io.Writer) error {
		_, err := from.PgConn().CopyTo(ctx, w, fmt.Sprintf("COPY (%s) TO STDOUT (FORMAT %s)", query, format))
		return err
	})
}

// fillGreen copies what read writes into one of green's tables and counts the rows.
func fillGreen(ctx context.Context, calm *calm, to *pgx.Conn, l convert.Layout, t convert.Table, format string, read func(ctx context.Context, w io.Writer) error) (int64, error) {
	r, w := io.Pipe()
	var cause error
	var once sync.Once
	failed := func(err error) error { // the other side fails with it, and may be the first to say so
		once.Do(func() { cause = err })
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		buffer := bufio.NewWriterSize(calmWriter{ctx, calm, w}, pipeBuffer)
		err := read(ctx, buffer)
		if err == nil {
			err = buffer.Flush()
		}
		if err != nil {
			err = failed(fmt.Errorf("migration: read table %s: %w", t.Name, err))
		}
		_ = w.CloseWithError(err) // nil is an end of file
		return err
	})
	var tag pgconn.CommandTag
	g.Go(func() (err error) {
		tag, err = to.PgConn().CopyFrom(ctx, r, fmt.Sprintf("COPY %s (%s) FROM STDIN (FORMAT %s)", quoted(l.GreenSchema, t.Name), greenColumns(t), format))
		if err != nil {
			err = failed(fmt.Errorf("migration: write table %s: %w", t.Name, err))
		}
		_ = r.CloseWithError(err)
		return err
	})
	if g.Wait() != nil {
		return 0, cause
	}
	return tag.RowsAffected(), nil
}

// triedBefore lists the moves that an earlier step may have copied rows of.
func triedBefore(moves []Move) []Move {
	var out []Move
	for _, v := range moves {
		if v.Attempts > 1 {
			out = append(out, v)
		}
	}
	return out
}

// purge deletes green's rows of tenants that do not live there.
func purge(ctx context.Context, green pgx.Tx, l convert.Layout, moves []Move) error {
	if len(moves) == 0 {
		return nil
	}
	b := &pgx.Batch{}
	for i := len(l.Tables) - 1; i >= 0; i-- {
		b.Queue(`DELETE FROM `+quoted(l.GreenSchema, l.Tables[i].Name)+` WHERE tenant_id = ANY($1)`, tenantsOf(moves))
	}
	b.Queue(`DELETE FROM control.copied WHERE tenant_id = ANY($1)`, tenantsOf(moves))
	if err := green.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("migration: delete the rows of an earlier attempt: %w", err)
	}
	return nil
}

// copyBig copies one tenant that is too big for a step: page by page, each chunk in a
// transaction of its own together with the position, so that the next step goes on
// where this one stops. The pages stand still, for the tenant is fenced. It reports
// whether everything is copied.
func (m *Mover) copyBig(ctx context.Context, blue *citus.Pool, l convert.Layout, f fenced, stop func() bool) (bool, error) {
	control, err := m.control(ctx)
	if err != nil {
		return false, err
	}
	done, err := progressOf(ctx, control, f)
	if err != nil {
		return false, err
	}
	if len(done) == 0 {
		// Nothing was copied under this fence; what is there is from another.
		if err := m.writeGreen(ctx, Fenced, []Move{f.Move}, func(tx pgx.Tx) error { return purge(ctx, tx, l, triedBefore([]Move{f.Move})) }); err != nil {
			return false, err
		}
	}
	first := true // however small the budget, a step gets further
	for _, t := range l.Tables {
		for page := done[t.Name]; page != allPages; first = false {
			if !first && stop() {
				return false, nil
			}
			if page, err = m.copyChunk(ctx, blue, l, t, f, page); err != nil {
				return false, err
			}
			m.crash("chunk copied")
		}
	}
	return true, nil
}

// allPages stands for "the whole table is copied".
const allPages = -1

// progressOf reads how far each table is: its next page, or allPages.
func progressOf(ctx context.Context, db querier, f fenced) (map[string]int64, error) {
	rows, err := db.Query(ctx, `SELECT table_name, CASE WHEN done THEN -1 ELSE next_page END FROM control.copied WHERE tenant_id = $1 AND fence_id = $2`, f.Tenant, f.FenceID)
	if err != nil {
		return nil, err
	}
	out := map[string]int64{}
	var (
		name string
		page int64
	)
	_, err = pgx.ForEachRow(rows, []any{&name, &page}, func() error { out[name] = page; return nil })
	return out, err
}

// copyChunk copies the rows of some pages and returns the next page.
func (m *Mover) copyChunk(ctx context.Context, blue *citus.Pool, l convert.Layout, t convert.Table, f fenced, page int64) (next int64, err error) {
	err = m.writeGreen(ctx, Fenced, []Move{f.Move}, func(green pgx.Tx) error {
		return frozen(ctx, blue, func(from pgx.Tx) error {
			var pages int64
			if err := from.QueryRow(ctx, `SELECT pg_relation_size($1::regclass) / current_setting('block_size')::bigint`, quoted(f.Schema, t.Name)).Scan(&pages); err != nil {
				return err
			}
			query := blueSelect(t, f.Move)
			next = page + m.cfg.ChunkPages
			if next >= pages {
				next = allPages
				query += fmt.Sprintf(` WHERE ctid >= '(%d,0)'`, page)
			} else {
				query += fmt.Sprintf(` WHERE ctid >= '(%d,0)' AND ctid < '(%d,0)'`, page, next)
			}
			n, err := pipe(ctx, from.Conn(), green.Conn(), l, t, query)
			if err != nil {
				return err
			}
			_, err = green.Exec(ctx, `INSERT INTO control.copied AS c (tenant_id, table_name, fence_id, next_page, rows, done) VALUES ($1, $2, $3, $4, $5, $6)
				ON CONFLICT (tenant_id, table_name) DO UPDATE SET fence_id = excluded.fence_id, next_page = excluded.next_page,
					rows = c.rows + excluded.rows, done = excluded.done`, f.Tenant, t.Name, f.FenceID, max(next, 0), n, next == allPages)
			return err
		})
	})
	return next, err
}

// calm tells the copies of a process when tenants wait for it: their fenced part goes first.
type calm struct {
	mu      sync.Mutex
	waiting int
	over    chan struct{} // closed when nobody waits any more
}

// enter begins a part in which tenants wait, and returns its end.
func (c *calm) enter() (leave func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting == 0 {
		c.over = make(chan struct{})
	}
	c.waiting++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.waiting--; c.waiting == 0 {
			close(c.over)
		}
	}
}

// wait returns when no tenant waits.
func (c *calm) wait(ctx context.Context) error {
	c.mu.Lock()
	waiting, over := c.waiting, c.over
	c.mu.Unlock()
	if waiting == 0 {
		return nil
	}
	select {
	case <-over:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// calmWriter waits before each write; without a calm it does not.
type calmWriter struct {
	ctx  context.Context
	calm *calm
	to   io.Writer
}

func (w calmWriter) Write(p []byte) (int, error) {
	if w.calm != nil {
		if err := w.calm.wait(w.ctx); err != nil {
			return 0, err
		}
	}
	return w.to.Write(p)
}
