package migration

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

// Bounds of what a run may be asked for.
const (
	DefaultBatchSize = 50
	MaxBatchSize     = 1000
	DefaultMaxPause  = 30 * time.Second
	MaxMaxPause      = time.Minute // what is larger than this allows cannot be hashed in one step
)

// Plan is what an operator asks for.
type Plan struct {
	Source    string
	Tenants   []tenant.ID   // none: every tenant of the source that lives in blue
	BatchSize int           // tenants in one batch; 0 is DefaultBatchSize
	MaxPause  time.Duration // a tenant whose estimated write pause is longer is refused by name; 0 is DefaultMaxPause
	Actor     string        // who asks, for the audit trail
}

func (p *Plan) check() error {
	if p.BatchSize == 0 {
		p.BatchSize = DefaultBatchSize
	}
	if p.MaxPause == 0 {
		p.MaxPause = DefaultMaxPause
	}
	switch {
	case p.Source == "":
		return fault.BadField("source", "must name a source: %q for the platform's own blue tenants, or a registered foreign one", platformSource)
	case p.BatchSize < 1 || p.BatchSize > MaxBatchSize:
		return fault.BadField("batch_size", "must be between 1 and %d", MaxBatchSize)
	case p.MaxPause < time.Millisecond || p.MaxPause > MaxMaxPause:
		return fault.BadField("max_pause_ms", "must be between 1 and %d", MaxMaxPause.Milliseconds())
	}
	return nil
}

// candidate is a tenant that a run would move.
type candidate struct {
	ID       tenant.ID
	Name     string
	Database string
	Schema   string
	Epoch    int64
	bytes    int64
}

// candidates resolves a plan's tenants. One that is not of the source, not in blue, or
// part of another open run is a fault that names it.
func candidates(ctx context.Context, control *citus.Pool, p Plan) ([]candidate, error) {
	var known bool
	if err := control.QueryRow(ctx, `SELECT EXISTS (SELECT FROM control.source WHERE name = $1)`, p.Source).Scan(&known); err != nil {
		return nil, err
	}
	if !known {
		return nil, fault.BadField("source", "must be a registered source; there is no %q", p.Source)
	}
	chosen := p.Tenants
	if chosen == nil {
		chosen = []tenant.ID{}
	}
	rows, err := control.Query(ctx, `SELECT t.id, t.name, t.database_name, t.schema_name, t.epoch FROM control.tenant t
		WHERE t.source = $1 AND t.home = 'blue' AND t.status IN ('active', 'suspended') AND (cardinality($2::uuid[]) = 0 OR t.id = ANY($2))
		  AND NOT EXISTS (SELECT FROM control.move m WHERE m.tenant_id = t.id AND (m.state NOT IN ('blue', 'finalised') OR m.purge_due))
		ORDER BY t.id`, p.Source, chosen)
	if err != nil {
		return nil, err
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c candidate, err error) {
		return c, row.Scan(&c.ID, &c.Name, &c.Database, &c.Schema, &c.Epoch)
	})
	if err != nil {
		return nil, err
	}
	got := map[tenant.ID]bool{}
	for _, c := range out {
		got[c.ID] = true
	}
	var missing []fault.Field
	for i, id := range chosen {
		if !got[id] {
			missing = append(missing, fault.Field{Name: fmt.Sprintf("tenants[%d]", i),
				Message: fmt.Sprintf("%s must be a tenant of source %q that lives in blue and takes part in no other run", id, p.Source)})
		}
	}
	if missing != nil {
		return nil, &fault.Error{Kind: fault.Invalid, Code: "tenants_not_movable", Message: "some tenants cannot be moved", Fields: missing}
	}
	return out, nil
}

