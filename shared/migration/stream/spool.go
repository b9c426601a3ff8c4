package stream

import (
	"context"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/tenant"
)

// know reads the lane's tenants when a change names a schema that is not known, and the
// numbers of shapes that are new.
func (w *writer) know(ctx context.Context) error {
	fresh := false
	for _, c := range w.rows {
		if _, ok := w.members[c.schema]; !ok && !fresh {
			if err := w.readMembers(ctx); err != nil {
				return err
			}
			fresh = true
		}
		if c.op == Fence {
			continue
		}
		if _, ok := w.shapes[c.shape]; !ok {
			if err := w.learn(ctx, c.shape); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *writer) readMembers(ctx context.Context) error {
	rows, err := w.control.Query(ctx, `SELECT tenant_id, schema_name FROM control.streamed WHERE database_name = $1 AND number = $2`, w.lane.Database, w.lane.Number)
	if err != nil {
		return err
	}
	w.members = map[string]Member{}
	var m Member
	_, err = pgx.ForEachRow(rows, []any{&m.Tenant, &m.Schema}, func() error { w.members[m.Schema] = m; return nil })
	return err
}

// learn gives a shape its number.
func (w *writer) learn(ctx context.Context, k shapeKey) error {
	columns := strings.Split(k.columns, "\x00")
	var key []int32
	if k.key != "" {
		for _, s := range strings.Split(k.key, "\x00") {
			n, err := strconv.ParseInt(s, 10, 32)
			if err != nil {
				return err
			}
			key = append(key, int32(n))
		}
	}
	var id int32
	// DO UPDATE, for DO NOTHING returns no row.
	err := w.control.QueryRow(ctx, `INSERT INTO control.change_shape AS s (table_name, columns, key) VALUES ($1, $2, $3)
		ON CONFLICT (table_name, columns, key) DO UPDATE SET table_name = s.table_name RETURNING id`, k.table, columns, key).Scan(&id)
	if err != nil {
		return err
	}
	if w.shapes == nil {
		w.shapes = map[shapeKey]int32{}
	}
	w.shapes[k] = id
	return nil
}

// copyRows writes the changes. One of a schema that is not the lane's is of a tenant that has
// left it.
func (w *writer) copyRows(ctx context.Context, tx pgx.Tx) error {
	mine := map[tenant.ID]bool{}
	for _, m := range w.members {
		mine[m.Tenant] = true
	}
	i := -1
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"control", "change"}, []string{"tenant_id", "lsn", "seq", "xid", "at", "op", "shape", "key", "row", "unchanged", "bytes"},
		pgx.CopyFromFunc(func() ([]any, error) {
			for i++; i < len(w.rows); i++ {
				c := w.rows[i]
				if c.op == Fence {
					if mine[c.fenced] {
						return []any{c.fenced, c.lsn, c.seq, c.xid, c.at, c.op, nil, c.key, nil, nil, 0}, nil
					}
					continue
				}
				if m, ok := w.members[c.schema]; ok {
					return []any{m.Tenant, c.lsn, c.seq, c.xid, c.at, c.op, w.shapes[c.shape], c.key, c.row, c.unchanged, c.size}, nil
				}
			}
			return nil, nil
		}))
	return err
}
