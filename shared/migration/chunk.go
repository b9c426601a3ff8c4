package migration

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/convert"
)

// chunk is a part of a table that was copied as of one moment: the keys after one and up to
// another, in blue's order (keyorder.go). Nil means no bound.
type chunk struct {
	number      int
	after, upto []string
	snapshot    snapshot
	rows        int64
}

// Chunks are made to take about chunkTime: no snapshot of blue lives for longer, and a step
// that dies repeats no more.
const (
	firstChunk = 20_000 // rows
	leastChunk = 1_000
	mostChunk  = 400_000
	chunkTime  = time.Second
)

// copyChunks copies the tenant's tables chunk by chunk. It reports whether all are copied.
func (o *onlineMove) copyChunks(ctx context.Context) (bool, error) {
	size := o.run.atMost(firstChunk)
	first := true // however small the budget, a step gets further
	for _, t := range o.l.Tables {
		done, err := o.chunksOf(ctx, t)
		if err != nil {
			return false, err
		}
		next := chunk{number: 1}
		if n := len(done); n > 0 {
			if done[n-1].upto == nil {
				continue
			}
			next = chunk{number: n + 1, after: done[n-1].upto}
		}
		for {
			if !first && o.stop() {
				return false, nil
			}
			p, err := o.unpressed(ctx)
			if err != nil || p == nil {
				return false, err
			}
			began := time.Now()
			c, err := o.copyNext(ctx, t, next, size)
			if err != nil {
				return false, err
			}
			o.m.crash("chunk copied")
			first = false
			if err := o.progressed(ctx); err != nil {
				return false, err
			}
			wait, err := o.m.spend(ctx, o.run, c.rows)
			if err != nil || wait > 0 {
				return false, err
			}
			if c.upto == nil {
				break
			}
			next = chunk{number: c.number + 1, after: c.upto}
			took := time.Since(began)
			rest := o.m.cfg.Limits.rest(*p, took)
			if err := o.rest(ctx, rest); err != nil {
				return false, err
			}
			wanted := chunkTime
			if rest > 0 { // blue's users notice short ones less
				wanted /= 4
			}
			switch {
			case took < wanted/2:
				size = o.run.atMost(min(2*size, mostChunk))
			case took > 2*wanted:
				size = max(size/2, leastChunk)
			}
		}
	}
	return true, nil
}

// unpressed asks blue how it is doing; nil says that nothing is to be copied now.
func (o *onlineMove) unpressed(ctx context.Context) (*pressure, error) {
	p, err := o.m.pressure(ctx, o.blue)
	if err != nil {
		return nil, err
	}
	if why := o.m.cfg.Limits.over(p); why != "" {
		return nil, o.m.setError(ctx, o.v, why)
	}
	return &p, nil
}

// rest leaves blue alone for a while, within the step's budget: the next step waits for what is left.
func (o *onlineMove) rest(ctx context.Context, d time.Duration) (err error) {
	o.tired, err = rest(ctx, d, o.stop)
	return err
}

// chunksOf lists a table's chunks in the order of their keys.
func (o *onlineMove) chunksOf(ctx context.Context, t convert.Table) ([]chunk, error) {
	control, err := o.m.control(ctx)
	if err != nil {
		return nil, err
	}
	return readChunks(ctx, control, o.v, t.Name)
}

func readChunks(ctx context.Context, db querier, v Move, table string) ([]chunk, error) {
	rows, err := db.Query(ctx, `SELECT number, after_key, upto_key, snapshot, rows FROM control.chunk WHERE tenant_id = $1 AND table_name = $2 ORDER BY number`, v.Tenant, table)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (c chunk, err error) {
		var s string
		if err := row.Scan(&c.number, &c.after, &c.upto, &s, &c.rows); err != nil {
			return c, err
		}
		c.snapshot, err = parseSnapshot(s)
		return c, err
	})
}

