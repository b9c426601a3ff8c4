package migration

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/convert"
)

// compareBack compares all rows while the tenant is written, and adds the keys of those that
// differ to touched. A row that is the same now and that no pass touches afterwards is the same
// when the gate is shut: what changes in green is captured, and nothing else writes in blue. It does
// so chunk by chunk, each as of its own moment, and makes a pass after each. Where it stands and what is
// touched are remembered: a step that dies or has used up its time is followed by one that goes on.
func (m *Mover) compareBack(ctx context.Context, w *wayBack, touched *touchedKeys) error {
	first := true // however small the budget, a step gets further
	for _, t := range w.layout.Tables {
		for _, by := range sidesOf(t) {
			at, begun := w.compared[comparedSide{t.Name, by}]
			if begun && at == nil {
				continue
			}
			most := min(mostCompared, m.cfg.CompareRows)
			size := min(firstChunk, most)
			for c := (chunk{after: at}); ; {
				if !first && m.now().After(w.until) {
					return errBudget
				}
				began := time.Now()
				err := m.compareChunk(ctx, w, t, by, &c, size, touched)
				if err == nil {
					_, _, err = m.pass(ctx, w, touched)
				}
				if err == nil {
					err = m.noteCompared(ctx, w, t, by, c.upto)
				}
				if err == nil && touched.count() > mostTouched {
					err = m.forgetSame(ctx, w, touched)
				}
				if err != nil {
					return err
				}
				m.crash("chunk compared")
				first = false
				if c.upto == nil {
					break
				}
				c = chunk{after: c.upto}
				switch took := time.Since(began); {
				case took < chunkTime/2:
					size = min(2*size, most)
				case took > 2*chunkTime:
					size = max(size/2, min(leastChunk, most))
				}
			}
		}
	}
	return nil
}

// mostCompared is how many rows are compared at once, at most: their keys and hashes are held in
// memory where they differ.
const mostCompared = 100_000

// side is a database in whose order of keys a table is compared.
type side string

const (
	byBlue  side = "blue"
	byGreen side = "green"
)

// sidesOf: where the order is the same in both, each chunk is compared as a whole. Elsewhere each row of blue is
// compared with green's by its key; then each of green is looked for in blue, for what only green has is in no
// chunk of blue.
func sidesOf(t convert.Table) []side {
	if ordered(t) {
		return []side{byBlue}
	}
	return []side{byBlue, byGreen}
}

// compareChunk compares up to size rows with the keys after those of the chunk before.
func (m *Mover) compareChunk(ctx context.Context, w *wayBack, t convert.Table, by side, c *chunk, size int64, touched *touchedKeys) error {
	var (
		same   bool
		differ [][]string
		err    error
	)
	if by == byGreen {
		differ, err = m.missingInBlue(ctx, w, t, c, size)
	} else {
		err = frozen(ctx, w.blue, func(from pgx.Tx) (err error) {
			if c.upto, err = endOf(ctx, from, t, w.Move, *c, size); err != nil {
				return err
			}
			return m.readGreen(ctx, func(green pgx.Tx) error {
				if !ordered(t) {
					_, _, err := compareKeys(ctx, from, green, w.layout, t, w.Move, *c, func(keys [][]string) { differ = append(differ, keys...) })
					return err
				}
				b, g, err := digestsOf(ctx, from, green, w.layout, t, w.Move, *c)
				same = b == g
				return err
			})
		})
	}
	if err != nil {
		return fmt.Errorf("migration: compare table %s of %s: %w", t.Name, w.Tenant, err)
	}
	if ordered(t) && !same {
		return m.touchDiffering(ctx, w, t, inChunk(t, *c), touched)
	}
	return touched.put(ctx, t.Name, differ)
}

// missingInBlue lists those of green's next keys, in green's order, that blue does not have.
func (m *Mover) missingInBlue(ctx context.Context, w *wayBack, t convert.Table, c *chunk, size int64) (missing [][]string, err error) {
	var keys [][]string
	err = m.readGreen(ctx, func(green pgx.Tx) error {
		// By the index that has this order: without statistics, all of the tenant's keys would be sorted for each chunk.
		if err := byKeyAlone(ctx, green); err != nil {
			return err
		}
		rows, err := green.Query(ctx, fmt.Sprintf(`SELECT %s FROM %s ORDER BY %s LIMIT %d`, keyColumns(t), greensRows(w.layout, t, w.Move)+inChunk(t, chunk{after: c.after}),
			byKey(t, quoted(w.layout.GreenSchema, t.Name)), size), pgx.QueryExecModeExec)
		if err != nil {
			return err
		}
		keys, err = readKeys(rows, len(t.Key))
		return err
	})
	if err != nil {
		return nil, err
	}
	if c.upto = nil; int64(len(keys)) == size {
		c.upto = keys[len(keys)-1]
	}
	types := blueKeyTypes(t, w.Move)
	err = frozen(ctx, w.blue, func(tx pgx.Tx) error {
		for some := range slices.Chunk(keys, keysAtOnce) {
			found, err := lookUp(ctx, tx, t, bluesRows(t, w.Move), types, `1::bigint`, some)
			if err != nil {
				return err
			}
			for i, k := range some {
				if !found[i].there {
					missing = append(missing, k)
				}
			}
		}
		return nil
	})
	return missing, err
}

