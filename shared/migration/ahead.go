package migration

import (
	"bytes"
	"context"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/migration/convert"
)

// ahead: this tenant is copied before its fence goes up.
func (c Config) ahead(v Move) bool { return v.Bytes > c.AheadBytes && v.Bytes <= c.AheadMax }

// moveAhead moves one tenant that is copied while it is written: copy, fence, copy what
// has changed, verify, flip. Its writers wait from the fence on.
func (m *Mover) moveAhead(ctx context.Context, run Run, blue *citus.Pool, l convert.Layout, shape string, v Move) error {
	rows := map[string]int64{}
	if v.State != Fenced {
		var err error
		if rows, err = m.copyAhead(ctx, blue, l, v); err != nil {
			return err
		}
	}
	group, err := m.fenceGroup(ctx, blue, shape, []Move{v})
	if err != nil || len(group) == 0 {
		return err
	}
	// Whatever an earlier step has left in green, the comparison finds out.
	count, wrong, err := m.catchUp(ctx, blue, l, v, rows)
	if err != nil {
		return err
	}
	if wrong != "" {
		return m.undo(ctx, v, "mover", "verification failed: "+wrong)
	}
	m.crash("verified")
	return m.flip(ctx, run, blue, l, group, []int64{count})
}

// copyAhead copies every table as of a moment of its own, and counts the rows.
// Somebody may write meanwhile: the tables need not fit each other yet.
func (m *Mover) copyAhead(ctx context.Context, blue *citus.Pool, l convert.Layout, v Move) (map[string]int64, error) {
	if err := m.markCopying(ctx, v); err != nil {
		return nil, err
	}
	m.crash("copying")
	if left := triedBefore([]Move{v}); left != nil {
		if err := m.writeGreen(ctx, Copying, left, func(tx pgx.Tx) error { return purge(ctx, tx, l, left) }); err != nil {
			return nil, err
		}
	}
	rows := map[string]int64{}
	for _, t := range l.Tables {
		err := m.writeGreen(ctx, Copying, []Move{v}, func(green pgx.Tx) error {
			return frozen(ctx, blue, func(from pgx.Tx) (err error) {
				rows[t.Name], err = stream(ctx, from.Conn(), green.Conn(), l, t, blueSelect(t, v))
				return err
			})
		})
		if err != nil {
			return nil, err
		}
	}
	m.crash("copied")
	return rows, nil
}

// ranges are the digests of one table by range of hashed keys: a difference is found
// without sending every key.
type ranges map[int]digest

// total adds the rows of all ranges.
func (r ranges) total() (n int64) {
	for _, d := range r {
		n += d.Rows
	}
	return n
}

// differing lists the ranges that are not the same on both sides.
func differing(a, b ranges) []int {
	var out []int
	for i, d := range a {
		if b[i] != d {
			out = append(out, i)
		}
	}
	for i := range b {
		if _, ok := a[i]; !ok {
			out = append(out, i)
		}
	}
	slices.Sort(out)
	return out
}

// rangesOf is how many ranges a table of about so many rows is cut into: some hundred
// rows each, a power of two.
func rangesOf(rows int64) int {
	return 1 << bits.Len64(uint64(min(max(rows/256, 8), 4096)-1))
}

// keyText is the canonical text of a row's key, the same on both sides.
func keyText(t convert.Table) string {
	quotedKey := make([]string, len(t.Key))
	for i, c := range t.Key {
		quotedKey[i] = quoted(c)
	}
	return "ROW(" + strings.Join(quotedKey, ", ") + ")::text"
}

// rangeDigests is the query for one table's ranges; source names the table and, on
// green, the tenant.
func rangeDigests(t convert.Table, n int, source string) string {
	return fmt.Sprintf(`SELECT i, %s FROM (SELECT (hashtextextended(%s, 2) & %d)::int AS i, %s AS r FROM %s) x GROUP BY i`, sums, keyText(t), n-1, rowText(t), source)
}

