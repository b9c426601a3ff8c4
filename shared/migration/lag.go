package migration

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/tenant"
)

// LaneLag is how far the change stream of one lane is behind its blue database.
type LaneLag struct {
	Database string  `json:"database"`
	Lane     int     `json:"lane"`
	Bytes    int64   `json:"behind_bytes"`   // of WAL that is not in the spool yet
	Seconds  float64 `json:"behind_seconds"` // since the last spooled commit; 0 when nothing is missing
	Retained int64   `json:"retained_bytes"` // of WAL that blue keeps for the slot
	Lost     string  `json:"lost,omitempty"` // why the last slot was given up

	AlarmedAt *time.Time `json:"alarmed_at,omitempty"` // it is further behind than Config.LagAlarm allows, since
}

// TenantLag is how far a tenant that moves online is behind.
type TenantLag struct {
	Tenant  tenant.ID `json:"tenant"`
	State   State     `json:"state"`
	Rows    int64     `json:"rows"`           // copied so far
	Changes int64     `json:"changes"`        // in the spool: not applied, or not compared since
	Bytes   int64     `json:"behind_bytes"`   // of WAL, from the last applied change to the newest spooled one
	Seconds float64   `json:"behind_seconds"` // age of the oldest change that is not applied
}

// lags reads how far the change streams of a run's tenants are behind: of at most 100 tenants,
// those that are furthest.
func lags(ctx context.Context, db querier, run uuid.UUID, now time.Time) (lanes []LaneLag, tenants []TenantLag, err error) {
	rows, err := db.Query(ctx, `SELECT database_name, number, greatest(wal_end - spooled, 0),
			CASE WHEN wal_end > spooled THEN greatest(extract(epoch FROM clock_timestamp() - coalesce(last_commit, heard_at)), 0)::float8 ELSE 0 END, retained, coalesce(lost, ''), alarmed_at
		FROM control.lane l WHERE open AND EXISTS (SELECT FROM control.streamed s WHERE s.database_name = l.database_name AND s.number = l.number AND s.run_id = $1)
		ORDER BY 1, 2`, run)
	if err != nil {
		return nil, nil, err
	}
	if lanes, err = pgx.CollectRows(rows, pgx.RowToStructByPos[LaneLag]); err != nil {
		return nil, nil, err
	}
	rows, err = db.Query(ctx, `SELECT m.tenant_id, m.state FROM control.streamed s JOIN control.move m ON m.run_id = s.run_id AND m.tenant_id = s.tenant_id
		WHERE s.run_id = $1 AND m.state IN `+openStates+` ORDER BY m.updated_at LIMIT 100`, run)
	if err != nil {
		return nil, nil, err
	}
	tenants, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (t TenantLag, err error) { return t, row.Scan(&t.Tenant, &t.State) })
	if err != nil {
		return nil, nil, err
	}
	for i := range tenants {
		if err := tenants[i].read(ctx, db, now); err != nil {
			return nil, nil, err
		}
	}
	return lanes, tenants, nil
}

// read fills in one tenant's figures. Each statement names the tenant, so that on Citus it asks one shard.
func (t *TenantLag) read(ctx context.Context, db querier, now time.Time) error {
	if err := db.QueryRow(ctx, `SELECT coalesce(sum(rows), 0)::bigint FROM control.chunk WHERE tenant_id = $1`, t.Tenant).Scan(&t.Rows); err != nil {
		return err
	}
	var lsn, seq int64
	if err := db.QueryRow(ctx, `SELECT coalesce(max(lsn), 0), coalesce(max(seq), 0) FROM control.applied WHERE tenant_id = $1`, t.Tenant).Scan(&lsn, &seq); err != nil {
		return err
	}
	var oldest *time.Time
	// A pack that has begun to be applied is applied as a whole.
	err := db.QueryRow(ctx, `SELECT coalesce(sum(changes), 0)::bigint + (SELECT count(*) FROM control.unproven WHERE tenant_id = $1),
			greatest(coalesce(max(lsn), 0) - CASE WHEN $2::bigint > 0 THEN $2 ELSE coalesce(min(begins), 0) END, 0), min(at) FILTER (WHERE (lsn, seq) > ($2, $3))
		FROM control.pack WHERE tenant_id = $1`, t.Tenant, lsn, seq).Scan(&t.Changes, &t.Bytes, &oldest)
	if err == nil && oldest != nil {
		t.Seconds = max(now.Sub(*oldest).Seconds(), 0)
	}
	return err
}
