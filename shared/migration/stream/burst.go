package stream

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
)

// Rests has the receiver read in bursts, and returns it: between two of them it rests for as long as rests
// says that those who wait for a lane's changes can do without, 0 for not at all. It is asked again and
// again.
//
// A walsender that keeps up with blue wakes up for each commit of anybody, decodes it, says so and goes
// to sleep again: five times the work of decoding the same WAL in one piece, while blue's users wait for
// a processor. Between two bursts there is no walsender, and the slot costs nothing.
func (r *Receiver) Rests(rests func(context.Context, Lane) (time.Duration, error)) *Receiver {
	r.rests = rests
	return r
}

// longBurst is how long a burst may take that is followed by a rest, and askEvery, how often in a rest is asked
// whether it may last.
const (
	longBurst = time.Second
	askEvery  = 100 * time.Millisecond
)

// aim has the session end with what blue has written by now, if there may be a rest afterwards, and marks that in blue's
// WAL for the next one.
func (s *session) aim(ctx context.Context, blue *citus.Pool) error {
	if s.long {
		return nil
	}
	if rest, err := s.r.rests(ctx, s.lane); err != nil || rest <= 0 {
		return err
	}
	s.aimed = time.Now()
	s.markWAL(ctx, blue, markWait)
	var end int64
	if err := blue.QueryRow(ctx, `SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint`).Scan(&end); err != nil {
		return fmt.Errorf("stream: end of the WAL of %s: %w", s.lane.Database, err)
	}
	s.target.Store(end)
	return nil
}

// finish asks from time to time whether the session may end for a rest, and marks blue's WAL before its end. It reads on
// when nobody can say.
func (s *session) finish(ctx context.Context, blue *citus.Pool) {
	for s.target.Load() == 0 {
		left := time.Until(s.until) - markBefore
		if pause(ctx, min(max(left, 0), Heartbeat)) != nil {
			return
		}
		if left <= Heartbeat {
			s.markWAL(ctx, blue, markBefore/2)
			return
		}
		_ = s.aim(ctx, blue)
	}
}

// rest waits until it is time for the next burst.
func (s *session) rest(ctx context.Context) error {
	control, err := s.r.dbs.Control(ctx)
	if err != nil {
		return err
	}
	said := time.Now()
	for began := said; ; {
		d, err := s.r.rests(ctx, s.lane)
		if err != nil {
			return err
		}
		left := min(time.Until(began.Add(d)), time.Until(s.until))
		if left <= 0 {
			return nil
		}
		if err := pause(ctx, min(askEvery, left)); err != nil {
			return err
		}
		if time.Since(said) > Heartbeat {
			if err := s.alive(ctx, control); err != nil {
				return err
			}
			said = time.Now()
		}
	}
}

// alive says that the receiver is at work although there is nothing to spool.
func (s *session) alive(ctx context.Context, control *citus.Pool) error {
	if _, err := control.Exec(ctx, `UPDATE control.lane SET heard_at = clock_timestamp() WHERE database_name = $1 AND number = $2 AND slot = $3`,
		s.lane.Database, s.lane.Number, s.at.Slot); err != nil {
		return fmt.Errorf("stream: heartbeat of lane %d of %s: %w", s.lane.Number, s.lane.Database, err)
	}
	return nil
}

// How long before its end a receiver marks blue's WAL, and how long it waits for that at the beginning of a burst.
const (
	markBefore = 1500 * time.Millisecond
	markWait   = 100 * time.Millisecond
)

// markWAL writes a record of the transactions that are open into blue's WAL: the next receiver's walsender begins to
// decode at the last of these that was confirmed. PostgreSQL writes one every 15 s by itself, and decoding 15 s of a
// busy database takes seconds, in which nobody receives anything. Making a logical slot writes one
// (pg_log_standby_snapshot does from PostgreSQL 16 on); it is the first that it does, and whether it comes to its end,
// for which it waits for transactions that are open, does not matter.
func (s *session) markWAL(ctx context.Context, blue *citus.Pool, patience time.Duration) {
	name := newSlot()
	_ = pgx.BeginFunc(ctx, blue, func(tx pgx.Tx) error {
		// A temporary slot ends with the session or the first error: it does not keep blue's WAL.
		for _, sql := range []string{
			fmt.Sprintf(`SET LOCAL statement_timeout = %d`, patience.Milliseconds()),
			`SELECT pg_create_logical_replication_slot('` + name + `', 'pgoutput', true)`,
			`SELECT pg_drop_replication_slot('` + name + `')`,
		} {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return nil
	})
}

// reached reports whether a burst has all that it began for.
func (s *session) reached(d *decoder) bool {
	target := s.target.Load()
	return target > 0 && !d.open && s.seen >= target
}
