package migration_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/tenant"
)

// wordOf is a name that every collation puts elsewhere: capitals, umlauts, signs that some leave out,
// spaces at the end, an emoji, quotes.
const wordOf = `(ARRAY['a','A','ä','Ä','z','Z','ß','😀','-','''','\',' ','co-op','coop','Coop'])[1 + %[1]s %% 15] || CASE WHEN %[1]s %% 3 = 0 THEN '-' ELSE '' END || left(md5((%[1]s)::text), 6) || repeat(' ', %[1]s %% 4)`

// wordyTables are tables whose keys have no order that is the same everywhere, but for the last one.
// Their rows are 6000 or more each: some chunks of 1000.
var wordyTables = fmt.Sprintf(`
	CREATE TYPE size AS ENUM ('small', 'medium', 'large', 'XL');
	CREATE TABLE person (name text PRIMARY KEY, n int NOT NULL, note text);
	CREATE TABLE entry (name varchar(40) COLLATE "de-x-icu", at int, note text, PRIMARY KEY (name, at));
	CREATE TABLE label (size size, code char(12), note text, PRIMARY KEY (size, code));
	CREATE TABLE amount (value numeric(20, 4) PRIMARY KEY, note text);
	ALTER TABLE person ALTER note SET STORAGE EXTERNAL;
	INSERT INTO person SELECT %s, i, CASE WHEN i %% 100 = 0 THEN repeat(md5(i::text), 200) ELSE 'p' END FROM generate_series(1, 6000) i;
	INSERT INTO person VALUES ('', 0, 'nothing'), (' ', 0, 'a space'), ('  ', 0, 'two'), (E'tab\t', 0, 'a tab');
	INSERT INTO entry SELECT %s, i %% 5, 'e' FROM generate_series(1, 6000) i;
	INSERT INTO label SELECT (enum_range(NULL::size))[1 + i %% 4], left(%s, 10), 'l' FROM generate_series(1, 6000) i ON CONFLICT DO NOTHING;
	INSERT INTO amount SELECT (i - 3000) * 1.25, 'a' FROM generate_series(1, 6000) i`, fmt.Sprintf(wordOf, "i"), fmt.Sprintf(wordOf, "i/5"), fmt.Sprintf(wordOf, "i"))

// hasty is a clock that lets a run of few rows a second go on at once: its chunks are small.
func hasty() migration.Option {
	var mu sync.Mutex
	now := time.Now()
	return migration.WithClock(func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		now = now.Add(time.Minute)
		return now
	})
}

// startWordy begins the run of a tenant of wordyTables.
func startWordy(t *testing.T, w *world, schema string) (migration.Run, tenant.ID) {
	t.Helper()
	run, report, err := w.Mover.Start(t.Context(), migration.Plan{Source: "legacy", RowsPerSecond: 100, Actor: "test"})
	require.NoError(t, err, "%+v", report.Findings)
	require.Zero(t, report.LeftOut, "%+v", report.Findings)
	return run, tenant.ImportedID("legacy", schema)
}

