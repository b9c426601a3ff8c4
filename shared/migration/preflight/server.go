package preflight

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/migration/catalog"
)

const minVersion = 150000

var errNoDatabase = errors.New("no connection was given")

func one[T any](ctx context.Context, db Database, sql string, args ...any) (T, error) {
	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		var zero T
		return zero, err
	}
	return pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[T])
}

func many[T any](ctx context.Context, db Database, sql string, args ...any) ([]T, error) {
	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[T])
}

// server checks what both servers need.
func (c *checker) server(ctx context.Context, which string, db Database) {
	if db == nil {
		c.unknown(which, "give its address", errNoDatabase)
		return
	}
	type facts struct {
		Version int
		Home    bool
		Role    string
		Bypass  bool
	}
	f, err := one[facts](ctx, db, `SELECT current_setting('server_version_num')::int, to_regclass('coditect.gate') IS NOT NULL,
		rolname::text, rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user`)
	if err != nil {
		c.unknown(which, "make it reachable for this role", err)
		return
	}
	if f.Version < minVersion {
		c.overall("server_version", Blocker, "", "upgrade it", "%s is PostgreSQL %d, 15 or later is needed", which, f.Version/10000)
	}
	if !f.Home {
		c.overall("home_missing", Blocker, "", "coditectl schema apply", "%s does not have the schema coditect, which holds the fence and the gate", which)
	}
	if !f.Bypass {
		c.overall("role_under_rls", Blocker, "", "ALTER ROLE "+f.Role+" BYPASSRLS", "role %s on %s is held back by row-level security: it would read a part of the rows, and COPY refuses it", f.Role, which)
	}
}

// databases compares what the two databases do to text.
func (c *checker) databases(ctx context.Context) {
	type facts struct{ Encoding, Collate, Ctype string }
	const sql = `SELECT pg_encoding_to_char(encoding)::text, datcollate::text, datctype::text FROM pg_database WHERE datname = current_database()`
	if c.in.Green == nil {
		return
	}
	blue, err := one[facts](ctx, c.in.Blue, sql)
	if err != nil {
		c.unknown("blue's encoding", "make it reachable for this role", err)
		return
	}
	green, err := one[facts](ctx, c.in.Green, sql)
	if err != nil {
		c.unknown("green's encoding", "make it reachable for this role", err)
		return
	}
	// The verification hashes texts as the server stores them: the same text in two encodings has two hashes.
	if blue.Encoding != green.Encoding {
		c.overall("encoding", Blocker, "", "dump blue's database, restore it into one with encoding "+green.Encoding+" (CREATE DATABASE … ENCODING), and move the tenants from there",
			"blue has encoding %s, green %s: the copies could not be verified", blue.Encoding, green.Encoding)
	}
	if blue.Collate != green.Collate || blue.Ctype != green.Ctype {
		c.overall("collation", Warning, "", "make green's database with the same LC_COLLATE and LC_CTYPE if the order matters",
			"texts sort by %s on blue and by %s on green", blue.Collate, green.Collate)
	}
}

// blueRights checks what this role may do with every table of the tenants' schemas:
// those that stay behind are fenced like the others.
func (c *checker) blueRights(ctx context.Context) {
	type right struct {
		Schema, Table, Owner, Role         string
		MayUse, MayFence, Super, HidesRows bool
	}
	rights, err := many[right](ctx, c.in.Blue, `SELECT n.nspname::text, c.relname::text, pg_get_userbyid(c.relowner)::text, current_user::text,
			has_schema_privilege(n.oid, 'USAGE'), pg_has_role(c.relowner, 'USAGE'), o.rolsuper, row_security_active(c.oid)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_roles o ON o.oid = c.relowner
		WHERE n.nspname = ANY ($1) AND c.relkind IN ('r', 'p') ORDER BY 1, 2`, c.schemas())
	if err != nil {
		c.unknown("the mover's rights on blue", "make blue reachable for this role", err)
		return
	}
	told := map[[3]string]bool{}
	once := func(schema, code, owner string) bool {
		k := [3]string{schema, code, owner}
		defer func() { told[k] = true }()
		return !told[k]
	}
	for _, r := range rights {
		s := c.blue.Schemas[r.Schema]
		if s == nil {
			continue
		}
		if !r.MayUse && once(r.Schema, "schema_right", "") {
			c.of(r.Schema, "schema_right", Blocker, "", "GRANT USAGE ON SCHEMA … TO "+r.Role, "role %s may not use the schema", r.Role)
		}
		// Only an owner may switch a trigger, which is what the fence does.
		if !r.MayFence && once(r.Schema, "table_right", r.Owner) {
			action := "GRANT " + catalog.Quote(r.Owner) + " TO " + catalog.Quote(r.Role)
			if r.Super {
				action = "give the tables to a role that is no superuser (ALTER TABLE … OWNER TO), and make " + r.Role + " a member of it"
			}
			c.of(r.Schema, "table_right", Blocker, "", action, "role %s may not fence tables of role %s", r.Role, r.Owner)
		}
		if r.HidesRows && s.Table(r.Table) != nil { // nobody reads an excluded table
			c.of(r.Schema, "rls_hides_rows", Blocker, r.Table, "ALTER ROLE "+r.Role+" BYPASSRLS", "table %s: row-level security hides rows from role %s", r.Table, r.Role)
		}
	}
}

