package citus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/coditect/platform/shared/tenant"
)

// Tx is a transaction of one tenant. It can do nothing outside of either, and
// nothing at all after its callback has returned. Not safe for concurrent use.
type Tx struct {
	door     *Door
	pool     *Pool
	conn     *pgx.Conn
	id       tenant.ID
	begin    string
	readOnly bool
	begun    bool
	err      error // the first database error: the transaction is aborted from then on
}

// Tenant returns the tenant the transaction belongs to: the $1 of every statement.
func (tx *Tx) Tenant() tenant.ID { return tx.id }

// Batch is a list of statements sent in one round trip.
type Batch struct {
	door  *Door
	inner pgx.Batch
}

// Queue adds a statement. Its result is read by the callback given to one of the
// returned query's methods; without one it is discarded.
func (b *Batch) Queue(sql string, args ...any) *pgx.QueuedQuery {
	return b.inner.Queue(b.door.rewrite(sql), args...)
}

// NewBatch returns an empty batch for [Tx.Send].
func (tx *Tx) NewBatch() *Batch { return &Batch{door: tx.door} }

var errFinished = errors.New("citus: the transaction's callback has returned")

// Send runs the statements of a batch in one round trip (two, the first time a
// connection sees one of them) and hands the results to their callbacks.
func (tx *Tx) Send(ctx context.Context, b *Batch) error {
	if err := tx.usable(); err != nil {
		return err
	}
	var sqls []string
	for _, q := range b.inner.QueuedQueries {
		sqls = append(sqls, q.SQL)
	}
	if err := tx.prepare(ctx, sqls...); err != nil {
		return tx.fail(err)
	}
	pb := &pgx.Batch{}
	if !tx.begun {
		if err := tx.door.queueEnter(ctx, pb, tx.pool, tx.id, tx.begin); err != nil {
			return tx.fail(err)
		}
		tx.begun = true
	}
	pb.QueuedQueries = append(pb.QueuedQueries, b.inner.QueuedQueries...)
	return tx.fail(tx.conn.SendBatch(ctx, pb).Close())
}

// Exec runs one statement.
func (tx *Tx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	var tag pgconn.CommandTag
	b := tx.NewBatch()
	b.Queue(sql, args...).Exec(func(t pgconn.CommandTag) error { tag = t; return nil })
	err := tx.Send(ctx, b)
	return tag, err
}

// Query runs one statement. The rows are to be closed before the next statement,
// as with pgx. Like there, errors may come with the first rows.
func (tx *Tx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if err := tx.usable(); err != nil {
		return nil, err
	}
	sql = tx.door.rewrite(sql)
	if err := tx.prepare(ctx, sql); err != nil {
		return nil, tx.fail(err)
	}
	if !tx.begun {
		pb := &pgx.Batch{}
		if err := tx.door.queueEnter(ctx, pb, tx.pool, tx.id, tx.begin); err != nil {
			return nil, tx.fail(err)
		}
		tx.begun = true
		enter := pb.QueuedQueries[1].Fn
		pb.Queue(sql, args...)
		br := tx.conn.SendBatch(ctx, pb)
		_, err := br.Exec()
		if err == nil {
			err = enter(br)
		}
		if err != nil {
			_ = br.Close()
			return nil, tx.fail(err)
		}
		rows, err := br.Query()
		if err != nil {
			_ = br.Close()
			return nil, tx.fail(err)
		}
		return &firstRows{Rows: rows, tx: tx, br: br}, nil
	}
	rows, err := tx.conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, tx.fail(err)
	}
	return &firstRows{Rows: rows, tx: tx}, nil
}

// QueryRow runs one statement and keeps its first row. No row is pgx.ErrNoRows.
func (tx *Tx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	rows, err := tx.Query(ctx, sql, args...)
	return &oneRow{rows, err}
}

type oneRow struct {
	rows pgx.Rows
	err  error
}

