package migration

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/convert"
	"github.com/coditect/platform/shared/tenant"
)

// Expectation is what blue and green are to have of a tenant. It follows from where its move stands.
type Expectation string

// The expectations.
const (
	GreenEmpty Expectation = "green_empty" // it lives in blue and does not move: green has none of its rows
	Moving     Expectation = "moving"      // its rows are on their way: what is not the same yet is counted, and is no difference
	InStep     Expectation = "in_step"     // one side follows the other: they are the same but for the last moment's writes
	AsMoved    Expectation = "as_moved"    // it lives in green, and blue is as the flip has left it: what differs was written in green since
)

// Bounds of a comparison.
const (
	DefaultDifferences = 100
	MaxDifferences     = 1000
)

// Verification is what a call of Verify has compared.
type Verification struct {
	Tenant      tenant.ID    `json:"tenant"`
	Home        tenant.Home  `json:"home"`
	State       State        `json:"state,omitempty"` // of its move, if it has one
	Expect      Expectation  `json:"expect"`
	Table       string       `json:"table,omitempty"` // that is compared next
	Progress    float64      `json:"progress"`        // 0 to 1
	BlueRows    int64        `json:"blue_rows"`       // compared by this call
	GreenRows   int64        `json:"green_rows"`
	Pending     int64        `json:"pending"` // rows that are on their way
	Differences []Difference `json:"differences"`
	Failed      []Difference `json:"failed,omitempty"` // of a repair: rows that the other side does not take
	Cursor      string       `json:"cursor,omitempty"` // where the next call goes on; none: all is compared
}

// Difference is a row that is not the same in blue and in green.
type Difference struct {
	Table   string            `json:"table"`
	Key     map[string]string `json:"key"`
	Where   string            `json:"where"`             // "blue" or "green": only there; "both": it differs
	Columns []string          `json:"columns,omitempty"` // that differ
	Blue    []*string         `json:"blue,omitempty"`    // their values, if they were asked for
	Green   []*string         `json:"green,omitempty"`
	Error   string            `json:"error,omitempty"` // why it could not be repaired
}

// VerifyOptions bound a comparison.
type VerifyOptions struct {
	Cursor string // of the call before
	Limit  int    // differences, at most; 0 is DefaultDifferences
	Values bool   // tell the values of the columns that differ
}

// comparison is a tenant's two sides.
type comparison struct {
	Move   // Schema and Database are blue's
	home   tenant.Home
	source string
	expect Expectation
	blue   *citus.Pool
	layout convert.Layout
}

// place is how far a comparison is: parts of tables, by the hash of the key.
type place struct {
	Epoch int64 `json:"e"` // of the tenant: a move in between begins anew
	Table int   `json:"t"`
	Slice int   `json:"s"`
	Of    int   `json:"o"` // slices of this table; 0: not cut yet
	Rows  int64 `json:"r"` // about, in this table
}

// Verify compares blue's schema and green's rows of a tenant, wherever its move stands, for about as
// long as a step may take; the cursor of the answer goes on. It changes nothing, but that of a tenant that
// lives in green what is on its way to blue may come there earlier. Its memory does not grow with the tenant.
func (m *Mover) Verify(ctx context.Context, who tenant.ID, o VerifyOptions) (Verification, error) {
	out := Verification{Tenant: who, Differences: []Difference{}}
	if o.Limit == 0 {
		o.Limit = DefaultDifferences
	}
	if o.Limit < 1 || o.Limit > MaxDifferences {
		return out, fault.BadField("limit", "must be between 1 and %d", MaxDifferences)
	}
	c, err := m.comparison(ctx, who)
	if err != nil {
		return out, err
	}
	out.Home, out.State, out.Expect = c.home, c.State, c.expect
	err = m.parts(ctx, c, o.Cursor, &out, func(p part) (next, error) {
		keys := p.keys[:min(len(p.keys), o.Limit-len(out.Differences))]
		found, err := m.describe(ctx, c, p, keys, o.Values)
		out.Differences = append(out.Differences, found...)
		if len(out.Differences) == o.Limit {
			return stop, err
		}
		return goOn, err
	})
	return out, err
}

// part is a slice of a table: the keys of its rows that differ, sorted, and what both sides have of them.
type part struct {
	table       convert.Table
	keys        []rowKey
	blue, green map[rowKey]string // hashes by key; a row that is not there has none
	more        bool              // there are more than these
}

