package migration

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

// A run may be held (Plan.Hold): each of its tenants is copied and then follows blue, until
// LetGo has it cut over. A whole database can be in step for weeks that way: a tenant that follows
// costs blue what its slot costs, and nobody waits for it. While it is held, no count of attempts
// gives it up; a schema that changes has it copied again as soon as green fits it.

// followEvery is how often a batch looks for what its tenants have to apply.
const followEvery = 500 * time.Millisecond

// follow brings those of a batch's tenants that follow blue up to what is in the spool.
func (s *step) follow(ctx context.Context, run Run, following []Move) error {
	if len(following) == 0 {
		return nil
	}
	s.follows = true
	behind, err := s.m.behind(ctx, following)
	if err != nil {
		return err
	}
	s.behind = false
	for _, v := range behind {
		if s.stop() {
			s.behind = true
			break
		}
		if err := s.moveSome(ctx, run, []Move{v}); err != nil {
			return err
		}
	}
	return nil
}

// behind leaves those of the tenants for which there is something to do: changes to apply, a
// stream that was interrupted, or tables that are not those that were copied.
func (m *Mover) behind(ctx context.Context, following []Move) ([]Move, error) {
	control, err := m.control(ctx)
	if err != nil {
		return nil, err
	}
	type position struct{ lsn, seq int64 }
	applied := map[tenant.ID]position{}
	var (
		id    tenant.ID
		p     position
		shape *string
		whole bool
	)
	rows, err := control.Query(ctx, `SELECT tenant_id, lsn, seq FROM control.applied WHERE tenant_id = ANY($1)`, tenantsOf(following))
	if err != nil {
		return nil, err
	}
	if _, err := pgx.ForEachRow(rows, []any{&id, &p.lsn, &p.seq}, func() error { applied[id] = p; return nil }); err != nil {
		return nil, fmt.Errorf("migration: positions of tenants that follow: %w", err)
	}
	rows, err = control.Query(ctx, `SELECT s.tenant_id, s.shape, s.joined AND s.slot = l.slot AND l.open, coalesce(c.lsn, 0), coalesce(c.seq, 0)
		FROM control.streamed s JOIN control.lane l USING (database_name, number)
		LEFT JOIN LATERAL (SELECT lsn, seq FROM control.pack WHERE tenant_id = s.tenant_id AND lsn < l.spooled ORDER BY lsn DESC, seq DESC LIMIT 1) c ON true
		WHERE s.tenant_id = ANY($1)`, tenantsOf(following))
	if err != nil {
		return nil, err
	}
	inStep, shapes := map[tenant.ID]bool{}, map[tenant.ID]*string{}
	if _, err := pgx.ForEachRow(rows, []any{&id, &shape, &whole, &p.lsn, &p.seq}, func() error {
		at, known := applied[id]
		inStep[id] = whole && known && (p.lsn < at.lsn || p.lsn == at.lsn && p.seq <= at.seq)
		shapes[id] = shape
		return nil
	}); err != nil {
		return nil, fmt.Errorf("migration: changes of tenants that follow: %w", err)
	}
	changed, err := m.reshaped(ctx, only(following, func(v Move) bool { return inStep[v.Tenant] }), shapes)
	return only(following, func(v Move) bool { return !inStep[v.Tenant] || changed[v.Tenant] }), err
}

// reshaped finds the tenants whose tables are not those that were copied. It looks from time to time only.
func (m *Mover) reshaped(ctx context.Context, moves []Move, copied map[tenant.ID]*string) (map[tenant.ID]bool, error) {
	due := map[string][]Move{}
	for _, v := range moves {
		last, known := m.looked.Load(v.Tenant)
		if !known || m.now().Sub(last.(time.Time)) >= m.cfg.SchemaCheck {
			due[v.Database] = append(due[v.Database], v)
		}
	}
	out := map[tenant.ID]bool{}
	for database, moves := range due {
		blue, err := m.dbs.Pool(ctx, database)
		if err != nil {
			return nil, err
		}
		now, err := m.shapesOf(ctx, blue, moves)
		if err != nil {
			return nil, err
		}
		for _, v := range moves {
			m.looked.Store(v.Tenant, m.now())
			was := copied[v.Tenant]
			out[v.Tenant] = was == nil || *was != now[v.Schema]
		}
	}
	return out, nil
}

// holdBatch makes room for other batches: all tenants of this one follow blue.
func (s *step) holdBatch(ctx context.Context) error {
	control, err := s.m.control(ctx)
	if err != nil {
		return err
	}
	tag, err := control.Exec(ctx, `UPDATE control.batch SET held = true WHERE run_id = $1 AND number = $2 AND NOT held`, s.task.Run, s.task.Batch)
	if err != nil || tag.RowsAffected() == 0 {
		return err
	}
	s.m.crash("batch held")
	return s.m.advance(ctx, s.task.Run)
}

