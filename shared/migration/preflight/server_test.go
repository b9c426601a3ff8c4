package preflight_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/migration/catalog/catalogtest"
	"github.com/coditect/platform/shared/migration/preflight"
	"github.com/coditect/platform/shared/migration/source"
)

const oneTenant = `CREATE SCHEMA a CREATE TABLE task (id bigserial PRIMARY KEY, name text) CREATE TABLE scratch (x int);
	DO $$ BEGIN
		IF to_regrole('server_app') IS NULL THEN CREATE ROLE server_app LOGIN; END IF;
		IF to_regrole('server_mover') IS NULL THEN CREATE ROLE server_mover LOGIN BYPASSRLS; END IF;
	END $$;`

var fromA = &source.Source{Name: "source", GreenSchema: "source", ApplicationRole: "server_app", ExcludeTables: []string{"scratch"}}

// Texts of two encodings have different hashes, so a move between them could not be verified.
func TestEncoding(t *testing.T) {
	dsn := catalogtest.DSN(t)
	catalogtest.Exec(t, catalogtest.Connect(t, dsn), `CREATE DATABASE latin1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0`)
	name := strings.TrimPrefix(catalogtest.Connect(t, dsn).Config().Database, "/")
	conn := catalogtest.Connect(t, strings.Replace(dsn, name, "latin1", 1))
	catalogtest.Exec(t, conn, oneTenant)
	home(t, conn, "source")
	in := preflight.Input{Blue: conn, Green: catalogtest.Connect(t, catalogtest.Green(t)), Source: fromA, Tenants: []source.Tenant{{Schema: "a", Name: "A"}}}
	require.Equal(t, []string{"encoding: blue has encoding LATIN1, green UTF8: the copies could not be verified"}, lines(run(t, in), blocker))
}

// A subscription writes past the fence; that it feeds a table which stays behind does not matter.
func TestSubscription(t *testing.T) {
	conn := catalogtest.Blue(t, oneTenant)
	home(t, conn, "source")
	// The row alone: a subscription needs a publisher.
	catalogtest.Exec(t, conn, `INSERT INTO pg_subscription_rel VALUES (1, 'a.task'::regclass, 'r', NULL), (1, 'a.scratch'::regclass, 'r', NULL)`)
	in := preflight.Input{Blue: conn, Green: catalogtest.Connect(t, catalogtest.Green(t)), Source: fromA, Tenants: []source.Tenant{{Schema: "a", Name: "A"}}}
	require.Equal(t, []string{"a subscription: table task is fed by a logical-replication subscription, which writes past the fence"}, lines(run(t, in), blocker))
}

// The fence takes every table of the schema, so the mover must be able to act as the
// owner of an excluded one as well.
func TestRightsOnExcludedTables(t *testing.T) {
	conn := catalogtest.Blue(t, oneTenant+`ALTER TABLE a.task OWNER TO server_mover; GRANT USAGE ON SCHEMA a TO server_mover`)
	home(t, conn, "source")
	in := preflight.Input{
		Blue:  catalogtest.Connect(t, catalogtest.As(conn.Config().ConnString(), "server_mover")),
		Green: catalogtest.Connect(t, catalogtest.Green(t)), Source: fromA, Tenants: []source.Tenant{{Schema: "a", Name: "A"}},
	}
	require.Equal(t, []string{"a table_right: role server_mover may not fence tables of role postgres"}, lines(run(t, in), blocker))
	catalogtest.Exec(t, conn, `ALTER TABLE a.scratch OWNER TO server_mover`)
	require.Empty(t, lines(run(t, in), blocker))
}