// copyNext copies up to size rows with the keys after those of the chunk before, and proves
// that green has them. Rows, range and snapshot are committed together.
func (o *onlineMove) copyNext(ctx context.Context, t convert.Table, c chunk, size int64) (chunk, error) {
	m := o.m
	err := m.writeGreen(ctx, Copying, []Move{o.v}, func(green pgx.Tx) error {
		return frozen(ctx, o.blue, func(from pgx.Tx) error {
			// Before the snapshot, for TRUNCATE does not ask what a snapshot sees.
			if _, err := from.Exec(ctx, `LOCK TABLE `+quoted(o.v.Schema, t.Name)+` IN ACCESS SHARE MODE`); err != nil {
				return err
			}
			var text string
			if err := from.QueryRow(ctx, `SELECT pg_current_snapshot()::text`).Scan(&text); err != nil {
				return err
			}
			var err error
			if c.upto, err = endOf(ctx, from, t, o.v, c, size); err != nil {
				return err
			}
			in, own := inChunk(t, c), ownRows(t, o.v)
			if c.rows, err = pipeWhen(ctx, &m.calm, from.Conn(), green.Conn(), o.l, t, blueSelect(t, o.v)+` WHERE `+own+in); err != nil {
				return err
			}
			b, g, err := digestsOf(ctx, from, green, o.l, t, o.v, c)
			if err != nil {
				return err
			}
			if b != g || b.Rows != c.rows {
				return &mismatch{o.v.Tenant, fault.New(fault.Conflict, "rows_differ", "table %s: of a chunk of %d rows in blue, %d arrived in green or their contents differ", t.Name, b.Rows, g.Rows)}
			}
			_, err = green.Exec(ctx, `INSERT INTO control.chunk (tenant_id, table_name, number, after_key, upto_key, snapshot, rows) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
				o.v.Tenant, t.Name, c.number, c.after, c.upto, text, c.rows)
			return err
		})
	})
	if err != nil {
		return c, fmt.Errorf("migration: copy table %s of %s: %w", t.Name, o.v.Tenant, err)
	}
	return c, nil
}

// ownRows is the beginning of a condition in blue: where its tables have the tenant too, it is
// the first column of their keys' index.
func ownRows(t convert.Table, v Move) string {
	if !t.HasTenantColumn {
		return ""
	}
	return `tenant_id = '` + v.Tenant.String() + `' AND `
}

// endOf finds a chunk's last key in blue, by the index of its primary key: nil when the rest fits in.
func endOf(ctx context.Context, from pgx.Tx, t convert.Table, v Move, c chunk, size int64) ([]string, error) {
	key := make([]string, len(t.Key))
	dest := make([]any, len(key))
	for i := range key {
		dest[i] = &key[i]
	}
	err := from.QueryRow(ctx, fmt.Sprintf(`SELECT %s FROM %s WHERE %s ORDER BY %s OFFSET %d LIMIT 1`,
		keyColumns(t), quoted(v.Schema, t.Name), ownRows(t, v)+inChunk(t, c), byKey(t, quoted(v.Schema, t.Name)), size-1), pgx.QueryExecModeExec).Scan(dest...)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	return key, err
}

// byKey sorts by a key. The columns are called by their table: by their bare names, they would be the texts that
// keyColumns makes of them.
func byKey(t convert.Table, table string) string {
	out := make([]string, len(t.Key))
	for i, k := range t.Key {
		out[i] = table + "." + quoted(k)
	}
	return strings.Join(out, ", ")
}

// digestsOf counts and hashes a chunk's rows in both databases. Where green has another order of keys, it
// counts those that are the same there.
func digestsOf(ctx context.Context, from, green pgx.Tx, l convert.Layout, t convert.Table, v Move, c chunk) (inBlue, inGreen digest, err error) {
	if !ordered(t) {
		inBlue.Rows, inGreen.Rows, err = compareKeys(ctx, from, green, l, t, v, c, nil)
		return inBlue, inGreen, err
	}
	sum := func(tx pgx.Tx, source string, d *digest) error {
		return tx.QueryRow(ctx, `SELECT count(*), coalesce(`+sums+`, '') FROM (SELECT `+rowText(t)+` AS r FROM `+source+`) x`, pgx.QueryExecModeExec).Scan(&d.Rows, &d.Hash)
	}
	if err := byKeyAlone(ctx, green); err != nil {
		return inBlue, inGreen, err
	}
	in := inChunk(t, c)
	err = both(ctx,
		func(context.Context) error {
			return sum(from, quoted(v.Schema, t.Name)+` WHERE `+ownRows(t, v)+in, &inBlue)
		},
		func(context.Context) error {
			return sum(green, ofTenant(l, t, v)+` AND `+in+` ORDER BY `+byKey(t, quoted(t.Name)), &inGreen)
		})
	return inBlue, inGreen, err
}

// inChunk is a condition on a table's keys: in blue always, and in green where its order is the same.
func inChunk(t convert.Table, c chunk) string {
	out := "true"
	if c.after != nil {
		out = keyTuple(t) + " > " + keyLiteral(c.after)
	}
	if c.upto != nil {
		out += " AND " + keyTuple(t) + " <= " + keyLiteral(c.upto)
	}
	return out
}

func keyTuple(t convert.Table) string {
	names := make([]string, len(t.Key))
	for i, k := range t.Key {
		names[i] = quoted(k)
	}
	return "(" + strings.Join(names, ", ") + ")"
}

// keyLiteral is a key in literals, which take the columns' types: blue's ids may be narrower than green's.
func keyLiteral(key []string) string {
	values := make([]string, len(key))
	for i, k := range key {
		values[i] = literal(k)
	}
	return "(" + strings.Join(values, ", ") + ")"
}
