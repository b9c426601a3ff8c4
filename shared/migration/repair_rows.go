package migration

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/change"
	"github.com/coditect/platform/shared/migration/convert"
)

// unit is what is repaired together or not at all: a row, or rows between which a key has moved by a change
// that blue does not have yet.
type unit struct {
	keys      []string
	changes   []change.Change // that make them green's
	differing []string        // the keys of differ
	differ    []Difference
	known     []captured // what green had captured of them
	why       string     // blue does not take them
	conflict  bool       // … because of another row
}

// units compares rows of green, as of one moment, with those of blue, which tx holds.
func (m *Mover) units(ctx context.Context, tx pgx.Tx, r *mending, t convert.Table, keys []string) ([]*unit, error) {
	for {
		blue, err := rowsByKey(ctx, tx, r.targets[t.Name], `SELECT `+rowText(t)+`, ROW(`+keyColumns(t)+`)::text FROM `+quoted(r.Schema, t.Name)+` WHERE `+ownRows(t, r.Move)+keyInBlue(t, keys))
		if err != nil {
			return nil, err
		}
		green, err := m.greenNow(ctx, r, t, keys)
		if err != nil {
			return nil, err
		}
		// Keys are told apart by the text that the database prints, not by how they were asked for.
		all := map[string]bool{}
		for _, k := range slices.Concat(keys, slices.Collect(maps.Keys(blue)), slices.Collect(maps.Keys(green.rows))) {
			all[k] = true
		}
		more := green.joined(all)
		if len(more) == 0 {
			return unitsOf(t, all, blue, green), nil
		}
		keys = append(slices.Clone(keys), more...)
	}
}

// atOnce is what one statement has seen of green.
type atOnce struct {
	rows    map[string]textRow    // by key
	changes map[string][]captured // that blue does not have, by key: numbers only
	moved   [][2]string           // from one key to another, by such a change
}

// greenNow reads rows of green, and what was captured of their table: one statement, and on Citus of one shard
// group, so that all is as of one moment.
func (m *Mover) greenNow(ctx context.Context, r *mending, t convert.Table, keys []string) (atOnce, error) {
	to, follows := r.targets[t.Name], false
	out := atOnce{rows: map[string]textRow{}, changes: map[string][]captured{}}
	one := `tenant_id = '` + r.Tenant.String() + `'`
	query := `SELECT 'row'::text, 0::bigint, 0::bigint, NULL::text, ROW(` + keyColumns(t) + `)::text, ` + rowText(t) + ` FROM ` + ofTenant(r.layout, t, r.Move) + ` AND ` + keyIn(t, keys) + `
		UNION ALL SELECT 'change', generation, id, op::text, old, new FROM coditect.captured WHERE ` + one + ` AND table_name = ` + literal(t.Name) + `
		UNION ALL SELECT 'gate', 0, 0, NULL, NULL, capture::text FROM coditect.write_gate WHERE ` + one
	err := m.readGreen(ctx, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, query, pgx.QueryExecModeExec)
		if err != nil {
			return err
		}
		var (
			kind string
			c    captured
			op   *string
		)
		_, err = pgx.ForEachRow(rows, []any{&kind, &c.generation, &c.id, &op, &c.old, &c.new}, func() error {
			switch kind {
			case "gate":
				follows = *c.new == "true"
			case "row":
				return addRow(out.rows, to, *c.new, *c.old)
			default:
				c.table, c.op = t.Name, *op
				return out.add(r.wayBack, c)
			}
			return nil
		})
		return err
	})
	if err == nil && !follows {
		err = notRepairable(&comparison{expect: AsMoved})
	}
	return out, err
}

// add notes a change with the keys that it is about.
func (s *atOnce) add(w *wayBack, c captured) error {
	all, err := w.changes([]captured{c})
	if err != nil {
		return err
	}
	one, to := all[c.table][0], w.targets[c.table]
	number := captured{generation: c.generation, id: c.id}
	var before, now string
	if one.Op != change.Insert {
		before = strings.Join(one.Key, "\x00")
		s.changes[before] = append(s.changes[before], number)
	}
	if one.Op == change.Delete {
		return nil
	}
	now = keyOf(to, one.Row)
	switch {
	case one.Op == change.Insert:
		s.changes[now] = append(s.changes[now], number)
	case now != before:
		s.changes[now] = append(s.changes[now], number)
		s.moved = append(s.moved, [2]string{before, now})
	}
	return nil
}

// joined lists the keys that changes have moved from or to one of these, and that are not among them.
func (s *atOnce) joined(keys map[string]bool) (more []string) {
	for _, pair := range s.moved {
		for i, k := range pair {
			if keys[k] && !keys[pair[1-i]] && !slices.Contains(more, pair[1-i]) {
				more = append(more, pair[1-i])
			}
		}
	}
	return more
}