// next is what comes after a part with differences.
type next int

const (
	goOn  next = iota // the next part
	again             // the same part
	stop
)

// parts compares part after part from a cursor on, until the budget of a step is used up, all is
// compared, or found wants no more. Found gets each part with differences.
func (m *Mover) parts(ctx context.Context, c *comparison, cursor string, out *Verification, found func(p part) (next, error)) error {
	at, err := placeOf(cursor, c.Epoch)
	if err != nil {
		return err
	}
	deadline := m.now().Add(m.cfg.StepBudget)
	for first := true; at.Table < len(c.layout.Tables) && (first || m.now().Before(deadline)); first = false {
		t := c.layout.Tables[at.Table]
		if at.Of == 0 {
			if at.Rows, err = m.about(ctx, c, t); err != nil {
				return err
			}
			at.Of = m.slicesOf(at.Rows)
		}
		p, err := m.comparePart(ctx, c, t, at, out)
		if err != nil {
			return err
		}
		do := goOn
		if len(p.keys) > 0 {
			if do, err = found(p); err != nil {
				return err
			}
		}
		if do == again {
			continue
		}
		if at.Slice++; at.Slice == at.Of {
			at = place{Epoch: at.Epoch, Table: at.Table + 1}
		}
		if do == stop {
			break
		}
	}
	c.mark(at, out)
	return nil
}

// mark notes how far a comparison is.
func (c *comparison) mark(at place, out *Verification) {
	out.Progress = 1
	if n := len(c.layout.Tables); at.Table < n {
		out.Progress = (float64(at.Table) + float64(at.Slice)/float64(max(at.Of, 1))) / float64(n)
		out.Table = c.layout.Tables[at.Table].Name
		text, _ := json.Marshal(at) // of numbers: never fails
		out.Cursor = base64.RawURLEncoding.EncodeToString(text)
	}
}

func placeOf(cursor string, epoch int64) (place, error) {
	at := place{Epoch: epoch}
	if cursor == "" {
		return at, nil
	}
	text, err := base64.RawURLEncoding.DecodeString(cursor)
	if err == nil {
		err = json.Unmarshal(text, &at)
	}
	if err != nil || at.Table < 0 || at.Slice < 0 || at.Of < 0 || at.Of > maxSlices || at.Of > 0 && at.Slice >= at.Of || bits.OnesCount(uint(at.Of)) > 1 {
		return at, fault.BadField("cursor", "must be the one of the call before")
	}
	if at.Epoch != epoch {
		return at, fault.New(fault.Conflict, "tenant_moved", "the tenant has moved since the comparison was begun: begin it anew")
	}
	return at, nil
}

const maxSlices = 512

// slicesOf is into how many parts a table of about so many rows is cut, each compared in one go: a power of two.
func (m *Mover) slicesOf(rows int64) int {
	return min(1<<bits.Len64(uint64(max(rows-1, 0)/m.cfg.CompareRows)), maxSlices)
}

// comparison finds a tenant's two sides, and what they are to have.
func (m *Mover) comparison(ctx context.Context, who tenant.ID) (*comparison, error) {
	control, err := m.control(ctx)
	if err != nil {
		return nil, err
	}
	c := &comparison{Move: Move{Tenant: who}}
	var (
		run      *uuid.UUID
		state    *State
		database string
		name     string
	)
	err = control.QueryRow(ctx, `SELECT t.home, t.source, t.epoch, t.database_name, t.schema_name, m.run_id, m.state FROM control.tenant t
		LEFT JOIN LATERAL (SELECT run_id, state FROM control.move WHERE tenant_id = t.id AND state <> 'blue' ORDER BY state = 'finalised', run_id DESC LIMIT 1) m ON true
		WHERE t.id = $1 AND t.status <> 'deleted'`, who).Scan(&c.home, &c.source, &c.Epoch, &database, &name, &run, &state)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fault.New(fault.NotFound, "tenant_not_found", "there is no tenant %s", who)
	}
	if err != nil {
		return nil, err
	}
	if run != nil && *state != Finalised {
		c.Run, c.State = *run, *state
	}
	c.Schema, c.Database = name, database
	if c.home == tenant.Green {
		c.Database = blueOf(c.source)
		if c.State == "" {
			return nil, fault.New(fault.Conflict, "nothing_to_compare", "the tenant lives in green, and blue has no schema of it: it was made in green, or its schema was archived and dropped")
		}
		schema, err := m.blueSchema(ctx, attempt{Move: c.Move})
		if err != nil {
			return nil, err
		}
		c.Schema = *schema
	}
	if c.blue, err = m.dbs.Pool(ctx, c.Database); err != nil {
		return nil, err
	}
	if c.expect, err = m.expectation(ctx, c); err != nil {
		return nil, err
	}
	return c, m.commonLayout(ctx, control, c)
}

