package citus

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/coditect/platform/shared/tenant"
)

// Tx is a transaction of one tenant, or of [Door.ReadTenant] a sequence of such. It
// can do nothing outside of either, and nothing at all after its callback has
// returned. Not safe for concurrent use.
type Tx struct {
	door      *Door
	at        place
	conn      *pgx.Conn
	readOnly  bool // each statement commits with itself
	begun     bool
	commits   bool       // COMMIT of a change has been sent along with statements,
	committed bool       // and was answered
	open      *firstRows // rows that the callback has not closed yet
	err       error      // the first database error: the transaction is aborted from then on
}

// Tenant returns the tenant the transaction belongs to: the $1 of every statement.
func (tx *Tx) Tenant() tenant.ID { return tx.at.id }

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

// Send runs the statements of a batch in one round trip (two more, the first time a
// connection sees one of them) and hands the results to their callbacks.
func (tx *Tx) Send(ctx context.Context, b *Batch) error { return tx.send(ctx, b, tx.readOnly) }

// sendAll sends what fn queues, with the COMMIT.
func (tx *Tx) sendAll(ctx context.Context, fn func(b *Batch)) error {
	b := tx.NewBatch()
	fn(b)
	return tx.send(ctx, b, true)
}

func (tx *Tx) send(ctx context.Context, b *Batch, commit bool) error {
	if err := tx.usable(); err != nil {
		return err
	}
	pb, _, err := tx.compose(ctx, b.inner.QueuedQueries, commit)
	if err != nil {
		return tx.fail(err)
	}
	err = tx.conn.SendBatch(ctx, pb).Close()
	if err == nil && tx.commits {
		tx.committed = true
	}
	return tx.fail(err)
}

// compose makes a batch of statements: with begin and enter before the first, with
// COMMIT after them if asked. It returns as well how many were put before them.
//
// A transaction that is one batch needs neither begin nor COMMIT: the statements up to the
// Sync at its end are one (PostgreSQL's "implicit transaction block"). Citus hands settings
// on to its workers only in a transaction that has begun.
func (tx *Tx) compose(ctx context.Context, queries []*pgx.QueuedQuery, commit bool) (*pgx.Batch, int, error) {
	const before = 2 // begin, enter
	all := make([]pgx.QueuedQuery, before+len(queries)+1)
	known := statementsOf(tx.conn)
	known.turn++
	for i, q := range queries {
		name, err := known.name(ctx, tx, q.SQL)
		if err != nil {
			return nil, 0, err
		}
		all[before+i] = pgx.QueuedQuery{SQL: name, Arguments: q.Arguments, Fn: q.Fn}
	}
	head := 0
	implicit := commit && !tx.begun && !tx.at.citus
	switch {
	case implicit:
		head = 1
		all[1] = tx.enter()
		if tx.readOnly {
			all[1].SQL = enterReading
		}
	case !tx.begun:
		head = before
		all[0].SQL, all[1] = tx.begin(), tx.enter()
	}
	all = all[before-head:]
	if commit && !implicit {
		all[len(all)-1] = pgx.QueuedQuery{SQL: "commit", Fn: tx.answered}
	} else {
		all = all[:len(all)-1]
	}
	pb := &pgx.Batch{QueuedQueries: make([]*pgx.QueuedQuery, len(all))}
	for i := range all {
		pb.QueuedQueries[i] = &all[i]
	}
	tx.begun = !commit
	tx.commits = commit && !tx.readOnly
	return pb, head, nil
}

func (tx *Tx) begin() string {
	if tx.readOnly {
		return "begin read only"
	}
	return "begin"
}

func (tx *Tx) enter() pgx.QueuedQuery {
	sql := enterPlain
	if tx.at.citus {
		sql = enterCitus
	}
	return pgx.QueuedQuery{SQL: sql, Arguments: []any{tx.at.id, tx.door.timeout}, Fn: entered}
}

// entered reads the answer of the gate.
func entered(br pgx.BatchResults) error {
	tag, err := br.Exec()
	if err == nil && tag.RowsAffected() == 0 {
		return errNotHere
	}
	return err
}

// answered reads the answer to a COMMIT that went along with statements.
func (tx *Tx) answered(br pgx.BatchResults) error {
	tag, err := br.Exec()
	if err != nil {
		return err
	}
	err = commitResult(tag, nil)
	tx.committed = err == nil
	return err
}

// run runs the callback and ends what it left open.
func (tx *Tx) run(ctx context.Context, fn func(*Tx) error) (err error) {
	defer func() {
		tx.rollback(ctx)
		forgetIfStale(ctx, tx.conn, err)
		tx.conn = nil // a Tx that outlives its callback can do nothing
	}()
	err = fn(tx)
	if tx.open != nil {
		tx.open.Close()
	}
	if tx.commits {
		return tx.outcome(err)
	}
	if err != nil {
		// The callback may have turned a moved tenant's error into one of its own.
		if tx.err != nil && (isElsewhere(tx.err) || isRepeatable(tx.err)) {
			return tx.err
		}
		return beforeCommit(tx.conn, err)
	}
	if tx.err != nil {
		// A failed statement was ignored: the transaction is aborted, COMMIT would silently roll back.
		return beforeCommit(tx.conn, tx.err)
	}
	if !tx.begun {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if tx.conn.IsClosed() {
		return lostConnection{errors.New("citus: the connection broke before COMMIT")}
	}
	return commitResult(tx.conn.Exec(ctx, "commit"))
}

// outcome tells what became of a change whose COMMIT went along with its statements.
func (tx *Tx) outcome(err error) error {
	switch {
	case tx.committed:
		return nil // whatever happened to the connection after that
	case err == nil, errors.Is(err, errNotHere), !tx.conn.IsClosed():
		return err // nothing was entered and so nothing done, or the server has said what is
	default:
		return commitResult(pgconn.CommandTag{}, err)
	}
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
	q := pgx.QueuedQuery{SQL: tx.door.rewrite(sql), Arguments: args}
	if tx.begun && !tx.readOnly {
		return tx.queryMore(ctx, &q)
	}
	pb, head, err := tx.compose(ctx, []*pgx.QueuedQuery{&q}, tx.readOnly)
	if err != nil {
		return nil, tx.fail(err)
	}
	br := tx.conn.SendBatch(ctx, pb)
	if head > 1 {
		_, err = br.Exec() // begin
	}
	if head > 0 && err == nil {
		err = entered(br)
	}
	var rows pgx.Rows
	if err == nil {
		rows, err = br.Query()
	}
	if err != nil {
		_ = br.Close()
		return nil, tx.fail(err)
	}
	tx.open = &firstRows{Rows: rows, tx: tx, br: br}
	return tx.open, nil
}

// queryMore runs a statement of a transaction that has begun and goes on.
func (tx *Tx) queryMore(ctx context.Context, q *pgx.QueuedQuery) (pgx.Rows, error) {
	known := statementsOf(tx.conn)
	known.turn++
	name, err := known.name(ctx, tx, q.SQL)
	if err != nil {
		return nil, tx.fail(err)
	}
	rows, err := tx.conn.Query(ctx, name, q.Arguments...)
	if err != nil {
		return nil, tx.fail(err)
	}
	tx.open = &firstRows{Rows: rows, tx: tx}
	return tx.open, nil
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
	if r.tx.open == r {
		r.tx.open = nil
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
	if tx.readOnly {
		return tx.err // the statements are one reading: without one of them there is nothing more to read
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
	if !tx.conn.IsClosed() && tx.conn.PgConn().TxStatus() != 'I' {
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
