package migration

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/convert"
	"github.com/coditect/platform/shared/migration/stream"
)

// A pack stays in the spool after it is applied, until the rows that its changes are about were compared in
// both databases. Those that were not the same go to control.unproven: they have been changed again, and
// are compared again; only under the fence is one a difference. So what the fence leaves to compare is
// what was changed last.

// Bounds of what one round compares: more changes than were just applied, so that it keeps pace, and
// not many more, for others wait to be applied.
const (
	compareAtOnce = 40_000
	compareLeast  = 500
	keysCompared  = 5000 // in one statement
)

func compareAfter(applied int) int {
	if applied == 0 {
		return compareAtOnce
	}
	return min(max(2*applied, compareLeast), compareAtOnce)
}

// rowsOfTables are keys by table, each once, by their joined texts.
type rowsOfTables map[string]map[string][]string

// allRows stands for a table that was emptied, whose key is nil. It is no joined key, for no key has so many columns.
var allRows = strings.Repeat("\x00", 32)

func (r rowsOfTables) add(table string, key []string) {
	if r[table] == nil {
		r[table] = map[string][]string{}
	}
	joined := allRows
	if key != nil {
		joined = joinKey(key)
	}
	r[table][joined] = key
}

// compareSome compares the rows of changes that are applied up to a place while a batch is applied, and forgets those
// that are the same. It returns how many changes were compared, and how many changes and rows are left.
func (o *onlineMove) compareSome(ctx context.Context, upto watermark, meanwhile batch) (compared, left int, err error) {
	control, err := o.m.control(ctx)
	if err != nil {
		return 0, 0, err
	}
	size, err := o.spoolSize(ctx, control)
	if err != nil {
		return 0, 0, err
	}
	keep := nearChanges / 2
	if o.v.State == Following { // and many others, for weeks
		keep = nearChanges / 20
	}
	atMost := compareAfter(meanwhile.changes)
	switch {
	case !meanwhile.full:
		o.ahead = nil
	case size.changes < spoolLarge:
		// Of a backlog that is too long to know, nothing is compared before it is shorter.
		if known, err := o.lookAhead(ctx, control, upto, meanwhile, size); err != nil || !known {
			return 0, size.changes + size.unproven, err
		}
	}
	for want := min(atMost, size.changes-keep); compared < want; { // a part of them fills the memory
		n, err := o.comparePacks(ctx, control, upto, want-compared)
		if err != nil {
			return 0, 0, err
		}
		if n == 0 {
			break
		}
		compared += n
	}
	settled := 0
	if size.unproven > keep {
		if settled, err = o.compareUnproven(ctx, control); err != nil {
			return 0, 0, err
		}
	}
	return compared + settled, size.changes + size.unproven - compared - settled, nil
}

// spoolSize is what the spool has of a tenant; of very many packs, those of the first.
type spoolSize struct {
	changes, unproven int
	bytes             int64
}

func (o *onlineMove) spoolSize(ctx context.Context, control querier) (s spoolSize, err error) {
	err = control.QueryRow(ctx, `SELECT coalesce(sum(changes), 0)::bigint, coalesce(sum(bytes), 0)::bigint, (SELECT count(*) FROM (SELECT FROM control.unproven WHERE tenant_id = $1 LIMIT 100000) y)
		FROM (SELECT changes, bytes FROM control.pack WHERE tenant_id = $1 AND (lsn, seq) > ($2, $3) ORDER BY lsn, seq LIMIT 20000) x`,
		o.v.Tenant, o.compared.lsn, o.compared.seq).Scan(&s.changes, &s.bytes, &s.unproven)
	if err != nil {
		return s, fmt.Errorf("migration: changes of %s: %w", o.v.Tenant, err)
	}
	return s, nil
}

// comparePacks compares the rows of the oldest packs that are applied.
func (o *onlineMove) comparePacks(ctx context.Context, control *citus.Pool, upto watermark, atMost int) (int, error) {
	packs, rows, err := o.changedRows(ctx, control, o.compared, upto, atMost)
	if err != nil || len(packs) == 0 {
		return 0, err
	}
	differ, err := o.differing(ctx, rows)
	if err != nil {
		return 0, err
	}
	last, n := packs[len(packs)-1].watermark, 0
	for _, k := range packs {
		n += k.changes
	}
	if err := pgx.BeginFunc(ctx, control, func(tx pgx.Tx) error {
		if err := o.noteUnproven(ctx, tx, differ.keys()); err != nil {
			return err
		}
		// By a whole range: whatever is older has been compared before.
		_, err := tx.Exec(ctx, `DELETE FROM control.pack WHERE tenant_id = $1 AND (lsn, seq) <= ($2, $3)`, o.v.Tenant, last.lsn, last.seq)
		return err
	}); err != nil {
		return 0, fmt.Errorf("migration: forget compared changes: %w", err)
	}
	o.compared = last // so that no later read goes over what was deleted
	return n, nil
}

