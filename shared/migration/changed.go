package migration

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/catalog"
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
	compareAtOnce = 20_000
	compareLeast  = 500
	keysCompared  = 5000 // in one statement
)

func compareAfter(applied int) int {
	if applied == 0 {
		return compareAtOnce
	}
	return min(max(2*applied, compareLeast), compareAtOnce)
}

// rowsOfTables are keys by table, each once.
type rowsOfTables map[string]map[string][]string

func (r rowsOfTables) add(table string, key []string) {
	if r[table] == nil {
		r[table] = map[string][]string{}
	}
	r[table][strings.Join(key, "\x00")] = key
}

// compareSome compares the rows of changes that are applied up to a place while a batch is applied, and forgets those
// that are the same. It returns how many changes were compared, and how many are left.
func (o *onlineMove) compareSome(ctx context.Context, upto watermark, meanwhile batch) (compared, left int, err error) {
	control, err := o.m.control(ctx)
	if err != nil {
		return 0, 0, err
	}
	var packed, unproven int
	if err := control.QueryRow(ctx, `SELECT coalesce((SELECT sum(changes) FROM control.pack WHERE tenant_id = $1), 0)::bigint, (SELECT count(*) FROM control.unproven WHERE tenant_id = $1)`,
		o.v.Tenant).Scan(&packed, &unproven); err != nil {
		return 0, 0, fmt.Errorf("migration: changes of %s: %w", o.v.Tenant, err)
	}
	keep := nearChanges / 2
	if o.v.State == Following { // and many others, for weeks
		keep = nearChanges / 20
	}
	atMost := compareAfter(meanwhile.changes)
	if !meanwhile.full {
		o.ahead = nil
	} else if packed < spoolLarge {
		if known, err := o.lookAhead(ctx, control, upto, meanwhile); err != nil || !known {
			return 0, packed + unproven, err
		}
	}
	for want := min(atMost, packed-keep); compared < want; { // a part of them fills the memory
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
	if unproven > keep {
		if settled, err = o.compareUnproven(ctx, control); err != nil {
			return 0, 0, err
		}
	}
	return compared + settled, packed + unproven - compared - settled, nil
}

// comparePacks compares the rows of the oldest packs that are applied.
func (o *onlineMove) comparePacks(ctx context.Context, control *citus.Pool, upto watermark, atMost int) (int, error) {
	packs, rows, err := o.changedRows(ctx, control, watermark{}, upto, atMost)
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
		if err := o.noteUnproven(ctx, tx, differ); err != nil {
			return err
		}
		// By a whole range: whatever is older has been compared before.
		_, err := tx.Exec(ctx, `DELETE FROM control.pack WHERE tenant_id = $1 AND (lsn, seq) <= ($2, $3)`, o.v.Tenant, last.lsn, last.seq)
		return err
	}); err != nil {
		return 0, fmt.Errorf("migration: forget compared changes: %w", err)
	}
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
				rows.add(f.table.Name, nil)
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

// backlog is what is known of the changes that are in the spool and not applied yet: of which rows they
// are. To compare one of these before would be in vain.
type backlog struct {
	upto watermark
	last map[rowID]watermark // the last pack with a change of a row
}

// rowID is a hash of table and key.
type rowID [16]byte

func rowIDOf(table string, key []string) (id rowID) {
	h := fnv.New128a()
	_, _ = h.Write([]byte(table))
	for _, k := range key {
		_, _ = h.Write([]byte{0})
		_, _ = h.Write([]byte(k))
	}
	h.Sum(id[:0])
	return id
}

// changedAfter reports whether a row is known to be changed after a place.
func (b *backlog) changedAfter(at watermark, table string, key []string) bool {
	if b == nil {
		return false
	}
	id := rowIDOf(table, key)
	last, known := b.last[id]
	if known && !last.after(at) {
		delete(b.last, id)
	}
	return known && last.after(at)
}

func (w watermark) after(other watermark) bool {
	return w.lsn > other.lsn || w.lsn == other.lsn && w.seq > other.seq
}

// Bounds of the backlog. When it is longer than known, nothing is compared before it is shorter; when the spool is
// large, rows are compared although they may be changed again.
const (
	backlogKnown = 500_000 // rows
	spoolLarge   = 2_000_000
)

