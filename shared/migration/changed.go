package migration

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/convert"
	"github.com/coditect/platform/shared/migration/stream"
)

// One round of comparing takes at most so many changes from the spool: more than were just applied, so
// that it keeps pace, and not many more, for others wait to be applied.
const (
	compareAtOnce = 5000
	compareLeast  = 500
)

func compareAfter(applied int) int {
	if applied == 0 {
		return compareAtOnce
	}
	return min(max(2*applied, compareLeast), compareAtOnce)
}

// A change stays in the spool after it is applied, until the row that it is about was found to be
// the same in both databases. So what the fence leaves to compare is what was changed last.

// compareSome compares rows that applied changes are about, and forgets the changes of those
// that are the same. One that is not has been changed again, and is compared again; only under the
// fence is it a difference. It returns how many were compared, and how many changes are left.
func (o *onlineMove) compareSome(ctx context.Context, atMost int) (compared, left int, err error) {
	control, err := o.m.control(ctx)
	if err != nil {
		return 0, 0, err
	}
	keep := nearChanges / 2
	if o.v.State == Following { // and many others, for weeks
		keep = nearChanges / 20
	}
	if err := control.QueryRow(ctx, `SELECT count(*) FROM (SELECT FROM control.change WHERE tenant_id = $1 LIMIT 100000) x`, o.v.Tenant).Scan(&left); err != nil || left <= keep {
		return 0, left, err
	}
	list, err := o.changed(ctx, atMost, spooled{})
	if err != nil || len(list) == 0 {
		return 0, left, err
	}
	differ, err := o.differing(ctx, list)
	if err != nil {
		return 0, left, err
	}
	var lsns, seqs []int64
	for _, c := range list {
		if !differ[c.at()] && c.op != stream.Truncate {
			lsns, seqs = append(lsns, c.lsn), append(seqs, c.seq)
		}
	}
	tag, err := control.Exec(ctx, `DELETE FROM control.change c USING unnest($2::bigint[], $3::bigint[]) AS x(lsn, seq)
		WHERE c.tenant_id = $1 AND c.lsn = x.lsn AND c.seq = x.seq`, o.v.Tenant, lsns, seqs)
	if err != nil {
		return 0, left, fmt.Errorf("migration: forget compared changes: %w", err)
	}
	o.m.crash("changes compared")
	return int(tag.RowsAffected()), left - int(tag.RowsAffected()), nil
}

// compareRest compares, under the fence, every row that a change is about which was not
// compared since. A table that was emptied is compared whole.
func (o *onlineMove) compareRest(ctx context.Context) error {
	var emptied []convert.Table
	for last := (spooled{}); ; {
		list, err := o.changed(ctx, compareAtOnce, last)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			break
		}
		last = list[len(list)-1]
		if emptied, err = o.compareList(ctx, list, emptied); err != nil {
			return err
		}
	}
	if len(emptied) == 0 {
		return nil
	}
	part := o.l
	part.Tables = emptied
	_, differs, err := o.m.reconcile(ctx, o.blue, part, o.v, nil)
	if err == nil && differs != "" {
		err = &mismatch{o.v.Tenant, fault.New(fault.Conflict, "rows_differ", "%s", differs)}
	}
	return err
}

// compareList refuses changes that are about a row that is not the same, and adds the tables that
// they have emptied.
func (o *onlineMove) compareList(ctx context.Context, list []spooled, emptied []convert.Table) ([]convert.Table, error) {
	differ, err := o.differing(ctx, list)
	if err != nil {
		return nil, err
	}
	for _, c := range list {
		if c.op == stream.Fence {
			continue
		}
		s, err := o.m.shapeOf(ctx, *c.shape)
		if err != nil {
			return nil, err
		}
		if differ[c.at()] {
			return nil, &mismatch{o.v.Tenant, fault.New(fault.Conflict, "rows_differ", "table %s: the row with the key %s is not the same in blue and in green", s.table, strings.Join(c.key, ", "))}
		}
		if c.op == stream.Truncate && !slices.ContainsFunc(emptied, func(t convert.Table) bool { return t.Name == s.table }) {
			i := slices.IndexFunc(o.l.Tables, func(t convert.Table) bool { return t.Name == s.table })
			emptied = append(emptied, o.l.Tables[i])
		}
	}
	return emptied, nil
}

