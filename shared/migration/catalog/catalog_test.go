package catalog_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/migration/catalog"
	"github.com/coditect/platform/shared/migration/catalog/catalogtest"
)

func TestMain(m *testing.M) { catalogtest.Main(m) }

func legacySchemas() []string {
	var out []string
	for i := range 20 {
		out = append(out, fmt.Sprintf("acme%05d", i))
	}
	return out
}

// All 20 schemas of the real application are read as one structure.
func TestLegacy(t *testing.T) {
	conn := catalogtest.Legacy(t)
	cat, err := catalog.Read(t.Context(), conn, append(legacySchemas(), "no_such_schema"))
	require.NoError(t, err)
	require.Len(t, cat.Schemas, 20)
	require.Equal(t, "acme00000", cat.MostCommon(nil))

	s := cat.Schemas["acme00003"]
	require.Len(t, s.Tables, 16)
	require.Len(t, s.Sequences, 14)
	task := s.Table("work_task")
	require.Equal(t, "nextval('§.work_task_id_seq'::regclass)", task.Column("id").Default)
	require.Equal(t, "work_task_id_seq", task.Column("id").Sequence)
	require.Equal(t, "character varying(300)", task.Column("title").Type)
	require.Equal(t, []string{"id"}, task.PrimaryKey().Columns)
	require.Positive(t, task.Bytes)
	require.Positive(t, task.Rows)
	var unique []string
	for _, i := range task.Indexes {
		if i.Unique {
			unique = append(unique, i.Keys)
		}
	}
	require.Equal(t, []string{"project_id, title) WHERE ((status)::text = 'todo'::text)"}, unique)

	prints, err := catalog.Fingerprints(t.Context(), conn, legacySchemas())
	require.NoError(t, err)
	for _, n := range legacySchemas() {
		require.Equal(t, prints["acme00000"], prints[n])
		require.Empty(t, catalog.Diff(s, cat.Schemas[n]))
	}
}

// Reading inside a caller's transaction leaves its search_path as it was.
func TestReadGivesBackTheSearchPath(t *testing.T) {
	conn := catalogtest.Blue(t, "CREATE SCHEMA a")
	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "SET LOCAL search_path = a")
	require.NoError(t, err)
	_, err = catalog.Read(t.Context(), tx, []string{"a"})
	require.NoError(t, err)
	var path string
	require.NoError(t, tx.QueryRow(t.Context(), "SHOW search_path").Scan(&path))
	require.Equal(t, "a", path)
	require.NoError(t, tx.Rollback(t.Context()))
}

const rich = `
CREATE SCHEMA SELF;
CREATE TYPE SELF.mood AS ENUM ('sad', 'it''s ok', 'happy');
CREATE DOMAIN SELF.email AS text DEFAULT 'a@b' NOT NULL CONSTRAINT has_at CHECK (VALUE ~ '@');
CREATE TABLE SELF."Order" (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	"select" SELF.mood NOT NULL DEFAULT 'sad',
	moods SELF.mood[] NOT NULL DEFAULT '{sad}',
	mail SELF.email,
	total numeric(10,2), tax numeric(10,2) GENERATED ALWAYS AS (total * 0.2) STORED,
	name text COLLATE "C", note varchar(10),
	parent bigint REFERENCES SELF."Order" ON DELETE SET NULL,
	CONSTRAINT sad_is_free CHECK ("select" <> 'sad'::SELF.mood OR total = 0));
CREATE UNIQUE INDEX lower_name ON SELF."Order" (lower(name) text_pattern_ops DESC) INCLUDE (total) WHERE "select" = 'happy';
CREATE FUNCTION SELF.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER touch BEFORE UPDATE ON SELF."Order" FOR EACH ROW EXECUTE FUNCTION SELF.touch();
CREATE VIEW SELF.v AS SELECT 1 AS one;
`

// The same structure under any name, however it has to be quoted, has one fingerprint.
func TestNamesDoNotCount(t *testing.T) {
	names := []string{"plain", `we"ird Name`, "it's", "select", "mood"}
	conn := catalogtest.Blue(t, "")
	for _, n := range names {
		catalogtest.Exec(t, conn, strings.ReplaceAll(rich, "SELF", catalog.Quote(n)))
	}
	catalogtest.Exec(t, conn, `ALTER TABLE "it's"."Order" RENAME CONSTRAINT sad_is_free TO other; ALTER INDEX "select".lower_name RENAME TO x`)
	cat, err := catalog.Read(t.Context(), conn, names)
	require.NoError(t, err)
	for _, n := range names {
		require.Empty(t, catalog.Diff(cat.Schemas["plain"], cat.Schemas[n]), n)
		require.Equal(t, cat.Schemas["plain"].Fingerprint(), cat.Schemas[n].Fingerprint(), n)
	}
	o := cat.Schemas[`we"ird Name`].Table("Order")
	require.Equal(t, `'sad'::§.mood`, o.Column("select").Default)
	require.Equal(t, `§.mood[]`, o.Column("moods").Type)
	require.Equal(t, "Order_id_seq", o.Column("id").Sequence)
	require.True(t, o.Column("tax").Generated)
	require.Equal(t, `pg_catalog."C"`, o.Column("name").Collation)
	require.Equal(t, []catalog.Trigger{{Name: "touch", Function: "§.touch", Enabled: true}}, o.Triggers)
	require.Equal(t, []catalog.Object{{Kind: "function", Name: "touch"}, {Kind: "view", Name: "v"}}, cat.Schemas["plain"].Others)
	require.Equal(t, `lower(name) text_pattern_ops DESC) INCLUDE (total) WHERE ("select" = 'happy'::§.mood)`, o.Indexes[0].Keys)
	types := cat.Schemas["it's"].Types
	require.Equal(t, []string{"sad", "it's ok", "happy"}, types[1].Labels)
	require.Equal(t, "AS text DEFAULT 'a@b'::text NOT NULL CONSTRAINT has_at CHECK ((VALUE ~ '@'::text))", types[0].Definition)
}

