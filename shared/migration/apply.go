package migration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/change"
	"github.com/coditect/platform/shared/migration/convert"
	"github.com/coditect/platform/shared/migration/stream"
)

// applyAtOnce is how many changes are applied in one transaction, and changesAtOnce how many bytes
// of them are in memory at once, about. Packs are taken whole.
const (
	applyAtOnce   = 20_000
	changesAtOnce = 8 << 20
	packsAtOnce   = 10_000
)

// nearBytes is how far the spool may be behind blue's WAL and still counts as near its end.
const nearBytes = 1 << 20

// watermark is a place in a lane: of a change, or how far a tenant's changes are applied.
type watermark struct{ lsn, seq int64 }

// batch is what is applied in one transaction: packs of the spool that follow each other.
type batch struct {
	changes int
	bytes   int
	fence   int64 // the last one among them, 0 if there is none
	work    []work
	counted int       // changes that the copy has not seen
	last    watermark // of its last pack
	full    bool      // as many as are taken at once
	spooled int64     // how far the spool was before it was read
	lags    bool      // and it was not near the end of blue's WAL
}

// work is a part of a batch, about one table: changes, or what is left of a TRUNCATE.
type work struct {
	changes *change.Prepared
	emptied *emptied
}

// emptied is a table that a TRUNCATE has emptied, and the chunks of it that were copied before.
type emptied struct {
	table  convert.Table
	order  keyOrder
	chunks []chunk
	whole  bool // these are all
}

// next reads the changes after a place, of transactions that are wholly in the spool.
func (o *onlineMove) next(ctx context.Context, after watermark) (b batch, err error) {
	control, err := o.m.control(ctx)
	if err != nil {
		return b, err
	}
	// Looked up first: what is spooled later is applied later.
	p, err := stream.PositionOf(ctx, control, o.lane)
	if err != nil {
		return b, err
	}
	if p.Slot != o.slot {
		return b, errOutdated // given up: the next step starts over
	}
	b.spooled, b.lags, b.last = p.Spooled, p.WALEnd-p.Spooled > nearBytes, after
	packs, err := o.readPacks(ctx, control, `(lsn, seq) > ($2, $3) AND lsn < $4`, applyAtOnce, after.lsn, after.seq, p.Spooled)
	if err != nil || len(packs) == 0 {
		return b, err
	}
	for _, k := range packs {
		b.changes, b.bytes, b.last = b.changes+k.changes, b.bytes+k.bytes, k.watermark
	}
	b.full = b.changes >= applyAtOnce || b.bytes >= changesAtOnce || len(packs) == packsAtOnce
	list := make([]stream.Change, 0, b.changes)
	for _, k := range packs {
		changes, err := stream.Unpack(k.data)
		if err != nil {
			return b, err
		}
		list = append(list, changes...)
	}
	return b, o.explain(o.prepare(ctx, &b, list))
}

// spooledPack is a pack as the spool has it.
type spooledPack struct {
	watermark
	changes, bytes int
	data           string
}

// readPacks reads the first of the tenant's packs for which a condition holds, of about so many changes at
// most, and no more than memory holds. The condition's parameters begin with $2.
func (o *onlineMove) readPacks(ctx context.Context, db querier, condition string, changes int, args ...any) ([]spooledPack, error) {
	rows, err := db.Query(ctx, fmt.Sprintf(`SELECT lsn, seq, changes, bytes, data FROM (
			SELECT *, sum(bytes) OVER w - bytes AS bytes_before, sum(changes) OVER w - changes AS changes_before FROM (
				SELECT * FROM control.pack WHERE tenant_id = $1 AND %s ORDER BY lsn, seq LIMIT %d) y WINDOW w AS (ORDER BY lsn, seq)) x
		WHERE bytes_before < %d AND changes_before < %d ORDER BY lsn, seq`, condition, packsAtOnce, changesAtOnce, changes), append([]any{o.v.Tenant}, args...)...)
	if err != nil {
		return nil, fmt.Errorf("migration: read the spool of %s: %w", o.v.Tenant, err)
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (k spooledPack, err error) {
		var data pgtype.DriverBytes // not copied: the string is
		err = row.Scan(&k.lsn, &k.seq, &k.changes, &k.bytes, &data)
		k.data = string(data)
		return k, err
	})
}

// position reads how far the tenant's changes are applied.
func (o *onlineMove) position(ctx context.Context) (at watermark, err error) {
	control, err := o.m.control(ctx)
	if err != nil {
		return at, err
	}
	err = control.QueryRow(ctx, `SELECT lsn, seq FROM control.applied WHERE tenant_id = $1`, o.v.Tenant).Scan(&at.lsn, &at.seq)
	if errors.Is(err, pgx.ErrNoRows) {
		return at, errOutdated // the tenant has left the stream: a newer step has finished or undone its move
	}
	if err != nil {
		return at, fmt.Errorf("migration: position of %s: %w", o.v.Tenant, err)
	}
	return at, nil
}