// hurtWordy changes a tenant of wordyTables at random until the fence refuses it.
func hurtWordy(ctx context.Context, t *testing.T, dsn, schema string, r *rand.Rand) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err = conn.Exec(ctx, `SET search_path = `+pgx.Identifier{schema}.Sanitize()); err != nil {
		return
	}
	word := func() string { return `(` + fmt.Sprintf(wordOf, fmt.Sprint(r.IntN(6000))) + `)` }
	fresh := func() string { return `(` + fmt.Sprintf(wordOf, fmt.Sprint(6000+r.IntN(1_000_000))) + `)` }
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for ; ctx.Err() == nil; <-tick.C {
		n := r.IntN(6000)
		var sql string
		switch r.IntN(14) {
		case 0:
			sql = `UPDATE person SET n = n + 1 WHERE name >= ` + word() + ` AND name < ` + word() + ` || 'x' AND n % 50 = 1`
		case 1: // to another chunk, with or without a large value that stays
			sql = `UPDATE person SET name = ` + fresh() + ` WHERE name = ` + word()
		case 2:
			if n%10 == 0 { // each time that such a key changes twice during the copy, the tenant is copied again
				sql = fmt.Sprintf(`UPDATE person SET name = reverse(name) WHERE n = %d`, n/100*100)
			}
		case 3: // names that some take for the same
			sql = `UPDATE person SET name = CASE WHEN name = lower(name) THEN upper(name) ELSE lower(name) END WHERE name = ` + word()
		case 4:
			sql = `DELETE FROM person WHERE name = ` + word()
		case 5:
			sql = `INSERT INTO person VALUES (` + fresh() + `, 1, 'new') ON CONFLICT DO NOTHING`
		case 6: // the same key again, in one transaction
			sql = `WITH w AS (SELECT ` + word() + ` AS name) DELETE FROM person USING w WHERE person.name = w.name; INSERT INTO person VALUES (` + word() + `, 2, 'again') ON CONFLICT DO NOTHING`
		case 7:
			sql = `UPDATE person SET name = '' WHERE name = ' '; UPDATE person SET name = ' ' WHERE name = '  '; UPDATE person SET name = '  ' WHERE name = ''`
		case 8:
			sql = `UPDATE entry SET at = at + 10 WHERE name = ` + word()
		case 9:
			sql = `UPDATE entry SET name = ` + fresh() + ` WHERE name = ` + word() + ` AND at % 2 = 0`
		case 10:
			sql = `DELETE FROM entry WHERE name = ` + word() + `; INSERT INTO entry VALUES (` + fresh() + `, 1, 'new'), (` + word() + `, -1, 'new') ON CONFLICT DO NOTHING`
		case 11:
			sql = fmt.Sprintf(`UPDATE label SET size = (enum_range(NULL::size))[%d] WHERE code = left(%s, 10)`, 1+r.IntN(4), word())
		case 12:
			sql = `DELETE FROM label WHERE code = left(` + word() + `, 10); INSERT INTO label VALUES ('XL', left(` + fresh() + `, 10), 'new') ON CONFLICT DO NOTHING`
		case 13:
			sql = fmt.Sprintf(`UPDATE amount SET value = -value - 0.0001 WHERE value = %d * 1.25; INSERT INTO amount VALUES (%[1]d * 3.75, 'new') ON CONFLICT DO NOTHING; DELETE FROM amount WHERE value = %[1]d * 2.5`, n-3000)
		}
		_, err := conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol)
		switch state := citus.StateOf(err); {
		case err == nil, state == "23505", state == "40P01", state == "22001": // of each other's rows; too long
		case state == citus.StateFenced, ctx.Err() != nil:
			return
		default:
			t.Errorf("%s: %v", sql, err)
			return
		}
	}
}

// chunksOfTable lists how many rows the chunks of a table have.
func chunksOfTable(t *testing.T, w *world, id tenant.ID, table string) (rows []int64) {
	t.Helper()
	found, err := w.Control.Query(t.Context(), `SELECT rows FROM control.chunk WHERE tenant_id = $1 AND table_name = $2 ORDER BY number`, id, table)
	require.NoError(t, err)
	rows, err = pgx.CollectRows(found, pgx.RowTo[int64])
	require.NoError(t, err)
	return rows
}

