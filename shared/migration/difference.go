package migration

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/migration/convert"
)

// Difference is a row that is not the same in blue and in green.
type Difference struct {
	Table   string            `json:"table"`
	Key     map[string]string `json:"key"`
	Where   string            `json:"where"`             // "blue" or "green": only there; "both": it differs
	Columns []string          `json:"columns,omitempty"` // that differ
	Blue    []*string         `json:"blue,omitempty"`    // their values, if they were asked for
	Green   []*string         `json:"green,omitempty"`
	Error   string            `json:"error,omitempty"` // why it could not be repaired
}

// rowsDescribed are read at once, with all their values.
const rowsDescribed = 16

// describe tells how rows differ.
func (m *Mover) describe(ctx context.Context, c *comparison, p part, keys []rowKey, values bool) ([]Difference, error) {
	var out []Difference
	for some := range slices.Chunk(keys, rowsDescribed) {
		var blue, green map[string][]*string
		err := c.sides(ctx, m,
			func(tx pgx.Tx) (err error) {
				blue, err = valuesOf(ctx, tx, p.table, c.inBlue(p.table, keyInBlue(p.table, bare(some))))
				return err
			},
			func(tx pgx.Tx) (err error) {
				green, err = valuesOf(ctx, tx, p.table, c.inGreen(p.table, keyIn(p.table, bare(some))))
				return err
			})
		if err != nil {
			return nil, err
		}
		for _, k := range some {
			d := differenceAt(p.table, k.key)
			_, inBlue := p.blue[k]
			_, inGreen := p.green[k]
			switch {
			case !inBlue:
				d.Where = "green"
			case !inGreen:
				d.Where = "blue"
			default:
				d.tell(p.table, blue[k.key], green[k.key], values)
			}
			out = append(out, d)
		}
	}
	return out, nil
}

// differenceAt is a row that both sides have.
func differenceAt(t convert.Table, key string) Difference {
	d := Difference{Table: t.Name, Key: map[string]string{}, Where: "both"}
	for i, part := range strings.Split(key, "\x00") {
		d.Key[t.Key[i]] = part
	}
	return d
}

// tell names the columns that differ.
func (d *Difference) tell(t convert.Table, blue, green []*string, values bool) {
	if blue == nil || green == nil {
		return // gone since
	}
	for i, c := range t.Columns {
		if blue[i] == nil && green[i] == nil || blue[i] != nil && green[i] != nil && *blue[i] == *green[i] {
			continue
		}
		d.Columns = append(d.Columns, c.Name)
		if values {
			d.Blue, d.Green = append(d.Blue, blue[i]), append(d.Green, green[i])
		}
	}
}

// valuesOf reads the columns of rows as text, by key.
func valuesOf(ctx context.Context, tx pgx.Tx, t convert.Table, from string) (map[string][]*string, error) {
	columns := make([]string, len(t.Columns))
	for i, c := range t.Columns {
		columns[i] = quoted(c.Name) + "::text"
	}
	results, err := tx.Conn().PgConn().Exec(ctx, `SELECT `+keyColumns(t)+`, `+strings.Join(columns, ", ")+` FROM `+from).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("migration: rows of table %s: %w", t.Name, err)
	}
	out := map[string][]*string{}
	for _, row := range results[0].Rows {
		values := make([]*string, len(t.Columns))
		for i, v := range row[len(t.Key):] {
			if v != nil {
				s := string(v)
				values[i] = &s
			}
		}
		out[string(bytes.Join(row[:len(t.Key)], []byte{0}))] = values
	}
	return out, nil
}
