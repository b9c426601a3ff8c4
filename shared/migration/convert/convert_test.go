package convert_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/catalog"
	"github.com/coditect/platform/shared/migration/catalog/catalogtest"
	"github.com/coditect/platform/shared/migration/convert"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { catalogtest.Main(m) }

// golden compares with a file that is there for people to review.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), got)
}

func read(t *testing.T, conn *pgx.Conn, schemas ...string) *catalog.Catalog {
	t.Helper()
	cat, err := catalog.Read(t.Context(), conn, schemas)
	require.NoError(t, err)
	return cat
}

func apply(t *testing.T, conn *pgx.Conn, c *convert.Conversion) int {
	t.Helper()
	n, err := convert.Apply(t.Context(), conn, c)
	require.NoError(t, err)
	return n
}

// The real application: the SQL for review, applied on plain PostgreSQL and on
// Citus; the second apply does nothing.
func TestLegacy(t *testing.T) {
	cat := read(t, catalogtest.Legacy(t), "acme00000", "acme00001", "public")
	catalogtest.Greens(t, func(t *testing.T, dsn string, citus bool) {
		o := convert.Options{GreenSchema: "legacy", Citus: citus}
		c, err := convert.Convert(cat, "acme00000", o)
		require.NoError(t, err)
		require.Empty(t, c.Needs)
		require.Empty(t, c.Notes)
		golden(t, "legacy.sql", c.SQL())

		conn := catalogtest.Connect(t, catalogtest.As(dsn, "coditect_migrator"))
		require.Equal(t, len(c.Statements), apply(t, conn, c))
		require.Zero(t, apply(t, conn, c))
		other, err := convert.Convert(cat, "acme00001", o)
		require.NoError(t, err)
		require.Zero(t, apply(t, conn, other), "another tenant's schema is the same template")

		green := read(t, conn, "legacy").Schemas["legacy"]
		require.Len(t, green.Tables, 16)
		for _, table := range green.Tables {
			require.True(t, table.ForceRowSecurity, table.Name)
			require.Equal(t, "tenant_id", table.PrimaryKey().Columns[0], table.Name)
			require.Equal(t, "coditect_owner", table.Owner)
			blue := cat.Schemas["acme00000"].Table(table.Name)
			require.Len(t, table.Columns, len(blue.Columns)+1)
			require.Len(t, table.Constraints, len(blue.Constraints), table.Name)
			require.Len(t, table.Indexes, len(blue.Indexes), table.Name)
		}
		require.Equal(t, "bigint", green.Table("work_event").Column("content_type_id").Type)
		if citus {
			var n int
			require.NoError(t, conn.QueryRow(t.Context(), `SELECT count(*) FROM citus_tables WHERE citus_table_type = 'distributed'
				AND table_name::text LIKE 'legacy.%' AND colocation_id = (SELECT colocation_id FROM citus_tables WHERE table_name = 'coditect.tenant_anchor'::regclass)`).Scan(&n))
			require.Equal(t, 16, n)
		}
		writeAsApplication(t, dsn)
	})
}

// writeAsApplication proves that the application's role can work with the tables as
// they are: default tenant, sequences, self-reference, deferred keys.
func writeAsApplication(t *testing.T, dsn string) {
	t.Helper()
	conn := catalogtest.Connect(t, catalogtest.As(dsn, "coditect_app"))
	for _, id := range []string{"018f0000-0000-7000-8000-000000000001", "018f0000-0000-7000-8000-000000000002"} {
		tx, err := conn.Begin(t.Context())
		require.NoError(t, err)
		for _, sql := range []string{
			"SET LOCAL app.tenant_id = '" + id + "'",
			"INSERT INTO legacy.work_project (tenant_id, name, status, settings, created_at) VALUES ('" + id + "', 'p', 'new', '{}', '2026-01-01')",
			`INSERT INTO legacy.work_task (tenant_id, title, body, status, priority, watchers, created_at, project_id)
				SELECT '` + id + `', 't', 'b', 'todo', 1, '{}', '2026-01-01', id FROM legacy.work_project WHERE tenant_id = '` + id + `'`,
		} {
			_, err = tx.Exec(t.Context(), sql)
			require.NoError(t, err, sql)
		}
		require.NoError(t, tx.Commit(t.Context()))
	}
	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "SET LOCAL app.tenant_id = '018f0000-0000-7000-8000-000000000001'")
	require.NoError(t, err)
	var n int
	require.NoError(t, tx.QueryRow(t.Context(), "SELECT count(*) FROM legacy.work_task").Scan(&n))
	require.Equal(t, 1, n)
	require.NoError(t, tx.Rollback(t.Context()))
}