// subscriptions looks for tables that another server writes to: the worker that applies
// its changes fires no statement triggers, so the fence does not stop it.
func (c *checker) subscriptions(ctx context.Context) {
	type fed struct{ Schema, Table string }
	tables, err := many[fed](ctx, c.in.Blue, `SELECT DISTINCT n.nspname::text, c.relname::text
		FROM pg_subscription_rel s JOIN pg_class c ON c.oid = s.srrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = ANY ($1)`, c.schemas())
	if err != nil {
		c.unknown("subscriptions on blue", "make pg_subscription_rel readable", err)
		return
	}
	for _, f := range tables {
		if s := c.blue.Schemas[f.Schema]; s == nil || s.Table(f.Table) == nil {
			continue // excluded: its rows stay
		}
		c.of(f.Schema, "subscription", Blocker, f.Table,
			"take the table out of the publication (ALTER PUBLICATION … DROP TABLE) and ALTER SUBSCRIPTION … REFRESH PUBLICATION, or DROP SUBSCRIPTION",
			"table %s is fed by a logical-replication subscription, which writes past the fence", f.Table)
	}
}

func (c *checker) schemas() []string {
	out := make([]string, 0, len(c.blue.Schemas))
	for n := range c.blue.Schemas {
		out = append(out, n)
	}
	return out
}

// application checks whether the old application could get past the fence.
func (c *checker) application(ctx context.Context) {
	if c.in.Source == nil {
		return // our own functions use coditect_app, which infra/schema makes
	}
	role := c.in.Source.ApplicationRole
	if role == "" {
		c.overall("application_role", Unknown, "", "name the role that the old application uses in application_role",
			"could not check whether the application could switch the fence off: the source does not name its role")
		return
	}
	type facts struct{ Super bool }
	found, err := many[facts](ctx, c.in.Blue, `SELECT rolsuper FROM pg_roles WHERE rolname = $1`, role)
	if err != nil {
		c.unknown("the application's role", "make pg_roles readable", err)
		return
	}
	switch {
	case len(found) == 0:
		c.overall("application_role", Blocker, "", "correct application_role", "there is no role %s, which the source names as the application's", role)
		return
	case found[0].Super:
		c.overall("application_superuser", Blocker, "", "let the application use a role that is no superuser", "the application's role %s is a superuser and could switch the fence off", role)
		return
	}
	type owner struct{ Schema, Owner string }
	owners, err := many[owner](ctx, c.in.Blue, `SELECT DISTINCT n.nspname::text, pg_get_userbyid(c.relowner)::text
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = ANY ($1) AND c.relkind IN ('r', 'p') AND pg_has_role($2, c.relowner, 'MEMBER')`, c.schemas(), role)
	if err != nil {
		c.unknown("who owns the tables", "make pg_class readable", err)
		return
	}
	for _, o := range owners {
		c.of(o.Schema, "application_owns_tables", Warning, "", "give the tables to another role, and the application only SELECT, INSERT, UPDATE and DELETE",
			"the application's role %s acts as %s, which owns tables: it could switch the fence off (ALTER TABLE … DISABLE TRIGGER)", role, o.Owner)
	}
}

// guards checks what keeps blue as it is while a tenant moves.
func (c *checker) guards(ctx context.Context) {
	type facts struct{ Guards, Prepared int }
	f, err := one[facts](ctx, c.in.Blue, `SELECT
		(SELECT count(*)::int FROM pg_event_trigger WHERE evtname IN ('coditect_guard_ddl', 'coditect_guard_drop') AND evtenabled IN ('O', 'A')),
		(SELECT count(*)::int FROM pg_prepared_xacts WHERE database = current_database())`)
	if err != nil {
		c.unknown("event triggers and prepared transactions on blue", "make pg_event_trigger and pg_prepared_xacts readable", err)
		return
	}
	if f.Guards < 2 {
		c.overall("no_ddl_guard", Warning, "", "apply the schema as a superuser, or change no table while its tenant moves",
			"no event trigger keeps tables of moving tenants from being changed: making one takes a superuser")
	}
	if f.Prepared > 0 {
		c.overall("prepared_transactions", Warning, "", "COMMIT PREPARED or ROLLBACK PREPARED what pg_prepared_xacts lists",
			"%d prepared transactions are open: a tenant they wrote to cannot be fenced", f.Prepared)
	}
}
