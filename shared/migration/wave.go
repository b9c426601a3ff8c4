package migration

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// A run's batches belong to waves. One wave is open at a time, and of its batches as many are
// admitted, which is to say at work, as the run's concurrency allows. advance is the one place
// that admits batches and opens waves; whoever finishes a batch calls it, and the sweeper where
// a crash came in between.

// record writes a run with its waves, batches and moves. Nothing is admitted yet.
func record(ctx context.Context, tx pgx.Tx, id uuid.UUID, p Plan, waves schedule, planned *PlanReport) error {
	if _, err := tx.Exec(ctx, `INSERT INTO control.run (id, source, state, max_pause_ms, created_by, started_at, plan, waves, soak_ms, concurrency, rows_per_second,
			hours, max_errors, max_error_percent) VALUES ($1, $2, 'running', $3, $4, clock_timestamp(), $5, $6, $7, $8, $9, $10, $11, $12)`,
		id, p.Source, p.MaxPause.Milliseconds(), p.Actor, p, len(waves), p.Soak.Milliseconds(), p.Concurrency, p.RowsPerSecond,
		p.Hours.String(), p.Budget.Errors, p.Budget.Percent); err != nil {
		return err
	}
	var inWaves, batches, moves [][]any
	for i, w := range waves {
		span := planned.Waves[i].Span
		inWaves = append(inWaves, []any{id, i + 1, w.percent, int64(w.tenants()), span.Begin, span.End})
		for _, b := range w.batches {
			batches = append(batches, []any{id, len(batches) + 1, i + 1, false})
			for _, c := range b {
				moves = append(moves, []any{id, c.ID, len(batches), string(Planned), c.Epoch, c.bytes, c.work.Milliseconds(), c.rows, p.Hold})
			}
		}
	}
	for _, t := range []struct {
		name    string
		columns []string
		rows    [][]any
	}{
		{"wave", []string{"run_id", "number", "percent", "tenants", "begins_at", "ends_at"}, inWaves},
		{"batch", []string{"run_id", "number", "wave", "admitted"}, batches},
		{"move", []string{"run_id", "tenant_id", "batch", "state", "epoch", "bytes", "planned_ms", "planned_rows", "hold"}, moves},
	} {
		if _, err := tx.CopyFrom(ctx, pgx.Identifier{"control", t.name}, t.columns, pgx.CopyFromRows(t.rows)); err != nil {
			return err
		}
	}
	return nil
}