func ofTenant(l convert.Layout, t convert.Table, v Move) string {
	return quoted(l.GreenSchema, t.Name) + ` WHERE tenant_id = '` + v.Tenant.String() + `'`
}

// catchUp makes green's rows of a fenced tenant those of blue, and proves it: ranges of
// keys whose hashes differ are looked at row by row, and what differs is copied anew. It
// returns the number of rows, and what still differs, "" for nothing.
func (m *Mover) catchUp(ctx context.Context, blue *citus.Pool, l convert.Layout, v Move, rows map[string]int64) (count int64, wrong string, err error) {
	n := make([]int, len(l.Tables))
	inBlueSQL, inGreenSQL := make([]string, len(l.Tables)), make([]string, len(l.Tables))
	for i, t := range l.Tables {
		n[i] = rangesOf(rows[t.Name])
		inBlueSQL[i] = rangeDigests(t, n[i], quoted(v.Schema, t.Name))
		inGreenSQL[i] = rangeDigests(t, n[i], ofTenant(l, t, v))
	}
	var inBlue, inGreen []ranges
	err = both(ctx,
		func(ctx context.Context) error {
			if err := m.moveSequences(ctx, blue, l, []Move{v}); err != nil {
				return err
			}
			return frozen(ctx, blue, func(tx pgx.Tx) (err error) { inBlue, err = readRanges(ctx, tx, inBlueSQL); return err })
		},
		func(ctx context.Context) error {
			return m.readGreen(ctx, func(tx pgx.Tx) (err error) { inGreen, err = readRanges(ctx, tx, inGreenSQL); return err })
		})
	if err != nil {
		return 0, "", fmt.Errorf("migration: compare %s: %w", v.Tenant, err)
	}
	var changed []int
	for i := range l.Tables {
		if differing(inBlue[i], inGreen[i]) != nil {
			changed = append(changed, i)
		}
		count += inBlue[i].total()
	}
	if len(changed) > 0 {
		if err := m.copyChanges(ctx, blue, l, v, changed, n, inBlue, inGreen); err != nil {
			return 0, "", err
		}
		m.crash("changes copied")
	}
	return count, wrong, m.readGreen(ctx, func(tx pgx.Tx) error {
		again := make([]string, len(changed))
		for j, i := range changed {
			again[j] = inGreenSQL[i]
		}
		after, err := readRanges(ctx, tx, again)
		if err != nil {
			return err
		}
		for j, i := range changed {
			if d := differing(inBlue[i], after[j]); d != nil {
				wrong = fmt.Sprintf("table %s has %d rows in blue and %d in green, and %d of %d ranges of keys differ",
					l.Tables[i].Name, inBlue[i].total(), after[j].total(), len(d), n[i])
			}
		}
		b := &pgx.Batch{}
		queueOrphans(b, l, []Move{v})
		if b.Len() == 0 {
			return nil
		}
		return tx.SendBatch(ctx, b).Close()
	})
}

// readRanges runs one query for each table in one round trip. The texts hold the
// tenant and will not come again, so they are not prepared.
func readRanges(ctx context.Context, tx pgx.Tx, statements []string) ([]ranges, error) {
	if len(statements) == 0 {
		return nil, nil
	}
	results, err := tx.Conn().PgConn().Exec(ctx, strings.Join(statements, ";\n")).ReadAll()
	if err != nil {
		return nil, err
	}
	out := make([]ranges, len(results))
	for i, r := range results {
		out[i] = ranges{}
		for _, row := range r.Rows {
			at, err := strconv.Atoi(string(row[0]))
			if err != nil {
				return nil, err
			}
			n, err := strconv.ParseInt(string(row[1]), 10, 64)
			if err != nil {
				return nil, err
			}
			out[i][at] = digest{Rows: n, Hash: string(row[2])}
		}
	}
	return out, nil
}