func (m *Mover) expectation(ctx context.Context, c *comparison) (Expectation, error) {
	switch c.State {
	case "", Planned, Blue:
		return GreenEmpty, nil
	case CatchingUp, Following:
		return InStep, nil
	case Green:
		follows, err := m.blueFollows(ctx, c.Tenant)
		if follows {
			return InStep, err
		}
		return AsMoved, err
	}
	return Moving, nil
}

// blueFollows: what is written in green is written down there, and brought to blue.
func (m *Mover) blueFollows(ctx context.Context, who tenant.ID) (follows bool, err error) {
	control, err := m.control(ctx)
	if err != nil {
		return false, err
	}
	err = control.QueryRow(ctx, `SELECT capture FROM coditect.write_gate WHERE tenant_id = $1`, who).Scan(&follows)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	return follows, err
}

// commonLayout is what both sides can have: green may have got columns since the tenant moved.
func (m *Mover) commonLayout(ctx context.Context, control *citus.Pool, c *comparison) error {
	l, err := m.layoutAtMove(ctx, c.blue, c.source, c.Schema)
	if err != nil {
		return err
	}
	green, err := greenTables(ctx, control, l.GreenSchema)
	if err != nil {
		return err
	}
	c.layout = l
	c.layout.Tables = nil
	for _, t := range l.Tables {
		have, ok := green[t.Name]
		if !ok {
			return fault.New(fault.Conflict, "schema_drift", "schema %s differs from green's tables: green has no table %s", c.Schema, t.Name)
		}
		t.Columns = slices.DeleteFunc(slices.Clone(t.Columns), func(column convert.Column) bool { return !have.has(column.Name) })
		for _, k := range t.Key {
			if !have.has(k) {
				return fault.New(fault.Conflict, "schema_drift", "schema %s differs from green's tables: table %s: green has no column %s", c.Schema, t.Name, k)
			}
		}
		c.layout.Tables = append(c.layout.Tables, t)
	}
	return nil
}

// about estimates the rows of a table.
func (m *Mover) about(ctx context.Context, c *comparison, t convert.Table) (n int64, err error) {
	if c.expect == GreenEmpty {
		err = m.readGreen(ctx, func(tx pgx.Tx) error {
			return tx.QueryRow(ctx, `SELECT count(*) FROM `+ofTenant(c.layout, t, c.Move), pgx.QueryExecModeExec).Scan(&n)
		})
		return n, err
	}
	err = c.blue.QueryRow(ctx, `SELECT CASE WHEN reltuples >= 0 THEN reltuples::bigint ELSE pg_relation_size(oid) / 100 END FROM pg_class WHERE oid = to_regclass($1)`, quoted(c.Schema, t.Name)).Scan(&n)
	return n, err
}

// Bounds of what is held in memory of a part that differs.
const (
	rangesAtOnce = 32
	keysOfPart   = MaxDifferences
)

