package migration

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/convert"
	"github.com/coditect/platform/shared/tenant"
)

// moveFenced moves one tenant whose rows are not copied before its fence: one that is too
// large for that, or one that an earlier step has left fenced. Its writers wait from the first
// line to the last.
//
// An error that belongs to the tenant undoes its move; any other leaves it as it is, fenced,
// for the next step.
func (m *Mover) moveFenced(ctx context.Context, run Run, blue *citus.Pool, l convert.Layout, shape string, v Move, stop func() bool) error {
	if err := m.sendVacuumAway(ctx, blue, []Move{v}); err != nil {
		return err
	}
	group, err := m.fenceGroup(ctx, blue, shape, []Move{v})
	if err != nil || len(group) == 0 {
		return err
	}
	moves := movesOf(group)
	if m.cfg.ahead(v) {
		defer m.calm.enter()() // not for a large one: that takes its time
	}
	var count int64
	wrong := map[tenant.ID]string{}
	if m.cfg.ahead(v) { // whatever green has
		var differs string
		err := both(ctx,
			func(ctx context.Context) error { return m.moveSequences(ctx, blue, l, moves) },
			func(ctx context.Context) (err error) {
				count, differs, err = m.reconcile(ctx, blue, l, v, nil)
				return err
			})
		if err != nil {
			return err
		}
		m.crash("copied")
		if differs != "" {
			wrong[v.Tenant] = differs
		}
		if err := m.proveKeys(ctx, l, l.ForeignKeys, moves); err != nil {
			return err
		}
	} else {
		finished, err := m.copyBig(ctx, blue, l, group[0], stop)
		if err != nil || !finished {
			return err
		}
		m.crash("copied")
		var inBlue, inGreen digests
		err = both(ctx,
			func(ctx context.Context) error {
				if err := m.moveSequences(ctx, blue, l, moves); err != nil {
					return err
				}
				inBlue = digests{}
				return frozen(ctx, blue, func(tx pgx.Tx) error { return blueDigests(ctx, tx, l, moves, inBlue) })
			},
			func(ctx context.Context) (err error) { inGreen, err = m.greenDigests(ctx, l, moves, true); return err })
		if err != nil {
			return err
		}
		wrong = compare(l, moves, inBlue, inGreen)
		count = inGreen.rows(v.Tenant)
	}
	if len(wrong) > 0 {
		return m.refuse(ctx, moves, wrong)
	}
	m.crash("verified")
	if err := m.armGates(ctx, moves); err != nil {
		return err
	}
	m.crash("gates armed")
	return m.flip(ctx, run, blue, l, group, []int64{count})
}

// both runs two pieces of work at the same time.
func both(ctx context.Context, one, two func(context.Context) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return one(ctx) })
	g.Go(func() error { return two(ctx) })
	return g.Wait()
}

// fencesAtOnce is how many fences are raised at the same time.
const fencesAtOnce = 3

// fenceGroup raises the fences. A tenant whose writers hold on for too long is left
// for a later step, and one whose schema is not what it was is undone.
func (m *Mover) fenceGroup(ctx context.Context, blue *citus.Pool, shape string, moves []Move) ([]fenced, error) {
	// At the same time: each may have to wait for a writer, and whoever is fenced first waits for the last.
	raised, errs := make([]fenced, len(moves)), make([]error, len(moves))
	var g errgroup.Group
	g.SetLimit(fencesAtOnce)
	for i, v := range moves {
		g.Go(func() error { raised[i], errs[i] = m.raiseFence(ctx, blue, v); return nil })
	}
	_ = g.Wait() // the errors are in errs
	m.crash("fence raised")
	var group []fenced
	for i, v := range moves {
		f, err := raised[i], errs[i]
		switch {
		case errors.Is(err, errOutdated):
		case citus.StateOf(err) == lockNotAvailable:
			if v.State == Fenced {
				return nil, err
			}
			if err := m.setError(ctx, v, "a transaction of the tenant, or maintenance such as VACUUM or CREATE INDEX, holds its tables for longer than the fence may wait; it is tried again"); err != nil {
				return nil, err
			}
		case err != nil:
			return nil, err
		case f.Shape != shape:
			f.Token = v.Token
			if err := m.undo(ctx, f.Move, "mover", "the schema was changed after the run was planned; plan it again"); err != nil {
				return nil, err
			}
		default:
			group = append(group, f)
		}
	}
	if len(group) == 0 {
		return nil, nil
	}
	if err := m.markFenced(ctx, movesOf(group)); err != nil {
		return nil, err
	}
	m.crash("fence recorded")
	return group, nil
}

func movesOf(group []fenced) []Move {
	out := make([]Move, len(group))
	for i, f := range group {
		out[i] = f.Move
	}
	return out
}

