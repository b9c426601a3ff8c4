package migration

import (
	"context"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

// The write gate of green: a row beside the tenant's rows, which triggers read (see
// infra/schema/home/0002_reverse.sql). It is there before the tenant can write in green, so no
// write is neither refused nor captured.

// armGate opens the gate of a tenant that is about to live in green, and captures from the
// first write on. A newer token's gate is left alone and counted by its tag as no row.
const armGate = `INSERT INTO coditect.write_gate AS g (tenant_id, capture, token, node) VALUES ($1, true, $2, $3)
	ON CONFLICT (tenant_id) DO UPDATE SET closed = false, capture = true, token = excluded.token, node = excluded.node, generation = g.generation + 1
		WHERE g.token <= excluded.token`

// armGates arms the gates of tenants that are fenced in blue, on Citus: there the gate is on a
// worker and the flip on the coordinator, so it is a commit of its own, before the flip. Until
// then nobody can enter the tenant in green, and a flip that fails leaves an open gate that leads
// nowhere. Elsewhere it is a part of the flip.
func (m *Mover) armGates(ctx context.Context, moves []Move) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	if isCitus, err := control.HasCitus(ctx); err != nil || !isCitus {
		return err
	}
	for _, v := range moves {
		// The worker that has the tenant's rows: its first writer has not to say so, and nobody waits for that.
		var node int
		if err := control.QueryRow(ctx, `SELECT groupid FROM pg_dist_placement WHERE shardid = get_shard_id_for_distribution_column('coditect.write_gate', $1::uuid) LIMIT 1`, v.Tenant).
			Scan(&node); err != nil {
			return fmt.Errorf("migration: shard of %s: %w", v.Tenant, err)
		}
		tag, err := control.Exec(ctx, armGate, v.Tenant, v.Token, node)
		if err := oneEach(tag.RowsAffected(), 1, err); err != nil {
			return err
		}
	}
	return nil
}

// armMeanwhile arms the gates of a fenced group while its last changes are brought over. What it returns waits for
// that, as often as it is called.
func (m *Mover) armMeanwhile(ctx context.Context, group []fenced) (armed func() error) {
	done := make(chan error, 1)
	go func() { done <- m.armGates(ctx, movesOf(group)) }()
	return sync.OnceValue(func() error { return <-done })
}

// openGate lets writers in again. A gate that a newer token has touched stays as it is.
func (m *Mover) openGate(ctx context.Context, v Move) error {
	return m.changeGate(ctx, v, `closed = false, token = $2`, `token <= $2`)
}

// shutGate refuses writers that come from now on. It waits for nobody.
func (m *Mover) shutGate(ctx context.Context, v Move) error {
	return m.changeGate(ctx, v, `closed = true, token = $2`, `token <= $2`)
}

// drainGate waits for the writers that were in before the gate was shut, and fails those who
// write later under an older snapshot.
func (m *Mover) drainGate(ctx context.Context, v Move) error {
	return m.changeGate(ctx, v, `era = era + 1`, `token = $2 AND closed`)
}

// changeGate changes the gate unless a newer token has, and queues for it no longer than a fence may.
func (m *Mover) changeGate(ctx context.Context, v Move, set, condition string) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	err = pgx.BeginFunc(ctx, control, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL lock_timeout = '%dms'`, fencePatience*m.cfg.LockTimeout.Milliseconds())); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `UPDATE coditect.write_gate SET `+set+` WHERE tenant_id = $1 AND `+condition, v.Tenant, v.Token)
		return oneEach(tag.RowsAffected(), 1, err)
	})
	if citus.StateOf(err) == lockNotAvailable {
		return fault.Wrap(err, fault.Unavailable, "tenant_busy", "a transaction of the tenant holds on for longer than its writers may wait")
	}
	return err
}

// endCapture takes the gate away: the tenant stays in green, and nothing is written down any
// more. It waits for writers who still do.
func (m *Mover) endCapture(ctx context.Context, who tenant.ID) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	for _, table := range []string{"write_gate", "captured"} {
		if _, err := control.Exec(ctx, `DELETE FROM coditect.`+table+` WHERE tenant_id = $1`, who); err != nil {
			return fmt.Errorf("migration: end the capture of %s: %w", who, err)
		}
	}
	return nil
}
