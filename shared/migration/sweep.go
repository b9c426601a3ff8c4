package migration

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/coditect/platform/shared/tenant"
)

// Swept says what a sweep found to do.
type Swept struct {
	Enqueued  int `json:"enqueued"`  // batches whose task was lost
	Lifted    int `json:"lifted"`    // fences that a crash left up over an undone move
	Finished  int `json:"finished"`  // runs whose last batch was done
	Finalised int `json:"finalised"` // tenants whose blue schema is archived and dropped now
	Returned  int `json:"returned"`  // rollbacks that were finished
	Erased    int `json:"erased"`    // dumps of tenants that were erased
	Reversed  int `json:"reversed"`  // tenants whose changes in green were brought back to blue

	Alarms []LagAlarm `json:"alarms,omitempty"` // that have begun or ended
}

// SweepFor sweeps every five seconds for about as long as d, and at least once. It is for schedulers whose shortest
// interval is a minute. Tenants are finalised beside that: nobody's writes wait for a dump. It returns all that was
// found; the error is that of the last sweep.
func (m *Mover) SweepFor(ctx context.Context, patience, d time.Duration) (Swept, error) {
	until := m.now().Add(d)
	var all, ended Swept
	var g errgroup.Group // neither ends the other
	g.Go(func() error {
		return m.sweepAgain(ctx, until, func() error {
			s, err := m.sweep(ctx, patience)
			all.add(s)
			return err
		})
	})
	g.Go(func() error {
		return m.sweepAgain(ctx, until, func() error {
			n, err := m.finaliseDue(ctx)
			ended.Finalised += n
			return err
		})
	})
	err := g.Wait()
	all.add(ended)
	return all, err
}

const sweepEvery = 5 * time.Second

// sweepAgain does something every five seconds, or as often as it can, and returns its last error.
func (m *Mover) sweepAgain(ctx context.Context, until time.Time, do func() error) error {
	for {
		next := m.now().Add(sweepEvery)
		err := do()
		if !next.Before(until) || m.wait(ctx, next.Sub(m.now())) != nil {
			return err
		}
	}
}

func (s *Swept) add(t Swept) {
	s.Enqueued, s.Lifted, s.Finished, s.Finalised = s.Enqueued+t.Enqueued, s.Lifted+t.Lifted, s.Finished+t.Finished, s.Finalised+t.Finalised
	s.Returned, s.Erased, s.Reversed, s.Alarms = s.Returned+t.Returned, s.Erased+t.Erased, s.Reversed+t.Reversed, append(s.Alarms, t.Alarms...)
}

// wakeAtOnce is how many batches of a silent run a sweep enqueues: enough to get it
// going again, and not a million tasks that are already in the queue.
const wakeAtOnce = 16

// Sweep does what a crash has left undone. Call it every few seconds: with [Mover.SweepFor]
// Cloud Scheduler does in production. Two sweeps at once are harmless. Three kinds of batches are
// enqueued again: one whose step died, at once, when its lease has run out; one in which
// tenants may be fenced, in a paused run too, and nobody has been at work for longer than
// patience; and some of a run in which nobody has been at work at all for as long, because
// the queue has lost its tasks; it is not silent while it waits for its hours. And a run whose next
// wave or batch is due goes on.
func (m *Mover) Sweep(ctx context.Context, patience time.Duration) (Swept, error) {
	out, err := m.sweep(ctx, patience)
	if err != nil {
		return out, err
	}
	out.Finalised, err = m.finaliseDue(ctx) // last: it may take its time
	return out, err
}

