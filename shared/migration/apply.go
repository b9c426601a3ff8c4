package migration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/change"
	"github.com/coditect/platform/shared/migration/convert"
	"github.com/coditect/platform/shared/migration/stream"
)

// applyAtOnce is how many changes are applied in one transaction, at most.
const applyAtOnce = 10_000

// spooled is one change as the spool has it.
type spooled struct {
	lsn, seq, xid int64
	op            byte
	shape         *int32
	key           []string
	row           []*string
	unchanged     []int32
	bytes         int
}

// applied says what one transaction of the applier has done.
type applied struct {
	changes int   // taken from the spool
	full    bool  // as many as it takes at once
	fence   int64 // the last fence among them
	spooled int64 // how far the spool was
}

// applySome applies the next changes of the spool to green, in one transaction with the
// position: each is applied exactly once, however often this is called and wherever it dies.
func (o *onlineMove) applySome(ctx context.Context) (out applied, err error) {
	m := o.m
	control, err := m.control(ctx)
	if err != nil {
		return out, err
	}
	// Looked up before the transaction begins: what is spooled later is applied later.
	p, err := stream.PositionOf(ctx, control, o.lane)
	if err != nil {
		return out, err
	}
	if p.Slot != o.slot {
		return out, errOutdated // given up: the next step starts over
	}
	out.spooled = p.Spooled
	lsn, seq, err := o.position(ctx, control)
	if err != nil {
		return out, err
	}
	list, err := o.read(ctx, control, lsn, seq, p.Spooled)
	if err != nil || len(list) == 0 {
		return out, err
	}
	err = m.writeGreen(ctx, o.v.State, []Move{o.v}, func(tx pgx.Tx) error {
		n, err := o.apply(ctx, tx, list)
		if err != nil {
			return err
		}
		last := list[len(list)-1]
		tag, err := tx.Exec(ctx, `UPDATE control.applied SET lsn = $4, seq = $5, changes = changes + $6 WHERE tenant_id = $1 AND lsn = $2 AND seq = $3`,
			o.v.Tenant, lsn, seq, last.lsn, last.seq, n)
		return oneEach(tag.RowsAffected(), 1, err)
	})
	if err != nil {
		return out, o.explain(err)
	}
	m.crash("changes applied")
	out.changes = len(list)
	bytes := 0
	for _, c := range list {
		bytes += c.bytes
		if c.op == stream.Fence {
			if out.fence, err = strconv.ParseInt(c.key[0], 10, 64); err != nil {
				return out, err
			}
		}
	}
	out.full = len(list) >= applyAtOnce || bytes >= changesAtOnce
	return out, nil
}

// position reads how far the tenant's changes are applied.
func (o *onlineMove) position(ctx context.Context, db querier) (lsn, seq int64, err error) {
	err = db.QueryRow(ctx, `SELECT lsn, seq FROM control.applied WHERE tenant_id = $1`, o.v.Tenant).Scan(&lsn, &seq)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, 0, errOutdated // the tenant has left the stream: a newer step has finished or undone its move
	}
	if err != nil {
		return 0, 0, fmt.Errorf("migration: position of %s: %w", o.v.Tenant, err)
	}
	return lsn, seq, nil
}

// explain makes a change that did not fit a difference between the databases.
func (o *onlineMove) explain(err error) error {
	var wrong *change.Mismatch
	if errors.As(err, &wrong) {
		return &mismatch{o.v.Tenant, fault.Wrap(err, fault.Conflict, "rows_differ", "%s", wrong.Error())}
	}
	return fmt.Errorf("migration: apply changes of %s: %w", o.v.Tenant, err)
}

// changesAtOnce is how many bytes of changes are in memory at once, about. A single one may be larger.
const changesAtOnce = 8 << 20

// read reads the next changes of transactions that are wholly in the spool.
func (o *onlineMove) read(ctx context.Context, db querier, lsn, seq, to int64) ([]spooled, error) {
	return o.readSpool(ctx, db, `(lsn, seq) > ($2, $3) AND lsn < $4`, applyAtOnce, lsn, seq, to)
}

