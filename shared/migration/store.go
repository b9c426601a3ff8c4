package migration

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/planner"
	"github.com/coditect/platform/shared/tenant"
)

// errOutdated: the caller lost its claim to a newer step, or to an undo. It stops
// without an error to anyone: whoever holds the claim goes on.
var errOutdated = errors.New("migration: a newer step owns this move")

func (m *Mover) control(ctx context.Context) (*citus.Pool, error) { return m.dbs.Control(ctx) }

// getRun reads one run.
func getRun(ctx context.Context, db querier, id uuid.UUID) (Run, error) {
	return readRun(ctx, db, id, "")
}

// lockRun is getRun for a transaction that decides how the run goes on: one at a time.
func lockRun(ctx context.Context, tx pgx.Tx, id uuid.UUID) (Run, error) {
	return readRun(ctx, tx, id, " FOR UPDATE")
}

func readRun(ctx context.Context, db querier, id uuid.UUID, lock string) (Run, error) {
	r := Run{ID: id}
	var (
		pauseMS, soakMS int64
		hours           string
		creditAt        *time.Time
	)
	err := db.QueryRow(ctx, `SELECT source, state, max_pause_ms, created_by, created_at, started_at, finished_at, wave, waves, next_wave_at, soak_ms,
			concurrency, rows_per_second, credit_rows, credit_at, hours, waits_until, max_errors, max_error_percent, errors_accepted, halted
		FROM control.run WHERE id = $1`+lock, id).
		Scan(&r.Source, &r.State, &pauseMS, &r.CreatedBy, &r.CreatedAt, &r.StartedAt, &r.FinishedAt, &r.Wave, &r.LastWave, &r.NextWaveAt, &soakMS,
			&r.Concurrency, &r.RowsPerSecond, &r.credit.Rows, &creditAt, &hours, &r.WaitsUntil, &r.Budget.Errors, &r.Budget.Percent, &r.ErrorsAccepted, &r.Halted)
	if errors.Is(err, pgx.ErrNoRows) {
		return r, fault.New(fault.NotFound, "run_not_found", "there is no run %s", id)
	}
	if err != nil {
		return r, err
	}
	r.MaxPause, r.Soak = time.Duration(pauseMS)*time.Millisecond, time.Duration(soakMS)*time.Millisecond
	r.credit.RowsPerSecond = r.RowsPerSecond
	if creditAt != nil {
		r.credit.At = *creditAt
	}
	r.Hours, err = planner.ParseHours(hours)
	return r, err
}

// querier is a pool, a connection or a transaction.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

const moveColumns = `m.run_id, m.tenant_id, m.batch, m.state, m.epoch, m.token, m.attempts, m.bytes, m.rows, m.fenced_at, m.green_at,
	m.pause_us, m.error, m.fence_up, m.online, m.hold, t.schema_name, t.database_name`

func scanMove(row pgx.CollectableRow) (Move, error) {
	var (
		v     Move
		pause *int64
	)
	err := row.Scan(&v.Run, &v.Tenant, &v.Batch, &v.State, &v.Epoch, &v.Token, &v.Attempts, &v.Bytes, &v.Rows, &v.FencedAt, &v.GreenAt,
		&pause, &v.Error, &v.FenceUp, &v.Online, &v.Hold, &v.Schema, &v.Database)
	if pause != nil {
		d := time.Duration(*pause) * time.Microsecond
		v.Pause = &d
	}
	return v, err
}

// openMoves lists a batch's moves that are neither green nor undone, fenced ones
// first: their tenants are waiting.
func openMoves(ctx context.Context, db querier, run uuid.UUID, batch int) ([]Move, error) {
	rows, err := db.Query(ctx, `SELECT `+moveColumns+` FROM control.move m JOIN control.tenant t ON t.id = m.tenant_id
		WHERE m.run_id = $1 AND m.batch = $2 AND m.state IN `+openStates+`
		ORDER BY m.state <> 'fenced', m.attempts, m.bytes, m.tenant_id`, run, batch)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scanMove)
}

// claim takes moves for this step: each gets a fencing token greater than all
// before it. Moves that are done meanwhile, or whose tenant changed its home since
// the plan, are left out.
func (m *Mover) claim(ctx context.Context, moves []Move) ([]Move, error) {
	control, err := m.control(ctx)
	if err != nil {
		return nil, err
	}
	var out []Move
	err = m.impatient(ctx, control, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `UPDATE control.move m
				SET token = nextval('control.move_token'), attempts = m.attempts + 1, fence_up = true, updated_at = clock_timestamp()
			FROM control.tenant t
			WHERE m.run_id = $1 AND m.tenant_id = ANY($2) AND m.state IN `+openStates+` AND t.id = m.tenant_id AND t.epoch = m.epoch
			RETURNING `+moveColumns, moves[0].Run, tenantsOf(moves))
		if err != nil {
			return err
		}
		out, err = pgx.CollectRows(rows, scanMove)
		return err
	})
	return out, err
}

