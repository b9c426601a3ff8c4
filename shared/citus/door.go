package citus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

// Locator knows where tenants live; shared/directory implements it. What it
// answers may be stale: the gate in the database decides.
type Locator interface {
	// Locate returns the placement of a tenant, or a NotFound fault.
	Locate(ctx context.Context, id tenant.ID) (tenant.Placement, error)
	// Relocate returns a placement read after stale was found to be wrong.
	Relocate(ctx context.Context, stale tenant.Placement) (tenant.Placement, error)
}

// Door is the only way to tenant rows. Safe for concurrent use.
type Door struct {
	dbs     *Databases
	locator Locator
	rewrite func(sql string) string
}

// Option changes a Door.
type Option func(*Door)

// WithRewrite passes every statement of a callback through f before it is sent.
// The isolation tests use it to take the query's own tenant filter away and see
// that row-level security alone holds.
func WithRewrite(f func(sql string) string) Option { return func(d *Door) { d.rewrite = f } }

// NewDoor returns a door to the tenants that locator finds in dbs.
func NewDoor(dbs *Databases, locator Locator, opts ...Option) *Door {
	d := &Door{dbs: dbs, locator: locator, rewrite: func(sql string) string { return sql }}
	for _, o := range opts {
		o(d)
	}
	return d
}

// InTenant runs fn in one read-write transaction of one tenant, READ COMMITTED,
// and commits if fn returns nil. Statements name tables without a schema and pass
// the tenant as well (tenant_id = $1, tx.Tenant()): it prunes shards on Citus,
// row-level security is the second lock.
//
// fn may run again: after the tenant has moved, a serialization failure, a
// deadlock, or a connection lost before COMMIT was sent. So it must have no
// effect but through tx. When the outcome of COMMIT is unknown, the fault is of
// kind Uncertain and nothing is repeated.
//
// The begin, the entering of the tenant and fn's first statement share a round
// trip; each further statement and the COMMIT take one. See [Door.OneTrip].
func (d *Door) InTenant(ctx context.Context, id tenant.ID, fn func(tx *Tx) error) error {
	return d.follow(ctx, id, func(ctx context.Context, p *Pool) error { return d.transact(ctx, p, id, "begin", fn) })
}

// ReadTenant is InTenant in a READ ONLY transaction.
func (d *Door) ReadTenant(ctx context.Context, id tenant.ID, fn func(tx *Tx) error) error {
	return d.follow(ctx, id, func(ctx context.Context, p *Pool) error {
		return d.transact(ctx, p, id, "begin read only", fn)
	})
}

// OneTrip runs the statements that fn queues in one transaction and one round
// trip, COMMIT included. The results are handed to the callbacks of the queued
// statements (see pgx.QueuedQuery); an error of a callback rolls nothing back, for
// the COMMIT is on its way already. fn may run again as with InTenant.
func (d *Door) OneTrip(ctx context.Context, id tenant.ID, fn func(b *Batch)) error {
	return d.follow(ctx, id, func(ctx context.Context, p *Pool) error { return d.oneTrip(ctx, p, id, "begin", fn) })
}

// ReadTrip is OneTrip in a READ ONLY transaction: always safe to repeat.
func (d *Door) ReadTrip(ctx context.Context, id tenant.ID, fn func(b *Batch)) error {
	return d.follow(ctx, id, func(ctx context.Context, p *Pool) error {
		err := d.oneTrip(ctx, p, id, "begin read only", fn)
		if fault.KindOf(err) == fault.Uncertain {
			return lostConnection{err}
		}
		return err
	})
}

// errNotHere: the gate of the database says that the tenant is not (or no longer) there.
var errNotHere = errors.New("citus: the tenant is not in this database")

// lostConnection marks an error after which nothing can have been committed.
type lostConnection struct{ error }

func (e lostConnection) Unwrap() error { return e.error }

// Limits of what is repeated. Rerouting is bounded by Config.ReroutePatience instead.
const (
	maxRepeats   = 5
	firstBackoff = 2 * time.Millisecond
	maxBackoff   = 25 * time.Millisecond
)