// sweep is all of a sweep that takes little time.
func (m *Mover) sweep(ctx context.Context, patience time.Duration) (Swept, error) {
	var out Swept
	control, err := m.control(ctx)
	if err != nil {
		return out, err
	}
	rows, err := control.Query(ctx, `WITH open AS (
			SELECT b.run_id, b.number, b.lease_until, b.enqueued_at, b.not_before, r.state FROM control.batch b JOIN control.run r ON r.id = b.run_id
			WHERE r.state IN ('running', 'cancelling', 'paused') AND NOT b.done AND b.admitted),
		silent AS (
			SELECT run_id FROM open WHERE state <> 'paused' GROUP BY run_id
			HAVING count(*) FILTER (WHERE lease_until >= clock_timestamp()) = 0
			   AND coalesce(max(enqueued_at), '-infinity') < clock_timestamp() - $1::interval
			   AND coalesce(max(not_before), '-infinity') <= $3::timestamptz - $1::interval)
		SELECT run_id, number FROM open WHERE lease_until < clock_timestamp() AND state <> 'paused'
		UNION
		SELECT run_id, number FROM open o WHERE (lease_until IS NULL OR lease_until < clock_timestamp())
			AND coalesce(enqueued_at, '-infinity') < clock_timestamp() - $1::interval AND coalesce(not_before, '-infinity') <= $3
			AND EXISTS (SELECT FROM control.move m WHERE m.run_id = o.run_id AND m.batch = o.number AND m.fence_up AND m.state IN `+openStates+`)
		UNION
		SELECT run_id, number FROM silent CROSS JOIN LATERAL (SELECT number FROM open o WHERE o.run_id = silent.run_id ORDER BY number LIMIT $2) x
		ORDER BY 1, 2 LIMIT 1000`, patience, wakeAtOnce, m.clock())
	if err != nil {
		return out, fmt.Errorf("migration: sweep: %w", err)
	}
	due, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (t StepTask, err error) { return t, row.Scan(&t.Run, &t.Batch) })
	if err != nil {
		return out, fmt.Errorf("migration: sweep: %w", err)
	}
	for _, t := range due {
		if err := m.enqueueNext(ctx, t, time.Time{}); err != nil {
			return out, err
		}
		out.Enqueued++
	}
	if err := m.advanceRuns(ctx); err != nil {
		return out, err
	}
	if out.Lifted, err = m.liftLeft(ctx); err != nil {
		return out, err
	}
	if out.Finished, err = m.finishRuns(ctx); err != nil {
		return out, err
	}
	if out.Returned, err = m.finishRollbacks(ctx); err != nil {
		return out, err
	}
	if err := m.sample(ctx); err != nil {
		return out, err
	}
	if err := m.sweepLanes(ctx); err != nil {
		return out, err
	}
	if out.Alarms, err = m.alarmLags(ctx); err != nil {
		return out, err
	}
	if out.Reversed, err = m.reverseSome(ctx, m.cfg.StepBudget/2); err != nil {
		return out, err
	}
	out.Erased, err = m.eraseArchives(ctx)
	return out, err
}

