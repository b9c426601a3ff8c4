package migration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/migration/convert"
	"github.com/coditect/platform/shared/tenant"
)

// scanned is a database with schemas a, b and "c d", and a layout of the tables in each.
func scanned(t *testing.T, definition string) (*pgx.Conn, convert.Layout, []Move) {
	conn, err := pgx.Connect(t.Context(), citustest.EmptyDatabase(t))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	var moves []Move
	for _, schema := range []string{"a", "b", "c d"} {
		moves = append(moves, Move{Tenant: tenant.NewID(), Schema: schema})
		_, err := conn.Exec(t.Context(), `CREATE SCHEMA `+quoted(schema)+`; SET search_path = `+quoted(schema)+`; `+definition, pgx.QueryExecModeSimpleProtocol)
		require.NoError(t, err)
	}
	l := convert.Layout{}
	rows, err := conn.Query(t.Context(), `SELECT c.relname, array_agg(a.attname::text ORDER BY a.attnum) FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
		WHERE c.relnamespace = 'a'::regnamespace AND c.relkind = 'r' GROUP BY 1 ORDER BY 1`)
	require.NoError(t, err)
	var (
		name    string
		columns []string
	)
	_, err = pgx.ForEachRow(rows, []any{&name, &columns}, func() error {
		table := convert.Table{Name: name}
		for _, c := range columns {
			table.Columns = append(table.Columns, convert.Column{Name: c})
		}
		l.Tables = append(l.Tables, table)
		return nil
	})
	require.NoError(t, err)
	return conn, l, moves
}

// bothDigests are those of rows as they come, and PostgreSQL's own.
func bothDigests(t *testing.T, conn *pgx.Conn, l convert.Layout, moves []Move) (ours, postgres digests) {
	postgres = digests{}
	require.NoError(t, frozen(t.Context(), conn, func(tx pgx.Tx) error {
		s, err := newScan(t.Context(), tx, l, moves)
		require.NoError(t, err)
		ours, err = s.digests(t.Context(), s.all())
		require.NoError(t, err)
		return blueDigests(t.Context(), tx, l, moves, postgres)
	}))
	return ours, postgres
}

func TestRowsAreHashedAsByPostgres(t *testing.T) {
	conn, l, moves := scanned(t, `
		CREATE TYPE mood AS ENUM ('ok', 'not "so", ok'); CREATE TYPE pair AS (a int, b text);
		CREATE TABLE empty (id int);
		CREATE TABLE alone (t text);
		CREATE TABLE "every,thing" (id serial, gone int, t text, c char(5), v varchar(9), "bo ol" bool, i2 smallint, i8 bigint, f4 real, f8 float8, n numeric, m money, d date, ts timestamp, tz timestamptz, tm time, iv interval,
			by bytea, j json, jb jsonb, u uuid, ip inet, cd cidr, ta text[], na numeric[][], r int4range, mood mood, moods mood[], pair pair, x xml, pt point, b bit(3), tsv tsvector, q "char", nm name);
		ALTER TABLE "every,thing" DROP COLUMN gone;
		INSERT INTO "every,thing" DEFAULT VALUES;
		INSERT INTO "every,thing" (t, c, v, "bo ol", i2, i8, f4, f8, n, m, d, ts, tz, tm, iv, by, j, jb, u, ip, cd, ta, na, r, mood, moods, pair, x, pt, b, tsv, q, nm) VALUES
			('', 'a', '', true, -1, -9223372036854775808, 'NaN', '-Infinity', 'NaN', -1.5, '-infinity', 'infinity', '2026-01-02 03:04:05.678+09', '24:00', '-1 mon 2 days', '\x00ff0a', '{"a": "b\n"}', '{"k": [1, null]}',
			 '11111111-2222-3333-4444-555555555555', '::1/64', '10.0.0.0/8', '{NULL,"",a b,"q\"u","\\"}', '{{1,2},{3,NULL}}', '[1,)', 'not "so", ok', '{ok,"not \"so\", ok"}', '(1,"b c")', '<a b="c">d</a>', '(1,2)', '101', 'a b''c:1', 'x', 'some name'),
			(E'\\N', '     ', E'\t', false, 1, 1, 1e-30, 1e300, 1e-20, 0, '0001-01-01 BC', '2026-01-02', 'epoch', '00:00', '1:2:3', '', 'null', '"\u00fc"', NULL, NULL, NULL, '{}', NULL, 'empty', NULL, '{}', '(,)', '', NULL, NULL, '', '', '')`)
	seed := uint64(time.Now().UnixNano()) //nolint:gosec // any number will do
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // a test's data
	letters := []string{"a", "b", "ü", "日", " ", "\t", "\n", "\r", "\v", "\f", "\b", "\\", `"`, "'", "(", ")", ",", "{", "}", "N", ".", "\u0085", "\u00a0", "\x01", "\x7f", "\\N", "\\."}
	for i := range 2000 {
		var text strings.Builder
		for range i % 41 {
			text.WriteString(letters[random.IntN(len(letters))])
		}
		_, err := conn.Exec(t.Context(), fmt.Sprintf(`INSERT INTO %s.alone VALUES ($1)`, quoted(moves[i%2].Schema)), text.String()) // the third has no row
		require.NoError(t, err)
	}
	ours, postgres := bothDigests(t, conn, l, moves)
	require.Len(t, postgres, 2, "of three tables one is empty")
	require.Len(t, postgres["alone"], 2)
	require.Len(t, postgres["every,thing"], 3)
	require.EqualValues(t, 1000, postgres["alone"][moves[0].Tenant].Rows)
	require.Equal(t, postgres, ours)
}

