package migration

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/convert"
	"github.com/coditect/platform/shared/tenant"
)

// ahead: this tenant's rows are copied before its fence goes up.
func (c Config) ahead(v Move) bool { return v.Bytes <= c.AheadMax }

// moveAhead moves a few tenants of one shape. Their rows are copied and verified as of one
// moment while they are written; then come the fence, what has changed since that moment,
// and the flip. Writers wait from the fence on: for as long as it takes to count their rows
// and to bring over the changed ones, not for the copy.
func (m *Mover) moveAhead(ctx context.Context, run Run, blue *citus.Pool, l convert.Layout, shape string, moves []Move) error {
	// One session from the copy to the comparison under the fence: it ends with the server,
	// so what it has seen was not taken back by a crash.
	session, err := blue.Acquire(ctx)
	if err != nil {
		return err
	}
	defer session.Release()
	c, err := m.copyAhead(ctx, session.Conn(), l, moves)
	if err != nil {
		return err
	}
	wrong := compare(l, moves, c.inBlue, c.inGreen)
	if err := m.refuse(ctx, moves, wrong); err != nil {
		return err
	}
	moves = slices.DeleteFunc(slices.Clone(moves), func(v Move) bool { return wrong[v.Tenant] != "" })
	m.crash("copy verified")
	if err := m.sendVacuumAway(ctx, blue, moves); err != nil {
		return err
	}
	together, err := m.fenceTenants(ctx)
	if err != nil {
		return err
	}
	for some := range slices.Chunk(moves, together) {
		if err := m.cutOver(ctx, run, blue, session.Conn(), l, shape, some, c); err != nil {
			return err
		}
	}
	return nil
}

// fenceTenants is how many tenants are fenced and flipped together. What is about one tenant Citus sends to one worker
// as it is; what is about more it plans, spreads and commits in two phases, and all of them wait for that.
func (m *Mover) fenceTenants(ctx context.Context) (int, error) {
	if m.cfg.FenceTenants > 0 {
		return m.cfg.FenceTenants, nil
	}
	control, err := m.control(ctx)
	if err != nil {
		return 0, err
	}
	isCitus, err := control.HasCitus(ctx)
	if isCitus {
		return 1, err
	}
	return 3, err
}

// cutOver brings tenants whose copy is verified to green. The fewer, the shorter they wait:
// whoever is fenced first waits for the last.
func (m *Mover) cutOver(ctx context.Context, run Run, blue *citus.Pool, session *pgx.Conn, l convert.Layout, shape string, moves []Move, c copied) error {
	defer m.calm.enter()()
	group, err := m.fenceGroup(ctx, blue, shape, moves)
	if err != nil || len(group) == 0 {
		return err
	}
	armed := m.armMeanwhile(ctx, group)
	defer func() { _ = armed() }()
	counts, wrong, err := m.catchUp(ctx, blue, session, l, movesOf(group), c)
	if err != nil {
		return err
	}
	if err := armed(); err != nil {
		return err
	}
	m.crash("gates armed")
	if len(wrong) > 0 {
		return m.refuse(ctx, movesOf(group), wrong)
	}
	m.crash("verified")
	return m.flip(ctx, run, blue, l, group, counts)
}

// readAgain is how many bytes of fenced tenants are read once more, at most, to see that nothing has changed.
const readAgain = 1 << 20

// oneMoment is how many bytes are copied under one snapshot, at most: blue cannot clean up rows
// that died after it.
const oneMoment = 16 << 20

// copied is what a copy of unfenced tenants knows; what has changed since follows from it.
type copied struct {
	since           map[string]string // by table, the oldest transaction that the copy may not have seen
	inBlue, inGreen digests
	bytes           map[tenant.ID]int64 // of the rows' text
	apart           bool                // each table was copied as of a moment of its own: they need not fit each other
}

