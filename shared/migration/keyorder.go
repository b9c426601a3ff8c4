package migration

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/catalog"
	"github.com/coditect/platform/shared/migration/change"
	"github.com/coditect/platform/shared/migration/convert"
)

// The order of keys.
//
// A chunk is a range of keys in blue's order, which is that of its primary key's index: so a chunk's
// end is found and its rows are read by that index, whatever the type of the key, and no snapshot of
// blue is held for longer than a chunk takes.
//
// Green may have another order. Text is sorted by a collation, and the same collation is another one
// with another C library or ICU: an index of green does not serve blue's order, and a condition that
// both databases understood in their own way would lose rows. An order that is the same everywhere
// (COLLATE "C") no index serves, where the column has another one: blue would be read from end to end
// for every chunk. So for all but the types of [ordered], only blue is asked what comes before what, and
// green is only asked for rows by their keys: to compare a chunk, to empty it, and to
// go back. Looking rows of 150 bytes up takes twice as long as reading them as a range (175,000 and 380,000 a
// second in one run), about as long as copying them.

// ordered reports whether the keys have one order in all databases, so that green may be asked for
// a range of them: that of built-in types which are compared by their values alone. Text has not, nor has
// what a database has made by itself.
func ordered(t convert.Table) bool {
	for _, typ := range keyTypes(t) {
		if before, rest, found := strings.Cut(typ, "("); found { // numeric(10,2), timestamp(3) with time zone
			_, after, _ := strings.Cut(rest, ")")
			typ = before + after
		}
		switch typ {
		case "smallint", "integer", "bigint", "numeric", "real", "double precision", "uuid", "boolean", "oid", "bytea", "inet", "cidr", "macaddr",
			"date", "interval", "time without time zone", "timestamp with time zone", "timestamp without time zone":
		default:
			return false
		}
	}
	return len(t.Key) > 0
}

// keyTypes are green's types of a key's columns.
func keyTypes(t convert.Table) []string {
	return keyTypesOf(t, func(c convert.Column) string { return c.GreenType })
}

// blueKeyTypes are blue's.
func blueKeyTypes(t convert.Table, v Move) []string {
	return keyTypesOf(t, func(c convert.Column) string { return catalog.FromSelf(c.BlueType, v.Schema) })
}

func keyTypesOf(t convert.Table, typeOf func(convert.Column) string) []string {
	out := make([]string, len(t.Key))
	for i, k := range t.Key {
		for _, c := range t.Columns {
			if c.Name == k {
				out[i] = typeOf(c)
			}
		}
	}
	return out
}

// keyOrder compares keys that may be in no table.
type keyOrder struct {
	db    querier
	types []string // what makes a value of a text, for each of the key's columns
}

// orderOf is the order that a table's chunks are in. Where only blue knows it, it is asked.
func (o *onlineMove) orderOf(ctx context.Context, t convert.Table) (keyOrder, error) {
	if ordered(t) {
		control, err := o.m.control(ctx)
		return keyOrder{control, keyTypes(t)}, err
	}
	// The column's collation, which is its index's: that of its type may be another one.
	rows, err := o.blue.Query(ctx, `SELECT coalesce(' COLLATE ' || quote_ident(n.nspname) || '.' || quote_ident(c.collname), '')
		FROM unnest($2::text[]) WITH ORDINALITY AS k(name, i) JOIN pg_attribute a ON a.attrelid = to_regclass($1) AND a.attname = k.name
		LEFT JOIN pg_collation c ON c.oid = a.attcollation LEFT JOIN pg_namespace n ON n.oid = c.collnamespace ORDER BY i`, quoted(o.v.Schema, t.Name), t.Key)
	if err != nil {
		return keyOrder{}, fmt.Errorf("migration: order of the keys of table %s: %w", t.Name, err)
	}
	collations, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return keyOrder{}, fmt.Errorf("migration: order of the keys of table %s: %w", t.Name, err)
	}
	types := blueKeyTypes(t, o.v)
	if len(collations) != len(types) {
		return keyOrder{}, schemaChanged(t, strings.Join(t.Key, ", "))
	}
	for i := range types {
		types[i] += collations[i]
	}
	return keyOrder{o.blue, types}, nil
}