func (r *oneRow) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	defer r.rows.Close()
	if !r.rows.Next() {
		r.rows.Close()
		if err := r.rows.Err(); err != nil {
			return err
		}
		return pgx.ErrNoRows
	}
	if err := r.rows.Scan(dest...); err != nil {
		return err
	}
	r.rows.Close()
	return r.rows.Err()
}

// firstRows are rows that remember their transaction's first error, and close the
// batch they came in.
type firstRows struct {
	pgx.Rows
	tx  *Tx
	br  pgx.BatchResults
	err error
}

func (r *firstRows) Next() bool {
	if r.Rows.Next() {
		return true
	}
	r.Close()
	return false
}

func (r *firstRows) Close() {
	r.Rows.Close()
	err := r.Rows.Err()
	if r.br != nil {
		if e := r.br.Close(); err == nil {
			err = e
		}
		r.br = nil
	}
	if err != nil && r.err == nil {
		r.err = r.tx.fail(err)
	}
}

func (r *firstRows) Err() error {
	if r.err != nil {
		return r.err
	}
	return r.Rows.Err()
}

func (tx *Tx) usable() error {
	if tx.conn == nil {
		return errFinished
	}
	return nil
}

// fail remembers the first database error.
func (tx *Tx) fail(err error) error {
	if err != nil && tx.err == nil {
		var pgErr *pgconn.PgError
		if errors.As(err, &pgErr) || errors.Is(err, errNotHere) || tx.conn.IsClosed() {
			tx.err = err
		}
	}
	return err
}

func (tx *Tx) rollback(ctx context.Context) {
	if tx.begun && !tx.conn.IsClosed() {
		rollback(ctx, tx.conn)
	}
}

// rollback ends an unfinished transaction so that its connection can be used
// again; the pool closes one that does not answer.
func rollback(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_, _ = conn.Exec(ctx, "rollback")
}

// prepared is the set of statements prepared on one connection. pgx would do this
// by itself, but before the transaction begins, when no search_path is set and no
// name can be found.
type prepared map[string]bool

const preparedKey = "coditect prepared"

func preparedOn(conn *pgx.Conn) prepared {
	data := conn.PgConn().CustomData()
	if p, ok := data[preparedKey].(prepared); ok {
		return p
	}
	p := prepared{}
	data[preparedKey] = p
	return p
}

// all reports whether every statement of a batch is prepared.
func (p prepared) all(b *Batch) bool {
	for _, q := range b.inner.QueuedQueries {
		if !p[q.SQL] {
			return false
		}
	}
	return true
}

// forgetIfStale drops a connection's prepared statements after an error that says
// that they no longer fit: a table got another shape, or a pooler lost them.
func forgetIfStale(ctx context.Context, conn *pgx.Conn, err error) {
	if !isStalePlan(err) || conn.IsClosed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.DeallocateAll(ctx)
	clear(preparedOn(conn))
}

// prepare makes sure that statements are prepared on the connection, entering the
// tenant first where one is not.
func (tx *Tx) prepare(ctx context.Context, sqls ...string) error {
	known := preparedOn(tx.conn)
	for _, sql := range sqls {
		if known[sql] {
			continue
		}
		if !tx.begun {
			pb := &pgx.Batch{}
			if err := tx.door.queueEnter(ctx, pb, tx.pool, tx.id, tx.begin); err != nil {
				return err
			}
			tx.begun = true
			if err := tx.conn.SendBatch(ctx, pb).Close(); err != nil {
				return err
			}
		}
		if len(known) >= tx.door.dbs.cfg.StatementCache {
			// Whatever was prepared is forgotten at once; it happens to callers that put values into SQL.
			if err := tx.conn.DeallocateAll(ctx); err != nil {
				return fmt.Errorf("citus: forget prepared statements: %w", err)
			}
			clear(known)
		}
		if _, err := tx.conn.Prepare(ctx, sql, sql); err != nil {
			return err
		}
		known[sql] = true
	}
	return nil
}
