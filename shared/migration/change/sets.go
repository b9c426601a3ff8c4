package change

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// bySets changes all rows by a few statements. First those go that are gone or come again
// whole, so that none of their values is in the way of a unique constraint; then the rest is
// changed where it is; then comes what is new.
func (a *applier) bySets(ctx context.Context, tx pgx.Tx, p *plan) error {
	places, err := a.locate(ctx, tx, p)
	if err != nil {
		return err
	}
	if err := a.changePlaces(ctx, tx, p, places); err != nil {
		return err
	}
	if len(p.whole) > 0 {
		tag, err := tx.Conn().PgConn().CopyFrom(ctx, &copyText{a: a, rows: p.whole}, a.copy())
		if err := expect(tag.RowsAffected(), len(p.whole), err); err != nil {
			return err
		}
	}
	_, err = tx.Exec(ctx, `RELEASE SAVEPOINT coditect_change`)
	return err
}

// locate looks up where the rows are that are to be dropped, and those to be changed in part, in this order; and
// that those are not there that must not be.
//
// A DELETE or an UPDATE could not be kept from what [ByKeys] is kept from; but it finds a row at its place, if an index is
// no choice.
func (a *applier) locate(ctx context.Context, tx pgx.Tx, p *plan) (places []string, err error) {
	b := &pgx.Batch{}
	b.Queue(`SAVEPOINT coditect_change`)
	for _, set := range ByKeyAlone() {
		b.Queue(set)
	}
	if len(p.probe) > 0 {
		b.Queue(`SELECT count(*) FROM `+a.byKeys("1 AS x"), a.keyArgs(p.probe)...).QueryRow(func(row pgx.Row) error {
			var n int64
			err := row.Scan(&n)
			return expect(n, 0, err)
		})
	}
	keys := slices.Clone(p.drop)
	for _, r := range p.part {
		keys = append(keys, r.origin)
	}
	if len(keys) > 0 {
		b.Queue(`SELECT array_agg(x::text ORDER BY coditect_n) FROM `+a.byKeys("t.ctid AS x"), a.keyArgs(keys)...).QueryRow(func(row pgx.Row) error {
			err := row.Scan(&places)
			return expect(int64(len(places)), len(keys), err)
		})
	}
	err = tx.SendBatch(ctx, b).Close()
	return places, err
}

// byKeys is [ByKeys] of the target's rows, which are called t.
func (a *applier) byKeys(what string) string {
	key, types := make([]string, len(a.Key)), make([]string, len(a.Key))
	for i, k := range a.Key {
		key[i], types[i] = "t."+quoted(k), a.typeOf(i)
	}
	return ByKeys(a.table()+" t WHERE "+a.ofTenant(), strings.Join(key, ", "), types, what)
}

// changePlaces drops rows and changes others at their places.
func (a *applier) changePlaces(ctx context.Context, tx pgx.Tx, p *plan, places []string) error {
	if len(p.drop)+len(p.part) == 0 {
		return nil
	}
	b := &pgx.Batch{}
	b.Queue(`SET LOCAL enable_indexscan = off`)
	if n := len(p.drop); n > 0 {
		sql, args := a.dropAt(p.drop, places[:n])
		b.Queue(sql, args...).Exec(touches(n))
	}
	for i, r := range p.part {
		r.place = places[len(p.drop)+i]
	}
	for _, g := range a.alike(p.part) {
		sql, args := a.update(g)
		b.Queue(sql, args...).Exec(touches(len(g.rows)))
	}
	b.Queue(`SET LOCAL enable_indexscan = DEFAULT`)
	return tx.SendBatch(ctx, b).Close()
}

