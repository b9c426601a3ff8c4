package migration

import (
	"context"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

// Repair makes the rows that differ those of the tenant's home, a part in one transaction, for about as long
// as a step may take; the cursor of the answer goes on. It tells what it has repaired as differences. It may
// be cut short anywhere, and begun again.
//
// A tenant that lives in blue and does not move has no rows in green: what an undone move has left there is
// deleted. Of one that lives in green and can go back, blue's rows that differ become those of green. While a
// tenant moves, the move itself brings the rows over; and what is kept as the flip has left it stays so.
func (m *Mover) Repair(ctx context.Context, who tenant.ID, actor string, o VerifyOptions) (Verification, error) {
	out := Verification{Tenant: who, Differences: []Difference{}}
	c, err := m.comparison(ctx, who)
	if err != nil {
		return out, err
	}
	out.Home, out.State, out.Expect = c.home, c.State, c.expect
	switch {
	case c.expect == GreenEmpty:
		return out, m.parts(ctx, c, o.Cursor, &out, func(p part) (next, error) {
			found, err := m.describe(ctx, c, p, p.keys, false)
			if err != nil {
				return stop, err
			}
			if err := m.deleteLeft(ctx, c, p, actor); err != nil {
				return stop, err
			}
			m.crash("part repaired")
			out.Differences = append(out.Differences, found...)
			return after(p, len(found), len(out.Differences)), nil
		})
	case c.expect == InStep && c.State == Green:
		return out, m.repairBlue(ctx, c, actor, o.Cursor, &out)
	}
	return out, notRepairable(c)
}

// after is what comes after a part of which n rows were repaired, of all that were told until then.
func after(p part, n, all int) next {
	switch {
	case p.more && n > 0:
		return again
	case all >= MaxDifferences:
		return stop
	}
	return goOn
}

func notRepairable(c *comparison) error {
	if c.expect == AsMoved {
		return fault.New(fault.Conflict, "nothing_to_repair", "the tenant lives in green, and blue is kept as the flip has left it: neither side is to become the other")
	}
	return fault.New(fault.Conflict, "tenant_moves", "the tenant's move is %s: the move itself brings its rows over and compares them", c.State)
}

// deleteLeft deletes rows from green that a tenant of blue is not to have there. The tenant's row is
// held, so that no move begins; and its rows that are there were never seen by anybody.
func (m *Mover) deleteLeft(ctx context.Context, c *comparison, p part, actor string) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	return m.impatient(ctx, control, func(tx pgx.Tx) error {
		var idle bool
		err := tx.QueryRow(ctx, `SELECT home = 'blue' AND epoch = $2 AND NOT EXISTS (SELECT FROM control.move WHERE tenant_id = t.id AND state NOT IN ('blue', 'finalised', 'planned'))
			FROM control.tenant t WHERE id = $1 FOR UPDATE`, c.Tenant, c.Epoch).Scan(&idle)
		if err != nil {
			return err
		}
		if !idle {
			return fault.New(fault.Conflict, "tenant_moved", "the tenant has begun to move: compare it again")
		}
		// Also those moves that are planned: a step claims one before it copies.
		if _, err := tx.Exec(ctx, `SELECT FROM control.move WHERE tenant_id = $1 AND state = 'planned' FOR UPDATE`, c.Tenant); err != nil {
			return err
		}
		if err := execAll(ctx, tx, slices.Concat([]string{`SET LOCAL session_replication_role = 'replica'`, `SET LOCAL enable_seqscan = off`}, canonical)); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `DELETE FROM `+quoted(c.layout.GreenSchema, p.table.Name)+` WHERE `+rowsIn(p.table, p.keys), pgx.QueryExecModeExec)
		if err != nil {
			return fmt.Errorf("migration: delete what is left of %s in table %s: %w", c.Tenant, p.table.Name, err)
		}
		return note(ctx, tx, uuid.Nil, &c.Tenant, actor, "repaired", map[string]any{"table": p.table.Name, "rows": tag.RowsAffected(), "deleted_from": "green"})
	})
}