// advance lets a running run go on: it halts it when its errors are over the budget, opens the
// next wave when the open one is done and has soaked, and admits batches where there is room. It
// may be called at any time by anyone.
func (m *Mover) advance(ctx context.Context, id uuid.UUID) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	var (
		due   []StepTask
		after time.Time
	)
	err = m.impatient(ctx, control, func(tx pgx.Tx) error {
		due, after = nil, time.Time{}
		run, err := lockRun(ctx, tx, id)
		if err != nil || run.State != Running {
			return err
		}
		if halted, err := halt(ctx, tx, run); err != nil || halted {
			return err
		}
		var open int
		if err := tx.QueryRow(ctx, `SELECT count(*) FROM control.batch WHERE run_id = $1 AND wave <= $2 AND NOT done AND NOT held`, id, run.Wave).Scan(&open); err != nil {
			return err
		}
		if open == 0 {
			if run.Wave >= run.LastWave {
				return nil
			}
			soaks := run.NextWaveAt != nil
			opened, err := m.nextWave(ctx, tx, &run)
			if err != nil {
				return err
			}
			if !opened {
				if !soaks { // it begins to
					after = *run.NextWaveAt
					due, err = nameNext(ctx, tx, run)
				}
				return err
			}
		}
		due, err = m.admit(ctx, tx, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("migration: advance the run: %w", err)
	}
	if len(due) > 0 {
		m.crash("admitted")
	}
	for _, t := range due {
		if err := m.enqueue(ctx, t, after); err != nil {
			return err
		}
	}
	return nil
}

// nextWave opens the wave after the open one, which is done, or lets that one soak first. A wave
// that soaks already is left alone.
func (m *Mover) nextWave(ctx context.Context, tx pgx.Tx, run *Run) (opened bool, err error) {
	now := m.clock()
	if run.NextWaveAt == nil {
		var green, undone int64
		if err := tx.QueryRow(ctx, `SELECT count(*) FILTER (WHERE m.state = 'green'), count(*) FILTER (WHERE m.state = 'blue')
			FROM control.move m JOIN control.batch b ON b.run_id = m.run_id AND b.number = m.batch WHERE m.run_id = $1 AND b.wave = $2`, run.ID, run.Wave).Scan(&green, &undone); err != nil {
			return false, err
		}
		at := now.Add(run.Soak)
		run.NextWaveAt = &at
		if _, err := tx.Exec(ctx, `WITH w AS (UPDATE control.wave SET done_at = clock_timestamp() WHERE run_id = $1 AND number = $2)
			UPDATE control.run SET next_wave_at = $3 WHERE id = $1`, run.ID, run.Wave, at); err != nil {
			return false, err
		}
		detail := map[string]any{"wave": run.Wave, "green": green, "blue": undone, "next_wave_at": at}
		if err := note(ctx, tx, run.ID, nil, "mover", "wave done", detail); err != nil {
			return false, err
		}
	}
	if run.NextWaveAt.After(now) {
		return false, nil
	}
	return true, m.openWave(ctx, tx, run.ID, run.Wave+1)
}

// openWave makes a wave's batches those that can be admitted.
func (m *Mover) openWave(ctx context.Context, tx pgx.Tx, id uuid.UUID, number int) error {
	var (
		tenants int64
		percent float64
	)
	if err := tx.QueryRow(ctx, `WITH r AS (UPDATE control.run SET wave = $2, next_wave_at = NULL WHERE id = $1)
		UPDATE control.wave SET opened_at = clock_timestamp() WHERE run_id = $1 AND number = $2 RETURNING tenants, percent`, id, number).Scan(&tenants, &percent); err != nil {
		return err
	}
	return note(ctx, tx, id, nil, "mover", "wave opened", map[string]any{"wave": number, "tenants": tenants, "percent": percent})
}

// admit lets as many batches of the open wave begin as there is room for, and names their first steps.
func (m *Mover) admit(ctx context.Context, tx pgx.Tx, id uuid.UUID) ([]StepTask, error) {
	rows, err := tx.Query(ctx, `UPDATE control.batch b SET admitted = true, step = step + 1, enqueued_at = clock_timestamp(), not_before = NULL
		FROM (SELECT x.run_id, x.number FROM control.batch x JOIN control.run r ON r.id = x.run_id
			WHERE r.id = $1 AND x.wave <= r.wave AND NOT x.admitted AND NOT x.done ORDER BY x.number
			LIMIT (SELECT CASE WHEN r.concurrency > 0 THEN greatest(r.concurrency - (SELECT count(*) FROM control.batch y WHERE y.run_id = r.id AND y.admitted AND NOT y.done AND NOT y.held), 0) END
				FROM control.run r WHERE r.id = $1)) next
		WHERE b.run_id = next.run_id AND b.number = next.number RETURNING b.number, b.step`, id)
	if err != nil {
		return nil, err
	}
	return tasksOf(rows, id)
}

// nameNext names a step of the first batch of the wave that is to open: it is the call that opens it.
func nameNext(ctx context.Context, tx pgx.Tx, run Run) ([]StepTask, error) {
	rows, err := tx.Query(ctx, `UPDATE control.batch SET step = step + 1 WHERE run_id = $1 AND number =
		(SELECT min(number) FROM control.batch WHERE run_id = $1 AND wave = $2 AND NOT done) RETURNING number, step`, run.ID, run.Wave+1)
	if err != nil {
		return nil, err
	}
	return tasksOf(rows, run.ID)
}

func tasksOf(rows pgx.Rows, id uuid.UUID) ([]StepTask, error) {
	tasks, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (StepTask, error) {
		t := StepTask{Run: id}
		return t, row.Scan(&t.Batch, &t.Step)
	})
	return tasks, err
}

// failures counts the tenants that a run has failed to move, and all those of the waves it has
// begun. Whom an operator has undone is no failure.
func failures(ctx context.Context, db querier, id uuid.UUID) (failed, begun int64, err error) {
	err = db.QueryRow(ctx, `SELECT (SELECT count(DISTINCT tenant_id) FROM control.move_event WHERE run_id = r.id AND event = 'undone' AND actor = 'mover'),
			(SELECT coalesce(sum(tenants), 0)::bigint FROM control.wave w WHERE w.run_id = r.id AND w.number <= r.wave)
		FROM control.run r WHERE r.id = $1`, id).Scan(&failed, &begun)
	return failed, begun, err
}

// halt pauses a running run whose errors are over its budget.
func halt(ctx context.Context, tx pgx.Tx, run Run) (halted bool, err error) {
	if !run.Budget.Any() {
		return false, nil
	}
	failed, begun, err := failures(ctx, tx, run.ID)
	if err != nil {
		return false, err
	}
	why := run.Budget.Exceeded(failed-run.ErrorsAccepted, begun)
	if why == "" {
		return false, nil
	}
	tag, err := tx.Exec(ctx, `UPDATE control.run SET state = 'paused', halted = $2 WHERE id = $1 AND state = 'running'`, run.ID, why)
	if err != nil || tag.RowsAffected() == 0 {
		return false, err
	}
	return true, note(ctx, tx, run.ID, nil, "mover", "halted", map[string]any{"why": why, "failed": failed, "begun": begun, "budget": run.Budget})
}
