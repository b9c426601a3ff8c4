package preflight_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/migration/catalog/catalogtest"
	"github.com/coditect/platform/shared/migration/convert"
	"github.com/coditect/platform/shared/migration/preflight"
	"github.com/coditect/platform/shared/migration/source"
	"github.com/coditect/platform/shared/schema"
	"github.com/coditect/platform/shared/tenant"
)

func TestMain(m *testing.M) { catalogtest.Main(m) }

const (
	blocker = preflight.Blocker
	warning = preflight.Warning
)

func home(t *testing.T, conn *pgx.Conn, name string) {
	t.Helper()
	_, err := schema.ApplyHome(t.Context(), schema.Database{DSN: conn.Config().ConnString(), Name: name, Kind: tenant.Blue})
	require.NoError(t, err)
}

func run(t *testing.T, in preflight.Input) *preflight.Report {
	t.Helper()
	r, err := preflight.Run(t.Context(), in)
	require.NoError(t, err)
	for _, f := range r.Findings {
		require.NotEmpty(t, f.Message)
		require.NotEmpty(t, f.Action, f.Message)
	}
	return r
}

// lines prints findings as an operator would see them.
func lines(r *preflight.Report, s preflight.Severity) []string {
	var out []string
	for _, f := range r.Findings {
		if f.Severity == s {
			out = append(out, strings.TrimSpace(f.Schema+" "+f.Code+": "+f.Message))
		}
	}
	return out
}

// The real application passes; what it will notice is told once, not twenty times.
func TestLegacy(t *testing.T) {
	conn := catalogtest.Legacy(t)
	home(t, conn, "legacy")
	catalogtest.Exec(t, conn, `DO $$ BEGIN CREATE ROLE legacy_app LOGIN; END $$; CREATE UNLOGGED TABLE acme00004.scratch (x int)`)
	src := &source.Source{
		Name: "legacy", GreenSchema: "legacy", TenantTable: "customers_client", SchemaColumn: "schema_name", NameColumn: "name",
		ApplicationRole: "legacy_app", ExcludeTables: []string{"scratch"},
	}
	tenants, err := src.Tenants(t.Context(), conn)
	require.NoError(t, err)
	catalogtest.Greens(t, func(t *testing.T, dsn string, _ bool) {
		green := catalogtest.Connect(t, dsn)
		in := preflight.Input{Blue: conn, Green: green, Source: src, Tenants: tenants, MaxPause: 5 * time.Second}
		r := run(t, in)
		require.Empty(t, lines(r, blocker))
		require.True(t, r.Clear())
		require.Len(t, lines(r, warning), 1)
		require.Contains(t, lines(r, warning)[0], "integer columns become bigint on green, because ids made there need 8 bytes: auth_group.id, ")
		require.Len(t, r.Estimates, 20)
		require.Positive(t, r.Estimates[0].Rows)
		require.Less(t, r.Estimates[0].Pause, time.Second)

		_, err := convert.Apply(t.Context(), green, r.Conversion)
		require.NoError(t, err)
		require.Empty(t, lines(run(t, in), blocker), "the same holds when green has the tables")
		catalogtest.Exec(t, green, "ALTER TABLE legacy.work_task DROP COLUMN estimate")
		require.Equal(t, []string{"green_differs: table work_task on green has no column estimate"}, lines(run(t, in), blocker))
	})
}

