package migration

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/convert"
	"github.com/coditect/platform/shared/migration/stream"
)

// onlineMove is one tenant's move the online way: its rows are copied in chunks while it is
// written, its changes come by the stream, and the fence goes up only for the last of them. A
// step does a bounded piece; each of its effects is committed with what remembers it, so the next
// step, in whatever process, goes on there.
type onlineMove struct {
	m       *Mover
	run     Run
	blue    *citus.Pool
	l       convert.Layout
	shape   string
	v       Move
	lane    stream.Lane
	slot    string
	stop    func() bool
	visible visibilities // of what is wholly copied
	fits    sync.Map     // *fitting by shape of changes

	// Of the comparison.
	ahead    *backlog           // what is known of the changes that are to be applied
	compared watermark          // packs up to here are gone
	stood    map[rowID]standing // rows that differed
	applied  atomic.Int64       // what blue's WAL has before is applied
	behind   bool               // it follows, and has changes to apply
	moved    bool               // it got further
	tired    time.Duration      // for so long blue is to be left alone
}

// move does a piece of a large tenant's move.
func (o *onlineMove) move(ctx context.Context) error {
	err := o.work(ctx)
	if fault.CodeOf(err) == rowLeftBehind || o.v.Hold && schemasDiffer(err) {
		err = o.startOver(ctx, messageOf(err))
	}
	return err
}

// work goes through the states as far as the budget allows.
func (o *onlineMove) work(ctx context.Context) error {
	if err := o.inLane(ctx); err != nil {
		return err
	}
	if o.v.State == Planned {
		if err := o.join(ctx); err != nil {
			return o.later(ctx, err)
		}
	}
	if o.v.State == Copying {
		if finished, err := o.copyChunks(ctx); err != nil || !finished {
			return err
		}
		if err := o.advance(ctx, CatchingUp, Copying); err != nil {
			return err
		}
	}
	if o.v.State == Following {
		return o.follow(ctx)
	}
	if o.v.State == CatchingUp {
		if near, err := o.catchUp(ctx); err != nil || !near {
			return err
		}
		if o.v.Hold {
			return o.advance(ctx, Following, CatchingUp)
		}
	}
	return o.cutOver(ctx)
}

// laneOf chooses a tenant's lane.
func (m *Mover) laneOf(v Move) stream.Lane {
	return stream.Lane{Database: v.Database, Number: 1 + int(v.Tenant[len(v.Tenant)-1])%m.cfg.Lanes}
}

// online reports whether tenants of a blue database may move the online way: whether the
// database lets its changes be read.
func (m *Mover) online(ctx context.Context, blue querier) (ok bool, err error) {
	if m.cfg.Lanes < 0 {
		return false, nil
	}
	err = blue.QueryRow(ctx, `SELECT current_setting('wal_level') = 'logical' AND (rolreplication OR rolsuper) FROM pg_roles WHERE rolname = current_user`).Scan(&ok)
	return ok, err
}

// inLane opens the lane and makes sure that somebody receives. A move whose slot was lost or
// given up begins anew: changes are missing.
func (o *onlineMove) inLane(ctx context.Context) error {
	open, cancel := context.WithTimeout(ctx, openPatience)
	defer cancel()
	p, err := stream.Open(open, o.m.dbs, o.lane)
	if err != nil {
		if open.Err() != nil && ctx.Err() == nil {
			return fault.Wrap(err, fault.Unavailable, "slot_waits", "blue has transactions that have been open for more than %v; the change stream begins when they have ended", openPatience)
		}
		return err
	}
	o.slot = p.Slot
	if err := o.m.wakeReceiver(ctx, o.lane); err != nil {
		return err
	}
	if o.v.State == Planned {
		return nil
	}
	control, err := o.m.control(ctx)
	if err != nil {
		return err
	}
	var (
		joined bool
		shape  *string
	)
	err = control.QueryRow(ctx, `SELECT joined AND slot = $2, shape FROM control.streamed WHERE tenant_id = $1`, o.v.Tenant, o.slot).Scan(&joined, &shape)
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	if err == nil && joined && o.v.Hold && shape != nil && *shape != o.shape {
		return o.startOver(ctx, "the tables have changed: the tenant is copied again")
	}
	if err != nil || joined {
		return err
	}
	why := "the change stream was interrupted: the tenant is copied again"
	if p.Lost != nil {
		why += " (" + *p.Lost + ")"
	}
	return o.startOver(ctx, why)
}

// openPatience is how long the making of a slot may wait for transactions that are open in blue.
const openPatience = 5 * time.Second

