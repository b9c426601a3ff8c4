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
		if _, ok := w.shapes[*c.shape]; !ok {
			if err := w.learn(ctx, *c.shape); err != nil {
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

// Bounds of a pack: whoever applies changes takes whole packs, as many as its memory holds.
const (
	packChanges = 2000
	packBytes   = 1 << 20
)

// pack sorts changes into packs, a tenant's in their order. One of a schema that is not the lane's is of a
// tenant that has left it.
func (w *writer) pack() map[tenant.ID][]*pack {
	mine := map[tenant.ID]bool{}
	for _, m := range w.members {
		mine[m.Tenant] = true
	}
	out := map[tenant.ID][]*pack{}
	for _, c := range w.rows {
		id := w.members[c.schema].Tenant
		if c.op == Fence {
			id = c.fenced
		}
		if !mine[id] {
			continue
		}
		packs := out[id]
		if len(packs) == 0 || !packs[len(packs)-1].takes(c, w.to) {
			packs = append(packs, &pack{})
			out[id] = packs
		}
		shape := int32(0)
		if c.shape != nil {
			shape = w.shapes[*c.shape]
		}
		packs[len(packs)-1].add(c, shape)
	}
	return out
}

// takes reports whether a change is put to those of a pack. A large one is alone; and what is whole is not kept waiting
// by what is there in part.
func (p *pack) takes(c *change, whole int64) bool {
	return p.changes < packChanges && p.bytes < packBytes && c.size() < packBytes && (p.lsn >= whole || c.lsn < whole)
}

// copyPacks writes the changes.
func (w *writer) copyPacks(ctx context.Context, tx pgx.Tx) error {
	var rows [][]any
	for id, packs := range w.pack() {
		for _, p := range packs {
			rows = append(rows, []any{id, p.lsn, p.seq, p.begins, p.at, p.changes, p.bytes, p.data})
		}
	}
	if len(rows) == 0 {
		return nil
	}
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"control", "pack"}, []string{"tenant_id", "lsn", "seq", "begins", "at", "changes", "bytes", "data"}, pgx.CopyFromRows(rows))
	return err
}