// unitsOf says what is to be done so that blue's rows are those of green.
func unitsOf(t convert.Table, keys map[string]bool, blue map[string]textRow, green atOnce) (out []*unit) {
	of := map[string]*unit{}
	for k := range keys {
		of[k] = &unit{keys: []string{k}}
	}
	for _, pair := range green.moved {
		a, b := of[pair[0]], of[pair[1]]
		if a == b || a == nil || b == nil { // joined already; both are other rows
			continue
		}
		a.keys = append(a.keys, b.keys...)
		for _, k := range b.keys {
			of[k] = a
		}
	}
	counted := map[[2]int64]bool{}
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		u := of[k]
		if slices.Max(u.keys) == k { // its last one
			out = append(out, u)
		}
		for _, c := range green.changes[k] {
			if !counted[c.number()] { // one that has moved the key is with both
				u.known = append(u.known, c)
			}
			counted[c.number()] = true
		}
		u.compare(t, k, blue[k], green.rows[k])
	}
	return out
}

// compare adds what is to be done with one of the rows; nil: it is not there.
func (u *unit) compare(t convert.Table, key string, blue, green textRow) {
	if slices.Equal(blue.cells, green.cells) {
		return
	}
	d, one := differenceAt(t, cmp.Or(green.shown, blue.shown)), change.Change{Row: green.cells}
	if blue.cells != nil {
		one.Key = strings.Split(key, "\x00")
	}
	switch {
	case blue.cells == nil:
		d.Where, one.Op = "green", change.Insert
	case green.cells == nil:
		d.Where, one.Op = "blue", change.Delete
	default:
		one.Op = change.Update
		for i, c := range t.Columns {
			if blue.cells[i] != green.cells[i] {
				d.Columns = append(d.Columns, c.Name)
			}
		}
	}
	u.changes, u.differing, u.differ = append(u.changes, one), append(u.differing, key), append(u.differ, d)
}

// applyFitting repairs what blue takes. When it refuses some rows for what they are, the others are found by halves.
func applyFitting(ctx context.Context, tx pgx.Tx, to change.Target, units []*unit) (done, refused []*unit, err error) {
	done, refused, err = halves(ctx, tx, to, units)
	if err != nil || len(refused) < 2 {
		return done, refused, err
	}
	// Those that were only in each other's way, as two are that have exchanged a unique value.
	together := slices.DeleteFunc(slices.Clone(refused), func(u *unit) bool { return !u.conflict })
	if len(together) < 2 || len(together) == len(units) {
		return done, refused, nil
	}
	if err := applyUnits(ctx, tx, to, together); err != nil {
		if !refusesRow(err) {
			return nil, nil, err
		}
		return done, refused, nil
	}
	return append(done, together...), slices.DeleteFunc(refused, func(u *unit) bool { return u.conflict }), nil
}

func halves(ctx context.Context, tx pgx.Tx, to change.Target, units []*unit) (done, refused []*unit, err error) {
	err = applyUnits(ctx, tx, to, units)
	switch {
	case err == nil:
		return units, nil, nil
	case !refusesRow(err):
		return nil, nil, err
	case len(units) == 1:
		var e *pgconn.PgError
		errors.As(err, &e)
		units[0].why, units[0].conflict = e.Message, e.Code == "23505" || e.Code == "23P01"
		return nil, units, nil
	}
	for _, half := range [][]*unit{units[:len(units)/2], units[len(units)/2:]} {
		some, not, err := halves(ctx, tx, to, half)
		if err != nil {
			return nil, nil, err
		}
		done, refused = append(done, some...), append(refused, not...)
	}
	return done, refused, nil
}

// applyUnits repairs all of these, or none.
func applyUnits(ctx context.Context, tx pgx.Tx, to change.Target, units []*unit) error {
	var all []change.Change
	for _, u := range units {
		all = append(all, u.changes...)
	}
	err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return change.Apply(ctx, tx, to, all) }) // a savepoint
	var wrong *change.Mismatch
	if errors.As(err, &wrong) {
		return fault.Wrap(err, fault.Conflict, "blue_differs", "blue was changed behind its fence while it was repaired: %v", wrong)
	}
	return err
}

// refusesRow: the database does not take a row for its values, by its types or its constraints.
func refusesRow(err error) bool {
	state := citus.StateOf(err)
	return len(state) == 5 && (state[:2] == "22" || state[:2] == "23")
}

// textRow is a row as the database prints it.
type textRow struct {
	cells []change.Cell
	shown string // its key as operators see it, which some types print in another way
}

// rowsByKey reads rows, by key, from a query for each row's text and its key.
func rowsByKey(ctx context.Context, tx pgx.Tx, to change.Target, query string) (map[string]textRow, error) {
	rows, err := tx.Query(ctx, query, pgx.QueryExecModeExec)
	if err != nil {
		return nil, err
	}
	out := map[string]textRow{}
	var text, key string
	_, err = pgx.ForEachRow(rows, []any{&text, &key}, func() error { return addRow(out, to, text, key) })
	return out, err
}

func addRow(all map[string]textRow, to change.Target, text, key string) error {
	row, err := parseRow(text)
	if err == nil && len(row) != len(to.Columns) {
		err = fmt.Errorf("migration: table %s: a row of %d columns, not %d", to.Table, len(row), len(to.Columns))
	}
	if err != nil {
		return err
	}
	shown, err := parseRow(key)
	if err != nil {
		return err
	}
	texts := make([]string, len(shown))
	for i, c := range shown {
		texts[i] = c.Text
	}
	all[keyOf(to, row)] = textRow{row, strings.Join(texts, "\x00")}
	return nil
}

func keyOf(to change.Target, row []change.Cell) string {
	return strings.Join(keyTexts(to, row), "\x00")
}
