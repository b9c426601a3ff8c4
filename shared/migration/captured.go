package migration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/change"
	"github.com/coditect/platform/shared/tenant"
)

// captured is one change that green has written down.
type captured struct {
	generation, id int64
	table, op      string
	old, new       *string
}

func (c captured) number() [2]int64 { return [2]int64{c.generation, c.id} }

// position is which of green's changes blue has: those that were applied last, of which green may still have some.
type position struct {
	version int64
	applied []captured // their numbers only
}

// positionOf reads a tenant's position in blue.
func positionOf(ctx context.Context, blue querier, who tenant.ID) (p position, err error) {
	var generations, ids []int64
	err = blue.QueryRow(ctx, `SELECT version, generations, ids FROM coditect.reversed WHERE tenant_id = $1`, who).Scan(&p.version, &generations, &ids)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return p, fmt.Errorf("migration: position of %s: %w", who, err)
	}
	for i, g := range generations {
		p.applied = append(p.applied, captured{generation: g, id: ids[i]})
	}
	return p, nil
}

// moveOn notes in blue which changes the transaction applies, unless somebody else has moved the position on.
func (p position) moveOn(ctx context.Context, tx pgx.Tx, who tenant.ID, applied []captured) error {
	generations, ids := make([]int64, len(applied)), make([]int64, len(applied))
	for i, c := range applied {
		generations[i], ids[i] = c.generation, c.id
	}
	tag, err := tx.Exec(ctx, `INSERT INTO coditect.reversed AS r (tenant_id, version, generations, ids) VALUES ($1, $2::bigint + 1, $3, $4)
		ON CONFLICT (tenant_id) DO UPDATE SET version = excluded.version, generations = excluded.generations, ids = excluded.ids WHERE r.version = $2`,
		who, p.version, generations, ids)
	return oneEach(tag.RowsAffected(), 1, err)
}

// readCaptured reads the first changes of a tenant, in an order that is right for each key, and reports whether
// there are no more.
func (m *Mover) readCaptured(ctx context.Context, who tenant.ID) (out []captured, all bool, err error) {
	control, err := m.control(ctx)
	if err != nil {
		return nil, false, err
	}
	rows, err := control.Query(ctx, `SELECT generation, id, table_name, op::text, old, new, n FROM (
			SELECT *, count(*) OVER () AS n, sum(coalesce(octet_length(old), 0) + coalesce(octet_length(new), 0)) OVER (ORDER BY generation, id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
			FROM (SELECT * FROM coditect.captured WHERE tenant_id = $1 ORDER BY generation, id LIMIT $2) y) x
		WHERE coalesce(before, 0) < $3 ORDER BY generation, id`, who, passChanges, passBytes)
	if err != nil {
		return nil, false, fmt.Errorf("migration: read what %s has written in green: %w", who, err)
	}
	var n int
	out, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (c captured, err error) {
		return c, row.Scan(&c.generation, &c.id, &c.table, &c.op, &c.old, &c.new, &n)
	})
	if err != nil {
		return nil, false, fmt.Errorf("migration: read what %s has written in green: %w", who, err)
	}
	return out, len(out) == n && n < passChanges, nil
}

// deleteCaptured deletes changes that blue has.
func (m *Mover) deleteCaptured(ctx context.Context, who tenant.ID, done []captured) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	byGeneration := map[int64][]int64{}
	for _, c := range done {
		byGeneration[c.generation] = append(byGeneration[c.generation], c.id)
	}
	for g, ids := range byGeneration {
		if _, err := control.Exec(ctx, `DELETE FROM coditect.captured WHERE tenant_id = $1 AND generation = $2 AND id = ANY($3)`, who, g, ids); err != nil {
			return fmt.Errorf("migration: delete what %s has written in green and blue has: %w", who, err)
		}
	}
	return nil
}

// changes reads captured rows, by table.
func (w *wayBack) changes(all []captured) (map[string][]change.Change, error) {
	out := map[string][]change.Change{}
	for _, c := range all {
		to, ok := w.targets[c.table]
		if !ok {
			return nil, fault.New(fault.Conflict, "schema_drift", "green has written to table %s, which blue does not have", c.table)
		}
		one := change.Change{Op: change.Op(c.op[0])}
		keyed := c.old // an update that leaves the key alone has the new row only
		if keyed == nil {
			keyed = c.new
		}
		if c.new != nil {
			row, err := w.cells(c.table, *c.new)
			if err != nil {
				return nil, err
			}
			one.Row = row
		}
		if one.Op != change.Insert {
			row, err := w.cells(c.table, *keyed)
			if err != nil {
				return nil, err
			}
			one.Key = keyTexts(to, row)
		}
		out[c.table] = append(out[c.table], one)
	}
	return out, nil
}

// keyTexts are the texts of a row's key.
func keyTexts(t change.Target, row []change.Cell) []string {
	key := make([]string, len(t.Key))
	for i, name := range t.Key {
		key[i] = row[slices.IndexFunc(t.Columns, func(c change.Column) bool { return c.Name == name })].Text
	}
	return key
}

// cells reads a row's text, as green printed it, in the order of blue's columns.
func (w *wayBack) cells(table, text string) ([]change.Cell, error) {
	values, err := parseRow(text)
	names := w.columns[table]
	if err != nil || len(values) != len(names) {
		return nil, fault.Wrap(err, fault.Conflict, "schema_drift", "table %s was changed in green after its rows had been written: %d columns, not %d", table, len(values), len(names))
	}
	to := w.targets[table]
	out := make([]change.Cell, len(to.Columns))
	for i, c := range to.Columns {
		out[i] = values[slices.Index(names, c.Name)]
	}
	return out, nil
}

// parseRow reads the text form of a row: values in parentheses, separated by commas. Nothing
// is NULL; in quotes, a quote is doubled or escaped by a backslash, as a backslash is.
func parseRow(s string) ([]change.Cell, error) {
	bad := errors.New("migration: not the text of a row")
	if len(s) < 2 || s[0] != '(' || s[len(s)-1] != ')' {
		return nil, bad
	}
	var out []change.Cell
	for i := 1; ; i++ { // s[i] begins a value
		cell := change.Cell{Null: s[i] == ',' || i == len(s)-1}
		var b strings.Builder
		quotes := false
		for ; i < len(s); i++ {
			c := s[i]
			switch {
			case c == '\\' && i+1 < len(s):
				i++
				b.WriteByte(s[i])
			case c == '"' && quotes && i+1 < len(s) && s[i+1] == '"':
				i++
				b.WriteByte('"')
			case c == '"':
				quotes = !quotes
			case !quotes && (c == ',' || i == len(s)-1):
				goto end
			default:
				b.WriteByte(c)
			}
		}
		return nil, bad
	end:
		cell.Text = b.String()
		out = append(out, cell)
		if i == len(s)-1 {
			return out, nil
		}
	}
}