// copyChanges copies the rows that differ, in one transaction on green: those that are
// gone or changed are deleted, those that are new or changed are copied.
func (m *Mover) copyChanges(ctx context.Context, blue *citus.Pool, l convert.Layout, v Move, changed, n []int, inBlue, inGreen []ranges) error {
	return m.writeGreen(ctx, Fenced, []Move{v}, func(green pgx.Tx) error {
		return frozen(ctx, blue, func(from pgx.Tx) error {
			for _, i := range changed {
				t := l.Tables[i]
				in := differing(inBlue[i], inGreen[i])
				have, err := keysIn(ctx, green, t, n[i], in, quoted(l.GreenSchema, t.Name)+` WHERE tenant_id = '`+v.Tenant.String()+`' AND `)
				if err != nil {
					return err
				}
				want, err := keysIn(ctx, from, t, n[i], in, quoted(v.Schema, t.Name)+` WHERE `)
				if err != nil {
					return err
				}
				drop, add := changes(have, want)
				for keys := range slices.Chunk(drop, keysAtOnce) {
					if _, err := green.Exec(ctx, `DELETE FROM `+ofTenant(l, t, v)+` AND `+keyIn(t, keys), pgx.QueryExecModeExec); err != nil {
						return fmt.Errorf("migration: delete changed rows of table %s: %w", t.Name, err)
					}
				}
				for keys := range slices.Chunk(add, keysAtOnce) {
					if _, err := stream(ctx, from.Conn(), green.Conn(), l, t, blueSelect(t, v)+` WHERE `+keyIn(t, keys)); err != nil {
						return err
					}
				}
			}
			return nil
		})
	})
}

// keysAtOnce bounds the length of one statement.
const keysAtOnce = 2000

// keysIn reads the keys of some ranges, each with its row's hash. A key's columns are
// joined by NUL, which no text of PostgreSQL holds.
func keysIn(ctx context.Context, tx pgx.Tx, t convert.Table, n int, in []int, source string) (map[string]string, error) {
	list := make([]string, len(in))
	for i, v := range in {
		list[i] = strconv.Itoa(v)
	}
	columns := make([]string, len(t.Key))
	for i, c := range t.Key {
		columns[i] = quoted(c) + "::text"
	}
	results, err := tx.Conn().PgConn().Exec(ctx, fmt.Sprintf(`SELECT hashtextextended(%s, 0), %s FROM %s (hashtextextended(%s, 2) & %d)::int = ANY('{%s}')`,
		rowText(t), strings.Join(columns, ", "), source, keyText(t), n-1, strings.Join(list, ","))).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("migration: keys of table %s: %w", t.Name, err)
	}
	out := map[string]string{}
	for _, row := range results[0].Rows {
		out[string(bytes.Join(row[1:], []byte{0}))] = string(row[0])
	}
	return out, nil
}

// keyIn is a condition on the key: literals, which take the columns' types, so that an
// index serves it, Citus takes it, and so does COPY, which has no parameters.
func keyIn(t convert.Table, keys []string) string {
	columns := make([]string, len(t.Key))
	for i, c := range t.Key {
		columns[i] = quoted(c)
	}
	values := make([]string, len(keys))
	for i, k := range keys {
		parts := strings.Split(k, "\x00")
		for j, p := range parts {
			parts[j] = literal(p)
		}
		values[i] = strings.Join(parts, ", ")
		if len(parts) > 1 {
			values[i] = "(" + values[i] + ")"
		}
	}
	left := strings.Join(columns, ", ")
	if len(columns) > 1 {
		left = "(" + left + ")"
	}
	return left + " IN (" + strings.Join(values, ", ") + ")"
}

// literal quotes a value in a way that does not depend on standard_conforming_strings.
func literal(s string) string {
	q := strings.ReplaceAll(s, "'", "''")
	if strings.Contains(q, `\`) {
		return " E'" + strings.ReplaceAll(q, `\`, `\\`) + "'"
	}
	return "'" + q + "'"
}

// changes tells which keys are to be deleted where they are, and which to be copied there.
func changes(have, want map[string]string) (drop, add []string) {
	for k, h := range have {
		if want[k] != h {
			drop = append(drop, k)
		}
	}
	for k, h := range want {
		if have[k] != h {
			add = append(add, k)
		}
	}
	return drop, add
}