// readSpool reads the first of the tenant's changes for which a condition holds, at most limit of
// them and no more than memory holds. The condition's parameters begin with $2.
func (o *onlineMove) readSpool(ctx context.Context, db querier, condition string, limit int, args ...any) ([]spooled, error) {
	rows, err := db.Query(ctx, `SELECT lsn, seq, xid, op::text, shape, key, row, unchanged, bytes FROM (
			SELECT *, sum(bytes) OVER (ORDER BY lsn, seq) - bytes AS before FROM (
				SELECT * FROM control.change WHERE tenant_id = $1 AND `+condition+` ORDER BY lsn, seq LIMIT `+strconv.Itoa(limit)+`) y) x
		WHERE before < `+strconv.Itoa(changesAtOnce)+` ORDER BY lsn, seq`, append([]any{o.v.Tenant}, args...)...)
	if err != nil {
		return nil, fmt.Errorf("migration: read the spool of %s: %w", o.v.Tenant, err)
	}
	return pgx.CollectRows(rows, scanSpooled)
}

func scanSpooled(row pgx.CollectableRow) (c spooled, err error) {
	var op string
	if err = row.Scan(&c.lsn, &c.seq, &c.xid, &op, &c.shape, &c.key, &c.row, &c.unchanged, &c.bytes); err == nil {
		c.op = op[0]
	}
	return c, err
}

// apply applies changes table by table: foreign keys are off, so only the order within a table
// counts. It returns how many were not in the copy already.
func (o *onlineMove) apply(ctx context.Context, tx pgx.Tx, list []spooled) (n int, err error) {
	byTable, err := o.sort(ctx, list)
	if err != nil {
		return 0, err
	}
	for _, t := range o.l.Tables {
		if len(byTable[t.Name]) == 0 {
			continue
		}
		g, err := o.gateOf(ctx, t)
		if err != nil {
			return 0, err
		}
		done, err := o.applyTable(ctx, tx, t, g, byTable[t.Name])
		if err != nil {
			return 0, err
		}
		n += done
	}
	return n, nil
}

// sort puts changes to their tables.
func (o *onlineMove) sort(ctx context.Context, list []spooled) (map[string][]spooled, error) {
	out := map[string][]spooled{}
	for _, c := range list {
		if c.op == stream.Fence {
			continue
		}
		s, err := o.m.shapeOf(ctx, *c.shape)
		if err != nil {
			return nil, err
		}
		out[s.table] = append(out[s.table], c)
	}
	for name := range out {
		if !slices.ContainsFunc(o.l.Tables, func(t convert.Table) bool { return t.Name == name }) {
			return nil, fault.New(fault.Conflict, "schema_changed", "table %s is not one of those that were planned to move; plan the run again", name)
		}
	}
	return out, nil
}

// applyTable applies one table's changes: those that the copy has not seen.
func (o *onlineMove) applyTable(ctx context.Context, tx pgx.Tx, t convert.Table, g *gate, list []spooled) (n int, err error) {
	to := greenTarget(o.l, t, o.v)
	var run []change.Change
	flush := func() error {
		err := change.Apply(ctx, tx, to, run)
		n += len(run)
		run = run[:0]
		return err
	}
	for _, c := range list {
		if c.op == stream.Truncate {
			if err := flush(); err != nil {
				return n, err
			}
			if err := o.truncate(ctx, tx, t, g, c.xid); err != nil {
				return n, err
			}
			continue
		}
		made, err := o.changesOf(ctx, t, g, c)
		if err != nil {
			return n, err
		}
		run = append(run, made...)
	}
	return n, flush()
}

// truncate deletes what the copy has of a table that was emptied after it.
func (o *onlineMove) truncate(ctx context.Context, tx pgx.Tx, t convert.Table, g *gate, xid int64) error {
	for _, c := range g.chunks {
		if c.snapshot.sees(xid) {
			continue // copied afterwards
		}
		if _, err := tx.Exec(ctx, `DELETE FROM `+ofTenant(o.l, t, o.v)+` AND `+inChunk(t, c), pgx.QueryExecModeExec); err != nil {
			return err
		}
	}
	return nil
}