// Everything that PostgreSQL lets a table have, under names that need quoting.
func TestRich(t *testing.T) {
	text, err := os.ReadFile("testdata/rich_blue.sql")
	require.NoError(t, err)
	blue := catalogtest.Blue(t, string(text))
	cat := read(t, blue, `we"ird Name`, "public")
	catalogtest.Greens(t, func(t *testing.T, dsn string, citus bool) {
		conn := catalogtest.Connect(t, dsn)
		catalogtest.Exec(t, conn, "CREATE EXTENSION btree_gist; CREATE EXTENSION pg_trgm")
		o := convert.Options{GreenSchema: "shop", Citus: citus, References: []string{"country", "currency"}}
		if citus {
			c, err := convert.Convert(cat, `we"ird Name`, o)
			require.NoError(t, err)
			require.ErrorContains(t, c.Err(), "table ranged column width has a range type of the application's own, which Citus cannot distribute")
			o.Exclude = []string{"ranged"}
		}
		c, err := convert.Convert(cat, `we"ird Name`, o)
		require.NoError(t, err)
		require.NoError(t, c.Err())
		var notes, needs []string
		for _, n := range c.Notes {
			notes = append(notes, n.Code+": "+n.Message)
		}
		for _, n := range c.Needs {
			needs = append(needs, n.String())
		}
		name := map[bool]string{false: "rich_plain.sql", true: "rich_citus.sql"}[citus]
		golden(t, name, c.SQL()+"\n-- notes\n-- "+strings.Join(notes, "\n-- ")+"\n-- needs\n-- "+strings.Join(needs, "\n-- ")+"\n")
		require.Equal(t, len(c.Statements), apply(t, conn, c))
		require.Zero(t, apply(t, conn, c))
		if citus {
			shardsAreAlike(t, conn)
		}
	})
}

// shardsAreAlike proves that what Citus made of the constraints on the shards, which
// are what writes meet, is what was asked for.
func shardsAreAlike(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	catalogtest.Exec(t, conn, "SET citus.override_table_visibility = off")
	rows, err := conn.Query(t.Context(), `SELECT DISTINCT regexp_replace(conname, '_\d+$', '') || ': ' || regexp_replace(pg_get_constraintdef(oid), '_\d{6,}', '', 'g')
		FROM pg_constraint WHERE connamespace = 'shop'::regnamespace AND conname ~ '^(one_code|Order_number_key|booking_room_during_excl|up|Order_country_id_fkey)_\d+$' ORDER BY 1`)
	require.NoError(t, err)
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	require.Equal(t, []string{
		"Order_country_id_fkey: FOREIGN KEY (country_id) REFERENCES shop_public.country(id) ON DELETE SET NULL",
		"Order_number_key: UNIQUE (tenant_id, number) DEFERRABLE INITIALLY DEFERRED",
		"booking_room_during_excl: EXCLUDE USING gist (tenant_id WITH =, room WITH =, during WITH &&) WHERE ((room > 0)) DEFERRABLE",
		"one_code: UNIQUE NULLS NOT DISTINCT (tenant_id, code) INCLUDE (total)",
		`up: FOREIGN KEY (tenant_id, parent) REFERENCES shop."Order"(tenant_id, id) DEFERRABLE`,
	}, got)
	var def string
	require.NoError(t, conn.QueryRow(t.Context(), `SELECT DISTINCT regexp_replace(indexdef, '_\d{6,}', '', 'g') FROM pg_indexes WHERE schemaname = 'shop' AND indexname ~ '^lower_name_\d+$'`).Scan(&def))
	require.Equal(t, `CREATE UNIQUE INDEX lower_name ON shop."Order" USING btree (tenant_id, lower(name) text_pattern_ops DESC NULLS LAST) INCLUDE (total) WHERE ("select" = 'it''s ok'::shop.mood)`, def)
}