// lookAhead learns which rows the changes are about that are to be applied after a batch. False: it cannot know
// all of them, for there are too many, or they are not in the spool yet.
func (o *onlineMove) lookAhead(ctx context.Context, control querier, upto watermark, meanwhile batch) (bool, error) {
	if meanwhile.lags {
		o.ahead = nil
		return false, nil
	}
	if o.ahead == nil {
		o.ahead = &backlog{upto: upto, last: map[rowID]watermark{}}
	}
	b := o.ahead
	for {
		// All that is there: also of a transaction that is not whole yet.
		packs, err := o.readPacks(ctx, control, `(lsn, seq) > ($2, $3)`, compareAtOnce, b.upto.lsn, b.upto.seq)
		if err != nil {
			return false, err
		}
		var r rowReader
		for _, k := range packs {
			changes, err := stream.Unpack(k.data)
			if err != nil {
				return false, err
			}
			for _, c := range changes {
				if c.Op == stream.Fence || c.Op == stream.Truncate {
					continue
				}
				f, err := o.fitOf(ctx, c.Shape)
				if err != nil {
					return false, err
				}
				before, after, err := r.keys(f, c)
				if err != nil {
					return false, err
				}
				for _, key := range [][]string{before, after} {
					if key != nil {
						b.last[rowIDOf(f.table.Name, key)] = k.watermark
					}
				}
			}
			b.upto = k.watermark
		}
		if len(b.last) > backlogKnown {
			o.ahead = nil
			return false, nil
		}
		if len(packs) == 0 {
			return true, nil
		}
	}
}

// noteUnproven remembers rows that are to be compared again.
func (o *onlineMove) noteUnproven(ctx context.Context, tx pgx.Tx, rows rowsOfTables) error {
	b := &pgx.Batch{}
	for table, keys := range rows {
		for joined, key := range keys {
			digest := sha256.Sum256([]byte(joined))
			if key == nil {
				key = []string{}
			}
			b.Queue(`INSERT INTO control.unproven (tenant_id, table_name, digest, key) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`, o.v.Tenant, table, digest[:], key)
		}
	}
	if b.Len() == 0 {
		return nil
	}
	return tx.SendBatch(ctx, b).Close()
}

// unproven reads rows that were not the same when they were compared, in the order of their digests.
func (o *onlineMove) unproven(ctx context.Context, control querier, from []byte, limit int) (rowsOfTables, error) {
	rows, err := control.Query(ctx, `SELECT table_name, key FROM control.unproven WHERE tenant_id = $1 AND digest >= $2 ORDER BY digest LIMIT $3`, o.v.Tenant, from, limit)
	if err != nil {
		return nil, err
	}
	out := rowsOfTables{}
	var (
		table string
		key   []string
	)
	_, err = pgx.ForEachRow(rows, []any{&table, &key}, func() error { out.add(table, slices.Clone(key)); return nil })
	if err != nil {
		return nil, fmt.Errorf("migration: rows to be compared of %s: %w", o.v.Tenant, err)
	}
	return out, nil
}

// compareUnproven compares some rows again, and forgets those that are the same now. It begins somewhere: rows
// that are changed all the time must not hide the others.
func (o *onlineMove) compareUnproven(ctx context.Context, control *citus.Pool) (settled int, err error) {
	from := sha256.Sum256([]byte(uuid.NewString()))
	rows, err := o.unproven(ctx, control, from[:], keysCompared)
	if err != nil {
		return 0, err
	}
	differ, err := o.differing(ctx, rows)
	if err != nil {
		return 0, err
	}
	for table, keys := range rows {
		var digests [][]byte
		for joined := range keys {
			if _, still := differ[table][joined]; !still {
				digest := sha256.Sum256([]byte(joined))
				digests = append(digests, digest[:])
			}
		}
		// A change of the same row that is applied meanwhile is in a pack, and brings it back.
		if _, err := control.Exec(ctx, `DELETE FROM control.unproven u USING unnest($3::bytea[]) AS x(digest) WHERE u.tenant_id = $1 AND u.table_name = $2 AND u.digest = x.digest`,
			o.v.Tenant, table, digests); err != nil {
			return 0, fmt.Errorf("migration: forget compared rows: %w", err)
		}
		settled += len(digests)
	}
	return settled, nil
}