// Many schemas are read in parts; the structure of each is what it is when it is read alone.
func TestManyAreReadAsOne(t *testing.T) {
	conn := catalogtest.Blue(t, `CREATE SCHEMA shared; CREATE TABLE shared.kind (a int, b int, PRIMARY KEY (b, a))`)
	var names []string
	for i := range 120 {
		names = append(names, fmt.Sprintf("t%03d", i))
		catalogtest.Exec(t, conn, strings.ReplaceAll(`CREATE SCHEMA SELF; CREATE TYPE SELF.mood AS ENUM ('sad');
			CREATE TABLE SELF.one (id int PRIMARY KEY, dropped int, x int, y int, m SELF.mood, FOREIGN KEY (y, x) REFERENCES shared.kind, CONSTRAINT whole CHECK (one IS NOT NULL), CHECK (tableoid > 0));
			ALTER TABLE SELF.one DROP COLUMN dropped;
			CREATE TABLE SELF.two (id int PRIMARY KEY, one int, also int, FOREIGN KEY (one) REFERENCES SELF.one ON DELETE SET NULL (one))`, "SELF", names[i]))
	}
	pool, err := pgxpool.New(t.Context(), conn.Config().ConnString())
	require.NoError(t, err)
	defer pool.Close()
	cat, err := catalog.Read(t.Context(), pool, append([]string{"shared"}, names...))
	require.NoError(t, err)
	require.Len(t, cat.Schemas, 121)
	for _, n := range names {
		s := cat.Schemas[n]
		require.Len(t, s.Types, 1, n)
		one, two := s.Table("one"), s.Table("two")
		require.Len(t, one.Constraints, 4)
		fk := one.Constraints[slices.IndexFunc(one.Constraints, func(k *catalog.Constraint) bool { return k.Type == catalog.ForeignKey })]
		require.Equal(t, []string{"y", "x"}, fk.Columns)
		require.Equal(t, []string{"b", "a"}, fk.RefColumns)
		require.Equal(t, "shared", fk.RefSchema)
		fk = two.Constraints[slices.IndexFunc(two.Constraints, func(k *catalog.Constraint) bool { return k.Type == catalog.ForeignKey })]
		require.Equal(t, []string{"one"}, fk.Columns)
		require.Equal(t, []string{"id"}, fk.RefColumns)
		require.Equal(t, []string{"one"}, fk.DeleteColumns)
		require.Equal(t, cat.Schemas["t000"].Fingerprint(), s.Fingerprint())
	}
}

func TestDiffSaysWhatDiffers(t *testing.T) {
	conn := catalogtest.Blue(t, "")
	for _, n := range []string{"a", "b"} {
		catalogtest.Exec(t, conn, strings.ReplaceAll(rich, "SELF", n))
	}
	catalogtest.Exec(t, conn, `
		CREATE TABLE b.surplus (id int PRIMARY KEY);
		ALTER TABLE b."Order" ADD COLUMN extra text, DROP COLUMN name, ALTER note TYPE varchar(20), ALTER "select" SET DEFAULT 'happy';
		CREATE INDEX ON b."Order" (total);
		ALTER TYPE b.mood ADD VALUE 'new'`)
	cat, err := catalog.Read(t.Context(), conn, []string{"a", "b"})
	require.NoError(t, err)
	require.ElementsMatch(t, []string{
		"type mood is sad, it's ok, happy, new, the template has sad, it's ok, happy",
		`table Order: column select is mood NOT NULL DEFAULT 'happy'::mood, the template has mood NOT NULL DEFAULT 'sad'::mood`,
		`table Order: column name is missing`,
		`table Order: column note is character varying(20), the template has character varying(10)`,
		`table Order: column extra (text) is not in the template`,
		`table Order: index USING btree (total) is not in the template`,
		`table Order: unique index USING btree (lower(name) text_pattern_ops DESC) INCLUDE (total) WHERE ("select" = 'happy'::mood) is missing`,
		`table surplus is not in the template`,
	}, catalog.Diff(cat.Schemas["a"], cat.Schemas["b"]))
}

// A thousand schemas shaped like the application's are read in seconds.
func TestThousandSchemas(t *testing.T) {
	conn := catalogtest.Blue(t, `DO $$ BEGIN FOR i IN 1..1000 LOOP
		EXECUTE format('CREATE SCHEMA s%1$s CREATE TABLE a (id serial PRIMARY KEY, name text UNIQUE, at timestamptz DEFAULT now())
			CREATE TABLE b (id bigserial PRIMARY KEY, a_id int NOT NULL REFERENCES a DEFERRABLE, tags text[] CHECK (tags <> ''{}''))
			CREATE INDEX b_tags ON b USING gin (tags) CREATE INDEX b_a ON b (a_id)', i);
		IF i % 50 = 0 THEN COMMIT; END IF; END LOOP; END $$`)
	var names []string
	for i := range 1000 {
		names = append(names, fmt.Sprintf("s%d", i+1))
	}
	start := time.Now()
	prints, err := catalog.Fingerprints(t.Context(), conn, names)
	require.NoError(t, err)
	t.Logf("1,000 schemas, 2,000 tables: %v", time.Since(start))
	require.Len(t, prints, 1000)
	for _, p := range prints {
		require.Equal(t, prints["s1"], p)
	}
	require.Less(t, time.Since(start), 20*time.Second)
}