// Start checks a plan, records it as a run, and enqueues its batches. Tenants that the
// preflight refuses are left out and named in its report; when it refuses all, or the
// source as a whole, no run is made and the error is a Conflict fault, code
// "preflight_failed".
func (m *Mover) Start(ctx context.Context, p Plan) (Run, Preflight, error) {
	if err := p.check(); err != nil {
		return Run{}, Preflight{}, err
	}
	control, err := m.control(ctx)
	if err != nil {
		return Run{}, Preflight{}, err
	}
	report, movable, err := m.preflight(ctx, p)
	if err != nil {
		return Run{}, report, err
	}
	if len(movable) == 0 {
		return Run{}, report, fault.New(fault.Conflict, "preflight_failed", "no tenant of source %q can be moved: %s", p.Source, report.summary())
	}
	run := Run{ID: uuid.Must(uuid.NewV7()), Source: p.Source}
	batches := (len(movable) + p.BatchSize - 1) / p.BatchSize
	err = pgx.BeginFunc(ctx, control, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `INSERT INTO control.run (id, source, state, max_pause_ms, created_by, started_at) VALUES ($1, $2, 'running', $3, $4, clock_timestamp())`,
			run.ID, p.Source, p.MaxPause.Milliseconds(), p.Actor); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `INSERT INTO control.batch (run_id, number, step, enqueued_at) SELECT $1, n, 1, clock_timestamp() FROM generate_series(1, $2::int) n`, run.ID, batches); err != nil {
			return err
		}
		_, err := tx.CopyFrom(ctx, pgx.Identifier{"control", "move"}, []string{"run_id", "tenant_id", "batch", "state", "epoch", "bytes"},
			pgx.CopyFromSlice(len(movable), func(i int) ([]any, error) {
				c := movable[i]
				return []any{run.ID, c.ID, i/p.BatchSize + 1, string(Planned), c.Epoch, c.bytes}, nil
			}))
		if err != nil {
			return err
		}
		return note(ctx, tx, run.ID, nil, p.Actor, "started", map[string]any{"tenants": len(movable), "left_out": report.LeftOut, "batch_size": p.BatchSize})
	})
	if citus.StateOf(err) == "23505" {
		return Run{}, report, fault.Wrap(err, fault.Conflict, "tenant_in_other_run", "another run was started over some of these tenants at the same moment; start again")
	}
	if err != nil {
		return Run{}, report, fmt.Errorf("migration: record the run: %w", err)
	}
	m.crash("run recorded")
	for n := 1; n <= batches; n++ {
		if err := m.enqueue(ctx, StepTask{Run: run.ID, Batch: n, Step: 1}, time.Time{}); err != nil {
			// The run stands; the sweeper enqueues what is missing.
			break
		}
	}
	run, err = getRun(ctx, control, run.ID)
	return run, report, err
}

// change moves a run from some states to another one.
func (m *Mover) change(ctx context.Context, id uuid.UUID, actor string, to RunState, from ...RunState) (Run, error) {
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
			return note(ctx, tx, id, nil, actor, string(to), nil)
		}
		if run.State == to || to == Cancelling && run.State == Cancelled {
			return nil // asked for twice
		}
		return fault.New(fault.Conflict, "wrong_run_state", "the run is %s; only a run that is %s can become %s", run.State, orList(names), to)
	})
	return run, err
}

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
	return m.change(ctx, id, actor, Paused, Running)
}

// Resume goes on with a paused run.
func (m *Mover) Resume(ctx context.Context, id uuid.UUID, actor string) (Run, error) {
	run, err := m.change(ctx, id, actor, Running, Paused)
	if err != nil {
		return run, err
	}
	return run, m.wake(ctx, id)
}

// Cancel ends a run: green tenants stay green, all others are undone.
func (m *Mover) Cancel(ctx context.Context, id uuid.UUID, actor string) (Run, error) {
	run, err := m.change(ctx, id, actor, Cancelling, Running, Paused)
	if err != nil || run.State == Cancelled {
		return run, err
	}
	return run, m.wake(ctx, id)
}

// wake enqueues every open batch of a run.
func (m *Mover) wake(ctx context.Context, id uuid.UUID) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	rows, err := control.Query(ctx, `SELECT number FROM control.batch WHERE run_id = $1 AND NOT done ORDER BY number`, id)
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
	if v.State != Planned && v.State != Copying && v.State != Fenced {
		return fault.New(fault.Conflict, "already_green", "the tenant's move is %s; only one that is planned, copying or fenced can be undone", v.State)
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