// flip changes the home of verified tenants, whose gates are armed: the directory, green's gate and the move
// in one commit. Before it every tenant of the group lives in blue, after it in green.
// The gate in blue closes a moment earlier, so that nobody reads there what has been
// changed in green.
func (m *Mover) flip(ctx context.Context, run Run, blue *citus.Pool, l convert.Layout, group []fenced, counts []int64) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	moves := movesOf(group)
	isCitus, err := control.HasCitus(ctx)
	if err != nil {
		return err
	}
	if err := closeGates(ctx, blue, moves); err != nil {
		return err
	}
	m.crash("gates closed")
	err = pgx.BeginFunc(ctx, control, func(tx pgx.Tx) error {
		b := &pgx.Batch{}
		expect := func(n *int64) func(tag pgconn.CommandTag) error {
			return func(tag pgconn.CommandTag) error { *n = tag.RowsAffected(); return nil }
		}
		var moved, flipped, opened int64
		if !isCitus {
			for _, v := range moves {
				b.Queue(armGate, v.Tenant, v.Token, 0).Exec(func(tag pgconn.CommandTag) error { return oneEach(tag.RowsAffected(), 1, nil) })
			}
		}
		b.Queue(`UPDATE control.move m SET state = 'green', green_at = clock_timestamp(), rows = x.rows, error = NULL, updated_at = clock_timestamp(),
				blue_database = t.database_name, blue_schema = t.schema_name
			FROM unnest($2::uuid[], $3::bigint[], $4::bigint[]) AS x(tenant_id, token, rows) JOIN control.tenant t ON t.id = x.tenant_id
			WHERE m.run_id = $1 AND m.tenant_id = x.tenant_id AND m.token = x.token AND m.state = 'fenced'`,
			run.ID, tenantsOf(moves), tokensOf(moves), counts).Exec(expect(&moved))
		b.Queue(`UPDATE control.tenant t SET home = 'green', database_name = 'green', schema_name = $2, epoch = t.epoch + 1, updated_at = clock_timestamp()
			FROM control.move m WHERE m.run_id = $1 AND m.tenant_id = t.id AND t.id = ANY($3) AND t.home = 'blue' AND t.epoch = m.epoch`,
			run.ID, l.GreenSchema, tenantsOf(moves)).Exec(expect(&flipped))
		// A suspension during the move comes along: the directory's row was locked by the statement before.
		b.Queue(`INSERT INTO coditect.gate (tenant_id, schema_name, shared_schema, epoch, suspended)
			SELECT id, schema_name, nullif($2, ''), epoch, status <> 'active' FROM control.tenant WHERE id = ANY($1)
			ON CONFLICT (tenant_id) DO UPDATE SET schema_name = excluded.schema_name, shared_schema = excluded.shared_schema, epoch = excluded.epoch, suspended = excluded.suspended, closed = false`,
			tenantsOf(moves), l.PublicSchema).Exec(expect(&opened))
		b.Queue(`DELETE FROM control.copied WHERE tenant_id = ANY($1)`, tenantsOf(moves))
		b.Queue(`INSERT INTO control.move_event (run_id, tenant_id, actor, event) SELECT $1, x, 'mover', 'green' FROM unnest($2::uuid[]) x`, run.ID, tenantsOf(moves))
		if err := tx.SendBatch(ctx, b).Close(); err != nil {
			return err
		}
		for _, n := range []int64{moved, flipped, opened} {
			if err := oneEach(n, len(group), nil); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("migration: flip: %w", err)
	}
	now := m.now()
	m.crash("flipped")
	pauses := make([]int64, len(group))
	for i, f := range group {
		pauses[i] = now.Sub(f.Since).Microseconds()
	}
	// For the report only: a crash before this line leaves the pause unknown.
	_, err = control.Exec(ctx, `UPDATE control.move m SET pause_us = x.pause FROM unnest($2::uuid[], $3::bigint[]) AS x(tenant_id, pause)
		WHERE m.run_id = $1 AND m.tenant_id = x.tenant_id`, run.ID, tenantsOf(moves), pauses)
	if err != nil {
		return err
	}
	return m.spendAtOnce(ctx, run, group, counts)
}

// refuse undoes the moves of tenants whose rows are not the same on both sides. The
// others of the group are moved by the next step.
func (m *Mover) refuse(ctx context.Context, moves []Move, wrong map[tenant.ID]string) error {
	var errs []error
	for _, v := range moves {
		if why, ok := wrong[v.Tenant]; ok {
			errs = append(errs, m.undo(ctx, v, "mover", "verification failed: "+why))
		}
	}
	return errors.Join(errs...)
}

// setError notes why a move is not further, for the operator to read.
func (m *Mover) setError(ctx context.Context, v Move, why string) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	_, err = control.Exec(ctx, `UPDATE control.move SET error = $4, updated_at = clock_timestamp() WHERE run_id = $1 AND tenant_id = $2 AND token = $3`,
		v.Run, v.Tenant, v.Token, why)
	return err
}

// setErrors is setError for some moves.
func (m *Mover) setErrors(ctx context.Context, moves []Move, why string) error {
	for _, v := range moves {
		if err := m.setError(ctx, v, why); err != nil {
			return err
		}
	}
	return nil
}