// startOver puts a move back to its beginning. A fence that is up is lifted first.
func (o *onlineMove) startOver(ctx context.Context, why string) error {
	if o.v.State == Fenced {
		if err := o.m.putBack(ctx, o.v); err != nil {
			return err
		}
		return errOutdated // with a new token: the next step goes on
	}
	if err := o.advance(ctx, Planned, o.v.State); err != nil {
		return err
	}
	return o.m.setError(ctx, o.v, why)
}

// later says that a writer was in the way: the step tries again, and its other tenants go on.
func (o *onlineMove) later(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, stream.ErrClosed):
		return nil
	case errors.Is(err, stream.ErrOutdated):
		return errOutdated
	case citus.StateOf(err) != lockNotAvailable:
		return err
	}
	return o.m.setError(ctx, o.v, "a transaction of the tenant, or maintenance such as VACUUM or CREATE INDEX, holds its tables for longer than the barrier may wait; it is tried again")
}

// join puts the tenant's tables into the stream, behind the barrier, with nothing in green.
//
// What an earlier attempt has spooled may be deleted: whoever wrote it had ended, for everybody to
// see, before the barrier had its locks, so the copy that begins afterwards has seen it.
func (o *onlineMove) join(ctx context.Context) error {
	control, err := o.m.control(ctx)
	if err != nil {
		return err
	}
	if err := o.m.writeGreen(ctx, Planned, []Move{o.v}, func(tx pgx.Tx) error {
		for _, table := range []string{"pack", "unproven", "chunk", "applied"} {
			if _, err := tx.Exec(ctx, `DELETE FROM control.`+table+` WHERE tenant_id = $1`, o.v.Tenant); err != nil {
				return err
			}
		}
		return purge(ctx, tx, o.l, []Move{o.v})
	}); err != nil {
		return err
	}
	member := stream.Member{Tenant: o.v.Tenant, Run: o.v.Run, Schema: o.v.Schema, Token: o.v.Token}
	for _, t := range o.l.Tables {
		member.Tables = append(member.Tables, t.Name)
	}
	if err := stream.Enter(ctx, control, o.lane, o.slot, member); err != nil {
		return err
	}
	o.m.crash("lane entered")
	if err := o.m.sendVacuumAway(ctx, o.blue, []Move{o.v}); err != nil {
		return err
	}
	for range fencePatience {
		if err = stream.Join(ctx, o.blue, o.slot, member, o.m.cfg.LockTimeout); citus.StateOf(err) != lockNotAvailable {
			break
		}
	}
	if err != nil {
		return err
	}
	o.m.crash("lane joined")
	if err := o.m.writeGreen(ctx, Planned, []Move{o.v}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `INSERT INTO control.applied (tenant_id, lsn, seq) VALUES ($1, 0, 0)`, o.v.Tenant); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `UPDATE control.streamed SET joined = true, shape = $3 WHERE tenant_id = $1 AND slot = $2`, o.v.Tenant, o.slot, o.shape)
		return err
	}); err != nil {
		return err
	}
	return o.advance(ctx, Copying, Planned)
}

// advance changes the move's state. What got further may try as often again.
func (o *onlineMove) advance(ctx context.Context, to, from State) error {
	control, err := o.m.control(ctx)
	if err != nil {
		return err
	}
	tag, err := control.Exec(ctx, `UPDATE control.move SET state = $5, online = true, attempts = 0, error = NULL, updated_at = clock_timestamp()
		WHERE run_id = $1 AND tenant_id = $2 AND token = $3 AND state = $4`, o.v.Run, o.v.Tenant, o.v.Token, string(from), string(to))
	if err := oneEach(tag.RowsAffected(), 1, err); err != nil {
		return err
	}
	o.v.State, o.v.Online, o.moved = to, true, true
	o.m.crash(string(to))
	return nil
}

// progressed notes that a step got further, so that it may try as often again.
func (o *onlineMove) progressed(ctx context.Context) error {
	o.moved = true
	control, err := o.m.control(ctx)
	if err != nil {
		return err
	}
	_, err = control.Exec(ctx, `UPDATE control.move SET attempts = 0 WHERE run_id = $1 AND tenant_id = $2 AND token = $3 AND attempts > 0`, o.v.Run, o.v.Tenant, o.v.Token)
	return err
}

