package source_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/catalog/catalogtest"
	"github.com/coditect/platform/shared/migration/source"
)

func TestMain(m *testing.M) { catalogtest.Main(m) }

const legacy = `
name: legacy
database: LEGACY_DSN
tenant_table: public.customers_client
schema_column: schema_name
name_column: name
id_column: id
exclude: [acme00007]
application_role: legacy_app
public_tables:
  auth_user: reference
  django_session: stay
`

func TestParse(t *testing.T) {
	s, err := source.Parse([]byte(legacy))
	require.NoError(t, err)
	require.Equal(t, "legacy", s.GreenSchema)
	require.Equal(t, source.Reference, s.PublicTables["auth_user"])
	dsn, err := s.DSN(func(k string) string { return "dsn of " + k })
	require.NoError(t, err)
	require.Equal(t, "dsn of LEGACY_DSN", dsn)
	_, err = s.DSN(func(string) string { return "" })
	require.ErrorContains(t, err, "LEGACY_DSN, which is not set")
}

// Every error names the field and what is allowed.
func TestParseNamesTheField(t *testing.T) {
	for text, want := range map[string]string{
		legacy + "tenant_tabel: x":                   "tenant_tabel is no field of a source; allowed are name, database, tenant_table, schema_column, name_column, id_column, exclude, exclude_tables, template_schema, application_role, public_tables, green_schema",
		"name: x":                                    "database must be given",
		legacy + "exclude_tables: 5":                 "exclude_tables must be a list of texts",
		legacy + "exclude_tables: [5]":               "exclude_tables must be a list of texts",
		"name: {a: b}":                               "name must be a text",
		legacy + "exclude_tables: ['']":              "exclude_tables[0] must not be empty",
		legacy + "green_schema: App":                 "green_schema must be 1 to 50 lower-case letters",
		legacy + "green_schema: app":                 "be none of public, app, control",
		legacy + "name: again":                       `not valid YAML: [13:1] mapping key "name" already defined at [2:1]`,
		legacy + "template_schema: acme00007":        "template_schema must not be one of exclude",
		"name: x\npublic_tables: {a: move}\n" + rest: "public_tables.a must be reference or stay: it is \"move\"",
		"name: [": "not valid YAML",
	} {
		_, err := source.Parse([]byte(text))
		require.Equal(t, fault.Invalid, fault.KindOf(err), text)
		require.ErrorContains(t, err, want)
	}
}

const rest = "database: D\ntenant_table: t\nschema_column: s\nname_column: n\n"

func TestTenants(t *testing.T) {
	conn := catalogtest.Legacy(t)
	s, err := source.Parse([]byte(legacy))
	require.NoError(t, err)
	tenants, err := s.Tenants(t.Context(), conn)
	require.NoError(t, err)
	require.Len(t, tenants, 19, "neither public nor the excluded one")
	require.Equal(t, source.Tenant{ID: "2", Schema: "acme00000", Name: "Acme00000"}, tenants[0])

	s.NameColumn = "nome"
	_, err = s.Tenants(t.Context(), conn)
	require.ErrorContains(t, err, `must be columns of public.customers_client: column "nome" does not exist`)
	s.TenantTable = `"no such"`
	_, err = s.Tenants(t.Context(), conn)
	require.ErrorContains(t, err, `tenant_table must be a table of the database: there is no "no such"`)

	catalogtest.Exec(t, conn, `CREATE TABLE "Ten ants" ("schema" text, title text); INSERT INTO "Ten ants" VALUES ('a', ''), ('we"ird Name', 'W')`)
	s.TenantTable, s.SchemaColumn, s.NameColumn, s.IDColumn = `"Ten ants"`, "schema", "title", ""
	tenants, err = s.Tenants(t.Context(), conn)
	require.NoError(t, err)
	require.Equal(t, []source.Tenant{{Schema: "a", Name: "a"}, {Schema: `we"ird Name`, Name: "W"}}, tenants)
	catalogtest.Exec(t, conn, `INSERT INTO "Ten ants" VALUES ('a', 'again')`)
	_, err = s.Tenants(t.Context(), conn)
	require.ErrorContains(t, err, `names "a" twice`)
}
