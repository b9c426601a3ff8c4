package migration

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
)

// allowed leaves those of a batch's open moves that may go on now. When it leaves none, the next
// step comes not before s.after. A fenced tenant is finished at any hour, whatever it costs.
func (s *step) allowed(ctx context.Context, run Run, open []Move) ([]Move, error) {
	if run.State != Running {
		return open, nil
	}
	if halted, err := s.m.haltNow(ctx, run); err != nil || halted {
		return nil, err
	}
	now := s.m.clock()
	if opening := run.Hours.Next(now); opening.After(now) {
		if fenced := only(open, func(v Move) bool { return v.State == Fenced }); len(fenced) > 0 {
			return fenced, nil
		}
		s.after = opening
		return nil, errors.Join(s.m.restAll(ctx, open), s.m.noteHours(ctx, run, opening))
	}
	wait := run.credit.Wait(now)
	if wait == 0 {
		return open, nil
	}
	s.after = now.Add(wait)
	return only(open, costsNoRows), nil
}

// costsNoRows: what is left of the move is no copying, or its tenant may be fenced.
func costsNoRows(v Move) bool {
	if v.Online {
		return v.State == CatchingUp || v.State == Following || v.State == Fenced
	}
	return v.FenceUp
}

func only(moves []Move, which func(Move) bool) (out []Move) {
	for _, v := range moves {
		if which(v) {
			out = append(out, v)
		}
	}
	return out
}

// restAll makes sure that none of the moves has a fence up while it rests: a step may have died
// between raising it and saying so. A tenant that is copied online keeps its copy.
func (m *Mover) restAll(ctx context.Context, moves []Move) error {
	for _, v := range moves {
		if !v.FenceUp {
			continue
		}
		set := `state = 'planned', fenced_at = NULL, error = $3`
		if v.Online {
			set = `state = '` + string(v.State) + `', fenced_at = NULL, error = $3`
		}
		_, err := m.endMove(ctx, &v, "mover", "put back", "the run's hours are over", set)
		if err == nil {
			err = m.liftFence(ctx, v)
		}
		if err := ignoreOutdated(err); err != nil {
			return err
		}
	}
	return nil
}

// haltNow is halt before a group, so that the errors of one batch alone can be too many.
func (m *Mover) haltNow(ctx context.Context, run Run) (halted bool, err error) {
	if !run.Budget.Any() {
		return false, nil
	}
	control, err := m.control(ctx)
	if err != nil {
		return false, err
	}
	failed, begun, err := failures(ctx, control, run.ID)
	if err != nil || run.Budget.Exceeded(failed-run.ErrorsAccepted, begun) == "" {
		return false, err
	}
	err = m.impatient(ctx, control, func(tx pgx.Tx) error {
		run, err := lockRun(ctx, tx, run.ID) // somebody may have resumed it just now
		if err != nil {
			return err
		}
		halted, err = halt(ctx, tx, run)
		return err
	})
	return halted, err
}

// noteHours records, once for each opening, that a run waits for its hours.
func (m *Mover) noteHours(ctx context.Context, run Run, opening time.Time) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, control, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `UPDATE control.run SET waits_until = $2 WHERE id = $1 AND waits_until IS DISTINCT FROM $2`, run.ID, opening)
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}
		return note(ctx, tx, run.ID, nil, "mover", "waiting", map[string]any{"hours": run.Hours, "until": opening})
	})
}

// spend takes copied rows from what a run may move, and returns how long it has to wait now.
func (m *Mover) spend(ctx context.Context, run Run, rows int64) (wait time.Duration, err error) {
	if run.RowsPerSecond == 0 || rows == 0 {
		return 0, nil
	}
	control, err := m.control(ctx)
	if err != nil {
		return 0, err
	}
	err = m.impatient(ctx, control, func(tx pgx.Tx) error {
		run, err := lockRun(ctx, tx, run.ID)
		if err != nil {
			return err
		}
		now := m.clock()
		c := run.credit.Spend(rows, now)
		wait = c.Wait(now)
		_, err = tx.Exec(ctx, `UPDATE control.run SET credit_rows = $2, credit_at = $3 WHERE id = $1`, run.ID, c.Rows, c.At)
		return err
	})
	return wait, err
}

// spendAtOnce is spend for tenants that were copied as a whole; the chunks of the others have
// been paid for one by one.
func (m *Mover) spendAtOnce(ctx context.Context, run Run, group []fenced, counts []int64) error {
	var rows int64
	for i, f := range group {
		if !f.Online {
			rows += counts[i]
		}
	}
	_, err := m.spend(ctx, run, rows)
	return err
}

// atMost bounds a chunk of so many rows to ten seconds of what the run may move.
func (r Run) atMost(rows int64) int64 {
	if r.RowsPerSecond == 0 {
		return rows
	}
	return min(rows, max(10*r.RowsPerSecond, leastChunk))
}