// compareRest compares, under the fence, every row that a change is about which was not
// compared since. A table that was emptied is compared whole.
func (o *onlineMove) compareRest(ctx context.Context, upto watermark) error {
	control, err := o.m.control(ctx)
	if err != nil {
		return err
	}
	rows, err := o.unproven(ctx, control, []byte{}, math.MaxInt32)
	if err != nil {
		return err
	}
	for last := (watermark{}); ; {
		packs, more, err := o.changedRows(ctx, control, last, upto, compareAtOnce)
		if err != nil {
			return err
		}
		for table, keys := range more {
			for _, k := range keys {
				rows.add(table, k)
			}
		}
		emptied, err := o.refuseDiffering(ctx, rows)
		if err != nil {
			return err
		}
		if len(packs) == 0 {
			return o.compareEmptied(ctx, emptied)
		}
		rows = rowsOfTables{}
		for _, table := range emptied {
			rows.add(table, nil)
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
		for _, key := range keys {
			if len(key) > 0 {
				return nil, &mismatch{o.v.Tenant, fault.New(fault.Conflict, "rows_differ", "table %s: the row with the key %s is not the same in blue and in green", table, strings.Join(key, ", "))}
			}
			emptied = append(emptied, table)
		}
	}
	return emptied, nil
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

// differing reads rows in both databases and leaves those that are not the same. A table that was emptied
// is taken for one that is not.
func (o *onlineMove) differing(ctx context.Context, rows rowsOfTables) (rowsOfTables, error) {
	out := rowsOfTables{}
	for _, t := range o.l.Tables {
		for some := range slices.Chunk(slices.SortedFunc(maps.Values(rows[t.Name]), slices.Compare), keysCompared) {
			if i := slices.IndexFunc(some, func(key []string) bool { return len(key) == 0 }); i >= 0 {
				out.add(t.Name, nil)
				some = slices.Delete(some, i, i+1)
			}
			inBlue, inGreen, err := o.hashesOf(ctx, t, some)
			if err != nil {
				return nil, err
			}
			for i, key := range some {
				if inBlue[i] != inGreen[i] {
					out.add(t.Name, key)
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
				own := ""
				if t.HasTenantColumn {
					own = o.ofTenant()
				}
				inBlue, err = hashesByKey(ctx, tx, t, quoted(o.v.Schema, t.Name), own, keys, func(c convert.Column) string { return catalog.FromSelf(c.BlueType, o.v.Schema) })
				return err
			})
		},
		func(ctx context.Context) error {
			return o.m.readGreen(ctx, func(tx pgx.Tx) (err error) {
				inGreen, err = hashesByKey(ctx, tx, t, quoted(o.l.GreenSchema, t.Name), o.ofTenant(), keys, func(c convert.Column) string { return c.GreenType })
				return err
			})
		})
	if err != nil {
		return nil, nil, fmt.Errorf("migration: compare changed rows of table %s: %w", t.Name, err)
	}
	return inBlue, inGreen, nil
}

func (o *onlineMove) ofTenant() string { return `tenant_id = '` + o.v.Tenant.String() + `' AND ` }

// hashesByKey reads the hashes of rows, in the order of their keys. The keys are an array for each of their columns, which
// the database takes faster than a list; and no plan may read all rows to find these.
func hashesByKey(ctx context.Context, tx pgx.Tx, t convert.Table, table, own string, keys [][]string, typeOf func(convert.Column) string) ([]hashed, error) {
	out := make([]hashed, len(keys))
	if len(keys) == 0 {
		return out, nil
	}
	var arrays, names, on []string
	var args []any
	for i, k := range t.Key {
		column := make([]string, len(keys))
		for j, key := range keys {
			column[j] = key[i]
		}
		name := "coditect_key" + strconv.Itoa(i)
		at := slices.IndexFunc(t.Columns, func(c convert.Column) bool { return c.Name == k })
		arrays, args = append(arrays, fmt.Sprintf("$%d::text[]::%s[]", i+1, typeOf(t.Columns[at]))), append(args, column)
		names, on = append(names, name), append(on, quoted(k)+" = "+name)
	}
	b := &pgx.Batch{}
	b.Queue(`SET LOCAL enable_hashjoin = off`)
	b.Queue(`SET LOCAL enable_mergejoin = off`)
	b.Queue(`SET LOCAL enable_seqscan = off`)
	b.Queue(fmt.Sprintf(`SELECT array_agg(coditect_n), array_agg(%s) FROM unnest(%s) WITH ORDINALITY AS coditect_u(%s, coditect_n) JOIN %s ON %s%s`,
		rowHash(t), strings.Join(arrays, ", "), strings.Join(names, ", "), table, own, strings.Join(on, " AND ")), args...).QueryRow(func(row pgx.Row) error {
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