// touchDiffering adds the keys of rows that are not the same to touched.
func (m *Mover) touchDiffering(ctx context.Context, w *wayBack, t convert.Table, condition string, touched *touchedKeys) error {
	have, want, err := m.rowsBack(ctx, w, t, condition, condition)
	if err != nil {
		return err
	}
	drop, add := changes(have, want)
	return touched.put(ctx, t.Name, splitKeys(drop, add))
}

// rowsBack reads the hashes of the rows that a condition names on either side, by key.
func (m *Mover) rowsBack(ctx context.Context, w *wayBack, t convert.Table, blue, green string) (inBlue, inGreen map[rowKey]string, err error) {
	one := fmt.Sprintf(`SELECT %s, '%s'::text, %s FROM `, rowHash(t), w.Tenant, keyColumns(t))
	err = both(ctx,
		func(ctx context.Context) error {
			return frozen(ctx, w.blue, func(tx pgx.Tx) (err error) {
				inBlue, err = keysOf(ctx, tx, t, one+quoted(w.Schema, t.Name)+` WHERE `+ownRows(t, w.Move)+blue)
				return err
			})
		},
		func(ctx context.Context) error {
			return m.readGreen(ctx, func(tx pgx.Tx) (err error) {
				inGreen, err = keysOf(ctx, tx, t, one+ofTenant(w.layout, t, w.Move)+` AND `+green)
				return err
			})
		})
	return inBlue, inGreen, err
}

// rowsWithKeys is rowsBack for rows with some keys.
func (m *Mover) rowsWithKeys(ctx context.Context, w *wayBack, t convert.Table, keys []string) (inBlue, inGreen map[rowKey]string, err error) {
	split := func(keys []string) [][]string {
		list := make([][]string, len(keys))
		for i, k := range keys {
			list[i] = splitKey(k)
		}
		return list
	}
	err = both(ctx,
		func(ctx context.Context) error {
			return frozen(ctx, w.blue, func(tx pgx.Tx) (err error) {
				inBlue, err = rowsOfKeys(ctx, tx, t, w.Move, bluesRows(t, w.Move), blueKeyTypes(t, w.Move), split(fittingBlue(t, keys)))
				return err
			})
		},
		func(ctx context.Context) error {
			return m.readGreen(ctx, func(tx pgx.Tx) (err error) {
				inGreen, err = rowsOfKeys(ctx, tx, t, w.Move, greensRows(w.layout, t, w.Move), keyTypes(t), split(keys))
				return err
			})
		})
	if err != nil {
		return nil, nil, fmt.Errorf("migration: compare rows of table %s of %s: %w", t.Name, w.Tenant, err)
	}
	return inBlue, inGreen, nil
}

// mostTouched keys are in memory while the comparison goes on, about.
const mostTouched = 100_000

// forgetSame forgets the rows that are the same now: a change that comes later touches its row again.
func (m *Mover) forgetSame(ctx context.Context, w *wayBack, touched *touchedKeys) error {
	return m.eachTouched(ctx, w, touched, func(name string, some []string, differ map[string]bool) error {
		return touched.forget(ctx, name, some, differ)
	})
}

// mostProven is how many rows are proven while green's gate is shut, at most: its writers wait.
const mostProven = 10_000

// settleBack lets few keys be left to prove when green's gate is shut, however long the comparison
// has taken: rows that are the same now are forgotten, for a change that comes later is captured and
// touches its row again.
func (m *Mover) settleBack(ctx context.Context, w *wayBack, touched *touchedKeys) error {
	for left := touched.count(); ; {
		if err := m.drainTo(ctx, w, fewChanges, touched); err != nil {
			return err
		}
		if err := m.forgetSame(ctx, w, touched); err != nil {
			return err
		}
		n := touched.count()
		if n <= fewChanges || n > left/2 && n <= mostProven { // or as few as its writers let it be
			return m.drainTo(ctx, w, fewChanges, touched)
		}
		if m.now().After(w.until) {
			return errBudget
		}
		left = n
	}
}

// proveBack proves that the rows of all touched keys are the same on both sides.
func (m *Mover) proveBack(ctx context.Context, w *wayBack, touched *touchedKeys) error {
	return m.eachTouched(ctx, w, touched, func(name string, _ []string, differ map[string]bool) error {
		for k := range differ {
			return fault.New(fault.Conflict, "rows_differ", "table %s: the row with the key %s is not the same in green and in blue",
				name, strings.ReplaceAll(k, "\x00", ", "))
		}
		return nil
	})
}

// eachTouched compares the rows of touched keys, some at a time.
func (m *Mover) eachTouched(ctx context.Context, w *wayBack, touched *touchedKeys, found func(table string, keys []string, differ map[string]bool) error) error {
	for name, keys := range touched.byTable {
		t := w.tables[name]
		for some := range slices.Chunk(slices.Sorted(maps.Keys(keys)), keysAtOnce) {
			inBlue, inGreen, err := m.rowsWithKeys(ctx, w, t, some)
			if err != nil {
				return err
			}
			drop, add := changes(inBlue, inGreen)
			differ := map[string]bool{}
			for _, k := range slices.Concat(drop, add) {
				differ[k.key] = true
			}
			if err := found(name, some, differ); err != nil {
				return err
			}
		}
	}
	return nil
}
