package change_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/migration/change"
	"github.com/coditect/platform/shared/migration/convert"
	"github.com/coditect/platform/shared/tenant"
)

func TestMain(m *testing.M) { citustest.Main(m) }

// shape is a kind of table that changes are applied to.
type shape struct {
	name, create string
	distributed  bool
	target       change.Target
}

var shapes = []shape{
	{"one key", `CREATE TABLE %s (tenant_id uuid, id bigint, name text, once int, big text, twice bigint GENERATED ALWAYS AS (id * 2) STORED, PRIMARY KEY (tenant_id, id), UNIQUE (tenant_id, once))`, true,
		change.Target{HasTenant: true, Key: []string{"id"}, Columns: []change.Column{{Name: "id", Type: "bigint"}, {Name: "name", Type: "text"}, {Name: "once", Type: "integer"}, {Name: "big", Type: "text"}}}},
	{"tenant among the columns", `CREATE TABLE %s (big text, once int, tenant_id uuid, "Key" uuid, name text, PRIMARY KEY (tenant_id, "Key"), UNIQUE (tenant_id, once))`, true,
		change.Target{HasTenant: true, Key: []string{"Key"}, Columns: []change.Column{{Name: "big", Type: "text"}, {Name: "once", Type: "integer"}, {Name: "tenant_id", Type: "uuid"},
			{Name: "Key", Type: "uuid"}, {Name: "name", Type: "text"}}}},
	{"two keys, no tenant", `CREATE TABLE %s (id int GENERATED ALWAYS AS IDENTITY, at timestamptz, name text, once int UNIQUE, big text, PRIMARY KEY (at, id))`, false,
		change.Target{Key: []string{"at", "id"}, Columns: []change.Column{{Name: "id", Type: "integer", Always: true}, {Name: "at", Type: "timestamp with time zone"},
			{Name: "name", Type: "text"}, {Name: "once", Type: "integer"}, {Name: "big", Type: "text"}}}},
}

// make creates a shape's table and returns it as a target.
func (s shape) make(t testing.TB, env *citustest.Env, name string) change.Target {
	t.Helper()
	to := s.target
	to.Schema, to.Table, to.Tenant = "app", name, tenant.NewID()
	full := pgx.Identifier{to.Schema, to.Table}.Sanitize()
	_, err := env.Control.Exec(t.Context(), fmt.Sprintf(s.create, full))
	require.NoError(t, err)
	if s.distributed {
		_, err = env.Control.Exec(t.Context(), `SELECT coditect.distribute($1)`, full)
		require.NoError(t, err)
	}
	_, err = env.Control.Exec(t.Context(), `GRANT ALL ON `+full+` TO coditect_migrator`)
	require.NoError(t, err)
	return to
}

// within runs work in a transaction as a mover begins it.
func within(ctx context.Context, t testing.TB, env *citustest.Env, work func(tx pgx.Tx) error) error {
	t.Helper()
	control, err := env.Migrator.Control(ctx)
	require.NoError(t, err)
	return pgx.BeginFunc(ctx, control, func(tx pgx.Tx) error {
		for _, s := range append([]string{`SET LOCAL session_replication_role = 'replica'`, `SET LOCAL enable_seqscan = off`}, convert.CanonicalText()...) {
			if _, err := tx.Exec(ctx, s); err != nil {
				return err
			}
		}
		return work(tx)
	})
}

// keyOfNumber is the n-th key of a shape, as text.
func keyOfNumber(to change.Target, n int) []string {
	switch {
	case len(to.Key) == 2:
		return []string{fmt.Sprintf("2026-01-%02d 10:00:00.5+00", n%3+1), strconv.Itoa(n)}
	case to.Key[0] == "Key":
		return []string{fmt.Sprintf("00000000-0000-4000-8000-%012d", n)}
	}
	return []string{strconv.Itoa(n)}
}

// rowOf is a row with a key.
func rowOf(to change.Target, n int, name, once, big change.Cell) []change.Cell {
	key := keyOfNumber(to, n)
	out := make([]change.Cell, len(to.Columns))
	for i, c := range to.Columns {
		switch c.Name {
		case "name":
			out[i] = name
		case "once":
			out[i] = once
		case "big":
			out[i] = big
		case "tenant_id":
			out[i] = change.Cell{Text: to.Tenant.String()}
		default:
			out[i] = change.Cell{Text: key[slices.Index(to.Key, c.Name)]}
		}
	}
	return out
}