// Nothing that cannot be moved gets past, and each is named.
func TestFindings(t *testing.T) {
	const template = `CREATE SCHEMA SELF; CREATE TABLE SELF.task (id serial PRIMARY KEY, estimate interval, name text UNIQUE);
		CREATE INDEX by_estimate ON SELF.task (estimate);`
	conn := catalogtest.Blue(t, "")
	home(t, conn, "source")
	for _, s := range []string{"a", "b", "c", "one_less", "one_more", "no_index", `we"ird Name`} {
		catalogtest.Exec(t, conn, strings.ReplaceAll(template, "SELF", pgx.Identifier{s}.Sanitize()))
	}
	catalogtest.Exec(t, conn, `
		ALTER TABLE one_less.task DROP COLUMN estimate;
		ALTER TABLE one_more.task ADD COLUMN extra text, DROP CONSTRAINT task_name_key;
		DROP INDEX no_index.by_estimate;
		CREATE DOMAIN lo AS oid;
		CREATE SCHEMA bad;
		CREATE TABLE bad.nokey (id int);
		CREATE TABLE bad.lazy (id int PRIMARY KEY DEFERRABLE, blob lo, kind regclass[]);
		CREATE UNLOGGED TABLE bad.fast (id int PRIMARY KEY);
		CREATE TABLE bad.parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
		CREATE TABLE bad.child (PRIMARY KEY (id)) INHERITS (bad.nokey);
		CREATE TABLE bad.rules (id int PRIMARY KEY, n int);
		ALTER TABLE bad.rules ADD CONSTRAINT positive CHECK (n > 0) NOT VALID;
		CREATE FUNCTION bad.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
		CREATE TRIGGER touch BEFORE UPDATE ON bad.rules FOR EACH ROW EXECUTE FUNCTION bad.touch();
		CREATE RULE quiet AS ON DELETE TO bad.rules DO INSTEAD NOTHING;
		CREATE VIEW bad.v AS SELECT 1 AS one;
		ALTER TABLE bad.nokey ADD CONSTRAINT unrelated CHECK (true) NO INHERIT;
		DO $$ BEGIN CREATE ROLE owning_app LOGIN; END $$;
		ALTER TABLE a.task OWNER TO owning_app;
		ALTER TABLE c.task ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
		INSERT INTO b.task (name) SELECT i::text FROM generate_series(1, 20000) i;
		ANALYZE`)
	names := []string{"a", "b", "c", "one_less", "one_more", "no_index", `we"ird Name`, "bad", "gone"}
	var tenants []source.Tenant
	for _, n := range names {
		tenants = append(tenants, source.Tenant{Schema: n, Name: strings.ToUpper(n)})
	}
	tenants[2].Name = ""
	in := preflight.Input{
		Blue: conn, Green: catalogtest.Connect(t, catalogtest.Green(t)), Tenants: tenants, MaxPause: 100 * time.Millisecond,
		Source: &source.Source{Name: "source", GreenSchema: "source", ApplicationRole: "owning_app"},
	}
	r := run(t, in)
	require.Equal(t, "a", r.Template)
	require.False(t, r.Clear())
	require.Equal(t, []string{
		`b pause_too_long: writes would wait about 360ms for 20000 rows and 0.9 MB, 100ms are allowed`,
		`bad drift: the structure differs from a: sequence task_id_seq is missing; table task is missing; table child is not in the template; table fast is not in the template; table lazy is not in the template; table nokey is not in the template; table parted is not in the template; table rules is not in the template`,
		`bad inherited_table: table child inherits from bad.nokey`,
		`bad unlogged_table: table fast is unlogged: a crash of blue would empty it during the move`,
		`bad deferrable_primary_key: table lazy has a deferrable primary key`,
		`bad large_object: table lazy: column blob has type lo; large objects are outside the schema and would stay behind`,
		`bad object_reference: table lazy: column kind has type regclass, whose values name objects of this database only`,
		`bad no_primary_key: table nokey has no primary key`,
		`bad partitioned_table: table parted is partitioned, which this version does not move`,
		`bad not_valid: table rules: constraint positive is NOT VALID: rows may be there that green would refuse`,
		`c name_length: the tenant's name has 0 characters, 1 to 200 are allowed`,
		`gone schema_missing: tenant GONE is listed, but there is no schema gone`,
		`one_less drift: the structure differs from a: table task: column estimate is missing; table task: index USING btree (estimate) is missing`,
		`one_more drift: the structure differs from a: table task: unique constraint UNIQUE (name) is missing; table task: column extra (text) is not in the template`,
	}, lines(r, blocker))
	require.Equal(t, []string{
		`a application_owns_tables: the application's role owning_app acts as owning_app, which owns tables: it could switch the fence off (ALTER TABLE … DISABLE TRIGGER)`,
		`bad object_left: function touch does not come along`,
		`bad object_left: view v does not come along`,
		`bad rule_left: table rules: rule quiet does not come along`,
		`bad trigger_left: table rules: trigger touch (touch) does not come along`,
		`keys_widened: 1 integer columns become bigint on green, because ids made there need 8 bytes: task.id`,
		`no_index drift: the structure differs from a: table task: index USING btree (estimate) is missing`,
	}, slices.Sorted(slices.Values(lines(r, warning))))

	// As the role that moves, without any right.
	in.Blue = catalogtest.Connect(t, catalogtest.As(conn.Config().ConnString(), "owning_app"))
	in.Tenants = tenants[:2]
	in.Source.ApplicationRole = "postgres"
	require.Equal(t, []string{
		"application_superuser: the application's role postgres is a superuser and could switch the fence off",
		"b pause_too_long: writes would wait about 360ms for 20000 rows and 0.9 MB, 100ms are allowed",
		"b table_right: role owning_app may not fence tables of role postgres",
		"role_under_rls: role owning_app on blue is held back by row-level security: it would read a part of the rows, and COPY refuses it",
		"schema_right: role owning_app may not use the schema",
	}, slices.Sorted(slices.Values(lines(run(t, in), blocker))))

	in.Source.ApplicationRole = ""
	require.Contains(t, lines(run(t, in), preflight.Unknown)[0], "could not check whether the application could switch the fence off")
}