// tuple is a key whose columns' texts are these expressions.
func (k keyOrder) tuple(texts []string) string {
	out := make([]string, len(texts))
	for i, s := range texts {
		out[i] = s + "::text::" + k.types[i]
	}
	return "(" + strings.Join(out, ", ") + ")"
}

// key is a key of its texts.
func (k keyOrder) key(texts []string) string {
	out := make([]string, len(texts))
	for i, s := range texts {
		out[i] = literal(s)
	}
	return k.tuple(out)
}

// places counts for each of some keys how many of these ends come before it.
func (k keyOrder) places(ctx context.Context, ends, keys [][]string) ([]int64, error) {
	width := len(k.types)
	names, typed, lists := make([]string, width), make([]string, width), make([]string, width)
	for i, typ := range k.types {
		names[i] = "e" + strconv.Itoa(i)
		typed[i] = fmt.Sprintf("%s::%s AS %[1]s", names[i], typ)
		lists[i] = fmt.Sprintf("$%d::text[]", width+i+1)
	}
	end := strings.Join(names, ", ")
	// The ends are typed once.
	rows, err := k.db.Query(ctx, fmt.Sprintf(`WITH ends AS MATERIALIZED (SELECT %s FROM unnest(%s) AS x(%s))
		SELECT (SELECT count(*) FROM ends WHERE (%[3]s) < %[4]s) FROM %[5]s ORDER BY n`,
		strings.Join(typed, ", "), strings.Join(lists, ", "), end, k.tuple(keyNames(width)), numberedKeyList(width)),
		slices.Concat(keyColumnsOf(width, keys), keyColumnsOf(width, ends))...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int64])
}

// within returns those of some keys that are in one of these chunks.
func (k keyOrder) within(ctx context.Context, keys [][]string, chunks []chunk) ([][]string, error) {
	width := len(k.types)
	key := k.tuple(keyNames(width))
	var ranges []string
	for _, c := range joined(chunks) {
		in := []string{"true"}
		if c.after != nil {
			in = append(in, key+" > "+k.key(c.after))
		}
		if c.upto != nil {
			in = append(in, key+" <= "+k.key(c.upto))
		}
		ranges = append(ranges, "("+strings.Join(in, " AND ")+")")
	}
	rows, err := k.db.Query(ctx, `SELECT n FROM `+numberedKeyList(width)+` WHERE `+strings.Join(ranges, " OR "), append([]any{pgx.QueryExecModeExec}, keyColumnsOf(width, keys)...)...)
	if err != nil {
		return nil, err
	}
	numbers, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	out := make([][]string, len(numbers))
	for i, n := range numbers {
		out[i] = keys[n-1]
	}
	return out, err
}

// joined are chunks of which those that follow each other have become one.
func joined(chunks []chunk) (out []chunk) {
	for _, c := range chunks {
		if n := len(out); n > 0 && out[n-1].upto != nil && slices.Equal(out[n-1].upto, c.after) {
			out[n-1].upto = c.upto
			continue
		}
		out = append(out, c)
	}
	return out
}

// numberedKeyList is a list of keys that follows as arrays of text, one for each column: k0, k1, … and n, their numbers,
// from 1.
func numberedKeyList(width int) string {
	return fmt.Sprintf("unnest(%s) WITH ORDINALITY AS u(%s, n)", arrays(width), strings.Join(keyNames(width), ", "))
}

func arrays(width int) string {
	out := make([]string, width)
	for i := range out {
		out[i] = fmt.Sprintf("$%d::text[]", i+1)
	}
	return strings.Join(out, ", ")
}

func keyNames(width int) []string {
	out := make([]string, width)
	for i := range out {
		out[i] = "k" + strconv.Itoa(i)
	}
	return out
}