// Tables whose keys blue sorts in a way of its own are copied in many chunks while they are changed and
// emptied, by a step that dies; green, which sorts otherwise, has what blue has. And the way back compares them in
// as many.
func TestKeysThatAreSortedInAnotherWay(t *testing.T) {
	eachServer(t, func(t *testing.T, w *world) {
		random := seed(t)
		const schema = "Wörter"
		w.fillForeign(t, citustest.SortedDatabase(t), wordyTables, schema)
		stop, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		t.Cleanup(func() { cancel(); group.Wait() })
		var id tenant.ID
		chunks := map[string][]int64{}
		emptied := map[string]int{}
		begun, died, applied := false, false, 0
		hurts := func(at string) {
			switch at {
			case "lane joined":
				if !begun {
					begun = true
					for n := range 2 {
						r := rand.New(rand.NewPCG(random.Uint64(), uint64(n)))
						group.Go(func() { hurtWordy(stop, t, w.Legacy, schema, r) })
					}
				}
			case "changes applied":
				applied++
			case "chunk copied":
				for _, table := range []string{"amount", "entry", "label", "person"} {
					chunks[table] = chunksOfTable(t, w, id, table)
					if len(chunks[table]) == 3 && emptied[table] == 0 { // with rows that come before, and after
						emptied[table]++
						emptyAndFill(t, w.Legacy, schema, table)
					}
				}
				if len(chunks["person"]) == 2 && !died {
					died = true
					panic(crashed{at})
				}
			}
		}
		w.Mover = migration.New(w.Migrator, w.Queue, online, hasty(), migration.WithCrashPoints(hurts))
		run, who := startWordy(t, w, schema)
		id = who
		for !died {
			task, ok := w.Queue.take()
			require.True(t, ok)
			ctx, end := context.WithCancel(t.Context())
			func() {
				defer func() {
					if p := recover(); p != nil {
						require.Equal(t, crashed{"chunk copied"}, p)
					}
					end()
				}()
				require.NoError(t, w.Mover.Step(ctx, task))
			}()
		}
		w.Mover = migration.New(w.Migrator, w.Queue, online, hasty(), migration.WithCrashPoints(hurts))
		recoverByItself(t, w, run)
		status := inspect(t, w, run)
		require.Equal(t, migration.Counts{migration.Green: 1}, status.Counts, "%+v", status.Failed)
		group.Wait() // the fence has ended them
		t.Logf("chunks: %v", chunks)
		for table, rows := range chunks {
			require.GreaterOrEqual(t, len(rows), 6, "table %s must be some chunks", table)
			require.Equal(t, 1, emptied[table], table)
			for _, n := range rows {
				require.LessOrEqual(t, n, int64(1000), table)
			}
		}
		require.Positive(t, applied)
		require.Positive(t, identical(t, w, w.Legacy, schema, "legacy", id, false))
	})
}

// wordyInGreen is a tenant of wordyTables that lives in green.
func wordyInGreen(t *testing.T, w *world, schema string) (migration.Run, tenant.ID) {
	t.Helper()
	w.fillForeign(t, citustest.SortedDatabase(t), wordyTables, schema)
	run, id := startWordy(t, w, schema)
	w.Mover = migration.New(w.Migrator, w.Queue, online, hasty())
	w.drain(t)
	status := inspect(t, w, run)
	require.Equal(t, migration.Counts{migration.Green: 1}, status.Counts, "%+v", status.Failed)
	return run, id
}

// writeWordy changes a tenant of wordyTables in green: keys are changed, made and deleted all over the tables.
func writeWordy(t *testing.T, w *world, id tenant.ID, r *rand.Rand) {
	t.Helper()
	word := func(n int) string { return fmt.Sprintf(wordOf, fmt.Sprint(n)) }
	require.NoError(t, w.Door.InTenant(t.Context(), id, func(tx *citus.Tx) error {
		for range 5 {
			n := 1 + r.IntN(6000)
			for _, sql := range []string{
				`UPDATE person SET note = note || 'g' WHERE tenant_id = $1 AND name = ` + word(n),
				`UPDATE person SET name = upper(name) || '!' WHERE tenant_id = $1 AND name = ` + word(n+1),
				`DELETE FROM person WHERE tenant_id = $1 AND name = ` + word(n+2),
				`INSERT INTO person (tenant_id, name, n) VALUES ($1, ` + word(100_000+r.IntN(1_000_000)) + `, 1) ON CONFLICT DO NOTHING`,
				`UPDATE entry SET at = at + 100 WHERE tenant_id = $1 AND name = ` + word(n/5),
				`INSERT INTO label (tenant_id, size, code) VALUES ($1, 'XL', left(` + word(100_000+r.IntN(1_000_000)) + `, 10)) ON CONFLICT DO NOTHING`,
				`DELETE FROM label WHERE tenant_id = $1 AND code = left(` + word(n) + `, 10)`,
				`UPDATE amount SET value = value + 0.0001 WHERE tenant_id = $1 AND value = ` + fmt.Sprint(n-3000) + ` * 1.25`,
			} {
				if _, err := tx.Exec(t.Context(), sql, tx.Tenant()); err != nil {
					return err
				}
			}
		}
		return nil
	}))
}