// The tenants of a second run are compared with the source's template, whoever moves it.
func TestTemplateOfAnotherRun(t *testing.T) {
	conn := catalogtest.Blue(t, "")
	home(t, conn, "source")
	for _, s := range []string{"first", "second", "third"} {
		name := pgx.Identifier{s}.Sanitize()
		catalogtest.Exec(t, conn, `CREATE SCHEMA `+name+`; CREATE TABLE `+name+`.task (id bigserial PRIMARY KEY, name text)`)
	}
	catalogtest.Exec(t, conn, `ALTER TABLE third.task DROP COLUMN name; CREATE VIEW first.v AS SELECT 1 AS one; CREATE TABLE first.scratch (x int);
		DO $$ BEGIN CREATE ROLE template_app LOGIN; END $$`)
	in := preflight.Input{
		Blue: conn, Green: catalogtest.Connect(t, catalogtest.Green(t)), Tenants: []source.Tenant{{Schema: "second", Name: "Second"}, {Schema: "third", Name: "Third"}},
		Source: &source.Source{Name: "source", GreenSchema: "source", ApplicationRole: "template_app", TemplateSchema: "first", ExcludeTables: []string{"scratch"}},
	}
	r := run(t, in)
	require.Equal(t, "first", r.Template)
	require.Equal(t, []string{"third drift: the structure differs from first: table task: column name is missing"}, lines(r, blocker))
	require.Empty(t, lines(r, warning), "what does not move is not complained about")
	require.Len(t, r.Estimates, 2)
	require.NotNil(t, r.Conversion)

	catalogtest.Exec(t, conn, `DROP SCHEMA first CASCADE`)
	r = run(t, in)
	require.Equal(t, []string{"template_missing: there is no schema first any more, which green's tables were made from"}, lines(r, blocker))
	require.Len(t, r.Estimates, 2)
}

// Green is looked at too: what the tables use and the conversion does not make.
func TestGreenLacks(t *testing.T) {
	conn := catalogtest.Blue(t, `CREATE EXTENSION btree_gist; CREATE EXTENSION pg_trgm; CREATE EXTENSION hstore; CREATE COLLATION public.nice (provider = icu, locale = 'de');
		CREATE FUNCTION public.code() RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$;
		CREATE SCHEMA a CREATE TABLE t (id bigserial PRIMARY KEY, name text COLLATE public.nice, code text DEFAULT public.code(), h public.hstore, r int, d daterange,
			EXCLUDE USING gist (r WITH =, d WITH &&)) CREATE INDEX ON t USING gin (name public.gin_trgm_ops)`)
	home(t, conn, "source")
	in := preflight.Input{
		Blue: conn, Green: catalogtest.Connect(t, catalogtest.DSN(t)), Tenants: []source.Tenant{{Schema: "a", Name: "A"}},
		Source: &source.Source{Name: "source", GreenSchema: "source", ApplicationRole: "nobody_here"},
	}
	r := run(t, in)
	require.ElementsMatch(t, []string{
		"application_role: there is no role nobody_here, which the source names as the application's",
		"home_missing: green does not have the schema coditect, which holds the fence and the gate",
		"extension_missing: table t needs extension btree_gist, which green does not have",
		"missing_on_green: table t uses public.code, which green does not have",
		"missing_on_green: table t uses public.gin_trgm_ops, which green does not have",
		"missing_on_green: table t uses public.hstore, which green does not have",
		"missing_on_green: table t uses public.nice, which green does not have",
	}, lines(r, blocker))
	require.Len(t, lines(r, preflight.Unknown), 1, "what was converted before is not known without the control tables")

	in.Green = nil
	require.Contains(t, lines(run(t, in), preflight.Unknown)[0], "could not check green")
}

// Our own blue schemas, and hundreds of them.
func TestOwn(t *testing.T) {
	conn := catalogtest.Blue(t, "")
	home(t, conn, "blue")
	n := 300
	if testing.Short() {
		n = 20
	}
	var tenants []source.Tenant
	for i := range n {
		id := tenant.NewID()
		name, err := schema.CreateBlueTenant(t.Context(), conn, id, 1)
		require.NoError(t, err)
		tenants = append(tenants, source.Tenant{ID: id.String(), Schema: name, Name: fmt.Sprintf("tenant %d", i)})
	}
	catalogtest.Exec(t, conn, `GRANT ALL ON SCHEMA public TO PUBLIC`)
	dsn := catalogtest.Green(t)
	in := preflight.Input{
		Blue:        catalogtest.Connect(t, catalogtest.As(conn.Config().ConnString(), "coditect_migrator")),
		Green:       catalogtest.Connect(t, catalogtest.As(dsn, "coditect_migrator")),
		GreenSchema: "app", Tenants: tenants, MaxPause: time.Second,
	}
	start := time.Now()
	r := run(t, in)
	took := time.Since(start)
	t.Logf("%d schemas of %d tables: %v", n, len(r.Layout.Tables), took)
	require.Empty(t, r.Findings)
	require.NotEmpty(t, r.Layout.Tables)
	for _, table := range r.Layout.Tables {
		require.True(t, table.HasTenantColumn)
		require.True(t, table.Binary, table.Name)
	}
	require.Less(t, took, 20*time.Second)
}
