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
	timeout any // Config.StatementTimeout, as the statement that enters a tenant takes it
}

// Option changes a Door.
type Option func(*Door)

// WithRewrite passes every statement of a callback through f before it is sent.
// The isolation tests use it to take the query's own tenant filter away and see
// that row-level security alone holds.
func WithRewrite(f func(sql string) string) Option { return func(d *Door) { d.rewrite = f } }

// NewDoor returns a door to the tenants that locator finds in dbs.
func NewDoor(dbs *Databases, locator Locator, opts ...Option) *Door {
	d := &Door{
		dbs: dbs, locator: locator,
		rewrite: func(sql string) string { return sql },
		timeout: fmt.Sprintf("%dms", dbs.cfg.StatementTimeout.Milliseconds()),
	}
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
	return d.follow(ctx, id, func(ctx context.Context, at place) error { return d.transact(ctx, at, false, fn) })
}

// ReadTenant is InTenant for callbacks that only read. Every statement (and every
// [Tx.Send]) is a READ ONLY transaction of its own and takes one round trip, in
// which the tenant is entered and left again.
//
// What a callback sees is what it would see in one READ COMMITTED transaction, where
// each statement has its own snapshot as well; but now() moves on between its
// statements, and what is set for a transaction ends with its statement. A tenant
// that moves between two statements is followed, and fn is repeated there: fn never
// reads one part in the old home and one in the new.
func (d *Door) ReadTenant(ctx context.Context, id tenant.ID, fn func(tx *Tx) error) error {
	return d.follow(ctx, id, func(ctx context.Context, at place) error { return d.transact(ctx, at, true, fn) })
}

// OneTrip runs the statements that fn queues in one transaction and one round
// trip, COMMIT included. The results are handed to the callbacks of the queued
// statements (see pgx.QueuedQuery); an error of a callback rolls nothing back, for
// the COMMIT is on its way already. fn may run again as with InTenant.
func (d *Door) OneTrip(ctx context.Context, id tenant.ID, fn func(b *Batch)) error {
	return d.InTenant(ctx, id, func(tx *Tx) error { return tx.sendAll(ctx, fn) })
}

// ReadTrip is OneTrip in a READ ONLY transaction: always safe to repeat.
func (d *Door) ReadTrip(ctx context.Context, id tenant.ID, fn func(b *Batch)) error {
	return d.ReadTenant(ctx, id, func(tx *Tx) error { return tx.sendAll(ctx, fn) })
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

// place is where a tenant is believed to live, as an attempt needs it.
type place struct {
	pool   *Pool
	id     tenant.ID
	schema string // the tenant's own; "" where tenants share one
	citus  bool
}

// follow runs attempt where the tenant lives, and again where it lives then, until
// it succeeds, fails for good, or patience ends.
func (d *Door) follow(ctx context.Context, id tenant.ID, attempt func(context.Context, place) error) error {
	if id.IsZero() {
		return fault.New(fault.Internal, "tenant_missing", "no organisation was given")
	}
	found, err := d.locator.Locate(ctx, id)
	if err != nil {
		return err
	}
	var (
		deadline = time.Now().Add(d.dbs.cfg.ReroutePatience)
		backoff  = firstBackoff
		repeats  = 0
	)
	for {
		if err := statusFault(found); err != nil {
			return err
		}
		pool, err := d.dbs.Pool(ctx, found.Database)
		if err != nil {
			return err
		}
		// Asked before a connection is held: asking needs one too.
		if isCitus, e := pool.HasCitus(ctx); e != nil {
			err = lostConnection{e}
		} else {
			err = attempt(ctx, placeOf(pool, found, isCitus))
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
		if found, err = d.locator.Relocate(ctx, found); err != nil {
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

// The statements that enter a tenant. They answer with no row when the gate does
// not let the tenant in; nothing is set then, so that unqualified names fail and
// row-level security shows no rows.
const (
	enterCitus = `SELECT epoch, set_config('statement_timeout', $2, true) FROM coditect.enter($1)`
	enterPlain = `SELECT epoch` + entering
	// Where there is no BEGIN READ ONLY.
	enterReading = `SELECT set_config('transaction_read_only', 'on', true)` + entering

	entering = `, set_config('statement_timeout', $2, true), set_config('app.tenant_id', tenant_id::text, true),
		set_config('search_path', concat_ws(', ', quote_ident(schema_name), quote_ident(shared_schema)), true)
		FROM coditect.gate WHERE tenant_id = $1 AND NOT closed AND NOT suspended`
)

func placeOf(pool *Pool, p tenant.Placement, isCitus bool) place {
	at := place{pool: pool, id: p.Tenant, citus: isCitus}
	if p.Home == tenant.Blue {
		at.schema = p.Schema
	}
	return at
}

func (d *Door) transact(ctx context.Context, at place, readOnly bool, fn func(*Tx) error) error {
	conn, err := at.pool.Acquire(ctx)
	if err != nil {
		return lostConnection{err}
	}
	defer conn.Release()
	tx := &Tx{door: d, at: at, conn: conn.Conn(), readOnly: readOnly}
	return tx.run(ctx, fn)
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
func commitResult(tag pgconn.CommandTag, err error) error {
	var pgErr *pgconn.PgError
	switch {
	case err == nil && tag.String() == "ROLLBACK":
		return fault.New(fault.Internal, "transaction_aborted", "the transaction was rolled back")
	case err == nil:
		return nil
	case errors.As(err, &pgErr) && !isShutdown(pgErr):
		return err // a deferred constraint, a serialization failure: the server rolled back and says why
	default:
		return fault.Wrap(err, fault.Uncertain, "commit_uncertain",
			"the connection broke while the change was being saved; it may or may not have been: repeat it with the same Idempotency-Key, or read before you repeat")
	}
}
