package migration

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/tenant"
)

// LagAlarm says that changes of blue come to green later than Config.LagAlarm allows, or that blue
// keeps more than half of the WAL for a lane that it may keep.
type LagAlarm struct {
	Run      uuid.UUID  `json:"run"`
	Tenant   *tenant.ID `json:"tenant,omitempty"` // absent: the whole lane
	Database string     `json:"database"`
	Lane     int        `json:"lane"`
	Over     bool       `json:"over"` // it has ended
	Why      string     `json:"why,omitempty"`
}

// alarmLags compares lanes, and tenants that are held, with what they may be behind. What begins or
// ends is written to the trail of the runs that it is about, once, and returned.
func (m *Mover) alarmLags(ctx context.Context) ([]LagAlarm, error) {
	control, err := m.control(ctx)
	if err != nil {
		return nil, err
	}
	var out []LagAlarm
	err = pgx.BeginFunc(ctx, control, func(tx pgx.Tx) error {
		out = nil
		lanes, err := m.alarmed(ctx, tx, `WITH now AS (SELECT database_name, number, alarmed_at, CASE
				WHEN heard_at < clock_timestamp() - $1::interval THEN format('nobody has received its changes for %s s', extract(epoch FROM clock_timestamp() - heard_at)::bigint)
				WHEN retained > $2 THEN format('blue keeps %s bytes of WAL for it, of the %s that it may (CODITECT_SLOT_MAX_BYTES)', retained, 2 * $2::bigint)
				WHEN wal_end - spooled > 1048576 AND last_commit < clock_timestamp() - $1::interval
					THEN format('it is %s bytes and %s s behind', wal_end - spooled, extract(epoch FROM clock_timestamp() - last_commit)::bigint) END AS why
			FROM control.lane WHERE open),
			changed AS (UPDATE control.lane l SET alarmed_at = CASE WHEN now.why IS NOT NULL THEN clock_timestamp() END FROM now
				WHERE l.database_name = now.database_name AND l.number = now.number AND (now.why IS NULL) <> (l.alarmed_at IS NULL)
				RETURNING l.database_name, l.number, now.why)
			SELECT DISTINCT s.run_id, NULL::uuid, c.database_name, c.number, c.why FROM changed c JOIN control.streamed s USING (database_name, number)`,
			m.cfg.LagAlarm, m.cfg.Stream.MaxRetained/2)
		if err != nil {
			return err
		}
		tenants, err := m.alarmTenants(ctx, tx)
		out = slices.Concat(lanes, tenants)
		return errors.Join(err, noteAlarms(ctx, tx, out))
	})
	if err != nil {
		return nil, fmt.Errorf("migration: compare lags with what is allowed: %w", err)
	}
	return out, nil
}

// alarmTenants is alarmLags for the tenants that follow blue. Those that are copied have their changes applied afterwards.
func (m *Mover) alarmTenants(ctx context.Context, tx pgx.Tx) ([]LagAlarm, error) {
	// The positions are looked up first: they may be on other nodes.
	rows, err := tx.Query(ctx, `SELECT tenant_id, lsn, seq FROM control.applied WHERE tenant_id = ANY(ARRAY(SELECT s.tenant_id FROM control.streamed s
		JOIN control.move m ON m.run_id = s.run_id AND m.tenant_id = s.tenant_id WHERE m.state = 'following'))`)
	if err != nil {
		return nil, err
	}
	var (
		id         tenant.ID
		lsn, seq   int64
		ids        []tenant.ID
		lsns, seqs []int64
	)
	if _, err := pgx.ForEachRow(rows, []any{&id, &lsn, &seq}, func() error {
		ids, lsns, seqs = append(ids, id), append(lsns, lsn), append(seqs, seq)
		return nil
	}); err != nil {
		return nil, err
	}
	return m.alarmed(ctx, tx, `WITH now AS (SELECT x.id, CASE WHEN c.at < clock_timestamp() - $1::interval
				THEN format('a change of %s s ago is not in green', extract(epoch FROM clock_timestamp() - c.at)::bigint) END AS why
			FROM unnest($2::uuid[], $3::bigint[], $4::bigint[]) AS x(id, lsn, seq) LEFT JOIN LATERAL (
				SELECT at FROM control.pack WHERE tenant_id = x.id AND (lsn, seq) > (x.lsn, x.seq) ORDER BY lsn, seq LIMIT 1) c ON true)
		UPDATE control.streamed s SET alarmed_at = CASE WHEN now.why IS NOT NULL THEN clock_timestamp() END FROM now
		WHERE s.tenant_id = now.id AND (now.why IS NULL) <> (s.alarmed_at IS NULL) RETURNING s.run_id, s.tenant_id, s.database_name, s.number, now.why`,
		m.cfg.LagAlarm, ids, lsns, seqs)
}

func (m *Mover) alarmed(ctx context.Context, tx pgx.Tx, sql string, args ...any) ([]LagAlarm, error) {
	rows, err := tx.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (a LagAlarm, err error) {
		var why *string
		if err = row.Scan(&a.Run, &a.Tenant, &a.Database, &a.Lane, &why); err == nil && why != nil {
			a.Why = *why
		}
		a.Over = why == nil
		return a, err
	})
}

func noteAlarms(ctx context.Context, tx pgx.Tx, alarms []LagAlarm) error {
	for _, a := range alarms {
		event, detail := "lag alarm", map[string]any{"database": a.Database, "lane": a.Lane, "why": a.Why}
		if a.Over {
			event = "lag alarm over"
			delete(detail, "why")
		}
		if err := note(ctx, tx, a.Run, a.Tenant, "mover", event, detail); err != nil {
			return err
		}
	}
	return nil
}
