package migration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/migration/convert"
	"github.com/coditect/platform/shared/tenant"
)

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
	return fmt.Sprintf(`SELECT i, count(*), %s FROM (SELECT (hashtextextended(%s, 2) & %d)::int AS i, %s AS r FROM %s) x GROUP BY i`, sums, keyText(t), n-1, rowText(t), source)
}

func ofTenant(l convert.Layout, t convert.Table, v Move) string {
	return quoted(l.GreenSchema, t.Name) + ` WHERE tenant_id = '` + v.Tenant.String() + `'`
}

// reconcile makes green's rows of a fenced tenant those of blue, whatever green has, and
// proves it: ranges of keys whose hashes differ are looked at row by row, and what differs is
// copied anew. about are its rows by table, if known. It returns the number of rows, and what still
// differs, "" for nothing.
func (m *Mover) reconcile(ctx context.Context, blue *citus.Pool, l convert.Layout, v Move, about map[string]int64) (count int64, wrong string, err error) {
	n := make([]int, len(l.Tables))
	inBlueSQL, inGreenSQL := make([]string, len(l.Tables)), make([]string, len(l.Tables))
	for i, t := range l.Tables {
		n[i] = rangesOf(about[t.Name])
		inBlueSQL[i] = rangeDigests(t, n[i], quoted(v.Schema, t.Name))
		inGreenSQL[i] = rangeDigests(t, n[i], ofTenant(l, t, v))
	}
	var inBlue, inGreen []ranges
	err = both(ctx,
		func(ctx context.Context) error {
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
	if len(changed) == 0 {
		return count, "", nil
	}
	if err := m.copyChanges(ctx, blue, l, v, changed, n, inBlue, inGreen); err != nil {
		return 0, "", err
	}
	again := make([]string, len(changed))
	for j, i := range changed {
		again[j] = inGreenSQL[i]
	}
	var after []ranges
	if err := m.readGreen(ctx, func(tx pgx.Tx) (err error) { after, err = readRanges(ctx, tx, again); return err }); err != nil {
		return 0, "", err
	}
	for j, i := range changed {
		if d := differing(inBlue[i], after[j]); d != nil {
			wrong = fmt.Sprintf("table %s has %d rows in blue and %d in green, and %d of %d ranges of keys differ",
				l.Tables[i].Name, inBlue[i].total(), after[j].total(), len(d), n[i])
		}
	}
	return count, wrong, nil
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
				in := inRanges(t, n[i], differing(inBlue[i], inGreen[i]))
				one := fmt.Sprintf(`SELECT %s, '%s'::text, %s FROM `, rowHash(t), v.Tenant, keyColumns(t))
				have, err := keysOf(ctx, green, t, one+ofTenant(l, t, v)+` AND `+in)
				if err != nil {
					return err
				}
				want, err := keysOf(ctx, from, t, one+quoted(v.Schema, t.Name)+` WHERE `+in)
				if err != nil {
					return err
				}
				drop, add := changes(have, want)
				for keys := range slices.Chunk(drop, keysAtOnce) {
					if _, err := green.Exec(ctx, `DELETE FROM `+quoted(l.GreenSchema, t.Name)+` WHERE `+rowsIn(t, keys), pgx.QueryExecModeExec); err != nil {
						return fmt.Errorf("migration: delete changed rows of table %s: %w", t.Name, err)
					}
				}
				for keys := range slices.Chunk(add, keysAtOnce) {
					if _, err := pipe(ctx, from.Conn(), green.Conn(), l, t, blueSelect(t, v)+` WHERE `+keyIn(t, bare(keys))); err != nil {
						return err
					}
				}
			}
			return nil
		})
	})
}

// rowKey names a row of a group's tenants.
type rowKey struct {
	tenant tenant.ID
	key    string // the key's columns, joined by NUL
}

// keysAtOnce bounds the length of one statement.
const keysAtOnce = 2000

