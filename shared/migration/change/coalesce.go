package change

import (
	"fmt"
	"slices"
	"strings"
)

// applier is a target with what is worked out from it once.
type applier struct {
	Target
	keyAt    []int // where the key's columns are in Columns
	tenantAt int   // where tenant_id is in Columns, -1 if nowhere
}

const tenantColumn = "tenant_id"

func newApplier(t Target) (*applier, error) {
	a := &applier{Target: t, tenantAt: -1}
	at := map[string]int{}
	for i, c := range t.Columns {
		at[c.Name] = i
	}
	if i, ok := at[tenantColumn]; ok && t.HasTenant {
		a.tenantAt = i
	}
	if len(t.Key) == 0 {
		return nil, fmt.Errorf("change: table %s has no key", t.Table)
	}
	for _, k := range t.Key {
		i, ok := at[k]
		if !ok {
			return nil, fmt.Errorf("change: table %s: column %s of the key is not one of its columns", t.Table, k)
		}
		a.keyAt = append(a.keyAt, i)
	}
	return a, nil
}

// row is what became of one row.
type row struct {
	origin []string // its key before the changes; nil for one that was not there
	key    []string // its key after them; nil for one that is gone
	cells  []Cell   // with an origin, those that are Unchanged stay what they were
	place  string   // where it is in the table (ctid), where that was looked up
}

// partial: some of its values are known to the database alone.
func (r *row) partial() bool {
	return slices.ContainsFunc(r.cells, func(c Cell) bool { return c.Unchanged })
}

// touched is a key, and the change that came to it first.
type touched struct {
	key   []string
	first Op
	exist bool // it must have been there before
	row   *row // the row that has the key after the changes so far
}

// plan is what changes come to, each row once.
type plan struct {
	keys  []*touched // in the order in which they were touched
	drop  [][]string // delete these rows: they are gone, or come again whole
	whole []*row     // copy these, then
	part  []*row     // update these in between
	probe [][]string // keys that must not be there, and that nothing else tells
}

// coalesce works out what became of each row. A change that contradicts the ones before it is
// a mismatch without asking the database.
func (a *applier) coalesce(changes []Change) (*plan, error) {
	p := &plan{}
	byKey := make(map[string]*touched, len(changes))
	touch := func(key []string, op Op, exist bool) (*touched, error) {
		name := strings.Join(key, "\x00") // which no text of PostgreSQL holds
		k, ok := byKey[name]
		if !ok {
			k = &touched{key: key, first: op, exist: exist}
			if exist {
				k.row = &row{origin: key, key: key}
			}
			byKey[name] = k
			p.keys = append(p.keys, k)
			return k, nil
		}
		if (k.row != nil) != exist {
			return nil, &Mismatch{Table: a.Table, Key: key, Op: op, Found: k.row != nil}
		}
		return k, nil
	}
	var rows []*row
	for i, c := range changes {
		if err := a.check(c); err != nil {
			return nil, fmt.Errorf("change: table %s: change %d: %w", a.Table, i, err)
		}
		if c.Op == Insert {
			k, err := touch(a.keyOf(c), c.Op, false)
			if err != nil {
				return nil, err
			}
			k.row = &row{key: k.key, cells: c.Row}
			rows = append(rows, k.row)
			continue
		}
		k, err := touch(c.Key, c.Op, true)
		if err != nil {
			return nil, err
		}
		r := k.row
		if r.cells == nil { // seen for the first time
			rows = append(rows, r)
			r.cells = []Cell{}
		}
		if c.Op == Delete {
			r.key, k.row = nil, nil
			continue
		}
		r.cells = over(r.cells, c.Row)
		for j, at := range a.keyAt {
			if r.cells[at].Unchanged { // a key so long that it was not sent
				r.cells = slices.Clone(r.cells)
				r.cells[at] = Cell{Text: c.Key[j]}
			}
		}
		if now := a.keyOf(c); !slices.Equal(now, c.Key) {
			k.row = nil
			to, err := touch(now, c.Op, false)
			if err != nil {
				return nil, err
			}
			to.row, r.key = r, now
		}
	}
	a.sort(p, rows)
	return p, nil
}

// check refuses a change that the target cannot take.
func (a *applier) check(c Change) error {
	switch {
	case c.Op != Insert && c.Op != Update && c.Op != Delete:
		return fmt.Errorf("%s is unknown", c.Op)
	case c.Op != Insert && len(c.Key) != len(a.Key):
		return fmt.Errorf("%s with %d columns in its key, not %d", c.Op, len(c.Key), len(a.Key))
	case c.Op == Delete:
		return nil
	case len(c.Row) != len(a.Columns):
		return fmt.Errorf("%s with %d columns, not %d", c.Op, len(c.Row), len(a.Columns))
	case a.tenantAt >= 0 && !c.Row[a.tenantAt].Unchanged && c.Row[a.tenantAt].Text != a.Tenant.String():
		return fmt.Errorf("%s of another tenant's row (%s)", c.Op, c.Row[a.tenantAt].Text)
	}
	for i, v := range c.Row {
		if c.Op == Insert && v.Unchanged {
			return fmt.Errorf("insert without a value of column %s", a.Columns[i].Name)
		}
	}
	return nil
}

// keyOf is a row's key after a change.
func (a *applier) keyOf(c Change) []string {
	key := make([]string, len(a.keyAt))
	for i, at := range a.keyAt {
		if c.Row[at].Unchanged {
			key[i] = c.Key[i]
		} else {
			key[i] = c.Row[at].Text
		}
	}
	return key
}

// over lays a newer row over an older one.
func over(older, newer []Cell) []Cell {
	if len(older) == 0 || !slices.ContainsFunc(newer, func(c Cell) bool { return c.Unchanged }) {
		return newer
	}
	out := slices.Clone(newer)
	for i, c := range out {
		if c.Unchanged {
			out[i] = older[i]
		}
	}
	return out
}

// sort says for each row what the database is to do.
func (a *applier) sort(p *plan, rows []*row) {
	for _, r := range rows {
		switch {
		case r.origin == nil && r.key == nil: // came and went
		case r.origin == nil:
			p.whole = append(p.whole, r)
		case r.key == nil:
			p.drop = append(p.drop, r.origin)
		case r.partial():
			p.part = append(p.part, r)
		default:
			p.drop = append(p.drop, r.origin)
			p.whole = append(p.whole, r)
		}
	}
	for _, k := range p.keys {
		if !k.exist && k.row == nil {
			p.probe = append(p.probe, k.key)
		}
	}
	// In some order of keys, neighbours are on the same pages of an index.
	slices.SortFunc(p.whole, func(a, b *row) int { return slices.Compare(a.key, b.key) })
}