// apply applies a batch to green, in one transaction with the position: each change is applied exactly
// once, however often this is called and wherever it dies.
func (o *onlineMove) apply(ctx context.Context, from watermark, b batch) error {
	if b.changes == 0 {
		return nil
	}
	err := o.m.writeGreen(ctx, o.v.State, []Move{o.v}, func(tx pgx.Tx) error {
		for _, w := range b.work {
			if e := w.emptied; e != nil {
				if err := o.empty(ctx, tx, e.table, e.order, e.chunks, e.whole); err != nil {
					return err
				}
			}
			if w.changes != nil {
				if err := w.changes.Apply(ctx, tx); err != nil {
					return err
				}
			}
		}
		tag, err := tx.Exec(ctx, `UPDATE control.applied SET lsn = $4, seq = $5, changes = changes + $6 WHERE tenant_id = $1 AND lsn = $2 AND seq = $3`,
			o.v.Tenant, from.lsn, from.seq, b.last.lsn, b.last.seq, b.counted)
		return oneEach(tag.RowsAffected(), 1, err)
	})
	if err != nil {
		return o.explain(err)
	}
	o.m.crash("changes applied")
	return nil
}

// explain makes a change that did not fit a difference between the databases.
func (o *onlineMove) explain(err error) error {
	if err == nil {
		return nil
	}
	var wrong *change.Mismatch
	if errors.As(err, &wrong) {
		return &mismatch{o.v.Tenant, fault.Wrap(err, fault.Conflict, "rows_differ", "%s", wrong.Error())}
	}
	return fmt.Errorf("migration: apply changes of %s: %w", o.v.Tenant, err)
}

// prepare works out what is to be done, table by table: foreign keys are off, so only the order within a
// table counts.
func (o *onlineMove) prepare(ctx context.Context, b *batch, list []stream.Change) error {
	byTable := map[string][]stream.Change{}
	for _, c := range list {
		if c.Op == stream.Fence {
			b.fence = c.FenceID
			continue
		}
		f, err := o.fitOf(ctx, c.Shape)
		if err != nil {
			return err
		}
		byTable[f.table.Name] = append(byTable[f.table.Name], c)
	}
	for _, t := range o.l.Tables {
		if len(byTable[t.Name]) == 0 {
			continue
		}
		g, err := o.visibilityOf(ctx, t)
		if err != nil {
			return err
		}
		if err := o.prepareTable(ctx, b, t, g, byTable[t.Name]); err != nil {
			return err
		}
	}
	return nil
}

// prepareTable works out what is to be done with one table: changes that the copy has not seen.
func (o *onlineMove) prepareTable(ctx context.Context, b *batch, t convert.Table, g *visibility, list []stream.Change) error {
	all, err := o.read(ctx, t, list)
	if err != nil {
		return err
	}
	if err := g.learn(ctx, all); err != nil {
		return err
	}
	to := greenTarget(o.l, t, o.v)
	run := make([]change.Change, 0, len(list))
	flush := func() error {
		p, err := change.Prepare(to, run)
		b.work, b.counted = append(b.work, work{changes: p}), b.counted+len(run)
		run = nil
		return err
	}
	for _, c := range all {
		if c.op == stream.Truncate {
			if err := flush(); err != nil {
				return err
			}
			b.work = append(b.work, work{emptied: g.emptied(c.xid)})
			continue
		}
		if run, err = o.changesOf(ctx, g, c, run); err != nil {
			return err
		}
	}
	return flush()
}

// rowChange is a change of a row, or a TRUNCATE, in the order of the layout.
type rowChange struct {
	op            byte
	xid           int64
	before, after []string // keys; nil where there is none
	row           []change.Cell
}

