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
	"github.com/coditect/platform/shared/migration/change"
	"github.com/coditect/platform/shared/migration/convert"
)

// compareBack compares all rows while the tenant is written, and adds the keys of those that
// differ to touched. A row that is the same now and that no pass touches afterwards is the same
// when the gate is shut: what changes in green is captured, and nothing else writes in blue. It does
// so chunk by chunk, each as of its own moment, and makes a pass after each.
func (m *Mover) compareBack(ctx context.Context, w *wayBack, touched *touchedKeys) error {
	for _, t := range w.layout.Tables {
		size := int64(firstChunk)
		if !ordered(t) {
			if err := m.compareUnordered(ctx, w, t, touched); err != nil {
				return err
			}
			continue
		}
		for c := (chunk{}); ; {
			began := time.Now()
			err := m.compareChunk(ctx, w, t, &c, size, touched)
			if err == nil {
				_, err = m.pass(ctx, w, touched)
			}
			if err != nil {
				return err
			}
			m.crash("chunk compared")
			if c.upto == nil {
				break
			}
			c = chunk{after: c.upto}
			switch took := time.Since(began); {
			case took < chunkTime/2:
				size = min(2*size, mostCompared)
			case took > 2*chunkTime:
				size = max(size/2, leastChunk)
			}
		}
	}
	return nil
}

// mostCompared is how many rows are compared at once, at most: their keys and hashes are held in
// memory where they differ.
const mostCompared = 100_000

// compareChunk compares up to size rows with the keys after those of the chunk before.
func (m *Mover) compareChunk(ctx context.Context, w *wayBack, t convert.Table, c *chunk, size int64, touched *touchedKeys) error {
	var same bool
	err := frozen(ctx, w.blue, func(from pgx.Tx) (err error) {
		if c.upto, err = endOf(ctx, from, t, w.Move, *c, size); err != nil {
			return err
		}
		return m.readGreen(ctx, func(green pgx.Tx) error {
			b, g, err := digestsOf(ctx, from, green, w.layout, t, w.Move, *c)
			same = b == g
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("migration: compare table %s of %s: %w", t.Name, w.Tenant, err)
	}
	if same {
		return nil
	}
	return m.touchDiffering(ctx, w, t, inChunk(t, *c), touched)
}

// compareUnordered is for a table whose keys have another order in each database: ranges of hashed keys.
func (m *Mover) compareUnordered(ctx context.Context, w *wayBack, t convert.Table, touched *touchedKeys) error {
	n := rangesOf(w.Rows)
	var inBlue, inGreen ranges
	err := both(ctx,
		func(ctx context.Context) error {
			return frozen(ctx, w.blue, func(tx pgx.Tx) (err error) {
				inBlue, err = oneRanges(ctx, tx, rangeDigests(t, n, quoted(w.Schema, t.Name)))
				return err
			})
		},
		func(ctx context.Context) error {
			return m.readGreen(ctx, func(tx pgx.Tx) (err error) {
				inGreen, err = oneRanges(ctx, tx, rangeDigests(t, n, ofTenant(w.layout, t, w.Move)))
				return err
			})
		})
	if err != nil {
		return fmt.Errorf("migration: compare table %s of %s: %w", t.Name, w.Tenant, err)
	}
	for some := range slices.Chunk(differing(inBlue, inGreen), rangesAtOnce) {
		if err := m.touchDiffering(ctx, w, t, inRanges(t, n, some), touched); err != nil {
			return err
		}
	}
	return nil
}

// touchDiffering adds the keys of rows that are not the same to touched.
func (m *Mover) touchDiffering(ctx context.Context, w *wayBack, t convert.Table, condition string, touched *touchedKeys) error {
	have, want, err := m.rowsBack(ctx, w, t, condition)
	if err != nil {
		return err
	}
	drop, add := changes(have, want)
	for _, k := range slices.Concat(drop, add) {
		touched.put(t.Name, strings.Split(k.key, "\x00"))
	}
	return nil
}

// rowsBack reads the hashes of some rows of a table on both sides, by key.
func (m *Mover) rowsBack(ctx context.Context, w *wayBack, t convert.Table, condition string) (inBlue, inGreen map[rowKey]string, err error) {
	one := fmt.Sprintf(`SELECT %s, '%s'::text, %s FROM `, rowHash(t), w.Tenant, keyColumns(t))
	err = both(ctx,
		func(ctx context.Context) error {
			return frozen(ctx, w.blue, func(tx pgx.Tx) (err error) {
				inBlue, err = keysOf(ctx, tx, t, one+quoted(w.Schema, t.Name)+` WHERE `+ownRows(t, w.Move)+condition)
				return err
			})
		},
		func(ctx context.Context) error {
			return m.readGreen(ctx, func(tx pgx.Tx) (err error) {
				inGreen, err = keysOf(ctx, tx, t, one+ofTenant(w.layout, t, w.Move)+` AND `+condition)
				return err
			})
		})
	return inBlue, inGreen, err
}

// settleBack lets few keys be left to prove when green's gate is shut, however long the comparison
// has taken: rows that are the same now are forgotten, for a change that comes later is captured and
// touches its row again.
func (m *Mover) settleBack(ctx context.Context, w *wayBack, touched *touchedKeys) error {
	for left := touched.count(); ; {
		if err := m.drainTo(ctx, w, fewChanges, touched); err != nil {
			return err
		}
		if err := m.eachTouched(ctx, w, touched, func(name string, some []string, differ map[string]bool) error {
			touched.forget(name, some, differ)
			return nil
		}); err != nil {
			return err
		}
		n := touched.count()
		if n <= fewChanges || n > left/2 { // or as few as its writers let it be
			return m.drainTo(ctx, w, fewChanges, touched)
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
			inBlue, inGreen, err := m.rowsBack(ctx, w, t, keyIn(t, some))
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

// touchedKeys are the keys of rows that passes have changed, by table.
type touchedKeys struct {
	byTable map[string]map[string]bool // the key's columns joined by NUL
}

func (k *touchedKeys) add(t change.Target, changes []change.Change) {
	if k == nil {
		return
	}
	for _, c := range changes {
		if c.Op != change.Insert {
			k.put(t.Table, c.Key)
		}
		if c.Op != change.Delete {
			k.put(t.Table, keyTexts(t, c.Row))
		}
	}
}

func (k *touchedKeys) put(table string, key []string) {
	if k.byTable[table] == nil {
		k.byTable[table] = map[string]bool{}
	}
	k.byTable[table][strings.Join(key, "\x00")] = true
}

// forget takes keys away, but for those that differ.
func (k *touchedKeys) forget(table string, keys []string, differ map[string]bool) {
	for _, key := range keys {
		if !differ[key] {
			delete(k.byTable[table], key)
		}
	}
}

func (k *touchedKeys) count() (n int) {
	for _, keys := range k.byTable {
		n += len(keys)
	}
	return n
}