// changesOf turns a spooled change into what is to be applied. A change of a key is a delete
// of the old and an insert of the new one when the copy has seen one of the two only.
func (o *onlineMove) changesOf(ctx context.Context, t convert.Table, g *gate, c spooled) ([]change.Change, error) {
	s, err := o.m.shapeOf(ctx, *c.shape)
	if err != nil {
		return nil, err
	}
	at, err := s.fit(t)
	if err != nil {
		return nil, err
	}
	var before, after []string
	var row []change.Cell
	if c.op != stream.Insert {
		before = s.keyOf(t, c.key)
	}
	if c.op != stream.Delete {
		row = cellsOf(at, c)
		after = make([]string, len(t.Key))
		for i, k := range t.Key {
			for j, column := range t.Columns {
				if column.Name == k {
					after[i] = row[j].Text
				}
			}
		}
	}
	var seenBefore, seenAfter bool
	if before != nil {
		if seenBefore, err = g.seen(ctx, c.xid, before); err != nil {
			return nil, err
		}
	}
	if seenAfter = seenBefore; after != nil && !slices.Equal(before, after) {
		if seenAfter, err = g.seen(ctx, c.xid, after); err != nil {
			return nil, err
		}
	}
	switch c.op {
	case stream.Insert:
		if seenAfter {
			return nil, nil
		}
		return []change.Change{{Op: change.Insert, Row: row}}, nil
	case stream.Delete:
		if seenBefore {
			return nil, nil
		}
		return []change.Change{{Op: change.Delete, Key: before}}, nil
	}
	switch {
	case seenBefore && seenAfter:
		return nil, nil
	case !seenBefore && !seenAfter:
		return []change.Change{{Op: change.Update, Key: before, Row: row}}, nil
	case seenAfter: // the row was copied under its new key as well
		return []change.Change{{Op: change.Delete, Key: before}}, nil
	}
	// The copy came too late for the old key and too early for the new one: the row is nowhere.
	if err := o.complete(ctx, t, after, row); err != nil {
		return nil, err
	}
	return []change.Change{{Op: change.Insert, Row: row}}, nil
}

const rowLeftBehind = "row_left_behind"

// complete fills in the large values that blue did not send, for they had not changed: with
// those that the row has now. Where one was changed later, or where another row has the key now,
// the stream will say so. Where no row has the key now, there is no telling: the error's code is
// rowLeftBehind, and the tenant is to be copied again.
func (o *onlineMove) complete(ctx context.Context, t convert.Table, key []string, row []change.Cell) error {
	var columns []string
	var dest []any
	for i := range row {
		if row[i].Unchanged {
			row[i].Unchanged = false
			columns = append(columns, `format('%s', `+quoted(t.Columns[i].Name)+`)`) // its output, as blue would send it
			dest = append(dest, &row[i].Text)
		}
	}
	if columns == nil {
		return nil
	}
	own := ""
	if t.HasTenantColumn {
		own = `tenant_id = '` + o.v.Tenant.String() + `' AND `
	}
	err := frozen(ctx, o.blue, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, `SELECT `+strings.Join(columns, ", ")+` FROM `+quoted(o.v.Schema, t.Name)+` WHERE `+own+keyIn(t, []string{strings.Join(key, "\x00")}), pgx.QueryExecModeExec).Scan(dest...)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return fault.New(fault.Unavailable, rowLeftBehind, "table %s: a row whose key was changed during the copy, and again since, has a large value that blue did not send; the tenant is copied again", t.Name)
	}
	return err
}

// cellsOf are a row's values in the order of the layout.
func cellsOf(at []int, c spooled) []change.Cell {
	out := make([]change.Cell, len(at))
	for i, j := range at {
		switch {
		case slices.Contains(c.unchanged, int32(j+1)):
			out[i].Unchanged = true
		case c.row[j] == nil:
			out[i].Null = true
		default:
			out[i].Text = *c.row[j]
		}
	}
	return out
}

// greenTarget is where changes of a table go.
func greenTarget(l convert.Layout, t convert.Table, v Move) change.Target {
	to := change.Target{Schema: l.GreenSchema, Table: t.Name, Key: t.Key, Tenant: v.Tenant, HasTenant: true}
	for _, c := range t.Columns {
		to.Columns = append(to.Columns, change.Column{Name: c.Name, Type: c.GreenType})
	}
	return to
}

// changeShape is what blue called a table's columns when it sent a change.
type changeShape struct {
	table   string
	columns []string
	key     []int // of the columns, from 0
}

// shapeOf returns a shape by its number. Shapes never change, so they are remembered.
func (m *Mover) shapeOf(ctx context.Context, id int32) (changeShape, error) {
	if s, ok := m.shapes.Load(id); ok {
		return s.(changeShape), nil
	}
	control, err := m.control(ctx)
	if err != nil {
		return changeShape{}, err
	}
	var s changeShape
	if err := control.QueryRow(ctx, `SELECT table_name, columns, key FROM control.change_shape WHERE id = $1`, id).Scan(&s.table, &s.columns, &s.key); err != nil {
		return s, fmt.Errorf("migration: shape %d of changes: %w", id, err)
	}
	for i := range s.key {
		s.key[i]--
	}
	m.shapes.Store(id, s)
	return s, nil
}