// advanceRuns lets the runs go on that have batches to admit, unless their next wave soaks.
func (m *Mover) advanceRuns(ctx context.Context) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	rows, err := control.Query(ctx, `SELECT id FROM control.run r WHERE state = 'running' AND (next_wave_at IS NULL OR next_wave_at <= $1)
		AND EXISTS (SELECT FROM control.batch b WHERE b.run_id = r.id AND NOT b.done AND NOT b.admitted)`, m.clock())
	if err != nil {
		return err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := m.advance(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// liftLeft lifts fences of undone moves and deletes what they have left in green.
func (m *Mover) liftLeft(ctx context.Context) (n int, err error) {
	control, err := m.control(ctx)
	if err != nil {
		return 0, err
	}
	// The undo that is at work right now lifts its fence itself: leave it a moment.
	rows, err := control.Query(ctx, `SELECT `+moveColumns+` FROM control.move m JOIN control.tenant t ON t.id = m.tenant_id
		WHERE m.state = 'blue' AND (m.fence_up OR m.purge_due) AND m.updated_at < clock_timestamp() - interval '2 seconds' LIMIT 1000`)
	if err != nil {
		return 0, err
	}
	left, err := pgx.CollectRows(rows, scanMove)
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, v := range left {
		var err error
		if v.FenceUp {
			err = m.openBlue(ctx, v)
		}
		if errors.Is(err, errOutdated) {
			// A newer run has fenced it since: not ours to lift.
			_, err = control.Exec(ctx, `UPDATE control.move SET fence_up = false WHERE run_id = $1 AND tenant_id = $2 AND state = 'blue'`, v.Run, v.Tenant)
		}
		if err == nil {
			err = m.purgeUnread(ctx, v)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		n++
	}
	return n, errors.Join(errs...)
}

// finishRuns ends the runs whose batches are all done.
func (m *Mover) finishRuns(ctx context.Context) (n int, err error) {
	control, err := m.control(ctx)
	if err != nil {
		return 0, err
	}
	rows, err := control.Query(ctx, `SELECT id FROM control.run r WHERE state IN ('running', 'cancelling')
		AND NOT EXISTS (SELECT FROM control.batch b WHERE b.run_id = r.id AND NOT b.done)`)
	if err != nil {
		return 0, err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return 0, err
	}
	for _, id := range ids {
		if err := m.finishRun(ctx, id); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// finishRun ends a run whose batches are all done; any other it leaves alone.
func (m *Mover) finishRun(ctx context.Context, id uuid.UUID) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, control, func(tx pgx.Tx) error {
		var state string
		err := tx.QueryRow(ctx, `UPDATE control.run r SET state = CASE state WHEN 'cancelling' THEN 'cancelled' ELSE 'done' END, finished_at = clock_timestamp()
			WHERE id = $1 AND state IN ('running', 'cancelling') AND NOT EXISTS (SELECT FROM control.batch b WHERE b.run_id = r.id AND NOT b.done)
			RETURNING state`, id).Scan(&state)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE control.wave SET done_at = clock_timestamp() WHERE run_id = $1 AND opened_at IS NOT NULL AND done_at IS NULL`, id); err != nil {
			return err
		}
		return note(ctx, tx, id, nil, "mover", state, nil)
	})
}

// Counts are a run's moves by state.
type Counts map[State]int64

// Failure is a tenant that is not where it should be, and why.
type Failure struct {
	Tenant tenant.ID `json:"tenant"`
	Schema string    `json:"schema"`
	State  State     `json:"state"`
	Error  string    `json:"error"`
}

// Pauses are the write pauses of a run's green tenants, from the request for the fence
// to the flip, in milliseconds.
type Pauses struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// Status is a run and how far it is.
type Status struct {
	Run
	Tenants    int64     `json:"tenants"`
	Counts     Counts    `json:"counts"`
	RowsMoved  int64     `json:"rows_moved"`
	Pause      Pauses    `json:"pause_ms"`
	Seconds    float64   `json:"seconds"` // since the start, until the end
	Waves      []Wave    `json:"waves"`
	BytesMoved int64     `json:"bytes_moved"` // as the preflight has estimated them
	Rate       Rate      `json:"rate"`
	ETA        *ETA      `json:"eta,omitempty"` // of a running run
	Failed     []Failure `json:"failed"`        // at most 100

	Lanes   []LaneLag   `json:"lanes,omitempty"`   // change streams that bring its tenants' changes
	Streams []TenantLag `json:"streams,omitempty"` // tenants that move online, at most 100
}

// Inspect reads how far a run is.
func (m *Mover) Inspect(ctx context.Context, id uuid.UUID) (Status, error) {
	s := Status{Counts: Counts{}, Waves: []Wave{}, Failed: []Failure{}}
	control, err := m.control(ctx)
	if err != nil {
		return s, err
	}
	if s.Run, err = getRun(ctx, control, id); err != nil {
		return s, err
	}
	if s.StartedAt != nil {
		end := m.now()
		if s.FinishedAt != nil {
			end = *s.FinishedAt
		}
		s.Seconds = end.Sub(*s.StartedAt).Seconds()
	}
	b := &pgx.Batch{}
	b.Queue(`SELECT state, count(*), coalesce(sum(rows) FILTER (WHERE state IN ('green', 'finalised')), 0)::bigint FROM control.move WHERE run_id = $1 GROUP BY state`, id).
		Query(func(rows pgx.Rows) error {
			var (
				state  State
				n, cnt int64
			)
			_, err := pgx.ForEachRow(rows, []any{&state, &n, &cnt}, func() error {
				s.Counts[state], s.Tenants, s.RowsMoved = n, s.Tenants+n, s.RowsMoved+cnt
				return nil
			})
			return err
		})
	b.Queue(`SELECT coalesce(percentile_cont(0.5) WITHIN GROUP (ORDER BY p), 0), coalesce(percentile_cont(0.99) WITHIN GROUP (ORDER BY p), 0), coalesce(max(p), 0)::float8
		FROM (SELECT pause_us / 1000.0 AS p FROM control.move WHERE run_id = $1 AND state IN ('green', 'finalised') AND pause_us IS NOT NULL) x`, id).
		QueryRow(func(row pgx.Row) error { return row.Scan(&s.Pause.P50, &s.Pause.P99, &s.Pause.Max) })
	b.Queue(`SELECT m.tenant_id, t.schema_name, m.state, m.error FROM control.move m JOIN control.tenant t ON t.id = m.tenant_id
		WHERE m.run_id = $1 AND m.error IS NOT NULL ORDER BY m.tenant_id LIMIT 100`, id).
		Query(func(rows pgx.Rows) (err error) {
			s.Failed, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Failure])
			return err
		})
	queueWaves(b, id, &s.Waves)
	queueRate(b, id, &s)
	var p pace
	queuePace(b, id, &p)
	if err := control.SendBatch(ctx, b).Close(); err != nil {
		return s, err
	}
	if s.WaitsUntil != nil && (s.State != Running || !s.WaitsUntil.After(m.clock())) {
		s.WaitsUntil = nil // it is over
	}
	s.ETA = p.eta(m.clock(), s.Run, m.parallel(s.Concurrency))
	s.Lanes, s.Streams, err = lags(ctx, control, id, m.clock())
	return s, err
}

// List returns the newest runs, at most limit of them, older than before (the zero
// UUID: from the newest).
func (m *Mover) List(ctx context.Context, before uuid.UUID, limit int) ([]Run, error) {
	control, err := m.control(ctx)
	if err != nil {
		return nil, err
	}
	if before == uuid.Nil {
		before = uuid.Max
	}
	rows, err := control.Query(ctx, `SELECT id FROM control.run WHERE id < $1 ORDER BY id DESC LIMIT $2`, before, limit)
	if err != nil {
		return nil, err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return nil, err
	}
	out := []Run{}
	for _, id := range ids {
		r, err := getRun(ctx, control, id)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}
