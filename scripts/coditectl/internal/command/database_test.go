package command_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/schema"
	tenants "github.com/coditect/platform/shared/tenant"
)

func connect(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close(context.Background())) })
	return conn
}

func execute(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	_, err := conn.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol)
	require.NoError(t, err, sql)
}

func TestSchemaApply(t *testing.T) {
	env := map[string]string{"CODITECT_GREEN_DSN": citustest.EmptyDatabase(t), "CODITECT_BLUE_DSN": citustest.EmptyDatabase(t)}
	r := call(t, env, "schema", "apply")
	require.Equal(t, 0, r.code, r.err)
	require.Regexp(t, `^Green \(plain PostgreSQL\): applied home/1, .*control/1.* and tenant/\d+\nBlue \(plain PostgreSQL\): applied home/1.*\nTenants' schemas in blue: 0 changed\n$`, r.out)

	// A tenant's schema that is behind, and one that cannot be brought up to date.
	blue := connect(t, env["CODITECT_BLUE_DSN"])
	behind, broken := tenants.NewID(), tenants.NewID()
	name, err := schema.CreateBlueTenant(t.Context(), blue, behind, 1)
	require.NoError(t, err)
	execute(t, blue, `DROP SCHEMA "`+name+`" CASCADE; CREATE SCHEMA "`+name+`" AUTHORIZATION coditect_owner; UPDATE coditect.tenant_schema SET version = 0`)
	r = call(t, env, "schema", "apply", "--json", "--parallel", "2")
	require.Equal(t, 0, r.code, r.err)
	require.Contains(t, r.err, "1 of 1  tenants' schemas in blue\n")
	var applied struct {
		Green, Blue struct{ Applied, Notes []string }
		Upgraded    int
	}
	require.NoError(t, json.Unmarshal([]byte(r.out), &applied))
	require.Equal(t, 1, applied.Upgraded)
	require.Empty(t, applied.Green.Applied)

	other, err := schema.CreateBlueTenant(t.Context(), blue, broken, 1)
	require.NoError(t, err)
	execute(t, blue, `UPDATE coditect.tenant_schema SET version = 0 WHERE schema_name = '`+other+`'`)
	r = call(t, env, "schema", "apply")
	require.Equal(t, 1, r.code)
	require.Empty(t, r.out)
	require.Contains(t, r.err, "error: schema "+other+":")

	delete(env, "CODITECT_BLUE_DSN")
	r = call(t, env, "schema", "apply")
	require.Equal(t, result{out: "Green (plain PostgreSQL): up to date\n"}, r.printed())
}

// printed is what a call wrote to standard output, and its exit code.
func (r result) printed() result { return result{code: r.code, out: r.out} }

func TestKeys(t *testing.T) {
	db := citustest.New(t)
	home := db.NewTenant(t, tenants.Green)
	env := map[string]string{"CODITECT_GREEN_DSN": db.GreenAdmin}
	require.Equal(t, result{out: "There is no key.\n"}, call(t, env, "keys", "list").printed())

	// The key alone is on standard output, and works.
	r := call(t, env, "keys", "create", "--operator", "--scope", "migrations:read,migrations:write", "--scope", "tenants:read")
	require.Equal(t, 0, r.code, r.err)
	who, err := auth.NewKeys(db.Databases).Authenticate(t.Context(), strings.TrimSuffix(r.out, "\n"))
	require.NoError(t, err)
	require.True(t, who.IsOperator())
	require.Equal(t, []string{auth.MigrationsRead, auth.MigrationsWrite, auth.TenantsRead}, who.Scopes)
	require.NotContains(t, r.err, strings.TrimSpace(r.out))

	// The clock of the test is not that of the key's check: an end far away.
	r = call(t, env, "keys", "create", "--tenant", home.String(), "--scope", auth.ProjectsRead, "--expires", "9999d", "--name", "ci", "--json")
	require.Equal(t, 0, r.code, r.err)
	var made struct {
		Key, ID, Tenant, Name string
		Expires               time.Time `json:"expires_at"`
	}
	require.NoError(t, json.Unmarshal([]byte(r.out), &made))
	require.Equal(t, []string{home.String(), "ci"}, []string{made.Tenant, made.Name})
	require.True(t, made.Expires.Equal(now.AddDate(0, 0, 9999)))

	for args, want := range map[string]string{
		"--operator":             "error: --scope must be some of tenants:read,",
		"--operator --scope fly": "error: --scope must be one of tenants:read,",
		"--operator --scope tenants:read --expires 2020-01-01":            "error: --expires must be in the future",
		"--tenant " + home.String() + " --scope migrations:write":         "error: --scope must be one of tenants:read, tenants:write, projects:read, projects:write,",
		"--tenant " + tenants.NewID().String() + " --scope projects:read": "error: there is no such tenant",
	} {
		r = call(t, env, append([]string{"keys", "create"}, strings.Fields(args)...)...)
		require.Equal(t, 2, r.code, args)
		require.Contains(t, r.err, want)
		require.Empty(t, r.out)
	}

	r = call(t, env, "keys", "revoke", made.ID)
	require.Equal(t, result{out: "Key " + made.ID + " is revoked; functions that have seen it follow within 5s\n"}, r.printed())
	r = call(t, env, "keys", "revoke", tenants.NewID().String())
	require.Equal(t, result{1, "", "error: there is no such key\n"}, r)

	r = call(t, env, "keys", "list")
	require.Regexp(t, `(?m)^KEY +WHOSE +STATE +LAST USED +SCOPES +NAME$`, r.out)
	require.Regexp(t, `(?m) operator +expires never +used 20.* migrations:read migrations:write tenants:read +coditectl$`, r.out)
	require.Regexp(t, `(?m)^`+made.ID+` +tenant `+home.String()+` +revoked 20.* UTC +used never +projects:read +ci$`, r.out)
	r = call(t, env, "keys", "list", "--json", "--tenant", home.String())
	var list struct{ Items []auth.Key }
	require.NoError(t, json.Unmarshal([]byte(r.out), &list))
	require.Len(t, list.Items, 1)
}