// fit says where the layout's columns are among the shape's. A table that was changed
// since the plan has others.
func (s changeShape) fit(t convert.Table) ([]int, error) {
	at := make([]int, len(t.Columns))
	for i, c := range t.Columns {
		if at[i] = slices.Index(s.columns, c.Name); at[i] < 0 {
			return nil, schemaChanged(t, c.Name)
		}
	}
	for _, name := range s.columns {
		if !slices.ContainsFunc(t.Columns, func(c convert.Column) bool { return c.Name == name }) {
			return nil, schemaChanged(t, name)
		}
	}
	return at, nil
}

func schemaChanged(t convert.Table, column string) error {
	return fault.New(fault.Conflict, "schema_changed", "table %s: column %s was added, renamed or dropped while its tenant moves; plan the run again", t.Name, column)
}

// keyOf puts a key's texts, which blue sends in the order of its columns, into the layout's order.
func (s changeShape) keyOf(t convert.Table, texts []string) []string {
	out := make([]string, len(t.Key))
	for i, k := range t.Key {
		for j, at := range s.key {
			if s.columns[at] == k {
				out[i] = texts[j]
			}
		}
	}
	return out
}

// gate tells which changes of a table the copy has seen.
type gate struct {
	o      *onlineMove
	t      convert.Table
	chunks []chunk
	all    int64            // transactions before it are seen by every chunk
	none   int64            // and from this one on by no chunk
	of     map[string]int64 // chunk by key, of those that had to be looked up
}

func (o *onlineMove) gateOf(ctx context.Context, t convert.Table) (*gate, error) {
	if g := o.gates[t.Name]; g != nil {
		return g, nil
	}
	chunks, err := o.chunksOf(ctx, t)
	if err != nil {
		return nil, err
	}
	if len(chunks) == 0 || chunks[len(chunks)-1].upto != nil {
		return nil, fmt.Errorf("migration: table %s of %s is not wholly copied", t.Name, o.v.Tenant)
	}
	g := &gate{o: o, t: t, chunks: chunks, all: chunks[0].snapshot.xmin, of: map[string]int64{}}
	for _, c := range chunks {
		g.all, g.none = min(g.all, c.snapshot.xmin), max(g.none, c.snapshot.xmax)
	}
	if o.gates == nil {
		o.gates = map[string]*gate{}
	}
	o.gates[t.Name] = g
	return g, nil
}

// seen reports whether the copy of a key has seen a transaction. Never by positions in the
// WAL: a commit is streamed before snapshots see it.
func (g *gate) seen(ctx context.Context, xid int64, key []string) (bool, error) {
	switch {
	case xid < g.all:
		return true, nil
	case xid >= g.none:
		return false, nil
	case len(g.chunks) == 1:
		return g.chunks[0].snapshot.sees(xid), nil
	}
	name := strings.Join(key, "\x00")
	n, ok := g.of[name]
	if !ok {
		control, err := g.o.m.control(ctx)
		if err != nil {
			return false, err
		}
		if n, err = chunkOf(ctx, control, g.t, g.chunks, key); err != nil {
			return false, err
		}
		if len(g.of) > applyAtOnce {
			clear(g.of)
		}
		g.of[name] = n
	}
	return g.chunks[n].snapshot.sees(xid), nil
}

// chunkOf finds the chunk of a key: the database compares, for it knows the order. Keys are
// looked up only for transactions that ran while the table was copied.
func chunkOf(ctx context.Context, db querier, t convert.Table, chunks []chunk, key []string) (n int64, err error) {
	types := keyTypes(t)
	bounds := make([][]string, len(types))
	for _, c := range chunks[:len(chunks)-1] {
		for i, v := range c.upto {
			bounds[i] = append(bounds[i], v)
		}
	}
	args := make([]any, 0, 2*len(types))
	var columns, names, values []string
	for i, typ := range types {
		columns = append(columns, fmt.Sprintf("$%d::text[]::%s[]", i+1, typ))
		names = append(names, "b"+strconv.Itoa(i))
		values = append(values, fmt.Sprintf("$%d::text::%s", len(types)+i+1, typ))
		args = append(args, bounds[i])
	}
	for _, k := range key {
		args = append(args, k)
	}
	err = db.QueryRow(ctx, fmt.Sprintf(`SELECT count(*) FROM unnest(%s) AS u(%s) WHERE (%s) < (%s)`,
		strings.Join(columns, ", "), strings.Join(names, ", "), strings.Join(names, ", "), strings.Join(values, ", ")), args...).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("migration: chunk of a key of table %s: %w", t.Name, err)
	}
	return n, nil
}