// Two applies at once: each statement is run by one of them.
func TestApplyTwiceAtOnce(t *testing.T) {
	blue := catalogtest.Blue(t, `CREATE SCHEMA a CREATE TABLE t (id serial PRIMARY KEY, name text) CREATE INDEX i ON t (name)`)
	dsn := catalogtest.Green(t)
	c, err := convert.Convert(read(t, blue, "a"), "a", convert.Options{GreenSchema: "s"})
	require.NoError(t, err)
	var ran [2]int
	var g errgroup.Group
	for i := range ran {
		conn := catalogtest.Connect(t, dsn)
		g.Go(func() (err error) {
			ran[i], err = convert.Apply(t.Context(), conn, c)
			return err
		})
	}
	require.NoError(t, g.Wait())
	require.Equal(t, len(c.Statements), ran[0]+ran[1])
}

// Another structure is refused, with what differs, before anything changes.
func TestChangedTemplate(t *testing.T) {
	blue := catalogtest.Blue(t, `CREATE SCHEMA a CREATE TABLE t (id int PRIMARY KEY, name text, gone text) CREATE INDEX i ON t (name);
		CREATE SCHEMA b CREATE TABLE t (id int PRIMARY KEY, name varchar(5)) CREATE INDEX i ON t (name) CREATE TABLE u (id int PRIMARY KEY)`)
	cat := read(t, blue, "a", "b")
	conn := catalogtest.Connect(t, catalogtest.Green(t))
	a, err := convert.Convert(cat, "a", convert.Options{GreenSchema: "s"})
	require.NoError(t, err)
	apply(t, conn, a)
	b, err := convert.Convert(cat, "b", convert.Options{GreenSchema: "s"})
	require.NoError(t, err)
	n, err := convert.Apply(t.Context(), conn, b)
	require.Zero(t, n)
	require.Equal(t, "conversion_differs", fault.CodeOf(err))
	require.ErrorContains(t, err, `table s.t differs: green has "name" text, green has "gone" text, the template asks for "name" character varying(5)`)
	require.ErrorContains(t, err, "table s.u is in the template and not on green")
}

// An apply that stopped half-way goes on where it stopped.
func TestApplyGoesOn(t *testing.T) {
	blue := catalogtest.Blue(t, `CREATE SCHEMA a CREATE TABLE t (id int PRIMARY KEY, name text) CREATE INDEX i ON t (name)`)
	conn := catalogtest.Connect(t, catalogtest.Green(t))
	c, err := convert.Convert(read(t, blue, "a"), "a", convert.Options{GreenSchema: "s"})
	require.NoError(t, err)
	half := *c
	half.Statements = append(append([]convert.Statement{}, c.Statements[:3]...), convert.Statement{Object: "broken", SQL: "SELECT 1/0"})
	_, err = convert.Apply(t.Context(), conn, &half)
	require.Equal(t, "conversion_refused", fault.CodeOf(err))
	require.Equal(t, len(c.Statements)-3, apply(t, conn, c))
}

