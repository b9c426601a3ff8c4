package migration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/planner"
	"github.com/coditect/platform/shared/tenant"
)

// Start checks a plan, records it as a run, and enqueues its batches. Tenants that the
// preflight refuses are left out and named in its report; when it refuses all, or the
// source as a whole, no run is made and the error is a Conflict fault, code
// "preflight_failed".
func (m *Mover) Start(ctx context.Context, p Plan) (Run, Preflight, error) {
	if err := p.check(m.clock()); err != nil {
		return Run{}, Preflight{}, err
	}
	control, err := m.control(ctx)
	if err != nil {
		return Run{}, Preflight{}, err
	}
	report, waves, err := m.preflight(ctx, p)
	if err != nil {
		return Run{}, report, err
	}
	if len(waves) == 0 {
		return Run{}, report, nobodyMoves(p, report)
	}
	if p.Hold && !report.Online {
		return Run{}, report, errNoStream()
	}
	run := Run{ID: uuid.Must(uuid.NewV7())}
	var due []StepTask
	err = pgx.BeginFunc(ctx, control, func(tx pgx.Tx) error {
		if err := record(ctx, tx, run.ID, p, waves, report.Plan); err != nil {
			return err
		}
		detail := map[string]any{"tenants": report.Plan.Chosen, "left_out": report.LeftOut, "left_out_by_rules": report.Plan.Reasons, "plan": p, "span": report.Plan.Span}
		if err := note(ctx, tx, run.ID, nil, p.Actor, "started", detail); err != nil {
			return err
		}
		if err := m.openWave(ctx, tx, run.ID, 1); err != nil {
			return err
		}
		due, err = m.admit(ctx, tx, run.ID)
		return err
	})
	if citus.StateOf(err) == "23505" {
		return Run{}, report, fault.Wrap(err, fault.Conflict, "tenant_in_other_run", "another run was started over some of these tenants at the same moment; start again")
	}
	if err != nil {
		return Run{}, report, fmt.Errorf("migration: record the run: %w", err)
	}
	m.crash("run recorded")
	for _, t := range due {
		if err := m.enqueue(ctx, t, time.Time{}); err != nil {
			// The run stands; the sweeper enqueues what is missing.
			break
		}
	}
	run, err = getRun(ctx, control, run.ID)
	return run, report, err
}

// nobodyMoves says why a plan moves nobody.
func nobodyMoves(p Plan, report Preflight) error {
	if plan := report.Plan; plan != nil && report.Tenants == 0 && plan.LeftOut > 0 {
		var why []string
		for _, code := range slices.Sorted(maps.Keys(plan.Reasons)) {
			why = append(why, fmt.Sprintf("%d %s", plan.Reasons[code], strings.ReplaceAll(code, "_", " ")))
		}
		return fault.New(fault.Conflict, "nobody_chosen", "the rules leave out every tenant of source %q that could be moved: %s", p.Source, strings.Join(why, ", "))
	}
	return fault.New(fault.Conflict, "preflight_failed", "no tenant of source %q can be moved: %s", p.Source, report.summary())
}

// change moves a run from some states to another one.
// With it comes what also does, which returns the details for the audit trail.
func (m *Mover) change(ctx context.Context, id uuid.UUID, actor string, to RunState, also alongside, from ...RunState) (Run, error) {
	control, err := m.control(ctx)
	if err != nil {
		return Run{}, err
	}
	names := make([]string, len(from))
	for i, s := range from {
		names[i] = string(s)
	}
	var run Run
	err = pgx.BeginFunc(ctx, control, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `UPDATE control.run SET state = $2 WHERE id = $1 AND state = ANY($3)`, id, string(to), names)
		if err != nil {
			return err
		}
		if run, err = getRun(ctx, tx, id); err != nil {
			return err
		}
		if tag.RowsAffected() == 1 {
			detail, err := also(ctx, tx, run)
			if err != nil {
				return err
			}
			if run, err = getRun(ctx, tx, id); err != nil {
				return err
			}
			return note(ctx, tx, id, nil, actor, string(to), detail)
		}
		if run.State == to || to == Cancelling && run.State == Cancelled {
			return nil // asked for twice
		}
		return fault.New(fault.Conflict, "wrong_run_state", "the run is %s; only a run that is %s can become %s", run.State, orList(names), to)
	})
	return run, err
}

// alongside is what else a change of a run's state does, in its transaction.
type alongside func(ctx context.Context, tx pgx.Tx, run Run) (detail map[string]any, err error)

func nothingElse(context.Context, pgx.Tx, Run) (map[string]any, error) { return nil, nil }

func orList(names []string) string {
	out := ""
	for i, n := range names {
		switch {
		case i == 0:
		case i == len(names)-1:
			out += " or "
		default:
			out += ", "
		}
		out += n
	}
	return out
}

