package migration

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/convert"
)

// place is how far a comparison is: parts of tables, by the hash of the key.
type place struct {
	Epoch int64 `json:"e"` // of the tenant: a move in between begins anew
	Table int   `json:"t"`
	Slice int   `json:"s"`
	Of    int   `json:"o"` // slices of this table; 0: not cut yet
	Rows  int64 `json:"r"` // about, in this table
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
