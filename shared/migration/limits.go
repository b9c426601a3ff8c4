package migration

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// allowed leaves those of a batch's open moves that may go on now. When it leaves none, the next
// step comes not before s.after. What has begun is finished at any hour: its tenant may be fenced.
func (s *step) allowed(ctx context.Context, run Run, open []Move) ([]Move, error) {
	if run.State != Running {
		return open, nil
	}
	if halted, err := s.m.haltNow(ctx, run); err != nil || halted {
		return nil, err
	}
	now := s.m.clock()
	opening := run.Hours.Next(now)
	wait := run.credit.Wait(now)
	if !opening.After(now) && wait == 0 {
		return open, nil
	}
	var begun []Move
	for _, v := range open {
		if v.FenceUp {
			begun = append(begun, v)
		}
	}
	if len(begun) > 0 {
		return begun, nil
	}
	if opening.After(now) {
		s.after = opening
		return nil, s.m.noteHours(ctx, run, opening)
	}
	s.after = now.Add(wait)
	return nil, nil
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

// spend takes moved rows from what a run may move.
func (m *Mover) spend(ctx context.Context, run Run, rows int64) error {
	if run.RowsPerSecond == 0 {
		return nil
	}
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	return m.impatient(ctx, control, func(tx pgx.Tx) error {
		run, err := lockRun(ctx, tx, run.ID)
		if err != nil {
			return err
		}
		c := run.credit.Spend(rows, m.clock())
		_, err = tx.Exec(ctx, `UPDATE control.run SET credit_rows = $2, credit_at = $3 WHERE id = $1`, run.ID, c.Rows, c.At)
		return err
	})
}