// follow runs attempt where the tenant lives, and again where it lives then, until
// it succeeds, fails for good, or patience ends.
func (d *Door) follow(ctx context.Context, id tenant.ID, attempt func(context.Context, *Pool) error) error {
	if id.IsZero() {
		return fault.New(fault.Internal, "tenant_missing", "no organisation was given")
	}
	place, err := d.locator.Locate(ctx, id)
	if err != nil {
		return err
	}
	var (
		deadline = time.Now().Add(d.dbs.cfg.ReroutePatience)
		backoff  = firstBackoff
		repeats  = 0
	)
	for {
		if err := statusFault(place); err != nil {
			return err
		}
		pool, err := d.dbs.Pool(ctx, place.Database)
		if err != nil {
			return err
		}
		// Asked before a connection is held: asking needs one too.
		if _, err = pool.HasCitus(ctx); err != nil {
			err = lostConnection{err}
		} else {
			err = attempt(ctx, pool)
		}
		switch {
		case err == nil:
			return nil
		case isElsewhere(err):
			if time.Now().After(deadline) {
				f := fault.Wrap(err, fault.Unavailable, "tenant_moving", "the tenant is being moved and takes no writes at the moment; try again")
				f.RetryAfter = time.Second
				return f
			}
		case isRepeatable(err) && repeats < maxRepeats:
			repeats++
		default:
			return faultOf(err)
		}
		if err := wait(ctx, backoff); err != nil {
			return faultOf(err)
		}
		backoff = min(backoff*2, maxBackoff)
		if place, err = d.locator.Relocate(ctx, place); err != nil {
			return err
		}
	}
}

// wait pauses for about d, with jitter so that those who wait for one tenant do
// not come back together.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func statusFault(p tenant.Placement) error {
	switch p.Status {
	case tenant.Active:
		return nil
	case tenant.Suspended:
		return fault.New(fault.Forbidden, "tenant_suspended", "the organisation is suspended")
	case tenant.Provisioning:
		f := fault.New(fault.Unavailable, "tenant_provisioning", "the organisation is being set up; try again")
		f.RetryAfter = time.Second
		return f
	default:
		return fault.New(fault.NotFound, "tenant_not_found", "there is no such organisation")
	}
}

// enter returns the statement that enters a tenant, and its arguments. It answers
// with no row when the gate does not let the tenant in; nothing is set then, so
// that unqualified names fail and row-level security shows no rows.
func (d *Door) enter(ctx context.Context, p *Pool, id tenant.ID) (string, []any, error) {
	isCitus, err := p.HasCitus(ctx)
	if err != nil {
		return "", nil, err
	}
	timeout := fmt.Sprintf("%dms", d.dbs.cfg.StatementTimeout.Milliseconds())
	if isCitus {
		return `SELECT epoch, set_config('statement_timeout', $2, true) FROM coditect.enter($1)`, []any{id, timeout}, nil
	}
	return `SELECT epoch, set_config('statement_timeout', $2, true), set_config('app.tenant_id', tenant_id::text, true),
		set_config('search_path', concat_ws(', ', quote_ident(schema_name), quote_ident(shared_schema)), true)
		FROM coditect.gate WHERE tenant_id = $1 AND NOT closed AND NOT suspended`, []any{id, timeout}, nil
}

// queueEnter puts begin and enter at the head of a batch.
func (d *Door) queueEnter(ctx context.Context, b *pgx.Batch, p *Pool, id tenant.ID, begin string) error {
	sql, args, err := d.enter(ctx, p, id)
	if err != nil {
		return err
	}
	b.Queue(begin)
	b.Queue(sql, args...).Query(func(rows pgx.Rows) error {
		found := rows.Next()
		rows.Close()
		if err := rows.Err(); err != nil {
			return err
		}
		if !found {
			return errNotHere
		}
		return nil
	})
	return nil
}

func (d *Door) transact(ctx context.Context, p *Pool, id tenant.ID, begin string, fn func(*Tx) error) error {
	conn, err := p.Acquire(ctx)
	if err != nil {
		return lostConnection{err}
	}
	defer conn.Release()
	return d.transactOn(ctx, p, conn.Conn(), id, begin, fn)
}