// read reads one table's changes.
func (o *onlineMove) read(ctx context.Context, t convert.Table, list []stream.Change) ([]rowChange, error) {
	out := make([]rowChange, len(list))
	r := rowReader{cells: make([]change.Cell, len(list)*len(t.Columns))}
	for i, c := range list {
		out[i].op, out[i].xid = c.Op, c.XID
		if c.Op == stream.Truncate {
			continue
		}
		f, err := o.fitOf(ctx, c.Shape)
		if err != nil {
			return nil, err
		}
		if out[i].before, out[i].after, out[i].row, err = r.read(f, c); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// emptied says what the copy has of a table that a transaction has emptied.
func (g *visibility) emptied(xid int64) *emptied {
	out := &emptied{table: g.t, order: g.order}
	for _, c := range g.chunks {
		if !c.snapshot.sees(xid) { // the others were copied afterwards
			out.chunks = append(out.chunks, c)
		}
	}
	out.whole = len(out.chunks) == len(g.chunks)
	return out
}

// changesOf adds to run what is to be applied of a change. A change of a key is a delete
// of the old and an insert of the new one when the copy has seen one of the two only.
func (o *onlineMove) changesOf(ctx context.Context, g *visibility, c rowChange, run []change.Change) ([]change.Change, error) {
	before, after, row := c.before, c.after, c.row
	seenBefore := before != nil && g.seen(c.xid, before)
	seenAfter := seenBefore
	if after != nil && !slices.Equal(before, after) {
		seenAfter = g.seen(c.xid, after)
	}
	switch c.op {
	case stream.Insert:
		if seenAfter {
			return run, nil
		}
		return append(run, change.Change{Op: change.Insert, Row: row}), nil
	case stream.Delete:
		if seenBefore {
			return run, nil
		}
		return append(run, change.Change{Op: change.Delete, Key: before}), nil
	}
	switch {
	case seenBefore && seenAfter:
		return run, nil
	case !seenBefore && !seenAfter:
		return append(run, change.Change{Op: change.Update, Key: before, Row: row}), nil
	case seenAfter: // the row was copied under its new key as well
		return append(run, change.Change{Op: change.Delete, Key: before}), nil
	}
	// The copy came too late for the old key and too early for the new one: the row is nowhere.
	if err := o.complete(ctx, g.t, after, row); err != nil {
		return run, err
	}
	return append(run, change.Change{Op: change.Insert, Row: row}), nil
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

// fitting is how rows of a shape are rows of one of the layout's tables.
type fitting struct {
	table convert.Table
	at    []int // of the layout's columns, where the shape has them
	key   []int // of the key's columns, where the shape has them
}

// fitOf says how a shape fits the layout. A table that was changed since the plan has other columns.
func (o *onlineMove) fitOf(ctx context.Context, id int32) (*fitting, error) {
	if f, ok := o.fits.Load(id); ok {
		return f.(*fitting), nil
	}
	s, err := o.m.shapeOf(ctx, id)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(o.l.Tables, func(t convert.Table) bool { return t.Name == s.table })
	if i < 0 {
		return nil, fault.New(fault.Conflict, "schema_changed", "table %s is not one of those that were planned to move; plan the run again", s.table)
	}
	f := &fitting{table: o.l.Tables[i]}
	for _, c := range f.table.Columns {
		at := slices.Index(s.columns, c.Name)
		if at < 0 {
			return nil, schemaChanged(f.table, c.Name)
		}
		f.at = append(f.at, at)
	}
	for _, name := range s.columns {
		if !slices.ContainsFunc(f.table.Columns, func(c convert.Column) bool { return c.Name == name }) {
			return nil, schemaChanged(f.table, name)
		}
	}
	for _, k := range f.table.Key {
		at := slices.Index(s.columns, k)
		if !slices.Contains(s.key, at) {
			return nil, errNoKey(f)
		}
		f.key = append(f.key, at)
	}
	o.fits.Store(id, f)
	return f, nil
}

func schemaChanged(t convert.Table, column string) error {
	return fault.New(fault.Conflict, "schema_changed", "table %s: column %s was added, renamed or dropped while its tenant moves; plan the run again", t.Name, column)
}

func errNoKey(f *fitting) error {
	return fault.New(fault.Conflict, "schema_changed", "table %s: blue does not send the key of its rows: its REPLICA IDENTITY must be its primary key", f.table.Name)
}

// rowReader reads spooled rows into cells that were made at once.
type rowReader struct {
	cells  []change.Cell
	values []stream.Value
}

// read returns the key before a change, the key after it, and the row after it, in the order of the layout;
// nil where there is none.
func (r *rowReader) read(f *fitting, c stream.Change) (before, after []string, row []change.Cell, err error) {
	if before, after, err = r.keys(f, c); err != nil || after == nil {
		return before, after, nil, err
	}
	if len(r.cells) < len(f.at) {
		r.cells = make([]change.Cell, len(f.at))
	}
	row, r.cells = r.cells[:len(f.at):len(f.at)], r.cells[len(f.at):]
	for i, j := range f.at {
		v := r.values[j]
		row[i] = change.Cell{Text: v.Text, Null: v.Kind == stream.Null, Unchanged: v.Kind == stream.Unchanged}
	}
	return before, after, row, nil
}

// keys is read without the row. Afterwards, values are the row's.
func (r *rowReader) keys(f *fitting, c stream.Change) (before, after []string, err error) {
	if c.Old != "" {
		if before, err = r.key(f, c.Old, nil); err != nil {
			return nil, nil, err
		}
	}
	if c.Op != stream.Delete {
		if after, err = r.key(f, c.New, before); err != nil {
			return nil, nil, err
		}
	}
	switch {
	case c.Op == stream.Update && before == nil:
		before = after
	case c.Op == stream.Delete && before == nil:
		return nil, nil, errNoKey(f)
	}
	return before, after, nil
}

// key reads a row and returns its key. A part of the key so long that it was not sent is what it was before.
func (r *rowReader) key(f *fitting, row stream.Tuple, before []string) (key []string, err error) {
	if r.values, err = row.Values(r.values); err != nil {
		return nil, err
	}
	if len(r.values) != len(f.at) {
		return nil, fault.New(fault.Conflict, "schema_changed", "table %s: a row has %d columns, not %d; plan the run again", f.table.Name, len(r.values), len(f.at))
	}
	key = make([]string, len(f.key))
	for i, j := range f.key {
		switch v := r.values[j]; {
		case v.Kind == stream.Text:
			key[i] = v.Text
		case v.Kind == stream.Unchanged && before != nil:
			key[i] = before[i]
		default:
			return nil, errNoKey(f)
		}
	}
	return key, nil
}