// inRanges is a condition on the key: it is in one of some ranges.
func inRanges(t convert.Table, n int, in []int) string {
	list := make([]string, len(in))
	for i, v := range in {
		list[i] = strconv.Itoa(v)
	}
	return fmt.Sprintf(`(hashtextextended(%s, 2) & %d)::int = ANY('{%s}')`, keyText(t), n-1, strings.Join(list, ","))
}

// keyColumns are a key's columns as text.
func keyColumns(t convert.Table) string {
	columns := make([]string, len(t.Key))
	for i, c := range t.Key {
		columns[i] = quoted(c) + "::text"
	}
	return strings.Join(columns, ", ")
}

func rowHash(t convert.Table) string { return `hashtextextended(` + rowText(t) + `, 0)` }

// keysOf reads rows of a hash, the tenant and the key's columns. No text of PostgreSQL holds
// the NUL that joins the columns.
func keysOf(ctx context.Context, tx pgx.Tx, t convert.Table, query string) (map[rowKey]string, error) {
	results, err := tx.Conn().PgConn().Exec(ctx, query).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("migration: keys of table %s: %w", t.Name, err)
	}
	out := map[rowKey]string{}
	for _, row := range results[0].Rows {
		id, err := tenant.ParseID(string(row[1]))
		if err != nil {
			return nil, err
		}
		out[rowKey{id, string(bytes.Join(row[2:], []byte{0}))}] = string(row[0])
	}
	return out, nil
}

// rowsIn is a condition on the tenant and the key. It names the tenants once more on their
// own: that is how Citus finds the shards.
func rowsIn(t convert.Table, keys []rowKey) string {
	of := map[tenant.ID][]string{}
	for _, k := range keys {
		of[k.tenant] = append(of[k.tenant], k.key)
	}
	var tenants, each []string
	for id, keys := range of {
		tenants = append(tenants, literal(id.String()))
		each = append(each, `tenant_id = `+literal(id.String())+` AND `+keyIn(t, keys))
	}
	return `tenant_id IN (` + strings.Join(tenants, ", ") + `) AND (` + strings.Join(each, " OR ") + `)`
}

// bare are keys without their tenant.
func bare(keys []rowKey) []string {
	out := make([]string, len(keys))
	for i, k := range keys {
		out[i] = k.key
	}
	return out
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

// keyInBlue is keyIn for blue.
func keyInBlue(t convert.Table, keys []string) string {
	fit := fittingBlue(t, keys)
	if len(fit) == 0 {
		return "false"
	}
	return keyIn(t, fit)
}

// fittingBlue leaves keys that blue can have. Its ids may be narrower than green's: what does not fit into a column is no
// key there, and comparing with it would be an error.
func fittingBlue(t convert.Table, keys []string) []string {
	bits := make([]int, len(t.Key))
	for i, name := range t.Key {
		bits[i] = narrow[t.Columns[slices.IndexFunc(t.Columns, func(c convert.Column) bool { return c.Name == name })].BlueType]
	}
	return slices.DeleteFunc(slices.Clone(keys), func(key string) bool {
		for i, part := range strings.Split(key, "\x00") {
			if bits[i] == 0 {
				continue
			}
			if _, err := strconv.ParseInt(part, 10, bits[i]); errors.Is(err, strconv.ErrRange) {
				return true
			}
		}
		return false
	})
}

// narrow are the types that green has widened in keys, by their bits.
var narrow = map[string]int{"smallint": 16, "integer": 32}

// literal quotes a value in a way that does not depend on standard_conforming_strings.
func literal(s string) string {
	q := strings.ReplaceAll(s, "'", "''")
	if strings.Contains(q, `\`) {
		return " E'" + strings.ReplaceAll(q, `\`, `\\`) + "'"
	}
	return "'" + q + "'"
}

// changes tells which keys are to be deleted where they are, and which to be copied there.
func changes(have, want map[rowKey]string) (drop, add []rowKey) {
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