// changedRows reads packs between two places and says which rows their changes are about. A table that was emptied
// is there with an empty key.
func (o *onlineMove) changedRows(ctx context.Context, control querier, after, upto watermark, atMost int) ([]spooledPack, rowsOfTables, error) {
	packs, err := o.readPacks(ctx, control, `(lsn, seq) > ($2, $3) AND (lsn, seq) <= ($4, $5)`, atMost, after.lsn, after.seq, upto.lsn, upto.seq)
	if err != nil {
		return nil, nil, err
	}
	rows := rowsOfTables{}
	for _, k := range packs {
		changes, err := stream.Unpack(k.data)
		if err != nil {
			return nil, nil, err
		}
		var r rowReader
		for _, c := range changes {
			if c.Op == stream.Fence {
				continue
			}
			f, err := o.fitOf(ctx, c.Shape)
			if err != nil {
				return nil, nil, err
			}
			if c.Op == stream.Truncate {
				g, err := o.visibilityOf(ctx, f.table)
				if err != nil {
					return nil, nil, err
				}
				if !g.emptied(c.XID).whole { // or else no row of before is left
					rows.add(f.table.Name, nil)
				}
				continue
			}
			before, after, err := r.keys(f, c)
			if err != nil {
				return nil, nil, err
			}
			for _, key := range [][]string{before, after} {
				if key != nil && !o.ahead.changedAfter(packs[len(packs)-1].watermark, f.table.Name, key) {
					rows.add(f.table.Name, key)
				}
			}
		}
	}
	return packs, rows, nil
}

// compareRest compares, under the fence, every row that a change is about which was not
// compared since. A table that was emptied is compared whole.
func (o *onlineMove) compareRest(ctx context.Context, upto watermark) error {
	control, err := o.m.control(ctx)
	if err != nil {
		return err
	}
	var emptied []string
	for last := (watermark{}); ; {
		packs, rows, err := o.changedRows(ctx, control, last, upto, compareAtOnce)
		if err != nil {
			return err
		}
		if len(packs) == 0 { // last of all: a zombie may have noted a row of a pack that it has deleted
			if rows, err = o.unproven(ctx, control, []byte{}, math.MaxInt32, nil); err != nil {
				return err
			}
		}
		some, err := o.refuseDiffering(ctx, rows)
		if err != nil {
			return err
		}
		emptied = append(emptied, some...)
		if len(packs) == 0 {
			return o.compareEmptied(ctx, emptied)
		}
		last = packs[len(packs)-1].watermark
	}
}

// refuseDiffering refuses rows that are not the same, and returns the tables that were emptied.
func (o *onlineMove) refuseDiffering(ctx context.Context, rows rowsOfTables) (emptied []string, err error) {
	differ, err := o.differing(ctx, rows)
	if err != nil {
		return nil, err
	}
	for table, keys := range differ {
		for _, d := range keys {
			if d.key != nil {
				return nil, o.rowDiffers(table, d.key)
			}
			emptied = append(emptied, table)
		}
	}
	return emptied, nil
}

func (o *onlineMove) rowDiffers(table string, key []string) error {
	return &mismatch{o.v.Tenant, fault.New(fault.Conflict, "rows_differ", "table %s: the row with the key %s is not the same in blue and in green", table, strings.Join(key, ", "))}
}

func (o *onlineMove) compareEmptied(ctx context.Context, emptied []string) error {
	if len(emptied) == 0 {
		return nil
	}
	part := o.l
	part.Tables = slices.DeleteFunc(slices.Clone(o.l.Tables), func(t convert.Table) bool { return !slices.Contains(emptied, t.Name) })
	_, differs, err := o.m.reconcile(ctx, o.blue, part, o.v, nil)
	if err == nil && differs != "" {
		err = &mismatch{o.v.Tenant, fault.New(fault.Conflict, "rows_differ", "%s", differs)}
	}
	return err
}

// difference is a row that is not the same in both databases. Without a key it is a table that was emptied, which is
// taken for different.
type difference struct {
	key         []string
	blue, green hashed
}

// differences are by table and by key, joined.
type differences map[string]map[string]difference

func (d differences) put(table, joined string, one difference) {
	if d[table] == nil {
		d[table] = map[string]difference{}
	}
	d[table][joined] = one
}

func (d differences) keys() rowsOfTables {
	out := rowsOfTables{}
	for table, all := range d {
		for _, one := range all {
			out.add(table, one.key)
		}
	}
	return out
}

// differing reads rows in both databases and leaves those that are not the same.
func (o *onlineMove) differing(ctx context.Context, rows rowsOfTables) (differences, error) {
	out := differences{}
	for _, t := range o.l.Tables {
		if _, emptied := rows[t.Name][allRows]; emptied {
			out.put(t.Name, allRows, difference{})
		}
		for some := range slices.Chunk(slices.SortedFunc(maps.Values(rows[t.Name]), slices.Compare), keysCompared) {
			some = slices.DeleteFunc(some, func(key []string) bool { return key == nil })
			inBlue, inGreen, err := o.hashesOf(ctx, t, some)
			if err != nil {
				return nil, err
			}
			for i, key := range some {
				if inBlue[i] != inGreen[i] {
					out.put(t.Name, joinKey(key), difference{key, inBlue[i], inGreen[i]})
				}
			}
		}
	}
	return out, nil
}

// hashed is what a database has of a row.
type hashed struct {
	there bool
	hash  int64
}

// hashesOf reads the hashes of rows in both databases.
func (o *onlineMove) hashesOf(ctx context.Context, t convert.Table, keys [][]string) (inBlue, inGreen []hashed, err error) {
	err = both(ctx,
		func(ctx context.Context) error {
			return frozen(ctx, o.blue, func(tx pgx.Tx) (err error) {
				inBlue, err = lookUp(ctx, tx, t, bluesRows(t, o.v), blueKeyTypes(t, o.v), rowHash(t), keys)
				return err
			})
		},
		func(ctx context.Context) error {
			return o.m.readGreen(ctx, func(tx pgx.Tx) (err error) {
				inGreen, err = lookUp(ctx, tx, t, greensRows(o.l, t, o.v), keyTypes(t), rowHash(t), keys)
				return err
			})
		})
	if err != nil {
		return nil, nil, fmt.Errorf("migration: compare changed rows of table %s: %w", t.Name, err)
	}
	return inBlue, inGreen, nil
}
