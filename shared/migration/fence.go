package migration

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
)

// fenced is a move whose fence is up.
type fenced struct {
	Move
	FenceID int64     // rows copied under another fence prove nothing
	Shape   string    // of the frozen schema
	Since   time.Time // when the fence was asked for: the pause begins
}

// fencePatience is how often a fence is tried in one step while a long transaction
// of a writer is in the way. Between two tries the writers behind it go on.
const fencePatience = 8

// raiseFence freezes one tenant: it waits for the open transactions of its writers
// and refuses new ones. Reads go on. One short transaction in blue.
func (m *Mover) raiseFence(ctx context.Context, blue *citus.Pool, v Move) (fenced, error) {
	f := fenced{Move: v}
	var err error
	for range fencePatience {
		f.Since = m.now()
		err = blue.QueryRow(ctx, `SELECT fence_id, shape FROM coditect.fence($1, $2, $3)`, v.Tenant, v.Token, m.cfg.LockTimeout.Milliseconds()).
			Scan(&f.FenceID, &f.Shape)
		if citus.StateOf(err) != lockNotAvailable {
			break
		}
	}
	switch {
	case err == nil:
		if v.FencedAt != nil {
			f.Since = *v.FencedAt // an earlier step raised it: the pause began then
		}
		return f, nil
	case citus.StateOf(err) == citus.StateOutdated:
		return f, errOutdated
	}
	return f, fmt.Errorf("migration: fence %s: %w", v.Tenant, err)
}

const lockNotAvailable = "55P03" // lock_timeout

// shapesOf returns the shapes of the moves' schemas, by schema.
func (m *Mover) shapesOf(ctx context.Context, blue *citus.Pool, moves []Move) (map[string]string, error) {
	b := &pgx.Batch{}
	shapes := map[string]string{}
	for _, v := range moves {
		b.Queue(`SELECT coditect.shape($1)`, v.Schema).QueryRow(func(row pgx.Row) error {
			var s string
			err := row.Scan(&s)
			shapes[v.Schema] = s
			return err
		})
	}
	if err := blue.SendBatch(ctx, b).Close(); err != nil {
		return nil, fmt.Errorf("migration: shapes of schemas: %w", err)
	}
	return shapes, nil
}

// arm makes one tenant's fence ready, not raised. A writer in the way is not waited
// for: raising makes what is missing.
func (m *Mover) arm(ctx context.Context, blue *citus.Pool, schema string) error {
	err := pgx.BeginFunc(ctx, blue, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL lock_timeout = '%dms'`, m.cfg.LockTimeout.Milliseconds())); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `SELECT coditect.arm($1)`, schema)
		return err
	})
	if citus.StateOf(err) == lockNotAvailable {
		return nil
	}
	return err
}

// sendVacuumAway ends what autovacuum does with the tables of these schemas. Its lock is in the way of a fence's and of
// the barrier's, and it gives way only to who waits for a whole deadlock_timeout (1 s): too long with writers behind it.
// So it is asked for with a lock that no writer minds, right before: it comes back after autovacuum_naptime. Other
// maintenance, which gives way to nobody, is waited for no longer.
func (m *Mover) sendVacuumAway(ctx context.Context, blue *citus.Pool, moves []Move) error {
	var schemas []string
	for _, v := range moves {
		if v.State != Fenced { // its writers cannot wait
			schemas = append(schemas, v.Schema)
		}
	}
	if len(schemas) == 0 {
		return nil
	}
	var (
		tables   []string
		patience int64
	)
	err := blue.QueryRow(ctx, `SELECT array_agg(DISTINCT format('%I.%I', n.nspname, c.relname)), (SELECT setting::bigint + 1000 FROM pg_settings WHERE name = 'deadlock_timeout')
		FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE l.locktype = 'relation' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
		  AND l.mode = 'ShareUpdateExclusiveLock' AND l.granted AND c.relkind = 'r' AND n.nspname = ANY ($1)`, schemas).Scan(&tables, &patience)
	if err != nil || len(tables) == 0 {
		return err
	}
	err = pgx.BeginFunc(ctx, blue, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL lock_timeout = '%dms'`, patience)); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `LOCK TABLE `+strings.Join(tables, ", ")+` IN SHARE UPDATE EXCLUSIVE MODE`)
		return err
	})
	if citus.StateOf(err) == lockNotAvailable {
		return nil // the fence says so
	}
	return err
}

// liftFence lets the tenant's writers in again. A newer token's fence stays.
func (m *Mover) liftFence(ctx context.Context, v Move) error {
	blue, err := m.dbs.Pool(ctx, v.Database)
	if err != nil {
		return err
	}
	if _, err := blue.Exec(ctx, `SELECT coditect.unfence($1, $2, $3)`, v.Tenant, v.Token, 5000); err != nil {
		if citus.StateOf(err) == citus.StateOutdated {
			return errOutdated
		}
		return fmt.Errorf("migration: lift the fence of %s: %w", v.Tenant, err)
	}
	m.crash("fence lifted")
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	_, err = control.Exec(ctx, `UPDATE control.move SET fence_up = false WHERE run_id = $1 AND tenant_id = $2 AND token = $3`, v.Run, v.Tenant, v.Token)
	return err
}

// closeGates sends readers away too: from now on until the flip, a moment later,
// nobody enters these tenants.
func closeGates(ctx context.Context, blue *citus.Pool, moves []Move) error {
	var n int64
	err := blue.QueryRow(ctx, `SELECT coditect.close_gates($1, $2)`, tenantsOf(moves), tokensOf(moves)).Scan(&n)
	return oneEach(n, len(moves), err)
}

// takeGate makes blue refuse whoever held the tenant before: one who wakes up now and wants to
// open it. It reports whether there is a gate; one that is not closed and fenced is a fault.
func (m *Mover) takeGate(ctx context.Context, blue *citus.Pool, v Move) (there bool, err error) {
	var shut bool
	var token int64
	err = blue.QueryRow(ctx, `UPDATE coditect.gate SET token = CASE WHEN fenced AND closed THEN greatest(token, $2) ELSE token END WHERE tenant_id = $1 RETURNING fenced AND closed, token`,
		v.Tenant, v.Token).Scan(&shut, &token)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("migration: take the gate of %s: %w", v.Tenant, err)
	case !shut:
		return true, errNotFenced(v.Schema)
	case token != v.Token:
		return true, errOutdated
	}
	return true, nil
}

func errNotFenced(schema string) error {
	return fault.New(fault.Conflict, "blue_not_fenced", "schema %s of blue is not fenced any more since the tenant left it: somebody may have written there; compare it with green before it is dropped", schema)
}
