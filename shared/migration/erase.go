package migration

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/tenant"
)

// eraseArchives deletes the dumps of tenants that were erased: who asks to be forgotten is not
// kept in an archive. A dump that a crash has cut off from its row is deleted again, which is fine.
func (m *Mover) eraseArchives(ctx context.Context) (n int, err error) {
	if m.archive == nil {
		return 0, nil
	}
	control, err := m.control(ctx)
	if err != nil {
		return 0, err
	}
	rows, err := control.Query(ctx, `SELECT a.run_id, a.tenant_id, a.object FROM control.archive a JOIN control.tenant t ON t.id = a.tenant_id
		WHERE t.status = 'deleted' AND (a.lease_until IS NULL OR a.lease_until < clock_timestamp()) ORDER BY a.saved_at LIMIT 100`)
	if err != nil {
		return 0, fmt.Errorf("migration: archives of erased tenants: %w", err)
	}
	type dump struct {
		Run    uuid.UUID
		Tenant tenant.ID
		Object string
	}
	due, err := pgx.CollectRows(rows, pgx.RowToStructByPos[dump])
	if err != nil {
		return 0, fmt.Errorf("migration: archives of erased tenants: %w", err)
	}
	for _, d := range due {
		if err := m.archive.Remove(ctx, d.Object); err != nil {
			return n, fmt.Errorf("migration: delete the archive of %s: %w", d.Tenant, err)
		}
		m.crash("archive erased")
		if err := pgx.BeginFunc(ctx, control, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `DELETE FROM control.archive WHERE run_id = $1 AND tenant_id = $2`, d.Run, d.Tenant); err != nil {
				return err
			}
			return note(ctx, tx, d.Run, &d.Tenant, "mover", "archive erased", nil)
		}); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}