// impatient runs a transaction that must not wait for a frozen step: a machine that was
// stopped in the middle of a COPY holds its move's row, and no timeout of the database ends
// it. Whoever has waited for too long ends the sessions of movers that have sent nothing for as
// long, and tries again: their work is not lost but repeated.
func (m *Mover) impatient(ctx context.Context, control *citus.Pool, work func(tx pgx.Tx) error) error {
	try := func() error {
		return pgx.BeginFunc(ctx, control, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '3s'`); err != nil {
				return err
			}
			return work(tx)
		})
	}
	err := try()
	if citus.StateOf(err) != lockNotAvailable {
		return err
	}
	if _, err := control.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE usename = current_user AND datname = current_database() AND pid <> pg_backend_pid() AND wait_event = 'ClientRead'
		  AND state <> 'idle' AND query_start < clock_timestamp() - $1::interval`, 2*m.cfg.Lease); err != nil {
		return err
	}
	return try()
}

func tenantsOf(moves []Move) []tenant.ID {
	out := make([]tenant.ID, len(moves))
	for i, v := range moves {
		out[i] = v.Tenant
	}
	return out
}

func tokensOf(moves []Move) []int64 {
	out := make([]int64, len(moves))
	for i, v := range moves {
		out[i] = v.Token
	}
	return out
}

// markFenced records that the fences of these moves are up.
func (m *Mover) markFenced(ctx context.Context, moves []Move) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	tag, err := control.Exec(ctx, `UPDATE control.move m SET state = 'fenced', fenced_at = coalesce(m.fenced_at, clock_timestamp()), updated_at = clock_timestamp()
		FROM unnest($2::uuid[], $3::bigint[]) AS x(tenant_id, token)
		WHERE m.run_id = $1 AND m.tenant_id = x.tenant_id AND m.token = x.token AND m.state IN `+openStates,
		moves[0].Run, tenantsOf(moves), tokensOf(moves))
	return oneEach(tag.RowsAffected(), len(moves), err)
}

// markCopying records that rows are being copied while the tenants are written.
func (m *Mover) markCopying(ctx context.Context, moves []Move) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	tag, err := control.Exec(ctx, `UPDATE control.move m SET state = 'copying', updated_at = clock_timestamp()
		FROM unnest($2::uuid[], $3::bigint[]) AS x(tenant_id, token)
		WHERE m.run_id = $1 AND m.tenant_id = x.tenant_id AND m.token = x.token AND m.state IN ('planned', 'copying')`,
		moves[0].Run, tenantsOf(moves), tokensOf(moves))
	return oneEach(tag.RowsAffected(), len(moves), err)
}

// queueLock adds what holds the moves' rows until tx ends, so that no newer step can claim
// them while rows are written to green: a step that lost its claim writes nothing.
func queueLock(b *pgx.Batch, state State, moves []Move) {
	b.Queue(`SELECT count(*) FROM (SELECT FROM control.move m JOIN unnest($2::uuid[], $3::bigint[]) AS x(tenant_id, token) USING (tenant_id)
		WHERE m.run_id = $1 AND m.token = x.token AND m.state = $4 ORDER BY m.tenant_id FOR UPDATE OF m) y`,
		moves[0].Run, tenantsOf(moves), tokensOf(moves), string(state)).QueryRow(func(row pgx.Row) error {
		var n int64
		err := row.Scan(&n)
		return oneEach(n, len(moves), err)
	})
}

// oneEach turns "fewer rows than moves" into errOutdated.
func oneEach(got int64, want int, err error) error {
	if err == nil && got != int64(want) {
		return errOutdated
	}
	return err
}

// note adds to the audit trail.
func note(ctx context.Context, db interface {
	Exec(context.Context, string, ...any) (pgconn.CommandTag, error)
}, run uuid.UUID, who *tenant.ID, actor, event string, detail map[string]any) error {
	if detail == nil {
		detail = map[string]any{}
	}
	if _, err := db.Exec(ctx, `INSERT INTO control.move_event (run_id, tenant_id, actor, event, detail) VALUES ($1, $2, $3, $4, $5)`,
		run, who, actor, event, detail); err != nil {
		return fmt.Errorf("migration: audit trail: %w", err)
	}
	return nil
}