// Pause stops a run after the groups that are being moved at the moment. Tenants that a
// dead step has left fenced are put back by the next sweep: nobody waits for a paused run.
func (m *Mover) Pause(ctx context.Context, id uuid.UUID, actor string) (Run, error) {
	return m.change(ctx, id, actor, Paused, nothingElse, Running)
}

// Resume goes on with a paused run. One that has halted over its error budget goes on too: whoever
// resumes it knows of its errors, and those after them count anew.
func (m *Mover) Resume(ctx context.Context, id uuid.UUID, actor string) (Run, error) {
	return m.ResumeWithin(ctx, id, actor, planner.Budget{})
}

// ResumeWithin is Resume with another error budget; what it leaves nil stays.
func (m *Mover) ResumeWithin(ctx context.Context, id uuid.UUID, actor string, budget planner.Budget) (Run, error) {
	if err := checkBudget(budget); err != nil {
		return Run{}, err
	}
	run, err := m.change(ctx, id, actor, Running, func(ctx context.Context, tx pgx.Tx, run Run) (map[string]any, error) {
		return lookedAt(ctx, tx, run, budget)
	}, Paused)
	if err != nil {
		return run, err
	}
	if err := m.wake(ctx, id); err != nil {
		return run, err
	}
	return run, m.advance(ctx, id)
}

// lookedAt accepts the errors of a run that has halted, and changes its budget.
func lookedAt(ctx context.Context, tx pgx.Tx, run Run, budget planner.Budget) (map[string]any, error) {
	detail := map[string]any{}
	if run.Halted != nil {
		failed, _, err := failures(ctx, tx, run.ID)
		if err != nil {
			return nil, err
		}
		detail["errors_accepted"] = failed
		if _, err := tx.Exec(ctx, `UPDATE control.run SET halted = NULL, errors_accepted = $2 WHERE id = $1`, run.ID, failed); err != nil {
			return nil, err
		}
	}
	if budget.Any() {
		detail["budget_was"], detail["budget"] = run.Budget, budget
		if _, err := tx.Exec(ctx, `UPDATE control.run SET max_errors = coalesce($2, max_errors), max_error_percent = coalesce($3, max_error_percent) WHERE id = $1`,
			run.ID, budget.Errors, budget.Percent); err != nil {
			return nil, err
		}
	}
	return detail, nil
}

// Cancel ends a run: green tenants stay green, all others are undone.
func (m *Mover) Cancel(ctx context.Context, id uuid.UUID, actor string) (Run, error) {
	run, err := m.change(ctx, id, actor, Cancelling, func(ctx context.Context, tx pgx.Tx, run Run) (map[string]any, error) {
		_, err := tx.Exec(ctx, `UPDATE control.batch SET admitted = true, not_before = NULL WHERE run_id = $1`, run.ID) // undoing waits for nothing
		return nil, err
	}, Running, Paused)
	if err != nil || run.State == Cancelled {
		return run, err
	}
	return run, m.wake(ctx, id)
}

// wake enqueues every batch of a run that is at work.
func (m *Mover) wake(ctx context.Context, id uuid.UUID) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	rows, err := control.Query(ctx, `SELECT number FROM control.batch WHERE run_id = $1 AND NOT done AND admitted ORDER BY number`, id)
	if err != nil {
		return err
	}
	open, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		return err
	}
	for _, n := range open {
		if err := m.enqueueNext(ctx, StepTask{Run: id, Batch: n}, time.Time{}); err != nil {
			return err
		}
	}
	return nil
}

// Undo ends one tenant's move that is not green: it stays in blue, and its writers go
// on. The rest of the run is not touched.
func (m *Mover) Undo(ctx context.Context, id uuid.UUID, who tenant.ID, actor string) error {
	v, err := m.move(ctx, id, who)
	if err != nil {
		return err
	}
	if v.State == Blue {
		return nil // asked for twice
	}
	if !v.State.Can(Blue) || v.State == FencedBack {
		return fault.New(fault.Conflict, "already_green", "the tenant's move is %s; only one that is planned, copying, catching up or fenced can be undone", v.State)
	}
	err = m.undo(ctx, v, actor, "undone by "+actor)
	if errors.Is(err, errOutdated) {
		return fault.Wrap(err, fault.Conflict, "already_green", "the tenant's move was finished at the same moment")
	}
	return err
}

func (m *Mover) move(ctx context.Context, id uuid.UUID, who tenant.ID) (Move, error) {
	control, err := m.control(ctx)
	if err != nil {
		return Move{}, err
	}
	rows, err := control.Query(ctx, `SELECT `+moveColumns+` FROM control.move m JOIN control.tenant t ON t.id = m.tenant_id WHERE m.run_id = $1 AND m.tenant_id = $2`, id, who)
	if err != nil {
		return Move{}, err
	}
	v, err := pgx.CollectExactlyOneRow(rows, scanMove)
	if errors.Is(err, pgx.ErrNoRows) {
		return v, fault.New(fault.NotFound, "move_not_found", "run %s does not move tenant %s", id, who)
	}
	return v, err
}