// keyColumnsOf are the arrays of such a list.
func keyColumnsOf(width int, keys [][]string) []any {
	args := make([]any, width)
	for i := range args {
		column := make([]string, len(keys))
		for j, k := range keys {
			column[j] = k[i]
		}
		args[i] = column
	}
	return args
}

// lookUp reads the hash of each of the rows with some keys, in the order of the keys: an expression that is a bigint. The
// source ends in a condition on something else; types are those of the key's columns in it.
func lookUp(ctx context.Context, tx pgx.Tx, t convert.Table, source string, types []string, hash string, keys [][]string) ([]hashed, error) {
	out := make([]hashed, len(keys))
	if len(keys) == 0 {
		return out, nil
	}
	b := &pgx.Batch{}
	for _, set := range change.ByKeyAlone() {
		b.Queue(set)
	}
	b.Queue(`SELECT array_agg(coditect_n), array_agg(coditect_hash) FROM `+change.ByKeys(source, byKey(t, quoted(t.Name)), types, hash+` AS coditect_hash`), keyColumnsOf(len(types), keys)...).QueryRow(func(row pgx.Row) error {
		var at, hashes []int64
		if err := row.Scan(&at, &hashes); err != nil {
			return err
		}
		for i, n := range at {
			out[n-1] = hashed{true, hashes[i]}
		}
		return nil
	})
	return out, tx.SendBatch(ctx, b).Close()
}

// byKeyAlone has what a transaction reads in the order of a key read by that key's index.
func byKeyAlone(ctx context.Context, tx pgx.Tx) error { return execAll(ctx, tx, change.ByKeyAlone()) }

// rowsOfKeys reads the hashes of the rows with some keys, by key.
func rowsOfKeys(ctx context.Context, tx pgx.Tx, t convert.Table, v Move, source string, types []string, keys [][]string) (map[rowKey]string, error) {
	rows, err := lookUp(ctx, tx, t, source, types, rowHash(t), keys)
	if err != nil {
		return nil, err
	}
	out := make(map[rowKey]string, len(keys))
	for i, r := range rows {
		if r.there {
			out[rowKey{v.Tenant, joinKey(keys[i])}] = strconv.FormatInt(r.hash, 10)
		}
	}
	return out, nil
}

// eachHash reads rows of a hash and the columns of a key.
func eachHash(rows pgx.Rows, width int, do func(hash string, key []string) error) error {
	values := make([]string, 1+width)
	dest := make([]any, len(values))
	for i := range values {
		dest[i] = &values[i]
	}
	_, err := pgx.ForEachRow(rows, dest, func() error { return do(values[0], slices.Clone(values[1:])) })
	return err
}

// bluesRows and greensRows are a tenant's rows of a table, as far as a condition that follows says.
func bluesRows(t convert.Table, v Move) string {
	return quoted(v.Schema, t.Name) + ` WHERE ` + ownRows(t, v)
}

func greensRows(l convert.Layout, t convert.Table, v Move) string { return ofTenant(l, t, v) + ` AND ` }

// compareKeys compares a chunk's rows of blue with those that green has by the same keys. It counts blue's,
// and those of them that are the same in green; the keys of the others it tells, if somebody wants to know.
func compareKeys(ctx context.Context, from, green pgx.Tx, l convert.Layout, t convert.Table, v Move, c chunk, differ func(keys [][]string)) (inBlue, same int64, err error) {
	types := keyTypes(t)
	blue := map[rowKey]string{}
	var keys [][]string
	flush := func() error {
		found, err := rowsOfKeys(ctx, green, t, v, greensRows(l, t, v), types, keys)
		if err != nil {
			return err
		}
		drop, add := changes(found, blue)
		inBlue += int64(len(blue))
		same += int64(len(blue) - len(add))
		if len(drop)+len(add) > 0 && differ != nil {
			differ(splitKeys(drop, add))
		}
		clear(blue)
		keys = keys[:0]
		return nil
	}
	rows, err := from.Query(ctx, fmt.Sprintf(`SELECT %s::text, %s FROM %s %s`, rowHash(t), keyColumns(t), bluesRows(t, v), inChunk(t, c)), pgx.QueryExecModeExec)
	if err != nil {
		return 0, 0, err
	}
	err = eachHash(rows, len(types), func(hash string, key []string) error {
		blue[rowKey{v.Tenant, joinKey(key)}] = hash
		if keys = append(keys, key); len(keys) < keysAtOnce {
			return nil
		}
		return flush()
	})
	if err == nil && len(keys) > 0 {
		err = flush()
	}
	return inBlue, same, err
}

