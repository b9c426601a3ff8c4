package migration

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/tenant"
)

// Event is one entry of a run's audit trail: who decided or did what, and when.
type Event struct {
	ID     int64          `json:"id"` // grows with time
	At     time.Time      `json:"at"`
	Tenant *tenant.ID     `json:"tenant,omitempty"` // absent: the run as a whole
	Actor  string         `json:"actor"`            // "mover", or an operator's subject
	Event  string         `json:"event"`
	Detail map[string]any `json:"detail"`
}

// Events returns a run's audit trail after an event (0: from the beginning), oldest first, at most
// limit of them. An entry that another transaction is just writing may be missed by who reads at
// the end of a trail that still grows; from the beginning it is there.
func (m *Mover) Events(ctx context.Context, id uuid.UUID, after int64, limit int) ([]Event, error) {
	control, err := m.control(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := getRun(ctx, control, id); err != nil {
		return nil, err
	}
	rows, err := control.Query(ctx, `SELECT id, at, tenant_id, actor, event, detail FROM control.move_event WHERE run_id = $1 AND id > $2 ORDER BY id LIMIT $3`, id, after, limit)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Event])
}