// one applies a change by the statement that an application would have used.
func one(ctx context.Context, tx pgx.Tx, to change.Target, c change.Change) error {
	var columns, values, sets, where []string
	for i, k := range to.Key {
		if c.Op != change.Insert {
			where = append(where, pgx.Identifier{k}.Sanitize()+` = '`+c.Key[i]+`'`)
		}
	}
	if to.HasTenant {
		where = append(where, `tenant_id = '`+to.Tenant.String()+`'`)
	}
	tenantIn := !to.HasTenant
	for i, v := range c.Row {
		name, text := pgx.Identifier{to.Columns[i].Name}.Sanitize(), `'`+strings.ReplaceAll(v.Text, `'`, `''`)+`'`
		if v.Null {
			text = `NULL`
		}
		columns, values = append(columns, name), append(values, text)
		tenantIn = tenantIn || to.Columns[i].Name == "tenant_id"
		if !v.Unchanged && to.Columns[i].Name != "tenant_id" && !to.Columns[i].Always {
			sets = append(sets, name+` = `+text)
		}
	}
	if !tenantIn {
		columns, values = append(columns, `tenant_id`), append(values, `'`+to.Tenant.String()+`'`)
	}
	table := pgx.Identifier{to.Schema, to.Table}.Sanitize()
	var sql string
	switch c.Op {
	case change.Insert:
		sql = `INSERT INTO ` + table + ` (` + strings.Join(columns, `, `) + `) OVERRIDING SYSTEM VALUE VALUES (` + strings.Join(values, `, `) + `)`
	case change.Update:
		sql = `UPDATE ` + table + ` SET ` + strings.Join(sets, `, `) + ` WHERE ` + strings.Join(where, ` AND `)
	case change.Delete:
		sql = `DELETE FROM ` + table + ` WHERE ` + strings.Join(where, ` AND `)
	}
	tag, err := tx.Exec(ctx, sql, pgx.QueryExecModeExec)
	if err == nil && tag.RowsAffected() != 1 {
		return fmt.Errorf("%s touched %d rows", sql, tag.RowsAffected())
	}
	return err
}

// content is what a table holds of its tenant.
func content(ctx context.Context, t require.TestingT, env *citustest.Env, to change.Target) []string {
	filter := ``
	if to.HasTenant {
		filter = ` WHERE tenant_id = '` + to.Tenant.String() + `'`
	}
	rows, err := env.Control.Query(ctx, `SELECT x::text FROM `+pgx.Identifier{to.Schema, to.Table}.Sanitize()+` x`+filter+` ORDER BY 1`, pgx.QueryExecModeExec)
	require.NoError(t, err)
	out, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return out
}

// source draws changes that a table could have seen: it knows which rows there are.
type source struct {
	to   change.Target
	rows map[int]int // key → the value of once, 0 for NULL
}

const keys = 7

