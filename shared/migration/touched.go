package migration

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/migration/change"
	"github.com/coditect/platform/shared/migration/convert"
)

// What a rollback remembers of its comparison, so that a step goes on where the one before it has ended or
// died. A table that is compared up to some key is never compared there again: so every row of it that is
// brought over afterwards is written down (control.back_touched) before blue is written, by whoever does it.
// What is written down in vain is proven in vain. Positions move on, and keys are forgotten, only
// while the claim on the move holds: a step that was thought dead would do so on what it has compared, and
// the one that has begun anew since has not seen what was touched before.

// errBudget ends a step of a rollback whose time is used up. What it did is remembered.
var errBudget = errors.New("migration: the next step goes on")

// comparedSide names a comparison of one table.
type comparedSide struct {
	table string
	by    side
}

// resume reads where the comparison stands and what has been touched since it began. Blue must have been
// entered before: from then on nobody with an older claim touches anything.
func (m *Mover) resume(ctx context.Context, w *wayBack) (*touchedKeys, error) {
	control, err := m.control(ctx)
	if err != nil {
		return nil, err
	}
	w.compared = map[comparedSide][]string{}
	rows, err := control.Query(ctx, `SELECT table_name, side, after_key FROM control.back_compared WHERE run_id = $1 AND tenant_id = $2 AND shape = $3`, w.Run, w.Tenant, w.shape)
	if err != nil {
		return nil, err
	}
	var (
		at    comparedSide
		after []string
	)
	if _, err = pgx.ForEachRow(rows, []any{&at.table, &at.by, &after}, func() error { w.compared[at] = slices.Clone(after); return nil }); err != nil {
		return nil, fmt.Errorf("migration: position of the comparison of %s: %w", w.Tenant, err)
	}
	touched := &touchedKeys{m: m, w: w, control: control, byTable: map[string]map[string]bool{}}
	rows, err = control.Query(ctx, `SELECT table_name, key FROM control.back_touched WHERE run_id = $1 AND tenant_id = $2`, w.Run, w.Tenant)
	if err != nil {
		return nil, err
	}
	var (
		table string
		key   []byte
	)
	if _, err = pgx.ForEachRow(rows, []any{&table, &key}, func() error { touched.hold(table, string(key)); return nil }); err != nil {
		return nil, fmt.Errorf("migration: touched keys of %s: %w", w.Tenant, err)
	}
	return touched, nil
}

// noteCompared remembers that a table is compared up to a key; nil says all of it. The rollback got
// further, so it may be tried as often again.
func (m *Mover) noteCompared(ctx context.Context, w *wayBack, t convert.Table, by side, upto []string) error {
	err := m.claimed(ctx, w, func(b *pgx.Batch) {
		b.Queue(`UPDATE control.move SET back_attempts = 0 WHERE run_id = $1 AND tenant_id = $2`, w.Run, w.Tenant)
		b.Queue(`INSERT INTO control.back_compared (run_id, tenant_id, table_name, side, shape, after_key) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (run_id, tenant_id, table_name, side) DO UPDATE SET shape = excluded.shape, after_key = excluded.after_key`, w.Run, w.Tenant, t.Name, string(by), w.shape, upto)
	})
	if err == nil {
		w.tries = 0
	}
	return err
}

// claimed runs statements in a transaction, unless somebody else has claimed the move.
func (m *Mover) claimed(ctx context.Context, w *wayBack, queue func(b *pgx.Batch)) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, control, func(tx pgx.Tx) error {
		b := &pgx.Batch{}
		b.Queue(`SELECT count(*) FROM (SELECT FROM control.move WHERE run_id = $1 AND tenant_id = $2 AND token = $3 AND state IN ('green', 'fenced_back') FOR UPDATE) x`,
			w.Run, w.Tenant, w.Token).QueryRow(func(row pgx.Row) error {
			var n int64
			err := row.Scan(&n)
			return oneEach(n, 1, err)
		})
		queue(b)
		return tx.SendBatch(ctx, b).Close()
	})
}

// queueForget adds what deletes all that a rollback has remembered: it has ended, or its request has.
func queueForget(b *pgx.Batch, v Move) {
	b.Queue(`DELETE FROM control.back_compared WHERE run_id = $1 AND tenant_id = $2`, v.Run, v.Tenant)
	b.Queue(`DELETE FROM control.back_touched WHERE run_id = $1 AND tenant_id = $2`, v.Run, v.Tenant)
}

// keysOfChanges are the keys that changes are about, before and after.
func keysOfChanges(t change.Target, list []change.Change) (keys [][]string) {
	for _, c := range list {
		if c.Op != change.Insert {
			keys = append(keys, c.Key)
		}
		if c.Op != change.Delete {
			keys = append(keys, keyTexts(t, c.Row))
		}
	}
	return keys
}

// touchedKeys are the keys of rows that differed, or that passes have changed, by table.
type touchedKeys struct {
	m       *Mover
	w       *wayBack
	control *citus.Pool
	byTable map[string]map[string]bool // the key's columns joined by NUL
}

// add adds the keys that changes are about, before they are made.
func (k *touchedKeys) add(ctx context.Context, targets map[string]change.Target, byTable map[string][]change.Change) error {
	if k == nil {
		return nil
	}
	for name, list := range byTable {
		if err := k.put(ctx, name, keysOfChanges(targets[name], list)); err != nil {
			return err
		}
	}
	return nil
}

// put adds keys, for whoever goes on as well.
func (k *touchedKeys) put(ctx context.Context, table string, keys [][]string) error {
	var fresh [][]byte
	for _, key := range keys {
		if name := joinKey(key); k.hold(table, name) {
			fresh = append(fresh, []byte(name))
		}
	}
	for some := range slices.Chunk(fresh, keysAtOnce) {
		if _, err := k.control.Exec(ctx, `INSERT INTO control.back_touched (run_id, tenant_id, table_name, key) SELECT $1, $2, $3, unnest($4::bytea[]) ON CONFLICT DO NOTHING`,
			k.w.Run, k.w.Tenant, table, some); err != nil {
			return fmt.Errorf("migration: remember touched keys of table %s: %w", table, err)
		}
	}
	return nil
}

// hold adds a key here, and reports whether it was not there.
func (k *touchedKeys) hold(table, key string) bool {
	if k.byTable[table] == nil {
		k.byTable[table] = map[string]bool{}
	}
	if k.byTable[table][key] {
		return false
	}
	k.byTable[table][key] = true
	return true
}

// forget takes keys away, but for those that differ.
func (k *touchedKeys) forget(ctx context.Context, table string, keys []string, differ map[string]bool) error {
	var gone [][]byte
	for _, key := range keys {
		if !differ[key] {
			gone = append(gone, []byte(key))
		}
	}
	if err := k.m.claimed(ctx, k.w, func(b *pgx.Batch) {
		b.Queue(`DELETE FROM control.back_touched WHERE run_id = $1 AND tenant_id = $2 AND table_name = $3 AND hash IN (SELECT sha256(x) FROM unnest($4::bytea[]) x)`,
			k.w.Run, k.w.Tenant, table, gone)
	}); err != nil {
		return err
	}
	for _, key := range gone {
		delete(k.byTable[table], string(key))
	}
	return nil
}

func (k *touchedKeys) count() (n int) {
	for _, keys := range k.byTable {
		n += len(keys)
	}
	return n
}