// cutOver raises the fence, applies what was written before it, compares what that changed,
// and flips. Writers wait from the first line to the last, and when the end of the stream does not
// come in time, the fence is lifted and the tenant goes on catching up.
func (o *onlineMove) cutOver(ctx context.Context) error {
	if err := o.m.sendVacuumAway(ctx, o.blue, []Move{o.v}); err != nil {
		return err
	}
	defer o.m.calm.enter()()
	group, err := o.m.fenceGroup(ctx, o.blue, o.shape, []Move{o.v})
	if err != nil || len(group) == 0 {
		return err
	}
	o.v.State = Fenced
	armed := o.m.armMeanwhile(ctx, group)
	defer func() { _ = armed() }()
	var end *watermark
	err = both(ctx,
		func(ctx context.Context) error { return o.m.moveSequences(ctx, o.blue, o.l, []Move{o.v}) },
		func(ctx context.Context) (err error) { end, err = o.drain(ctx, group[0].FenceID); return err })
	if err != nil {
		return err
	}
	if end == nil {
		return o.liftAgain(ctx)
	}
	o.m.crash("changes copied")
	if err := o.compareRest(ctx, *end); err != nil {
		return err
	}
	o.m.crash("verified")
	rows, err := o.rows(ctx)
	if err != nil {
		return err
	}
	if err := armed(); err != nil {
		return err
	}
	o.m.crash("gates armed")
	if err := o.m.flip(ctx, o.run, o.blue, o.l, group, []int64{rows}); err != nil {
		return err
	}
	return o.m.leaveStream(ctx, o.v)
}

// drain applies changes until the fence's own message: nothing of the tenant comes after it. It returns where that
// is, nil if it did not come in time.
func (o *onlineMove) drain(ctx context.Context, fenceID int64) (*watermark, error) {
	control, err := o.m.control(ctx)
	if err != nil {
		return nil, err
	}
	at, err := o.position(ctx)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(o.m.cfg.CutoverPatience); ; {
		b, err := o.next(ctx, at)
		if err != nil {
			return nil, err
		}
		if err := o.apply(ctx, at, b); err != nil {
			return nil, err
		}
		at = b.last
		if b.fence == fenceID {
			return &at, nil
		}
		if time.Now().After(end) {
			return nil, nil
		}
		if b.changes > 0 {
			continue
		}
		if _, err := o.spooled(ctx, control, b.spooled+1, time.Until(end)); err != nil {
			return nil, err
		}
	}
}

// liftAgain lets the tenant's writers go on in blue; its move goes on catching up.
func (o *onlineMove) liftAgain(ctx context.Context) error {
	why := fmt.Sprintf("the changes before the fence did not arrive within %v: writes go on in blue, and the fence is tried again", o.m.cfg.CutoverPatience)
	if _, err := o.m.endMove(ctx, &o.v, "mover", "fence lifted", why, `state = 'catching_up', fenced_at = NULL, error = $3`); err != nil {
		return err
	}
	o.m.crash("put back")
	return o.m.liftFence(ctx, o.v)
}

// rows counts what was copied and applied.
func (o *onlineMove) rows(ctx context.Context) (n int64, err error) {
	control, err := o.m.control(ctx)
	if err != nil {
		return 0, err
	}
	err = control.QueryRow(ctx, `SELECT coalesce(sum(rows), 0)::bigint FROM control.chunk WHERE tenant_id = $1`, o.v.Tenant).Scan(&n)
	return n, err
}

// leaveStream ends a tenant's part in the stream and deletes what it has left. It may be
// called again at any time: the sweep does for tenants that a crash has left in it.
func (m *Mover) leaveStream(ctx context.Context, v Move) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	var slot, schema, database string
	err = control.QueryRow(ctx, `SELECT slot, schema_name, database_name FROM control.streamed WHERE tenant_id = $1 AND run_id = $2`, v.Tenant, v.Run).Scan(&slot, &schema, &database)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	blue, err := m.dbs.Pool(ctx, database)
	if err != nil {
		return err
	}
	err = stream.Leave(ctx, blue, slot, stream.Member{Tenant: v.Tenant, Schema: schema, Token: v.Token})
	if errors.Is(err, stream.ErrOutdated) {
		return nil // a newer move's, which ends it
	}
	if err != nil {
		return err
	}
	err = pgx.BeginFunc(ctx, control, func(tx pgx.Tx) error {
		// Who is late finds that a newer move has entered, and takes nothing of it.
		tag, err := tx.Exec(ctx, `DELETE FROM control.streamed WHERE tenant_id = $1 AND run_id = $2 AND slot = $3`, v.Tenant, v.Run, slot)
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}
		for _, table := range []string{"pack", "unproven", "chunk", "applied"} {
			if _, err := tx.Exec(ctx, `DELETE FROM control.`+table+` WHERE tenant_id = $1`, v.Tenant); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("migration: %s leaves the stream: %w", v.Tenant, err)
	}
	return nil
}