// copyAhead copies tenants and computes both sides' digests, blue's as of the moment of the
// copy. A large tenant's tables have a moment each, so that no snapshot lives for long.
func (m *Mover) copyAhead(ctx context.Context, session *pgx.Conn, l convert.Layout, moves []Move) (copied, error) {
	c := copied{since: map[string]string{}, inBlue: digests{}, inGreen: digests{}, bytes: map[tenant.ID]int64{}}
	if err := m.markCopying(ctx, moves); err != nil {
		return c, err
	}
	m.crash("copying")
	if left := triedBefore(moves); left != nil {
		if err := m.writeGreen(ctx, Copying, left, func(tx pgx.Tx) error { return purge(ctx, tx, l, left) }); err != nil {
			return c, err
		}
	}
	parts := []convert.Layout{l}
	if len(moves) == 1 && moves[0].Bytes > oneMoment {
		c.apart = true
		parts = nil
		for _, t := range l.Tables {
			part := l
			part.Tables, part.ForeignKeys = []convert.Table{t}, nil
			parts = append(parts, part)
		}
	}
	for _, part := range parts {
		if err := m.copyPart(ctx, session, part, moves, c); err != nil {
			return c, err
		}
	}
	m.crash("copied")
	// Green's side comes last, from committed rows: whatever happened to them in between is found.
	inGreen, err := m.greenDigests(ctx, l, moves, !c.apart)
	if err != nil {
		return c, err
	}
	c.inGreen = inGreen
	return c, nil
}