func (s *source) next(t *rapid.T) change.Change {
	var used []int
	taken := map[int]bool{}
	for k, v := range s.rows {
		used = append(used, k)
		taken[v] = true
	}
	slices.Sort(used)
	var unused, free []int
	for i := 1; i <= keys; i++ {
		if _, ok := s.rows[i]; !ok {
			unused = append(unused, i)
		}
		if !taken[i] {
			free = append(free, i)
		}
	}
	text := func() change.Cell {
		v := rapid.SampledFrom([]string{"", "a\tb", `\N`, `\`, "line\r\nend", "ü'\"", "plain", strings.Repeat("long ", 40)}).Draw(t, "text")
		return change.Cell{Text: v, Null: v == "plain"}
	}
	once := func(now int) (int, change.Cell) {
		choice := append([]int{0, now}, free...)
		v := rapid.SampledFrom(choice).Draw(t, "once")
		return v, change.Cell{Text: strconv.Itoa(v), Null: v == 0}
	}
	op := rapid.SampledFrom([]change.Op{change.Insert, change.Update, change.Update, change.Update, change.Delete}).Draw(t, "op")
	if op == change.Insert && unused != nil || used == nil {
		k := rapid.SampledFrom(unused).Draw(t, "new key")
		v, cell := once(0)
		s.rows[k] = v
		return change.Change{Op: change.Insert, Row: rowOf(s.to, k, text(), cell, text())}
	}
	k := rapid.SampledFrom(used).Draw(t, "key")
	if op == change.Delete {
		delete(s.rows, k)
		return change.Change{Op: change.Delete, Key: keyOfNumber(s.to, k)}
	}
	to := k
	// A key of which one column is GENERATED ALWAYS cannot change.
	if len(s.to.Key) == 1 {
		to = rapid.SampledFrom(append([]int{k, k}, unused...)).Draw(t, "key after")
	}
	v, cell := once(s.rows[k])
	delete(s.rows, k)
	s.rows[to] = v
	c := change.Change{Op: change.Update, Key: keyOfNumber(s.to, k), Row: rowOf(s.to, to, text(), cell, text())}
	if rapid.Bool().Draw(t, "TOASTed") {
		for i := range c.Row {
			if s.to.Columns[i].Name == "big" {
				c.Row[i] = change.Cell{Unchanged: true}
			}
		}
	}
	return c
}

// Whatever happens to rows, and however it is cut into sets: the table is what it is after the
// statements one by one.
func TestSetsAreTheSameAsOneByOne(t *testing.T) {
	citustest.Each(t, func(t *testing.T, env *citustest.Env) {
		for _, s := range shapes {
			t.Run(s.name, func(t *testing.T) {
				if env.Citus && !s.distributed {
					s.name += " (local)"
				}
				sets, single := s.make(t, env, "sets"+s.name), s.make(t, env, "single"+s.name)
				rapid.Check(t, func(rt *rapid.T) {
					sets.Tenant = tenant.NewID()
					single.Tenant = sets.Tenant
					if !s.distributed {
						_, err := env.Control.Exec(t.Context(), `TRUNCATE `+pgx.Identifier{sets.Schema, sets.Table}.Sanitize()+`, `+pgx.Identifier{single.Schema, single.Table}.Sanitize())
						require.NoError(rt, err)
					}
					src := &source{to: sets, rows: map[int]int{}}
					var all []change.Change
					for range rapid.IntRange(1, 40).Draw(rt, "changes") {
						all = append(all, src.next(rt))
					}
					require.NoError(rt, within(t.Context(), t, env, func(tx pgx.Tx) error {
						for _, c := range all {
							if err := one(t.Context(), tx, single, c); err != nil {
								return err
							}
						}
						return nil
					}))
					for rest := all; len(rest) > 0; {
						n := rapid.IntRange(1, len(rest)).Draw(rt, "set")
						require.NoError(rt, within(t.Context(), t, env, func(tx pgx.Tx) error { return change.Apply(t.Context(), tx, sets, rest[:n]) }))
						rest = rest[n:]
					}
					require.Equal(rt, content(t.Context(), rt, env, single), content(t.Context(), rt, env, sets))
				})
				require.Equal(t, s.distributed, sets.HasTenant)
			})
		}
	})
}

// Rows with an unchanged TOASTed value hand their keys and their unique values on to each
// other: no order of single rows does what the whole set does.
func TestSwaps(t *testing.T) {
	null, kept := change.Cell{Null: true}, change.Cell{Unchanged: true}
	text := func(s string) change.Cell { return change.Cell{Text: s} }
	citustest.Each(t, func(t *testing.T, env *citustest.Env) {
		for _, s := range shapes[:2] {
			for name, big := range map[string]change.Cell{"whole": text("new"), "TOASTed": kept} {
				t.Run(s.name+"/"+name, func(t *testing.T) {
					to := s.make(t, env, "swaps "+s.name+name)
					apply := func(changes ...change.Change) []string {
						require.NoError(t, within(t.Context(), t, env, func(tx pgx.Tx) error { return change.Apply(t.Context(), tx, to, changes) }))
						rows, err := env.Control.Query(t.Context(), fmt.Sprintf(`SELECT concat_ws(' ', %s, name, once, big) FROM %s WHERE tenant_id = $1 ORDER BY 1`,
							pgx.Identifier{to.Key[0]}.Sanitize(), pgx.Identifier{to.Schema, to.Table}.Sanitize()), to.Tenant)
						require.NoError(t, err)
						out, err := pgx.CollectRows(rows, pgx.RowTo[string])
						require.NoError(t, err)
						return out
					}
					update := func(n, m int, name string, once change.Cell) change.Change {
						return change.Change{Op: change.Update, Key: keyOfNumber(to, n), Row: rowOf(to, m, text(name), once, big)}
					}
					is := func(n int, name, once, before string) string {
						if !big.Unchanged {
							before = big.Text
						}
						return keyOfNumber(to, n)[0] + " " + name + " " + once + " " + before
					}
					apply(change.Change{Op: change.Insert, Row: rowOf(to, 1, text("a"), text("1"), text("big 1"))},
						change.Change{Op: change.Insert, Row: rowOf(to, 2, text("b"), text("2"), text("big 2"))})
					require.Equal(t, []string{is(1, "c", "2", "big 1"), is(2, "d", "1", "big 2")},
						apply(update(1, 1, "c", null), update(2, 2, "d", text("1")), update(1, 1, "c", text("2"))))
					require.Equal(t, []string{is(1, "f", "1", "big 2"), is(2, "g", "2", "big 1")},
						apply(update(1, 3, "e", text("2")), update(2, 1, "f", text("1")), update(3, 2, "g", text("2"))))
					// Deleted and made again by its key, which the other one then takes.
					require.Equal(t, []string{is(2, "i", "1", "big 2")},
						apply(change.Change{Op: change.Delete, Key: keyOfNumber(to, 2)}, update(1, 2, "i", text("1"))))
				})
			}
		}
	})
}

// A key so long that it is TOASTed is not sent again with an update that leaves it alone.
func TestUnchangedKey(t *testing.T) {
	env := citustest.New(t)
	to := shapes[1].make(t, env, "long")
	row := rowOf(to, 1, change.Cell{Text: "a"}, change.Cell{Null: true}, change.Cell{Text: "b"})
	changed := slices.Clone(row)
	changed[0] = change.Cell{Text: "changed"}
	changed[3] = change.Cell{Unchanged: true}
	key := keyOfNumber(to, 1)
	for _, cut := range []int{1, 2} { // one set, and two
		all := []change.Change{{Op: change.Insert, Row: row}, {Op: change.Update, Key: key, Row: changed}}
		for some := range slices.Chunk(all, cut) {
			require.NoError(t, within(t.Context(), t, env, func(tx pgx.Tx) error { return change.Apply(t.Context(), tx, to, some) }))
		}
		require.Equal(t, []string{`(changed,,` + to.Tenant.String() + `,` + key[0] + `,a)`}, content(t.Context(), t, env, to))
		require.NoError(t, within(t.Context(), t, env, func(tx pgx.Tx) error {
			return change.Apply(t.Context(), tx, to, []change.Change{{Op: change.Delete, Key: key}})
		}))
	}
}

// A change that does not find what it was made on is named, and nothing is changed.
func TestMismatch(t *testing.T) {
	cell := func(s string) change.Cell { return change.Cell{Text: s} }
	citustest.Each(t, func(t *testing.T, env *citustest.Env) {
		for _, s := range shapes {
			to := s.make(t, env, "mismatch "+s.name)
			insert := func(n int) change.Change {
				return change.Change{Op: change.Insert, Row: rowOf(to, n, cell("n"), change.Cell{Null: true}, cell("b"))}
			}
			update := func(n int, big change.Cell) change.Change {
				return change.Change{Op: change.Update, Key: keyOfNumber(to, n), Row: rowOf(to, n, cell("changed"), change.Cell{Null: true}, big)}
			}
			remove := func(n int) change.Change { return change.Change{Op: change.Delete, Key: keyOfNumber(to, n)} }
			moved := func(n, m int) change.Change {
				return change.Change{Op: change.Update, Key: keyOfNumber(to, n), Row: rowOf(to, m, cell("moved"), change.Cell{Null: true}, cell("b"))}
			}
			require.NoError(t, within(t.Context(), t, env, func(tx pgx.Tx) error {
				return change.Apply(t.Context(), tx, to, []change.Change{insert(1), insert(2)})
			}))
			before := content(t.Context(), t, env, to)
			unchanged := change.Cell{Unchanged: true}
			for name, c := range map[string]struct {
				changes []change.Change
				key     int
				found   bool
			}{
				"insert of one that is there":          {[]change.Change{insert(3), insert(1)}, 1, true},
				"update of none":                       {[]change.Change{insert(3), update(4, cell("x"))}, 4, false},
				"update of none, TOASTed":              {[]change.Change{insert(3), update(1, unchanged), update(4, unchanged)}, 4, false},
				"delete of none":                       {[]change.Change{remove(1), remove(4)}, 4, false},
				"key that is there":                    {[]change.Change{moved(1, 2)}, 2, true},
				"twice the same insert":                {[]change.Change{insert(3), insert(3)}, 3, true},
				"update of a deleted one":              {[]change.Change{remove(1), update(1, cell("x"))}, 1, false},
				"delete of one that has moved":         {[]change.Change{moved(1, 3), remove(1)}, 1, false},
				"came and went, but was there":         {[]change.Change{insert(1), remove(1)}, 1, true},
				"update of none that is deleted after": {[]change.Change{update(4, cell("x")), remove(4)}, 4, false},
			} {
				t.Run(s.name+"/"+name, func(t *testing.T) {
					err := within(t.Context(), t, env, func(tx pgx.Tx) error {
						err := change.Apply(t.Context(), tx, to, c.changes)
						var wrong *change.Mismatch
						require.ErrorAs(t, err, &wrong)
						require.Equal(t, to.Table, wrong.Table)
						require.Equal(t, keyOfNumber(to, c.key), wrong.Key, "%v", err)
						require.Equal(t, c.found, wrong.Found)
						return nil // the transaction is not broken, and nothing is in it
					})
					require.NoError(t, err)
					require.Equal(t, before, content(t.Context(), t, env, to))
				})
			}
		}
	})
}

// Of a tenant that has come since the statistics were gathered the planner thinks that it has a row, and would read all
// of its rows for a few changes, or all of them for each change.
func TestOnlyRowsThatChangeAreRead(t *testing.T) {
	const rows, changed = 20_000, 300
	env := citustest.New(t)
	for _, s := range shapes {
		if !s.target.HasTenant {
			continue // the table has the tenant's rows only
		}
		t.Run(s.name, func(t *testing.T) {
			to := s.make(t, env, "read "+s.name)
			table := pgx.Identifier{to.Schema, to.Table}.Sanitize()
			exec := func(sql string, args ...any) {
				_, err := env.Control.Exec(t.Context(), sql, args...)
				require.NoError(t, err)
			}
			key := `n`
			if to.Key[0] == "Key" {
				key = `('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid`
			}
			fill := `INSERT INTO ` + table + ` (tenant_id, ` + pgx.Identifier{to.Key[0]}.Sanitize() + `, name, big) SELECT $1, ` + key + `, 'n', 'b' FROM generate_series(1, $2) n`
			exec(fill, tenant.NewID(), rows)
			exec(`ANALYZE ` + table)
			exec(fill, to.Tenant, rows)
			var changes []change.Change
			for n := range changed {
				cell, null := change.Cell{Text: "new"}, change.Cell{Null: true}
				key := keyOfNumber(to, 1+n*rows/changed)
				c := change.Change{Op: change.Delete, Key: key}
				if n%3 > 0 {
					c = change.Change{Op: change.Update, Key: key, Row: rowOf(to, 1+n*rows/changed, cell, null, change.Cell{Text: "new", Unchanged: n%3 == 1})}
				}
				changes = append(changes, c)
			}
			var read int64
			require.NoError(t, within(t.Context(), t, env, func(tx pgx.Tx) error {
				if err := change.Apply(t.Context(), tx, to, changes); err != nil {
					return err
				}
				return tx.QueryRow(t.Context(), `SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relid = $1::regclass`, table).Scan(&read)
			}))
			require.LessOrEqual(t, read, int64(3*changed))
			require.Positive(t, read)
		})
	}
}