// What cannot be converted is refused by name.
func TestRefused(t *testing.T) {
	blue := catalogtest.Blue(t, `
		CREATE SCHEMA other CREATE TABLE x (id int PRIMARY KEY) CREATE SEQUENCE q;
		CREATE SCHEMA a;
		CREATE TABLE a.nokey (id int);
		CREATE TABLE a.lazy (id int PRIMARY KEY DEFERRABLE);
		CREATE TABLE a.taken (id int PRIMARY KEY, tenant_id int);
		CREATE TABLE a.parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
		CREATE TABLE a.part PARTITION OF a.parted FOR VALUES FROM (1) TO (2);
		CREATE TABLE a.away (id int PRIMARY KEY DEFAULT nextval('other.q'), x int REFERENCES other.x);
		CREATE TABLE a.fine (id int PRIMARY KEY);
		CREATE TABLE a.left_out (id int)`)
	c, err := convert.Convert(read(t, blue, "a"), "a", convert.Options{GreenSchema: "s", Exclude: []string{"left_out"}})
	require.NoError(t, err)
	var codes []string
	for _, n := range c.Notes {
		codes = append(codes, n.Table+" "+n.Code)
	}
	require.ElementsMatch(t, []string{
		"nokey no_primary_key", "lazy deferrable_primary_key", "taken tenant_id_taken", "parted partitioned_table", "part partitioned_table",
		"part inherited_table", "away foreign_sequence", "away foreign_key_elsewhere",
	}, append(codes, "part inherited_table"))
	_, err = convert.Apply(t.Context(), catalogtest.Connect(t, catalogtest.Green(t)), c)
	require.Equal(t, "cannot_convert", fault.CodeOf(err))
	require.ErrorContains(t, err, "table nokey has no primary key")
}

// The copier's view of both kinds of source.
func TestLayout(t *testing.T) {
	cat := read(t, catalogtest.Legacy(t), "acme00000")
	l, err := convert.LayoutOf(cat, "acme00000", convert.Options{GreenSchema: "legacy"})
	require.NoError(t, err)
	require.Len(t, l.Tables, 16)
	require.Len(t, l.Sequences, 14)
	require.Len(t, l.ForeignKeys, 16)
	seen := map[string]int{}
	for i, table := range l.Tables {
		seen[table.Name] = i
		require.True(t, table.Binary, table.Name)
		require.False(t, table.HasTenantColumn)
	}
	require.Less(t, seen["auth_user"], seen["work_project"])
	require.Less(t, seen["work_project"], seen["work_task"])
	event := l.Tables[seen["work_event"]]
	require.Equal(t, convert.Column{Name: "content_type_id", BlueType: "integer", GreenType: "bigint", Cast: true}, event.Columns[len(event.Columns)-1])
	require.Contains(t, l.Sequences, convert.Sequence{Blue: "work_task_id_seq", Green: "work_task_id_seq", Table: "work_task", Column: "id", Increment: 1})

	own := catalogtest.Blue(t, `CREATE SCHEMA t CREATE TABLE p (tenant_id uuid NOT NULL, id uuid, n text, up text GENERATED ALWAYS AS (upper(n)) STORED, PRIMARY KEY (tenant_id, id))
		CREATE TABLE c (tenant_id uuid NOT NULL, id uuid, p_id uuid, PRIMARY KEY (tenant_id, id), CONSTRAINT c_p FOREIGN KEY (tenant_id, p_id) REFERENCES p (tenant_id, id))`)
	l, err = convert.LayoutOf(read(t, own, "t"), "t", convert.Options{GreenSchema: "app", Own: true})
	require.NoError(t, err)
	require.Equal(t, []convert.ForeignKey{{Name: "c_p", Table: "c", Columns: []string{"p_id"}, RefTable: "p", RefColumns: []string{"id"}}}, l.ForeignKeys)
	p := l.Tables[0]
	require.Equal(t, "p", p.Name)
	require.True(t, p.HasTenantColumn)
	require.Equal(t, []string{"id"}, p.Key)
	require.Len(t, p.Columns, 3)
	require.Equal(t, "up", p.Generated[0].Name)
}