// comparePart compares a slice of a table. Rows that are on their way are counted, and no differences.
func (m *Mover) comparePart(ctx context.Context, c *comparison, t convert.Table, at place, out *Verification) (part, error) {
	p := part{table: t, blue: map[rowKey]string{}, green: map[rowKey]string{}}
	n := max(rangesOf(at.Rows), at.Of)
	slice := ""
	if at.Of > 1 {
		width := n / at.Of
		slice = fmt.Sprintf(`(hashtextextended(%s, 2) & %d)::int BETWEEN %d AND %d`, keyText(t), n-1, at.Slice*width, (at.Slice+1)*width-1)
	}
	var inBlue, inGreen ranges
	err := c.sides(ctx, m, func(tx pgx.Tx) (err error) {
		if c.expect == GreenEmpty {
			var rows int64
			err := tx.QueryRow(ctx, `SELECT count(*) FROM `+quoted(c.Schema, t.Name), pgx.QueryExecModeExec).Scan(&rows)
			out.BlueRows += rows
			return err
		}
		inBlue, err = oneRanges(ctx, tx, rangeDigests(t, n, c.inBlue(t, slice)))
		return err
	}, func(tx pgx.Tx) (err error) {
		inGreen, err = oneRanges(ctx, tx, rangeDigests(t, n, c.inGreen(t, slice)))
		return err
	})
	if err != nil {
		return p, fmt.Errorf("migration: compare table %s of %s: %w", t.Name, c.Tenant, err)
	}
	out.BlueRows += inBlue.total()
	out.GreenRows += inGreen.total()
	for some := range slices.Chunk(differing(inBlue, inGreen), rangesAtOnce) {
		in := inRanges(t, n, some)
		blue, green, err := m.perRow(ctx, c, t, rowHash(t), in, in)
		if err != nil {
			return p, err
		}
		found := unequal(blue, green)
		switch c.expect {
		case Moving:
			out.Pending += int64(len(found))
			continue
		case InStep:
			all := len(found)
			if blue, green, found, err = m.settle(ctx, c, t, blue, green, found); err != nil {
				return p, err
			}
			out.Pending += int64(all - len(found))
		}
		for _, k := range found {
			if len(p.keys) == keysOfPart {
				p.more = true
				return p, nil
			}
			p.keys = append(p.keys, k)
			copyHash(p.blue, blue, k)
			copyHash(p.green, green, k)
		}
	}
	return p, nil
}

func copyHash(to, from map[rowKey]string, k rowKey) {
	if h, ok := from[k]; ok {
		to[k] = h
	}
}

// unequal lists the keys whose rows are not the same, sorted.
func unequal(blue, green map[rowKey]string) []rowKey {
	drop, add := changes(green, blue)
	keys := slices.Concat(drop, add)
	slices.SortFunc(keys, func(a, b rowKey) int { return strings.Compare(a.key, b.key) })
	return slices.Compact(keys)
}

// inBlue and inGreen are what a query reads from, with a condition if it is not "".
func (c *comparison) inBlue(t convert.Table, condition string) string {
	if condition != "" {
		condition = " WHERE " + condition
	}
	return quoted(c.Schema, t.Name) + condition
}

func (c *comparison) inGreen(t convert.Table, condition string) string {
	if condition != "" {
		condition = " AND " + condition
	}
	return ofTenant(c.layout, t, c.Move) + condition
}

// sides reads both sides at the same time, each as of one moment.
func (c *comparison) sides(ctx context.Context, m *Mover, blue, green func(tx pgx.Tx) error) error {
	return both(ctx,
		func(ctx context.Context) error { return frozen(ctx, c.blue, blue) },
		func(ctx context.Context) error { return m.readGreen(ctx, green) })
}

