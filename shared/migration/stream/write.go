package stream

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
)

// Bounds of one commit in the spool.
const (
	spoolRows  = 5000
	spoolBytes = 8 << 20
)

// writer commits changes to the spool.
type writer struct {
	*session
	control *citus.Pool
	members map[string]Member // by schema
	shapes  map[shapeKey]int32

	rows  []*change
	bytes int
	to    int64 // transactions before it are whole
	part  [2]int64
	count int64
	end   int64 // of blue's WAL
	when  time.Time
	last  bool // nothing more will come

	urgent    bool      // somebody waits for what was taken,
	whole     bool      // which is all there
	committed time.Time // changes or the end of some, the last time
}

// How often is committed, when blue sends no more than that: changes that nobody waits for, so that those of many
// small transactions are written together; and a position that has only moved over what others wrote.
const (
	gatherFor = 100 * time.Millisecond
	quietFor  = 250 * time.Millisecond
)

// write spools events: when no more are waiting and none can wait, or as many as the bounds allow.
func (w *writer) write(ctx context.Context, events <-chan event) error {
	w.to, w.part = w.at.Spooled, [2]int64{w.at.PartLSN, w.at.PartSeq}
	for {
		e, ok, waiting := next(events)
		if !waiting {
			patience := w.canWait()
			if patience <= 0 {
				if err := w.flush(ctx); err != nil {
					return err
				}
				patience = Heartbeat
				if w.to != w.at.Spooled {
					patience = quietFor
				}
			}
			var late bool
			if e, ok, late = await(events, patience); late {
				if err := w.beat(ctx); err != nil {
					return err
				}
				continue
			}
		}
		if !ok {
			w.last = true
			return w.flush(ctx)
		}
		w.take(e)
		if len(w.rows) >= spoolRows || w.bytes >= spoolBytes {
			if err := w.flush(ctx); err != nil {
				return err
			}
		}
	}
}

// next takes an event if one is waiting, or the channel is closed.
func next(events <-chan event) (e event, ok, waiting bool) {
	select {
	case e, ok = <-events:
		return e, ok, true
	default:
		return e, false, false
	}
}

// await waits for an event, but not for longer than so: late says that none came. The reader closes the
// channel at the latest when its context ends.
func await(events <-chan event, patience time.Duration) (e event, ok, late bool) {
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case e, ok = <-events:
		return e, ok, false
	case <-t.C:
		return e, false, true
	}
}

// canWait is for how long what was taken may wait for more.
func (w *writer) canWait() time.Duration {
	if len(w.rows) == 0 && w.count == 0 || w.urgent {
		return 0
	}
	return gatherFor - time.Since(w.committed)
}

// Heartbeat is how often a receiver at work says so: Position.Heard.
const Heartbeat = time.Second

// beat says that the receiver is at work although blue sends nothing.
func (w *writer) beat(ctx context.Context) error {
	if w.to != w.at.Spooled || len(w.rows) > 0 {
		return nil // what was taken is committed next
	}
	return w.alive(ctx, w.control)
}

func (w *writer) take(e event) {
	w.end = max(w.end, e.end)
	if e.urgent {
		w.urgent, w.whole = true, false
	}
	for _, c := range e.changes {
		w.takeChange(c)
	}
	switch {
	case e.change != nil:
		w.waiting.Release(e.change.waits())
		w.takeChange(e.change)
	case e.commit != 0:
		w.to, w.part, w.when = e.commit, [2]int64{}, e.when
		w.count++
		w.whole = w.urgent
	case e.idle != nil:
		at := e.idle.at.Swap(taken)
		w.end, w.to = max(w.end, at), max(w.to, at) // of a transaction that is there in part, the rest is yet to come
	}
}

func (w *writer) takeChange(c *change) {
	// Of a transaction that was spooled in parts, a receiver before this one has these already.
	if c.lsn == w.at.PartLSN && c.seq <= w.at.PartSeq {
		return
	}
	w.rows = append(w.rows, c)
	w.bytes += c.size()
	w.part = [2]int64{c.lsn, c.seq}
}

// flush commits what was taken, together with the lane's new position.
func (w *writer) flush(ctx context.Context) error {
	if w.to == w.at.Spooled && w.part == [2]int64{w.at.PartLSN, w.at.PartSeq} {
		return nil
	}
	// A position that has only moved over what does not concern us is worth a commit now and then.
	quiet := len(w.rows) == 0 && w.count == 0 && !w.last
	if quiet && w.at.Heard != nil && time.Since(*w.at.Heard) < quietFor {
		return nil
	}
	if err := w.know(ctx); err != nil {
		return err
	}
	err := pgx.BeginFunc(ctx, w.control, func(tx pgx.Tx) error {
		var when *time.Time
		if !w.when.IsZero() {
			when = &w.when
		}
		tag, err := tx.Exec(ctx, `UPDATE control.lane SET spooled = $4, part_lsn = $5, part_seq = $6, last_commit = coalesce($9, last_commit), heard_at = clock_timestamp(),
				wal_end = greatest(wal_end, $4, $10)
			WHERE database_name = $1 AND number = $2 AND slot = $3 AND spooled = $7 AND part_seq = $8`,
			w.lane.Database, w.lane.Number, w.at.Slot, w.to, w.part[0], w.part[1], w.at.Spooled, w.at.PartSeq, when, w.end)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return errTaken
		}
		return w.copyPacks(ctx, tx)
	})
	if err != nil {
		return fmt.Errorf("stream: spool lane %d of %s: %w", w.lane.Number, w.lane.Database, err)
	}
	w.r.crash("spooled")
	now := time.Now()
	w.at.Spooled, w.at.PartLSN, w.at.PartSeq, w.at.Heard = w.to, w.part[0], w.part[1], &now
	w.confirmed.Store(uint64(w.to))
	w.out.Changes += int64(len(w.rows))
	w.out.Transactions += w.count
	if !quiet {
		w.committed = now
	}
	if w.whole {
		w.urgent, w.whole = false, false
	}
	clear(w.rows) // large ones must not stay
	w.rows, w.bytes, w.count, w.when = w.rows[:0], 0, 0, time.Time{}
	return nil
}