// copyPart copies some tables of tenants as of one moment: many tenants in one statement and
// one stream, for it is round trips that make thousands of small tenants slow.
func (m *Mover) copyPart(ctx context.Context, session *pgx.Conn, l convert.Layout, moves []Move, c copied) error {
	return frozen(ctx, session, func(from pgx.Tx) error {
		var since string
		if err := from.QueryRow(ctx, `SELECT (pg_snapshot_xmin(pg_current_snapshot())::xid)::text`).Scan(&since); err != nil {
			return err
		}
		s, err := newScan(ctx, from, l, moves)
		if err != nil {
			return err
		}
		return m.writeGreen(ctx, Copying, moves, func(green pgx.Tx) error {
			for i, t := range l.Tables {
				c.since[t.Name] = since
				if err := m.copyWhole(ctx, s, green.Conn(), i, c); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// copyWhole copies a table of all tenants, and hashes blue's rows as they come from there.
func (m *Mover) copyWhole(ctx context.Context, s *scan, green *pgx.Conn, table int, c copied) error {
	t := s.layout.Tables[table]
	sums := make([]sum, len(s.moves))
	_, err := fillGreen(ctx, &m.calm, green, s.layout, t, "text", func(ctx context.Context, to io.Writer) error {
		var row []byte
		return s.read(ctx, s.ofAll(table), func(n int, line []byte) error {
			row = appendRow(row[:0], line)
			sums[n].add(row)
			if !t.HasTenantColumn {
				row = append(append(row[:0], s.moves[n].Tenant.String()...), '\t')
				if _, err := to.Write(row); err != nil {
					return err
				}
			}
			_, err := to.Write(line)
			return err
		})
	})
	for i, v := range s.moves {
		c.inBlue.add(t.Name, v.Tenant, sums[i].digest())
		c.bytes[v.Tenant] += sums[i].bytes
	}
	return err
}

// changedTable is one tenant's table under its fence.
type changedTable struct {
	whole
	rows, young int64 // blue's rows, and those of them that the copy may not have seen
	changed     bool  // it is not what it was when it was copied
}

// isYoung is a condition on blue's rows: written by a transaction that the copy's snapshot may
// not have seen. Every version of a row names the transaction that wrote it (xmin), so rows that
// are not young are as they were copied; those in doubt count as young.
func isYoung(since string) string { return `age(xmin) <= age('` + since + `'::xid)` }

// catchUp brings green up to blue's rows of fenced tenants, and proves it. It returns each
// move's rows, and for those whose rows still differ, how.
//
// Of a table without young rows that has as many rows as were copied, nothing has changed: its
// rows are a part of the copied ones, and as many. In any other the young rows are copied anew
// and compared. Then green has all of blue's rows, and if it has as many, no others. Where it has
// more, rows were deleted or had their keys changed: such a table is compared key by key.
func (m *Mover) catchUp(ctx context.Context, blue *citus.Pool, session *pgx.Conn, l convert.Layout, moves []Move, c copied) (counts []int64, wrong map[tenant.ID]string, err error) {
	counts = make([]int64, len(moves))
	keys := l.ForeignKeys
	var odd map[int][]convert.Table
	nothing := false
	err = frozen(ctx, session, func(from pgx.Tx) error {
		var tables []changedTable
		err := both(ctx,
			func(ctx context.Context) error { return m.moveSequences(ctx, blue, l, moves) },
			func(ctx context.Context) (err error) { tables, err = tablesNow(ctx, from, l, moves, c); return err })
		if err != nil {
			return fmt.Errorf("migration: compare with the copy: %w", err)
		}
		var changed []changedTable
		for _, n := range tables {
			counts[n.move] += n.rows
			if n.changed {
				changed = append(changed, n)
			}
		}
		if len(changed) == 0 {
			nothing = !c.apart
			return nil
		}
		if !c.apart {
			keys = touching(l, changed)
		}
		odd, err = m.copyYoung(ctx, from, l, moves, changed, c, keys)
		return err
	})
	if err != nil || nothing {
		return counts, nil, err
	}
	m.crash("changes copied")
	wrong = map[tenant.ID]string{}
	for j, tables := range odd {
		part, v := l, moves[j]
		part.Tables = tables
		_, differs, err := m.reconcile(ctx, blue, part, v, c.inBlue.of(v.Tenant))
		if err != nil {
			return nil, nil, err
		}
		if differs != "" {
			wrong[v.Tenant] = differs
		}
	}
	if len(odd) > 0 || c.apart {
		if err := m.proveKeys(ctx, l, keys, moves); err != nil {
			return nil, nil, err
		}
	}
	return counts, wrong, nil
}

// touching lists the foreign keys from or to a changed table.
func touching(l convert.Layout, changed []changedTable) (keys []convert.ForeignKey) {
	names := map[string]bool{}
	for _, n := range changed {
		names[l.Tables[n.table].Name] = true
	}
	for _, k := range l.ForeignKeys {
		if names[k.Table] || !k.RefPublic && names[k.RefTable] {
			keys = append(keys, k)
		}
	}
	return keys
}

// tablesNow finds what blue has of every table of fenced tenants, one round trip in all. Small ones are read once more and
// hashed, which is sooner done than planning a count (see scan); only those that are not as they were copied are
// counted by who has written their rows.
func tablesNow(ctx context.Context, from pgx.Tx, l convert.Layout, moves []Move, c copied) (out []changedTable, err error) {
	s, err := newScan(ctx, from, l, moves)
	if err != nil {
		return nil, err
	}
	var bytes int64
	for _, v := range moves {
		bytes += c.bytes[v.Tenant]
	}
	again := !c.apart && bytes <= readAgain
	now := digests{}
	if again {
		if now, err = s.digests(ctx, s.all()); err != nil {
			return nil, err
		}
	}
	var count []whole
	for _, w := range s.all() {
		name, id := l.Tables[w.table].Name, moves[w.move].Tenant
		if again && now[name][id] == c.inBlue[name][id] {
			out = append(out, changedTable{whole: w, rows: now[name][id].Rows})
		} else {
			count = append(count, w)
		}
	}
	statements := make([]string, len(count))
	for i, w := range count {
		t := l.Tables[w.table]
		statements[i] = fmt.Sprintf(`SELECT count(*), count(*) FILTER (WHERE %s) FROM %s`, isYoung(c.since[t.Name]), quoted(moves[w.move].Schema, t.Name))
	}
	results, err := from.Conn().PgConn().Exec(ctx, strings.Join(statements, ";\n")).ReadAll()
	if err != nil {
		return nil, err
	}
	for i, w := range count {
		n, err := integers(results[i].Rows[0])
		if err != nil {
			return nil, err
		}
		t, v := l.Tables[w.table], moves[w.move]
		changed := n[1] > 0 || n[0] != c.inBlue[t.Name][v.Tenant].Rows
		if again && !changed {
			return nil, &mismatch{v.Tenant, fault.New(fault.Conflict, "rows_differ", "table %s: rows in blue are not what they were when they were copied, though nobody has written them since", t.Name)}
		}
		out = append(out, changedTable{whole: w, rows: n[0], young: n[1], changed: changed})
	}
	return out, nil
}

// integers reads a row of numbers.
func integers(row [][]byte) ([]int64, error) {
	out := make([]int64, len(row))
	for i, v := range row {
		n, err := strconv.ParseInt(string(v), 10, 64)
		if err != nil {
			return nil, err
		}
		out[i] = n
	}
	return out, nil
}

// copyYoung copies the young rows of changed tables anew, in one transaction on green, and
// proves them and the foreign keys. It returns the tables that have another number of rows
// than blue's, by move.
func (m *Mover) copyYoung(ctx context.Context, from pgx.Tx, l convert.Layout, moves []Move, changed []changedTable, c copied, keys []convert.ForeignKey) (map[int][]convert.Table, error) {
	odd := map[int][]convert.Table{}
	err := m.writeGreen(ctx, Fenced, moves, func(green pgx.Tx) error {
		for i, t := range l.Tables {
			var of []Move
			for _, n := range changed {
				if n.table == i && n.young > 0 {
					of = append(of, moves[n.move])
				}
			}
			if len(of) > 0 {
				if err := replaceYoung(ctx, from, green, l, t, of, isYoung(c.since[t.Name])); err != nil {
					return err
				}
			}
		}
		if c.apart { // green has all of blue's rows, but not as of one moment: the keys are proved later
			keys = nil
		}
		rows, err := countGreen(ctx, green, l, moves, changed, keys)
		for i, n := range changed {
			if err == nil && rows[i] != n.rows {
				odd[n.move] = append(odd[n.move], l.Tables[n.table])
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("migration: copy what has changed: %w", err)
	}
	return odd, nil
}

// countGreen counts green's rows of tables, and proves foreign keys. One tenant's are one statement: to Citus each is a
// plan and a journey.
func countGreen(ctx context.Context, green pgx.Tx, l convert.Layout, moves []Move, tables []changedTable, keys []convert.ForeignKey) ([]int64, error) {
	counts := make([]int64, len(tables))
	if len(moves) > 1 {
		b := &pgx.Batch{}
		for i, n := range tables {
			b.Queue(`SELECT count(*) FROM `+quoted(l.GreenSchema, l.Tables[n.table].Name)+` WHERE tenant_id = $1`, moves[n.move].Tenant).
				QueryRow(func(row pgx.Row) error { return row.Scan(&counts[i]) })
		}
		queueOrphans(b, l, keys, moves)
		return counts, green.SendBatch(ctx, b).Close()
	}
	parts := make([]string, 0, len(tables)+len(keys))
	for i, n := range tables {
		parts = append(parts, fmt.Sprintf(`SELECT %d, count(*) FROM %s WHERE tenant_id = $1`, i, quoted(l.GreenSchema, l.Tables[n.table].Name)))
	}
	for i, k := range keys {
		parts = append(parts, fmt.Sprintf(`SELECT %d, count(*) FROM (%s) x`, len(tables)+i, orphans(l, k, `= $1`)))
	}
	rows, err := green.Query(ctx, strings.Join(parts, " UNION ALL "), moves[0].Tenant)
	if err != nil {
		return nil, err
	}
	var i int
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&i, &n}, func() error {
		if i < len(tables) {
			counts[i] = n
		} else if n > 0 {
			return orphaned(moves[0].Tenant, keys[i-len(tables)])
		}
		return nil
	})
	return counts, err
}

// replaceYoung copies tenants' young rows of a table over those that green has of the same
// keys, and compares both sides.
func replaceYoung(ctx context.Context, from, green pgx.Tx, l convert.Layout, t convert.Table, moves []Move, young string) error {
	sources, selects := make([]string, len(moves)), make([]string, len(moves))
	for i, v := range moves {
		sources[i] = fmt.Sprintf(`SELECT %s, '%s'::text, %s FROM %s WHERE %s`, rowHash(t), v.Tenant, keyColumns(t), quoted(v.Schema, t.Name), young)
		selects[i] = blueSelect(t, v) + ` WHERE ` + young
	}
	want, err := keysOf(ctx, from, t, strings.Join(sources, " UNION ALL "))
	if err != nil {
		return err
	}
	keys := slices.Collect(maps.Keys(want))
	shared := quoted(l.GreenSchema, t.Name)
	for some := range slices.Chunk(keys, keysAtOnce) {
		if _, err := green.Exec(ctx, `DELETE FROM `+shared+` WHERE `+rowsIn(t, some), pgx.QueryExecModeExec); err != nil {
			return fmt.Errorf("delete changed rows of table %s: %w", t.Name, err)
		}
	}
	if _, err := pipe(ctx, from.Conn(), green.Conn(), l, t, strings.Join(selects, " UNION ALL ")); err != nil {
		return err
	}
	for some := range slices.Chunk(keys, keysAtOnce) {
		have, err := keysOf(ctx, green, t, fmt.Sprintf(`SELECT %s, tenant_id::text, %s FROM %s WHERE %s`, rowHash(t), keyColumns(t), shared, rowsIn(t, some)))
		if err != nil {
			return err
		}
		for _, k := range some {
			if have[k] != want[k] {
				return &mismatch{k.tenant, fault.New(fault.Conflict, "rows_differ", "table %s: the row with the key %s is not the same in blue and in green",
					t.Name, strings.ReplaceAll(k.key, "\x00", ", "))}
			}
		}
	}
	return nil
}