// joinKey makes one text of a key's columns: no text of PostgreSQL holds a NUL.
func joinKey(key []string) string { return strings.Join(key, "\x00") }

func splitKey(key string) []string { return strings.Split(key, "\x00") }

// splitKeys are the keys of some lists, each once.
func splitKeys(lists ...[]rowKey) (out [][]string) {
	all := map[string]bool{}
	for _, k := range slices.Concat(lists...) {
		all[k.key] = true
	}
	for _, k := range slices.Sorted(maps.Keys(all)) {
		out = append(out, splitKey(k))
	}
	return out
}

// empty deletes what green has of some chunks of a table; whole says that these are all. Where green has
// another order, the keys of all its rows are read, and blue is asked which are in those chunks: that is rare,
// for it takes a TRUNCATE between the first and the last chunk of one table.
func (o *onlineMove) empty(ctx context.Context, tx pgx.Tx, t convert.Table, order keyOrder, chunks []chunk, whole bool) error {
	switch {
	case len(chunks) == 0:
		return nil
	case whole:
		_, err := tx.Exec(ctx, `DELETE FROM `+ofTenant(o.l, t, o.v), pgx.QueryExecModeExec)
		return err
	case ordered(t):
		for _, c := range joined(chunks) {
			if _, err := tx.Exec(ctx, `DELETE FROM `+greensRows(o.l, t, o.v)+inChunk(t, c), pgx.QueryExecModeExec); err != nil {
				return err
			}
		}
		return nil
	}
	if _, err := tx.Exec(ctx, `DECLARE coditect_keys NO SCROLL CURSOR FOR SELECT `+keyColumns(t)+`, ctid::text FROM `+ofTenant(o.l, t, o.v), pgx.QueryExecModeExec); err != nil {
		return err
	}
	// At its place a row is found at once, if the planner does not take any index that begins with the tenant for as good.
	if err := execAll(ctx, tx, append(change.ByKeyAlone(), `SET LOCAL enable_indexscan = off`)); err != nil {
		return err
	}
	width := len(t.Key)
	for {
		rows, err := tx.Query(ctx, `FETCH `+strconv.Itoa(keysAtOnce)+` FROM coditect_keys`, pgx.QueryExecModeExec)
		if err != nil {
			return err
		}
		keys, err := readKeys(rows, width+1)
		if err != nil {
			return err
		}
		if len(keys) == 0 {
			return execAll(ctx, tx, []string{`CLOSE coditect_keys`, `SET LOCAL enable_indexscan = DEFAULT`})
		}
		gone, err := order.within(ctx, keys, chunks)
		if err != nil {
			return fmt.Errorf("migration: chunks of the keys of table %s: %w", t.Name, err)
		}
		places := make([]string, len(gone))
		for i, k := range gone {
			places[i] = k[width]
		}
		tag, err := tx.Exec(ctx, `DELETE FROM `+greensRows(o.l, t, o.v)+`ctid = ANY ($1::text[]::tid[])`, pgx.QueryExecModeExec, places)
		if err == nil && tag.RowsAffected() != int64(len(gone)) {
			err = fault.New(fault.Internal, "keys_not_found", "table %s: of %d rows, %d were found again at their places", t.Name, len(gone), tag.RowsAffected())
		}
		if err != nil {
			return err
		}
	}
}

// readKeys reads rows of the columns of a key.
func readKeys(rows pgx.Rows, width int) ([][]string, error) {
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) ([]string, error) {
		key := make([]string, width)
		dest := make([]any, width)
		for i := range key {
			dest[i] = &key[i]
		}
		return key, row.Scan(dest...)
	})
}