// stepwise compares little at once, and in each step of a rollback once.
var stepwise = func() migration.Config { c := quick; c.CompareRows, c.StepBudget = 1000, time.Nanosecond; return c }()

// A tenant whose keys are sorted in another way in green comes back in many short steps, each of which may die; it is
// written all the time. None of them begins anew.
func TestALongWayBackIsManySteps(t *testing.T) {
	eachServer(t, func(t *testing.T, w *world) {
		random := seed(t)
		const schema = "Wörter"
		run, id := wordyInGreen(t, w, schema)
		compared, steps := 0, 0
		var want map[string][]string
		w.Mover = migration.New(w.Migrator, w.Queue, stepwise, migration.WithCrashPoints(func(at string) {
			switch at {
			case "writers drained":
				want = tableRows(t, w, schema, true, id)
			case "chunk compared":
				compared++
				writeWordy(t, w, id, random)
				if compared%3 == 0 {
					panic(crashed{at})
				}
			}
		}))
		require.Eventually(t, func() bool {
			steps++
			ctx, end := context.WithCancel(t.Context())
			defer func() {
				if p := recover(); p != nil {
					require.Equal(t, crashed{"chunk compared"}, p)
				}
				end()
			}()
			err := w.Mover.Rollback(ctx, run.ID, id, "test")
			if err != nil {
				require.Equal(t, "rollback_under_way", fault.CodeOf(err), "%v", err)
			}
			return err == nil
		}, 60*time.Second, time.Millisecond)
		t.Logf("%d chunks in %d steps", compared, steps)
		require.Equal(t, tenant.Blue, homeOf(t, w, id))
		require.Equal(t, want, tableRows(t, w, schema, false, id))
		require.GreaterOrEqual(t, steps, compared, "a step goes on after one chunk")
		require.GreaterOrEqual(t, compared, 6+3*2*6)
		require.LessOrEqual(t, compared, 8+3*2*8, "some chunk was compared twice")
		var left int
		require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM control.back_compared) + (SELECT count(*) FROM control.back_touched)`).Scan(&left))
		require.Zero(t, left)
	})
}

// The sweep goes on with a rollback whose step has used up its time, at once.
func TestTheSweepGoesOnWithALongWayBack(t *testing.T) {
	w := newWorld(t, citustest.New(t))
	random := seed(t)
	const schema = "Wörter"
	run, id := wordyInGreen(t, w, schema)
	writeWordy(t, w, id, random)
	want := tableRows(t, w, schema, true, id)
	cfg := stepwise
	cfg.Lease, cfg.MaxAttempts = time.Minute, 2
	w.Mover = migration.New(w.Migrator, w.Queue, cfg)
	require.Equal(t, "rollback_under_way", fault.CodeOf(w.Mover.Rollback(t.Context(), run.ID, id, "test")))
	require.Eventually(t, func() bool {
		swept, err := w.Mover.Sweep(t.Context(), 0)
		require.NoError(t, err)
		return swept.Returned == 1
	}, 30*time.Second, time.Millisecond)
	require.Equal(t, tenant.Blue, homeOf(t, w, id))
	require.Equal(t, want, tableRows(t, w, schema, false, id))
}

// What a step has touched is proven by the one that goes on after its death.
func TestATouchedKeyIsProvenAfterADeath(t *testing.T) {
	w := newWorld(t, citustest.New(t))
	const schema = "Wörter"
	run, id := wordyInGreen(t, w, schema)
	compared := 0
	w.Mover = migration.New(w.Migrator, w.Queue, stepwise, migration.WithCrashPoints(func(at string) {
		switch at {
		case "chunk compared":
			if compared++; compared == 1 { // amount is, up to some key
				require.NoError(t, w.Door.InTenant(t.Context(), id, func(tx *citus.Tx) error {
					_, err := tx.Exec(t.Context(), `UPDATE amount SET note = 'touched' WHERE tenant_id = $1 AND value = (SELECT min(value) FROM amount WHERE tenant_id = $1)`, tx.Tenant())
					return err
				}))
			}
		case "changes applied in blue":
			execSQL(t, w.Legacy, `SET session_replication_role = 'replica'; SET coditect.mover = 'on'; ALTER TABLE "Wörter".amount DISABLE TRIGGER coditect_fence; UPDATE "Wörter".amount SET note = 'lost' WHERE note = 'touched'; ALTER TABLE "Wörter".amount ENABLE ALWAYS TRIGGER coditect_fence`)
			panic(crashed{at})
		}
	}))
	require.Equal(t, "rollback_under_way", fault.CodeOf(w.Mover.Rollback(t.Context(), run.ID, id, "test")))
	ctx, end := context.WithCancel(t.Context())
	require.PanicsWithValue(t, crashed{"changes applied in blue"}, func() { _ = w.Mover.Rollback(ctx, run.ID, id, "test") })
	end()
	var err error
	require.Eventually(t, func() bool {
		err = migration.New(w.Migrator, w.Queue, stepwise).Rollback(t.Context(), run.ID, id, "test")
		return fault.CodeOf(err) != "rollback_under_way"
	}, 30*time.Second, time.Millisecond)
	require.Equal(t, "rows_differ", fault.CodeOf(err), "%v", err)
	require.ErrorContains(t, err, "table amount")
	require.Equal(t, tenant.Green, homeOf(t, w, id))
	var left int
	require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM control.back_compared) + (SELECT count(*) FROM control.back_touched)`).Scan(&left))
	require.Zero(t, left, "the next request begins anew")
}