// undo ends a move that is not green: the tenant stays in blue. First comes the state,
// with a new token, so that nothing of an undone move can come back; then the fence is
// lifted, then green's rows go. A crash leaves what is missing to the sweeper.
func (m *Mover) undo(ctx context.Context, v Move, actor, why string) error {
	claimed, err := m.endMove(ctx, &v, actor, "undone", why, `state = 'blue', purge_due = fence_up OR online, error = $3`)
	if err != nil {
		return fmt.Errorf("migration: undo %s: %w", v.Tenant, err)
	}
	m.crash("undone")
	if !claimed {
		return nil // no step ever touched the tenant
	}
	if err := m.liftFence(ctx, v); err != nil {
		return err
	}
	return m.purgeTenant(ctx, v)
}

// putBack lets a tenant of a paused run write again. Its move is planned anew, or, the online way,
// goes on from what is copied.
func (m *Mover) putBack(ctx context.Context, v Move) error {
	if _, err := m.endMove(ctx, &v, "mover", "put back", "the run is paused", `state = CASE WHEN NOT online THEN 'planned' WHEN state = 'fenced' THEN 'catching_up' ELSE state END, fenced_at = NULL, error = $3`); err != nil {
		return fmt.Errorf("migration: put %s back: %w", v.Tenant, err)
	}
	m.crash("put back")
	return m.liftFence(ctx, v)
}

// endMove changes a move that is not green and takes it from whoever is at work on it,
// by a new token. It reports whether a step has ever claimed it.
func (m *Mover) endMove(ctx context.Context, v *Move, actor, event, why, set string) (claimed bool, err error) {
	control, err := m.control(ctx)
	if err != nil {
		return false, err
	}
	err = m.impatient(ctx, control, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `UPDATE control.move SET `+set+`, token = nextval('control.move_token'), updated_at = clock_timestamp()
			WHERE run_id = $1 AND tenant_id = $2 AND state IN `+openStates+` RETURNING token, fence_up OR online`, v.Run, v.Tenant, why).
			Scan(&v.Token, &claimed)
		if errors.Is(err, pgx.ErrNoRows) {
			return errOutdated
		}
		if err != nil {
			return err
		}
		return note(ctx, tx, v.Run, &v.Tenant, actor, event, map[string]any{"why": why})
	})
	return claimed, err
}

// purgeTenant deletes whatever green has of a tenant whose move was undone, table by
// table. Until it is done the tenant takes part in no other run.
func (m *Mover) purgeTenant(ctx context.Context, v Move) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	var green string
	if err := control.QueryRow(ctx, `SELECT s.green_schema FROM control.source s JOIN control.run r ON r.source = s.name WHERE r.id = $1`, v.Run).Scan(&green); err != nil {
		return err
	}
	rows, err := control.Query(ctx, `SELECT c.relname FROM pg_class c WHERE c.relnamespace = to_regnamespace(quote_ident($1)) AND c.relkind IN ('r', 'p') AND NOT c.relispartition`, green)
	if err != nil {
		return err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	if err := m.leaveStream(ctx, v); err != nil {
		return err
	}
	for _, n := range names {
		err := pgx.BeginFunc(ctx, control, func(tx pgx.Tx) error {
			if err := execAll(ctx, tx, []string{`SET LOCAL session_replication_role = 'replica'`}); err != nil {
				return err
			}
			if err := holdUndone(ctx, tx, v); err != nil {
				return err
			}
			return purge(ctx, tx, convert.Layout{GreenSchema: green, Tables: []convert.Table{{Name: n}}}, []Move{v})
		})
		if errors.Is(err, errOutdated) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	_, err = control.Exec(ctx, `UPDATE control.move SET purge_due = false WHERE run_id = $1 AND tenant_id = $2 AND state = 'blue'`, v.Run, v.Tenant)
	return err
}

// holdUndone holds the row of an undone move until tx ends, so that no other run begins with its
// tenant while rows are deleted. It fails with errOutdated when somebody else has deleted them:
// whoever has slept since must not delete what another run has brought.
func holdUndone(ctx context.Context, tx pgx.Tx, v Move) error {
	tag, err := tx.Exec(ctx, `SELECT FROM control.move WHERE run_id = $1 AND tenant_id = $2 AND state = 'blue' AND purge_due FOR UPDATE`, v.Run, v.Tenant)
	return oneEach(tag.RowsAffected(), 1, err)
}

// isTenantsFault tells errors that trying again will not mend, and that so belong to
// the tenant, from those of the moment.
func isTenantsFault(err error) bool {
	switch fault.KindOf(err) {
	case fault.Conflict, fault.Invalid, fault.NotFound:
		return true
	}
	state := citus.StateOf(err)
	if len(state) < 2 {
		return false
	}
	switch state[:2] {
	case "22", "23", "42", "0A", "54", "XX": // data, constraints, names and types, features, limits, damage
		return true
	}
	return state == citus.StateNotHere
}

// pauseLimit is how long a tenant may stay fenced over all steps before it is undone.
func pauseLimit(run Run) time.Duration { return max(4*run.MaxPause, time.Minute) }