// dropAt deletes rows at their places, if they have these keys still.
func (a *applier) dropAt(keys [][]string, places []string) (sql string, args []any) {
	arrays, on := []string{"$1::text[]::tid[]"}, make([]string, len(a.Key))
	for i, k := range a.Key {
		arrays = append(arrays, fmt.Sprintf("$%d::text[]::%s[]", i+2, a.typeOf(i)))
		on[i] = fmt.Sprintf("t.%s = u.k%d", quoted(k), i)
	}
	return fmt.Sprintf("DELETE FROM %s t USING unnest(%s) AS u(place, %s) WHERE %st.ctid = u.place AND %s", a.table(), strings.Join(arrays, ", "),
		numbered("k", len(a.Key)), a.ofTenant(), strings.Join(on, " AND ")), append([]any{places}, a.keyArgs(keys)...)
}

// errCount: a statement touched more or fewer rows than it should have.
var errCount = errors.New("another number of rows than changes")

func expect(got int64, want int, err error) error {
	if err == nil && got != int64(want) {
		return fmt.Errorf("%w: %d, not %d", errCount, got, want)
	}
	return err
}

func touches(want int) func(tag pgconn.CommandTag) error {
	return func(tag pgconn.CommandTag) error { return expect(tag.RowsAffected(), want, nil) }
}

func (a *applier) table() string { return quoted(a.Schema, a.Table) }

func quoted(parts ...string) string { return pgx.Identifier(parts).Sanitize() }

// ofTenant is the condition that finds the tenant's shard; nothing where no tenant is in the table.
func (a *applier) ofTenant() string {
	if !a.HasTenant {
		return ""
	}
	return "t." + tenantColumn + " = '" + a.Tenant.String() + "'::uuid AND "
}

// typeOf is the type of one of the key's columns.
func (a *applier) typeOf(key int) string { return a.Columns[a.keyAt[key]].Type }

// numbered lists k0, k1, …
func numbered(name string, n int) string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s%d", name, i)
	}
	return strings.Join(out, ", ")
}

// keyArgs turns keys into arrays, one for each column.
func (a *applier) keyArgs(keys [][]string) []any {
	args := make([]any, len(a.Key))
	for i := range a.Key {
		column := make([]string, len(keys))
		for j, k := range keys {
			column[j] = k[i]
		}
		args[i] = column
	}
	return args
}

// group are rows of which the same columns are to be set.
type group struct {
	set   []int // columns
	moved bool  // the key changes
	rows  []*row
}

// alike puts rows together that one statement can change.
func (a *applier) alike(rows []*row) []*group {
	var out []*group
	byName := map[string]*group{}
	for _, r := range rows {
		set, moved := a.known(r), !equal(r.origin, r.key)
		name := fmt.Sprint(set, moved)
		g := byName[name]
		if g == nil || a.alone(set) {
			g = &group{set: set, moved: moved}
			byName[name] = g
			out = append(out, g)
		}
		g.rows = append(g.rows, r)
	}
	return out
}