func oneRanges(ctx context.Context, tx pgx.Tx, query string) (ranges, error) {
	all, err := readRanges(ctx, tx, []string{query})
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// perRow reads what an expression is of the rows that conditions on the key name, by key. Of a tenant of which green
// is to have nothing, blue has nothing to compare with.
func (m *Mover) perRow(ctx context.Context, c *comparison, t convert.Table, what, inBlue, inGreen string) (blue, green map[rowKey]string, err error) {
	one := fmt.Sprintf(`SELECT %s, '%s'::text, %s FROM `, what, c.Tenant, keyColumns(t))
	err = c.sides(ctx, m, func(tx pgx.Tx) (err error) {
		if c.expect != GreenEmpty {
			blue, err = keysOf(ctx, tx, t, one+c.inBlue(t, inBlue))
		}
		return err
	}, func(tx pgx.Tx) (err error) {
		green, err = keysOf(ctx, tx, t, one+c.inGreen(t, inGreen))
		return err
	})
	return blue, green, err
}

// looks is how often rows that differ are looked at again while one side follows the other.
const looks = 3

// settle looks again at rows that differ, and returns those that stand still and still differ:
// neither side's row has changed between the last two looks. The others were on their way.
func (m *Mover) settle(ctx context.Context, c *comparison, t convert.Table, blue, green map[rowKey]string, keys []rowKey) (nowBlue, nowGreen map[rowKey]string, standing []rowKey, err error) {
	standing = keys
	for range looks {
		if len(keys) == 0 {
			return blue, green, nil, nil
		}
		m.crash("differences found")
		if c.State == Green { // which a sweep does now and then: what cannot be brought to blue is a difference
			_, _ = m.Reverse(ctx, c.Run, c.Tenant)
		}
		if err := m.wait(ctx, m.cfg.Settle); err != nil {
			return nil, nil, nil, err
		}
		nowBlue, nowGreen = map[rowKey]string{}, map[rowKey]string{}
		for some := range slices.Chunk(keys, keysAtOnce) {
			b, g, err := m.perRow(ctx, c, t, rowHash(t), keyInBlue(t, bare(some)), keyIn(t, bare(some)))
			if err != nil {
				return nil, nil, nil, err
			}
			maps.Copy(nowBlue, b)
			maps.Copy(nowGreen, g)
		}
		keys = unequal(nowBlue, nowGreen)
		standing = slices.DeleteFunc(slices.Clone(keys), func(k rowKey) bool { return nowBlue[k] != blue[k] || nowGreen[k] != green[k] })
		blue, green = nowBlue, nowGreen
	}
	return blue, green, standing, nil
}

// wait returns after d, or when ctx ends.
func (m *Mover) wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// rowsDescribed are read at once, with all their values.
const rowsDescribed = 16

// describe tells how rows differ.
func (m *Mover) describe(ctx context.Context, c *comparison, p part, keys []rowKey, values bool) ([]Difference, error) {
	var out []Difference
	for some := range slices.Chunk(keys, rowsDescribed) {
		var blue, green map[string][]*string
		err := c.sides(ctx, m,
			func(tx pgx.Tx) (err error) {
				blue, err = valuesOf(ctx, tx, p.table, c.inBlue(p.table, keyInBlue(p.table, bare(some))))
				return err
			},
			func(tx pgx.Tx) (err error) {
				green, err = valuesOf(ctx, tx, p.table, c.inGreen(p.table, keyIn(p.table, bare(some))))
				return err
			})
		if err != nil {
			return nil, err
		}
		for _, k := range some {
			d := differenceAt(p.table, k.key)
			_, inBlue := p.blue[k]
			_, inGreen := p.green[k]
			switch {
			case !inBlue:
				d.Where = "green"
			case !inGreen:
				d.Where = "blue"
			default:
				d.tell(p.table, blue[k.key], green[k.key], values)
			}
			out = append(out, d)
		}
	}
	return out, nil
}

// differenceAt is a row that both sides have.
func differenceAt(t convert.Table, key string) Difference {
	d := Difference{Table: t.Name, Key: map[string]string{}, Where: "both"}
	for i, part := range strings.Split(key, "\x00") {
		d.Key[t.Key[i]] = part
	}
	return d
}

// tell names the columns that differ.
func (d *Difference) tell(t convert.Table, blue, green []*string, values bool) {
	if blue == nil || green == nil {
		return // gone since
	}
	for i, c := range t.Columns {
		if blue[i] == nil && green[i] == nil || blue[i] != nil && green[i] != nil && *blue[i] == *green[i] {
			continue
		}
		d.Columns = append(d.Columns, c.Name)
		if values {
			d.Blue, d.Green = append(d.Blue, blue[i]), append(d.Green, green[i])
		}
	}
}

// valuesOf reads the columns of rows as text, by key.
func valuesOf(ctx context.Context, tx pgx.Tx, t convert.Table, from string) (map[string][]*string, error) {
	columns := make([]string, len(t.Columns))
	for i, c := range t.Columns {
		columns[i] = quoted(c.Name) + "::text"
	}
	results, err := tx.Conn().PgConn().Exec(ctx, `SELECT `+keyColumns(t)+`, `+strings.Join(columns, ", ")+` FROM `+from).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("migration: rows of table %s: %w", t.Name, err)
	}
	out := map[string][]*string{}
	for _, row := range results[0].Rows {
		values := make([]*string, len(t.Columns))
		for i, v := range row[len(t.Key):] {
			if v != nil {
				s := string(v)
				values[i] = &s
			}
		}
		out[string(bytes.Join(row[:len(t.Key)], []byte{0}))] = values
	}
	return out, nil
}
