package migration

import (
	"context"
	"time"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/migration/stream"
)

// Bounds of how near a tenant must be before its fence goes up: what is left then is what its
// writers wait for.
const (
	nearChanges = 2000                   // to apply or to compare
	nearTime    = 250 * time.Millisecond // from a commit in blue to the spool
	runLeft     = 2 * time.Second        // of the receiver's run
)

// catchUp applies changes and compares what they have changed, until so little is left that
// the fence may go up.
func (o *onlineMove) catchUp(ctx context.Context) (near bool, err error) {
	// Whatever the copy has seen had been written before this position. Until it is applied, green is
	// what blue was at several moments: a row of one may refer to a row of a later one.
	var copied int64
	if err := o.blue.QueryRow(ctx, `SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint`).Scan(&copied); err != nil {
		return false, err
	}
	at, b, err := o.begin(ctx)
	if err != nil {
		return false, err
	}
	proved := false
	for again := true; again || !o.stop(); {
		again = false
		done, err := o.round(ctx, &at, &b)
		if err != nil {
			return false, err
		}
		if done.compared > 0 {
			if err := o.progressed(ctx); err != nil {
				return false, err
			}
		}
		if done.full || done.left > nearChanges {
			if done.applied == 0 && done.compared == 0 { // a large transaction is on its way
				if err := sleep(ctx, spoolPoll); err != nil {
					return false, err
				}
			}
			continue
		}
		if !proved && o.applied.Load() >= copied {
			// Green is what blue was after some commit, and there its keys held.
			if err := o.m.proveKeys(ctx, o.l, o.l.ForeignKeys, []Move{o.v}); err != nil {
				return false, err
			}
			proved = true
		}
		near, err := o.near(ctx)
		if err != nil || near && proved {
			return near, err
		}
		again = near // all that the copy has seen is spooled now
	}
	return false, nil
}

// begin reads how far the tenant's changes are applied, and the first of those that are not.
func (o *onlineMove) begin(ctx context.Context) (at watermark, b batch, err error) {
	if at, err = o.position(ctx); err != nil {
		return at, b, err
	}
	b, err = o.next(ctx, at)
	return at, b, err
}

// near sends a message through the stream and waits for it: it proves that the receiver is at
// work, and how far behind. It does not wait while there is a good deal to apply.
func (o *onlineMove) near(ctx context.Context) (bool, error) {
	control, err := o.m.control(ctx)
	if err != nil {
		return false, err
	}
	var at int64
	if err := o.blue.QueryRow(ctx, `SELECT (pg_logical_emit_message(true, 'coditect', 'probe') - '0/0')::bigint`).Scan(&at); err != nil {
		return false, err
	}
	before, err := stream.PositionOf(ctx, control, o.lane)
	if err != nil {
		return false, err
	}
	p, err := o.spooled(ctx, control, min(at, before.Spooled+nearBytes), nearTime)
	return err == nil && p.Spooled >= at && p.RunUntil != nil && time.Until(*p.RunUntil) > runLeft, err
}

// spooled waits until the lane's spool has reached a position, for at most so long.
func (o *onlineMove) spooled(ctx context.Context, control *citus.Pool, at int64, patience time.Duration) (p stream.Position, err error) {
	for end := time.Now().Add(patience); ; {
		if p, err = stream.PositionOf(ctx, control, o.lane); err != nil || p.Spooled >= at || time.Now().After(end) {
			return p, err
		}
		if p.Slot != o.slot {
			return p, errOutdated // given up: the next step starts over
		}
		if err := sleep(ctx, spoolPoll); err != nil {
			return p, err
		}
	}
}

const spoolPoll = 3 * time.Millisecond

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