// What a target cannot take is refused before the database is asked.
func TestChangesThatFitNoTable(t *testing.T) {
	to := shapes[1].target
	to.Table, to.Tenant = "x", tenant.NewID()
	good := rowOf(to, 1, change.Cell{}, change.Cell{}, change.Cell{})
	other := slices.Clone(good)
	other[2] = change.Cell{Text: tenant.NewID().String()}
	hole := slices.Clone(good)
	hole[0] = change.Cell{Unchanged: true}
	for want, c := range map[string]change.Change{
		"another tenant's row":      {Op: change.Insert, Row: other},
		"without a value of column": {Op: change.Insert, Row: hole},
		"with 1 columns":            {Op: change.Insert, Row: good[:1]},
		"in its key":                {Op: change.Delete},
		"unknown":                   {Op: 'X'},
	} {
		require.ErrorContains(t, change.Apply(t.Context(), nil, to, []change.Change{c}), want)
	}
	to.Key = []string{"none"}
	require.ErrorContains(t, change.Apply(t.Context(), nil, to, []change.Change{{Op: change.Insert, Row: good}}), "column none of the key")
}

// A unique value that is really taken is the database's error, not a Mismatch.
func TestTakenValue(t *testing.T) {
	citustest.Each(t, func(t *testing.T, env *citustest.Env) {
		to := shapes[0].make(t, env, "taken")
		row := func(n int) change.Change {
			return change.Change{Op: change.Insert, Row: rowOf(to, n, change.Cell{}, change.Cell{Text: "5"}, change.Cell{})}
		}
		err := within(t.Context(), t, env, func(tx pgx.Tx) error { return change.Apply(t.Context(), tx, to, []change.Change{row(1), row(2)}) })
		require.Error(t, err)
		var wrong *change.Mismatch
		require.NotErrorAs(t, err, &wrong)
		require.Equal(t, "23505", citus.StateOf(err))
		require.Empty(t, content(t.Context(), t, env, to))
	})
}