const sourceFile = `
name: shop
database: SHOP_DSN
tenant_table: public.customer
schema_column: schema_name
name_column: name
application_role: shop_app
`

// shop is a small foreign database: two tenants, a schema each.
const shop = `
DO $$ BEGIN
	PERFORM pg_advisory_xact_lock(4712);
	IF to_regrole('shop_app') IS NULL THEN CREATE ROLE shop_app LOGIN; END IF;
END $$;
CREATE TABLE public.customer (id serial PRIMARY KEY, schema_name text NOT NULL, name text NOT NULL);
INSERT INTO public.customer (schema_name, name) VALUES ('alpha', 'Alpha Ltd'), ('beta', 'Beta Ltd');
CREATE SCHEMA alpha; CREATE TABLE alpha.item (id serial PRIMARY KEY, title text NOT NULL UNIQUE);
CREATE SCHEMA beta; CREATE TABLE beta.item (id serial PRIMARY KEY, title text NOT NULL UNIQUE);
INSERT INTO alpha.item (title) VALUES ('a'); INSERT INTO beta.item (title) VALUES ('a');
`

func TestSource(t *testing.T) {
	db := citustest.New(t)
	foreign := citustest.EmptyDatabase(t)
	execute(t, connect(t, foreign), shop)
	file := filepath.Join(t.TempDir(), "shop.yaml")
	require.NoError(t, os.WriteFile(file, []byte(sourceFile), 0o600))
	env := map[string]string{"CODITECT_GREEN_DSN": db.GreenAdmin}

	r := call(t, env, "source", "review", file)
	require.Equal(t, 2, r.code)
	require.Contains(t, r.err, "SHOP_DSN")
	env["SHOP_DSN"] = foreign

	// What is reviewed is SQL, and nothing is changed.
	r = call(t, env, "source", "review", file)
	require.Equal(t, 0, r.code, r.err)
	require.Regexp(t, `(?s)^-- Source shop: 2 tenants, structure of schema (alpha|beta)\n.*CREATE TABLE "shop"."item" .*"tenant_id" uuid NOT NULL.*UNIQUE \("tenant_id", title\);\n$`, r.out)
	var made bool
	require.NoError(t, db.Control.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'shop')`).Scan(&made))
	require.False(t, made)

	r = call(t, env, "source", "apply", file)
	require.Equal(t, 0, r.code, r.err)
	require.Regexp(t, `^Source shop: 2 tenants, structure of schema (alpha|beta), \d+ statements run on green\n`, r.out)
	require.Contains(t, r.out, "coditectl preflight --source shop\n")
	var entered int
	require.NoError(t, db.Control.QueryRow(t.Context(), `SELECT count(*) FROM control.tenant WHERE source = 'shop' AND home = 'blue'`).Scan(&entered))
	require.Equal(t, 2, entered)

	// Again: nothing to do, and it is JSON that a program can read.
	r = call(t, env, "source", "apply", "--json", file)
	require.Equal(t, 0, r.code, r.err)
	var again struct {
		Source  string
		Tenants int
		Applied int
		Notes   []struct{ Code, Message string }
		Remarks []string
	}
	require.NoError(t, json.Unmarshal([]byte(r.out), &again))
	require.Equal(t, []int{2, 0}, []int{again.Tenants, again.Applied})

	require.NoError(t, os.WriteFile(file, []byte(regexp.MustCompile(`name: shop`).ReplaceAllString(sourceFile, "nome: shop")), 0o600))
	r = call(t, env, "source", "review", file)
	require.Equal(t, 2, r.code)
	require.Contains(t, r.err, "error: nome is no field of a source; allowed are name, database,")
}