func (d *Door) transactOn(ctx context.Context, p *Pool, conn *pgx.Conn, id tenant.ID, begin string, fn func(*Tx) error) (err error) {
	tx := &Tx{door: d, pool: p, conn: conn, id: id, begin: begin, readOnly: begin != "begin"}
	finished := false
	defer func() {
		if !finished {
			tx.rollback(ctx)
		}
		forgetIfStale(ctx, conn, err)
		tx.conn = nil // a Tx that outlives its callback can do nothing
	}()
	if err := fn(tx); err != nil {
		// The callback may have turned a moved tenant's error into one of its own.
		if tx.err != nil && (isElsewhere(tx.err) || isRepeatable(tx.err)) {
			return tx.err
		}
		return beforeCommit(conn, err)
	}
	if tx.err != nil {
		// A failed statement was ignored: the transaction is aborted, COMMIT would silently roll back.
		return beforeCommit(conn, tx.err)
	}
	if !tx.begun {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if conn.IsClosed() {
		return lostConnection{errors.New("citus: the connection broke before COMMIT")}
	}
	finished = true
	tag, err := conn.Exec(ctx, "commit")
	return commitResult(tag, err, tx.readOnly)
}

// beforeCommit marks an error of a connection that broke while nothing was committed.
func beforeCommit(conn *pgx.Conn, err error) error {
	var pgErr *pgconn.PgError
	if conn.IsClosed() && (!errors.As(err, &pgErr) || isShutdown(pgErr)) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return lostConnection{err}
	}
	return err
}

// commitResult tells committed, refused and unknown apart. pgconn.SafeToRetry is of no
// use here: pgx v5.12 calls an error safe to retry ("conn closed") when the connection
// broke while it read the answer to a statement that was sent.
func commitResult(tag pgconn.CommandTag, err error, readOnly bool) error {
	var pgErr *pgconn.PgError
	switch {
	case err == nil && tag.String() == "ROLLBACK":
		return fault.New(fault.Internal, "transaction_aborted", "the transaction was rolled back")
	case err == nil:
		return nil
	case errors.As(err, &pgErr) && !isShutdown(pgErr):
		return err // a deferred constraint, a serialization failure: the server rolled back and says why
	case readOnly:
		return lostConnection{err}
	default:
		return fault.Wrap(err, fault.Uncertain, "commit_uncertain",
			"the connection broke while the change was being saved; it may or may not have been: repeat it with the same Idempotency-Key, or read before you repeat")
	}
}

func (d *Door) oneTrip(ctx context.Context, p *Pool, id tenant.ID, begin string, fn func(b *Batch)) error {
	conn, err := p.Acquire(ctx)
	if err != nil {
		return lostConnection{err}
	}
	defer conn.Release()
	b := &Batch{door: d}
	fn(b)
	if !preparedOn(conn.Conn()).all(b) {
		// First use on this connection: preparing needs the tenant's search_path, hence a transaction that has entered.
		return d.transactOn(ctx, p, conn.Conn(), id, begin, func(tx *Tx) error { return tx.Send(ctx, b) })
	}
	pb := &pgx.Batch{}
	if err := d.queueEnter(ctx, pb, p, id, begin); err != nil {
		return beforeCommit(conn.Conn(), err)
	}
	pb.QueuedQueries = append(pb.QueuedQueries, b.inner.QueuedQueries...)
	committed := false
	pb.Queue("commit").Exec(func(tag pgconn.CommandTag) error {
		committed = true
		return commitResult(tag, nil, begin != "begin")
	})
	err = conn.SendBatch(ctx, pb).Close()
	switch {
	case err == nil:
		return nil
	case committed, errors.Is(err, errNotHere):
		// A callback's own error, or nothing was entered and so nothing done.
	case conn.Conn().IsClosed():
		return commitResult(pgconn.CommandTag{}, err, begin != "begin")
	}
	if !conn.Conn().IsClosed() && conn.Conn().PgConn().TxStatus() != 'I' {
		rollback(ctx, conn.Conn())
	}
	forgetIfStale(ctx, conn.Conn(), err)
	return err
}