// at names a change.
func (c spooled) at() [2]int64 { return [2]int64{c.lsn, c.seq} }

// changed lists the oldest changes after another one that are applied.
func (o *onlineMove) changed(ctx context.Context, limit int, after spooled) ([]spooled, error) {
	control, err := o.m.control(ctx)
	if err != nil {
		return nil, err
	}
	lsn, seq, err := o.position(ctx, control)
	if err != nil {
		return nil, err
	}
	return o.readSpool(ctx, control, `(lsn, seq) <= ($2, $3) AND (lsn, seq) > ($4, $5)`, limit, lsn, seq, after.lsn, after.seq)
}

// differing reads the rows that changes are about in both databases and tells which changes are
// about one that is not the same.
func (o *onlineMove) differing(ctx context.Context, list []spooled) (map[[2]int64]bool, error) {
	about := map[string]map[string][][2]int64{} // table, key → changes
	for _, c := range list {
		if c.op == stream.Fence || c.op == stream.Truncate {
			continue
		}
		s, err := o.m.shapeOf(ctx, *c.shape)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(o.l.Tables, func(t convert.Table) bool { return t.Name == s.table })
		if i < 0 {
			continue // refused when it was applied
		}
		keys, err := o.keysOf(o.l.Tables[i], s, c)
		if err != nil {
			return nil, err
		}
		if about[s.table] == nil {
			about[s.table] = map[string][][2]int64{}
		}
		for _, k := range keys {
			about[s.table][k] = append(about[s.table][k], c.at())
		}
	}
	out := map[[2]int64]bool{}
	for _, t := range o.l.Tables {
		for some := range slices.Chunk(slices.Sorted(maps.Keys(about[t.Name])), keysAtOnce) {
			inBlue, inGreen, err := o.rowsOf(ctx, t, some)
			if err != nil {
				return nil, err
			}
			drop, add := changes(inGreen, inBlue)
			for _, k := range append(drop, add...) {
				at, known := about[t.Name][k.key]
				if !known { // a type whose text in a change is another: bpchar is padded there
					at = slices.Concat(slices.Collect(maps.Values(about[t.Name]))...)
				}
				for _, c := range at {
					out[c] = true
				}
			}
		}
	}
	return out, nil
}

// keysOf are the keys that a change is about, before and after.
func (o *onlineMove) keysOf(t convert.Table, s changeShape, c spooled) ([]string, error) {
	var out []string
	if c.op != stream.Insert {
		out = append(out, strings.Join(s.keyOf(t, c.key), "\x00"))
	}
	if c.op != stream.Delete {
		at, err := s.fit(t)
		if err != nil {
			return nil, err
		}
		row := cellsOf(at, c)
		after := make([]string, len(t.Key))
		for i, k := range t.Key {
			after[i] = row[slices.IndexFunc(t.Columns, func(c convert.Column) bool { return c.Name == k })].Text
		}
		out = append(out, strings.Join(after, "\x00"))
	}
	return slices.Compact(out), nil
}

// rowsOf reads the hashes of some rows in both databases.
func (o *onlineMove) rowsOf(ctx context.Context, t convert.Table, keys []string) (inBlue, inGreen map[rowKey]string, err error) {
	one := fmt.Sprintf(`SELECT %s, '%s'::text, %s FROM `, rowHash(t), o.v.Tenant, keyColumns(t))
	own := ""
	if t.HasTenantColumn {
		own = `tenant_id = '` + o.v.Tenant.String() + `' AND `
	}
	in := keyIn(t, keys)
	err = both(ctx,
		func(ctx context.Context) error {
			return frozen(ctx, o.blue, func(tx pgx.Tx) (err error) {
				inBlue, err = keysOf(ctx, tx, t, one+quoted(o.v.Schema, t.Name)+` WHERE `+own+in)
				return err
			})
		},
		func(ctx context.Context) error {
			return o.m.readGreen(ctx, func(tx pgx.Tx) (err error) {
				inGreen, err = keysOf(ctx, tx, t, one+ofTenant(o.l, t, o.v)+` AND `+in)
				return err
			})
		})
	if err != nil {
		return nil, nil, fmt.Errorf("migration: compare changed rows of table %s: %w", t.Name, err)
	}
	return inBlue, inGreen, nil
}