// follow applies what the spool has, and compares what has been changed for long enough.
func (o *onlineMove) follow(ctx context.Context) error {
	at, b, err := o.begin(ctx)
	if err != nil {
		return err
	}
	for first := true; first || !o.stop(); first = false {
		done, err := o.round(ctx, &at, &b)
		if err != nil {
			return err
		}
		o.behind = b.changes > 0
		if done.applied == 0 && done.compared == 0 {
			break
		}
		o.moved = true
	}
	if o.v.Error != nil { // it is over
		return o.advance(ctx, Following, Following)
	}
	return nil
}

func errNoStream() error {
	return fault.New(fault.Conflict, "no_change_stream", "blue does not let its changes be read, so its tenants cannot be held in step with it: wal_level must be logical, the migrator's role needs REPLICATION, and CODITECT_LANES must not be -1")
}

// schemasDiffer: the schema of the tenant, or green's, was changed.
func schemasDiffer(err error) bool {
	switch fault.CodeOf(err) {
	case "schema_drift", "schema_changed":
		return true
	}
	return false
}

// LetGo has tenants that follow blue cut over as soon as they can: those that are named, or the
// smallest ones up to limit, or without either every tenant of the run. Those that are still being
// copied do so when they come to it. It returns how many were let go.
//
// It is refused as a Conflict fault with the code "schema_drift" while blue's tables are not
// exactly those of green (a change of the schema has been begun but not finished), and with
// "nobody_held" when there is nobody.
func (m *Mover) LetGo(ctx context.Context, id uuid.UUID, who []tenant.ID, limit int, actor string) (int, error) {
	control, err := m.control(ctx)
	if err != nil {
		return 0, err
	}
	run, err := getRun(ctx, control, id)
	if err != nil {
		return 0, err
	}
	if run.State != Running {
		return 0, fault.New(fault.Conflict, "wrong_run_state", "the run is %s; only a run that is %s can cut tenants over", run.State, Running)
	}
	held, err := m.held(ctx, control, run, who, limit)
	if err != nil {
		return 0, err
	}
	if err := m.fitsGreen(ctx, run, held); err != nil {
		return 0, err
	}
	var n int64
	err = pgx.BeginFunc(ctx, control, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `UPDATE control.move SET hold = false, attempts = 0, state = CASE state WHEN 'following' THEN 'catching_up' ELSE state END, updated_at = clock_timestamp()
			WHERE run_id = $1 AND hold AND tenant_id = ANY($2) AND state IN `+openStates, id, tenantsOf(held))
		if err != nil {
			return err
		}
		n = tag.RowsAffected()
		if _, err := tx.Exec(ctx, `UPDATE control.batch b SET held = false WHERE run_id = $1 AND held
			AND EXISTS (SELECT FROM control.move m WHERE m.run_id = b.run_id AND m.batch = b.number AND m.tenant_id = ANY($2))`, id, tenantsOf(held)); err != nil {
			return err
		}
		return note(ctx, tx, id, nil, actor, "let go", map[string]any{"tenants": n})
	})
	if err != nil {
		return 0, fmt.Errorf("migration: let tenants go: %w", err)
	}
	m.crash("let go")
	return int(n), m.wake(ctx, id)
}

// held lists the tenants that LetGo is about.
func (m *Mover) held(ctx context.Context, control querier, run Run, who []tenant.ID, limit int) ([]Move, error) {
	if limit < 0 {
		return nil, fault.BadField("limit", "must be at least 1")
	}
	if limit == 0 {
		limit = 1 << 30
	}
	rows, err := control.Query(ctx, `SELECT `+moveColumns+` FROM control.move m JOIN control.tenant t ON t.id = m.tenant_id
		WHERE m.run_id = $1 AND m.hold AND m.state IN `+openStates+` AND ($2::uuid[] IS NULL OR m.tenant_id = ANY($2))
		ORDER BY m.state <> 'following', m.bytes, m.tenant_id LIMIT $3`, run.ID, who, limit)
	if err != nil {
		return nil, err
	}
	held, err := pgx.CollectRows(rows, scanMove)
	if err != nil {
		return nil, err
	}
	known := map[tenant.ID]bool{}
	for _, v := range held {
		known[v.Tenant] = true
	}
	for _, id := range who {
		if !known[id] && len(who) <= limit {
			return nil, fault.New(fault.Conflict, "tenant_not_held", "tenant %s is not held by this run", id)
		}
	}
	if len(held) == 0 {
		return nil, fault.New(fault.Conflict, "nobody_held", "the run holds nobody: its tenants cut over by themselves, or have done so")
	}
	return held, nil
}

// fitsGreen checks one tenant of each shape.
func (m *Mover) fitsGreen(ctx context.Context, run Run, moves []Move) error {
	of := map[string][]Move{}
	for _, v := range moves {
		of[v.Database] = append(of[v.Database], v)
	}
	for database, moves := range of {
		blue, err := m.dbs.Pool(ctx, database)
		if err != nil {
			return err
		}
		shapes, err := m.shapesOf(ctx, blue, moves)
		if err != nil {
			return err
		}
		seen := map[string]bool{}
		for _, v := range moves {
			shape := shapes[v.Schema]
			if seen[shape] {
				continue
			}
			seen[shape] = true
			if _, err := m.layoutFor(ctx, run.Source, blue, v.Schema, shape, exactly); err != nil {
				return err
			}
		}
	}
	return nil
}