// Rows that only one side has are found, whichever it is.
func TestWhatOnlyOneSideHasDoesNotComeBack(t *testing.T) {
	const schema = "Wörter"
	for name, sql := range map[string]string{
		"blue":  `INSERT INTO "Wörter".person VALUES ('Zusätzlich', 1)`,
		"green": `DELETE FROM "Wörter".person WHERE n = 4242`,
		"both":  `UPDATE "Wörter".person SET name = lower(name) || 'X' WHERE n = 4242`,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, citustest.New(t))
			run, id := wordyInGreen(t, w, schema)
			execSQL(t, w.Legacy, `SET session_replication_role = 'replica'; SET coditect.mover = 'on'; ALTER TABLE "Wörter".person DISABLE TRIGGER coditect_fence; `+sql+`; ALTER TABLE "Wörter".person ENABLE ALWAYS TRIGGER coditect_fence`)
			cfg := quick
			cfg.CompareRows = 1000
			err := migration.New(w.Migrator, w.Queue, cfg).Rollback(t.Context(), run.ID, id, "test")
			require.Equal(t, "rows_differ", fault.CodeOf(err), "%v", err)
			require.ErrorContains(t, err, "table person")
		})
	}
}

// emptyAndFill empties a table and fills it with other rows and some of the same.
func emptyAndFill(t *testing.T, dsn, schema, table string) {
	t.Helper()
	name := pgx.Identifier{schema, table}.Sanitize()
	execSQL(t, dsn, fmt.Sprintf(`BEGIN; SET LOCAL search_path = %s; CREATE TEMP TABLE kept ON COMMIT DROP AS SELECT * FROM %[2]s;
		TRUNCATE %[2]s; INSERT INTO %[2]s SELECT * FROM kept WHERE hashtext(kept::text) %% 8 <> 0 ; COMMIT`, pgx.Identifier{schema}.Sanitize(), name))
}