// BenchmarkApply applies sets of 5,000 changes of small rows, a half inserts, a third updates,
// the rest deletes, and reports changes/s; then sets of which each update leaves a value out.
func BenchmarkApply(b *testing.B) {
	const set = 5000
	run := func(b *testing.B, env *citustest.Env, to change.Target, unchanged bool) {
		next := 0
		var there []int
		round := 0
		changes := func() []change.Change {
			round++
			out := make([]change.Change, 0, set)
			hit := map[int]bool{}
			for i := range set {
				if i%2 == 0 || len(there) < set {
					next++
					there = append(there, next)
					out = append(out, change.Change{Op: change.Insert, Row: rowOf(to, next, change.Cell{Text: "name " + strconv.Itoa(next)}, change.Cell{Null: true}, change.Cell{Text: "some text of a row"})})
					continue
				}
				at := (i * 7919) % len(there)
				k := there[at]
				if i%6 == 1 {
					there[at] = there[len(there)-1]
					there = there[:len(there)-1]
					out = append(out, change.Change{Op: change.Delete, Key: keyOfNumber(to, k)})
					continue
				}
				hit[k] = true
				out = append(out, change.Change{Op: change.Update, Key: keyOfNumber(to, k), Row: rowOf(to, k, change.Cell{Text: fmt.Sprint("changed ", round)}, change.Cell{Null: true},
					change.Cell{Text: "other text", Unchanged: unchanged})})
			}
			return out
		}
		// The first sets fill the table.
		for range 4 {
			all := changes()
			require.NoError(b, within(b.Context(), b, env, func(tx pgx.Tx) error { return change.Apply(b.Context(), tx, to, all) }))
		}
		b.ResetTimer()
		for b.Loop() {
			b.StopTimer()
			all := changes()
			b.StartTimer()
			require.NoError(b, within(b.Context(), b, env, func(tx pgx.Tx) error { return change.Apply(b.Context(), tx, to, all) }))
		}
		b.ReportMetric(float64(set*b.N)/b.Elapsed().Seconds(), "changes/s")
	}
	envs := map[string]func(testing.TB, ...citus.Option) *citustest.Env{"plain": citustest.New, "citus": citustest.NewCitus}
	for _, server := range slices.Sorted(maps.Keys(envs)) {
		env := envs[server](b)
		for _, s := range shapes {
			if !s.distributed && server == "citus" {
				continue
			}
			b.Run(server+"/"+s.name, func(b *testing.B) { run(b, env, s.make(b, env, fmt.Sprint("bench", b.N, s.name)), false) })
		}
		b.Run(server+"/unchanged TOAST", func(b *testing.B) { run(b, env, shapes[0].make(b, env, fmt.Sprint("toast", b.N)), true) })
	}
}