// COPY of a table leaves out the rows of tables that inherit from it; an application that reads the table finds them.
func TestRowsOfInheritingTablesAreRead(t *testing.T) {
	conn, l, moves := scanned(t, `CREATE TABLE parent (id int); INSERT INTO parent VALUES (1), (2)`)
	_, err := conn.Exec(t.Context(), `CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.child (more text) INHERITS (b.parent); INSERT INTO elsewhere.child VALUES (3, 'x')`, pgx.QueryExecModeSimpleProtocol)
	require.NoError(t, err)
	ours, postgres := bothDigests(t, conn, l, moves)
	require.EqualValues(t, 3, postgres["parent"][moves[1].Tenant].Rows)
	require.Equal(t, postgres, ours)
}

// A session whose scan has ended early is not used again: the rest of its rows would be the answer to the next statement.
func TestAScanThatFailsLeavesNothingBehind(t *testing.T) {
	conn, l, moves := scanned(t, `CREATE TABLE many AS SELECT i AS id, repeat('x', 1000) FROM generate_series(1, 20000) i`)
	err := frozen(t.Context(), conn, func(tx pgx.Tx) error {
		s, err := newScan(t.Context(), tx, l, moves)
		require.NoError(t, err)
		return s.read(t.Context(), s.all(), func(int, []byte) error { return context.Canceled })
	})
	require.ErrorIs(t, err, context.Canceled)
	require.True(t, conn.IsClosed())

	conn, l, moves = scanned(t, `CREATE TABLE one (id int)`)
	l.Tables[0].Columns[0].Name = "lost"
	err = frozen(t.Context(), conn, func(tx pgx.Tx) error {
		s, err := newScan(t.Context(), tx, l, moves)
		require.NoError(t, err)
		_, err = s.digests(t.Context(), s.all())
		return err
	})
	require.ErrorContains(t, err, `column "lost"`)
	require.False(t, conn.IsClosed(), "what the server refuses ends in good order")

	conn, l, moves = scanned(t, `CREATE TABLE slow AS SELECT i AS id, repeat('x', 1000) FROM generate_series(1, 20000) i`)
	ctx, cancel := context.WithCancel(t.Context())
	err = frozen(t.Context(), conn, func(tx pgx.Tx) error {
		s, err := newScan(t.Context(), tx, l, moves)
		require.NoError(t, err)
		return s.read(ctx, s.all(), func(int, []byte) error { cancel(); return nil })
	})
	require.ErrorIs(t, err, context.Canceled)
	require.True(t, conn.IsClosed())
}