func equal(a, b []string) bool {
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// known lists the columns that an UPDATE of the row sets: neither the key, which has its
// place where it is moved, nor what stays as it is.
func (a *applier) known(r *row) []int {
	var set []int
	for i, c := range r.cells {
		if !c.Unchanged && !a.isKey(i) && i != a.tenantAt && !a.Columns[i].Always {
			set = append(set, i)
		}
	}
	return set
}

func (a *applier) isKey(column int) bool {
	for _, at := range a.keyAt {
		if at == column {
			return true
		}
	}
	return false
}

// alone: values of these columns cannot be the elements of an array, so their rows are changed one
// by one. (PostgreSQL takes an array of arrays for one of two dimensions.)
func (a *applier) alone(set []int) bool {
	return slices.ContainsFunc(set, func(c int) bool { return strings.HasSuffix(a.Columns[c].Type, "[]") })
}

// update is one statement that changes a group's rows, at their places where they are known, and counts those that have
// nothing to set. Its values are cast before they are columns of anything: Citus takes no UPDATE that casts a column by a
// function that depends on settings.
func (a *applier) update(g *group) (sql string, args []any) {
	var sets, on, arrays []string
	add := func(typ string, values func(r *row) *string) string {
		if len(g.rows) == 1 {
			args = append(args, values(g.rows[0]))
			return fmt.Sprintf("$%d::text::%s", len(args), typ)
		}
		column := make([]*string, len(g.rows))
		for i, r := range g.rows {
			column[i] = values(r)
		}
		args = append(args, column)
		arrays = append(arrays, fmt.Sprintf("$%d::text[]::%s[]", len(args), typ))
		return fmt.Sprintf("u.v%d", len(args)-1)
	}
	if g.rows[0].place != "" {
		on = append(on, "t.ctid = "+add("tid", func(r *row) *string { return &r.place }))
	}
	for i, k := range a.Key {
		on = append(on, fmt.Sprintf("t.%s = %s", quoted(k), add(a.typeOf(i), func(r *row) *string { return &r.origin[i] })))
		if g.moved {
			sets = append(sets, fmt.Sprintf("%s = %s", quoted(k), add(a.typeOf(i), func(r *row) *string { return &r.key[i] })))
		}
	}
	for _, c := range g.set {
		sets = append(sets, fmt.Sprintf("%s = %s", quoted(a.Columns[c].Name), add(a.Columns[c].Type, func(r *row) *string { return r.cells[c].value() })))
	}
	if sets == nil { // the row must be there all the same
		k := quoted(a.Key[0])
		sets = []string{k + " = t." + k}
	}
	from := ""
	if len(g.rows) > 1 {
		from = " FROM unnest(" + strings.Join(arrays, ", ") + ") AS u(" + numbered("v", len(args)) + ")"
	}
	return fmt.Sprintf("UPDATE %s t SET %s%s WHERE %s%s", a.table(), strings.Join(sets, ", "), from, a.ofTenant(), strings.Join(on, " AND ")), args
}

// value is what a parameter takes: nil for NULL.
func (c Cell) value() *string {
	if c.Null {
		return nil
	}
	return &c.Text
}

// copy is the COPY of whole rows. It sets GENERATED ALWAYS identities as well.
func (a *applier) copy() string {
	var columns []string
	if a.HasTenant && a.tenantAt < 0 {
		columns = append(columns, tenantColumn)
	}
	for _, c := range a.Columns {
		columns = append(columns, quoted(c.Name))
	}
	return "COPY " + a.table() + " (" + strings.Join(columns, ", ") + ") FROM STDIN"
}

// copyText prints rows in the text format of COPY as they are asked for: a large set of them
// is never in memory twice.
type copyText struct {
	a    *applier
	rows []*row
	buf  []byte
	read int
}

// copyBuffer is how much is printed ahead.
const copyBuffer = 64 << 10

func (c *copyText) Read(p []byte) (int, error) {
	if c.read == len(c.buf) {
		c.buf, c.read = c.buf[:0], 0
		for len(c.rows) > 0 && len(c.buf) < copyBuffer {
			c.line(c.rows[0])
			c.rows = c.rows[1:]
		}
		if len(c.buf) == 0 {
			return 0, io.EOF
		}
	}
	n := copy(p, c.buf[c.read:])
	c.read += n
	return n, nil
}

func (c *copyText) line(r *row) {
	if c.a.HasTenant && c.a.tenantAt < 0 {
		c.buf = append(c.buf, c.a.Tenant.String()...)
		c.buf = append(c.buf, '\t')
	}
	for i, v := range r.cells {
		if i > 0 {
			c.buf = append(c.buf, '\t')
		}
		if v.Null {
			c.buf = append(c.buf, `\N`...)
			continue
		}
		c.buf = appendEscaped(c.buf, v.Text)
	}
	c.buf = append(c.buf, '\n')
}

// appendEscaped escapes what has a meaning in COPY's text format.
func appendEscaped(to []byte, s string) []byte {
	for {
		i := strings.IndexAny(s, "\\\t\n\r")
		if i < 0 {
			return append(to, s...)
		}
		to = append(to, s[:i]...)
		switch s[i] {
		case '\\':
			to = append(to, `\\`...)
		case '\t':
			to = append(to, `\t`...)
		case '\n':
			to = append(to, `\n`...)
		case '\r':
			to = append(to, `\r`...)
		}
		s = s[i+1:]
	}
}
