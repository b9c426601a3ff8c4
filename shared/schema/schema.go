// Package schema applies the SQL of infra/schema: control and home tables once per
// database, tenant tables once in green and once per blue schema.
//
// Everything may be applied again at any time: what is there already is left
// alone, and what a crash cut short is taken up where it stopped, because each
// file, and in blue each schema, is one transaction together with its version.
package schema

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
	"golang.org/x/sync/errgroup"

	files "github.com/coditect/platform/infra/schema"
	"github.com/coditect/platform/shared/tenant"
)

// GreenSchema is the schema of our own shared tables in the green database.
const GreenSchema = "app"

// Roles, apart on purpose: the application may neither change tables (an owner
// could switch the fence off) nor see past row-level security; the migrator sees
// past it and may act as the owner; the read-only role is for people.
const rolesSQL = `
DO $$
DECLARE
    r text[];
BEGIN
    -- Two databases of one server may be set up at the same moment.
    PERFORM pg_advisory_xact_lock(hashtextextended('coditect roles', 0));
    FOREACH r SLICE 1 IN ARRAY ARRAY[
        ['coditect_owner', 'LOGIN NOBYPASSRLS'],
        ['coditect_app', 'LOGIN NOBYPASSRLS'],
        ['coditect_readonly', 'LOGIN NOBYPASSRLS'],
        ['coditect_migrator', 'LOGIN BYPASSRLS']]
    LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = r[1]) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I %s', r[1], r[2]);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
            END;
        END IF;
    END LOOP;
    IF NOT pg_has_role('coditect_migrator', 'coditect_owner', 'MEMBER') THEN
        GRANT coditect_owner TO coditect_migrator;
    END IF;
    -- Unqualified names must fail until a tenant is entered, and a frozen instance must not keep its locks.
    ALTER ROLE coditect_app SET search_path = '';
    ALTER ROLE coditect_app SET idle_in_transaction_session_timeout = '15s';
    -- A mover whose machine has vanished must not hold its locks for hours.
    ALTER ROLE coditect_migrator SET tcp_keepalives_idle = 10;
    ALTER ROLE coditect_migrator SET tcp_keepalives_interval = 5;
    ALTER ROLE coditect_migrator SET tcp_keepalives_count = 3;
    ALTER ROLE coditect_readonly SET search_path = '';
    ALTER ROLE coditect_readonly SET default_transaction_read_only = on;
END $$`

// Database says which database a home is.
type Database struct {
	DSN  string      // of a role that may create roles, schemas and, if event triggers are wanted, of a superuser
	Name string      // as the directory names it: "green", "blue", or a source's name
	Kind tenant.Home // Blue also for foreign sources
}

// Result says what was done, for the operator to read.
type Result struct {
	Applied []string // versions applied now, "home/1", "control/2"; empty when there was nothing to do
	Notes   []string // what could not be done, and what follows
	Citus   bool     // the server has the Citus extension in use
}

// ApplyGreen brings the green database up to date: roles, home, control and the
// shared tenant tables, which are distributed by tenant_id where the server has Citus.
func ApplyGreen(ctx context.Context, dsn string) (Result, error) {
	res, err := ApplyHome(ctx, Database{DSN: dsn, Name: "green", Kind: tenant.Green})
	if err != nil {
		return res, err
	}
	if err := applyFiles(ctx, dsn, "control", files.Control, nil, &res); err != nil {
		return res, err
	}
	prep := fmt.Sprintf(`CREATE SCHEMA IF NOT EXISTS %[1]s AUTHORIZATION coditect_owner;
		GRANT USAGE ON SCHEMA %[1]s TO coditect_app, coditect_migrator, coditect_readonly`, GreenSchema)
	if err := exec(ctx, dsn, prep); err != nil {
		return res, err
	}
	params := map[string]string{"search_path": GreenSchema}
	if res.Citus {
		// Foreign keys are added in the transaction that distributes their tables.
		params["citus.multi_shard_modify_mode"] = "sequential"
	}
	if err := applyFiles(ctx, dsn, "tenant", files.Tenant, params, &res); err != nil {
		return res, err
	}
	if err := exec(ctx, dsn, ownSQL(GreenSchema)); err != nil {
		return res, err
	}
	if err := exec(ctx, dsn, guardSQL); err != nil {
		return res, fmt.Errorf("schema: triggers of the way back: %w", err)
	}
	return res, nil
}

// guardSQL puts the triggers of the way back on tenant tables that were made without them.
const guardSQL = `SELECT coditect.guard_table(format('%I.%I', n.nspname, c.relname)) FROM control.source s JOIN pg_namespace n ON n.nspname = s.green_schema
	JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind = 'r'
	JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped
	WHERE NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND tgname = 'coditect_written') ORDER BY c.oid`

// ownSQL makes coditect_owner the owner of every table of a schema.
func ownSQL(schema string) string {
	return `DO $$
DECLARE t record;
BEGIN
    FOR t IN SELECT c.oid::regclass AS rel FROM pg_class c
        WHERE c.relnamespace = ` + quoteLiteral(schema) + `::regnamespace AND c.relkind IN ('r', 'p')
          AND c.relowner <> 'coditect_owner'::regrole
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO coditect_owner', t.rel);
    END LOOP;
END $$`
}

func quoteLiteral(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// ApplyHome brings the roles and the schema coditect of one database up to date.
// A blue database also learns the tenant tables' SQL, so that it can make
// tenants by itself.
func ApplyHome(ctx context.Context, db Database) (Result, error) {
	var res Result
	if err := exec(ctx, db.DSN, rolesSQL); err != nil {
		return res, fmt.Errorf("schema: roles of %s: %w", db.Name, err)
	}
	if err := applyFiles(ctx, db.DSN, "home", files.Home, nil, &res); err != nil {
		return res, err
	}
	conn, err := pgx.Connect(ctx, db.DSN)
	if err != nil {
		return res, fmt.Errorf("schema: connect to %s: %w", db.Name, err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, `INSERT INTO coditect.database (name, kind) VALUES ($1, $2)
		ON CONFLICT (only_row) DO UPDATE SET name = excluded.name, kind = excluded.kind
		WHERE (database.name, database.kind) IS DISTINCT FROM (excluded.name, excluded.kind)`, db.Name, string(db.Kind)); err != nil {
		return res, fmt.Errorf("schema: name %s: %w", db.Name, err)
	}
	if err := conn.QueryRow(ctx, `SELECT coditect.has_citus()`).Scan(&res.Citus); err != nil {
		return res, err
	}
	if db.Kind == tenant.Green {
		return res, prepareGreen(ctx, conn, res.Citus)
	}
	if err := guardDDL(ctx, conn, &res); err != nil {
		return res, err
	}
	if err := allowReplication(ctx, conn, &res); err != nil {
		return res, err
	}
	// On the way back blue is written by the mover, and its triggers and keys stay out of it.
	switch _, err := conn.Exec(ctx, copySQL); {
	case isInsufficientPrivilege(err):
		res.Notes = append(res.Notes, "no tenant can go back here from green, because this role is no superuser: let one execute "+copySQL)
	case err != nil:
		return res, fmt.Errorf("schema: the migrator's right to copy: %w", err)
	}
	return res, learnTenantVersions(ctx, conn)
}

const copySQL = `GRANT SET ON PARAMETER session_replication_role TO coditect_migrator`

// prepareGreen gives the migrator what copying needs, makes the table that every
// distributed table is colocated with, and puts what triggers read beside the rows.
func prepareGreen(ctx context.Context, conn *pgx.Conn, citus bool) error {
	// The mover switches foreign keys off while it copies rows that were checked where they come from.
	if _, err := conn.Exec(ctx, copySQL); err != nil {
		return fmt.Errorf("schema: the migrator's right to copy: %w", err)
	}
	if !citus {
		return nil
	}
	_, err := conn.Exec(ctx, `DO $$
BEGIN
    IF to_regclass('coditect.tenant_anchor') IS NULL THEN
        CREATE TABLE coditect.tenant_anchor (tenant_id uuid PRIMARY KEY);
        PERFORM create_distributed_table('coditect.tenant_anchor', 'tenant_id', colocate_with => 'none');
    END IF;
    IF NOT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = 'coditect.captured'::regclass) THEN
        PERFORM create_distributed_table('coditect.write_gate', 'tenant_id', colocate_with => 'coditect.tenant_anchor');
        PERFORM create_distributed_table('coditect.captured', 'tenant_id', colocate_with => 'coditect.tenant_anchor');
    END IF;
END $$`)
	if err != nil {
		return fmt.Errorf("schema: colocation anchor: %w", err)
	}
	// Rights on parameters are not distributed by themselves; a worker that is added later gets them when this is applied again.
	var failed int
	if err := conn.QueryRow(ctx, `SELECT count(*) FROM run_command_on_workers('GRANT SET ON PARAMETER session_replication_role TO coditect_migrator') WHERE NOT success`).
		Scan(&failed); err != nil {
		return fmt.Errorf("schema: the migrator's right to copy, on workers: %w", err)
	}
	if failed > 0 {
		return fmt.Errorf("schema: the migrator's right to copy could not be given on %d workers", failed)
	}
	// Row-level security reaches the shards by a SET LOCAL that rides on the worker's BEGIN, and only for roles that
	// propagate it. The migrator's session_replication_role must reach them too.
	for _, role := range []string{"coditect_app", "coditect_readonly", "coditect_migrator"} {
		if _, err := conn.Exec(ctx, `ALTER ROLE `+role+` SET citus.propagate_set_commands = 'local'`); err != nil {
			return fmt.Errorf("schema: %s: %w", role, err)
		}
	}
	return nil
}

// guardDDL makes the event triggers that stop DDL on a moving schema. They need a superuser.
func guardDDL(ctx context.Context, conn *pgx.Conn, res *Result) error {
	_, err := conn.Exec(ctx, `DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'coditect_guard_ddl') THEN
        CREATE EVENT TRIGGER coditect_guard_ddl ON ddl_command_end EXECUTE FUNCTION coditect.guard_ddl();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'coditect_guard_drop') THEN
        CREATE EVENT TRIGGER coditect_guard_drop ON sql_drop EXECUTE FUNCTION coditect.guard_drop();
    END IF;
END $$`)
	if isInsufficientPrivilege(err) {
		res.Notes = append(res.Notes, "no event trigger guards the schemas of moving tenants, because this role is no superuser: change no schema while its tenant moves")
		return nil
	}
	return err
}

// allowReplication lets the migrator read a blue database's changes. It needs a superuser.
func allowReplication(ctx context.Context, conn *pgx.Conn, res *Result) error {
	var allowed bool
	if err := conn.QueryRow(ctx, `SELECT rolreplication FROM pg_roles WHERE rolname = 'coditect_migrator'`).Scan(&allowed); err != nil || allowed {
		return err
	}
	// And see how busy the database is.
	_, err := conn.Exec(ctx, `ALTER ROLE coditect_migrator REPLICATION; GRANT pg_read_all_stats TO coditect_migrator`)
	if isInsufficientPrivilege(err) {
		res.Notes = append(res.Notes, "the role coditect_migrator may not replicate, because this role is no superuser: run ALTER ROLE coditect_migrator REPLICATION as one; until then tenants too large to be copied in one step are copied while they cannot be written")
		return nil
	}
	return err
}

// learnTenantVersions stores the tenant tables' SQL in a blue database.
func learnTenantVersions(ctx context.Context, conn *pgx.Conn) error {
	versions, err := tenantVersions()
	if err != nil {
		return err
	}
	b := &pgx.Batch{}
	for _, v := range versions {
		b.Queue(`INSERT INTO coditect.tenant_version (version, name, body) VALUES ($1, $2, $3) ON CONFLICT (version) DO NOTHING`, v.number, v.name, v.body)
	}
	return conn.SendBatch(ctx, b).Close()
}

type version struct {
	number int64
	name   string
	body   string
}

var fileName = regexp.MustCompile(`^tenant/(\d+)_\w+\.sql$`)

// tenantVersions lists the tenant files in order.
func tenantVersions() ([]version, error) {
	names, err := fs.Glob(files.Tenant, "tenant/*.sql") // sorted
	if err != nil {
		return nil, err
	}
	var out []version
	for _, n := range names {
		m := fileName.FindStringSubmatch(n)
		if m == nil {
			return nil, fmt.Errorf("schema: %s: the name must be NUMBER_WORDS.sql", n)
		}
		number, err := strconv.ParseInt(m[1], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("schema: %s: %w", n, err)
		}
		body, err := files.Tenant.ReadFile(n)
		if err != nil {
			return nil, err
		}
		out = append(out, version{number, n, string(body)})
	}
	return out, nil
}

// Progress is called as schemas are finished; total is how many needed work.
type Progress func(done, total int)

// UpgradeBlue brings every blue schema to the newest version, parallel at a time,
// and returns how many were changed. It is one query when there is nothing to do.
// A schema that fails, or whose tenant moves at the moment, does not stop the
// others: the errors are joined, each naming its schema, and the next call
// takes up what is left.
func UpgradeBlue(ctx context.Context, pool *pgxpool.Pool, parallel int, progress Progress) (int, error) {
	// The database knows the versions: ApplyHome has taught it those of this program, and a newer program may have taught it more.
	rows, err := pool.Query(ctx, `SELECT s.tenant_id, s.schema_name, v.version FROM (SELECT max(version) AS version FROM coditect.tenant_version) v
		JOIN coditect.tenant_schema s ON s.version < v.version
		WHERE NOT EXISTS (SELECT FROM coditect.gate g WHERE g.tenant_id = s.tenant_id AND g.closed) ORDER BY s.tenant_id`)
	if err != nil {
		return 0, fmt.Errorf("schema: list blue schemas: %w", err)
	}
	type todo struct {
		ID     tenant.ID
		Schema string
		Target int64
	}
	work, err := pgx.CollectRows(rows, pgx.RowToStructByPos[todo])
	if err != nil {
		return 0, fmt.Errorf("schema: list blue schemas: %w", err)
	}
	var done, changed atomic.Int64
	errs := make([]error, len(work))
	g := errgroup.Group{}
	g.SetLimit(parallel)
	for i, w := range work {
		g.Go(func() error {
			var did bool
			if err := pool.QueryRow(ctx, `SELECT coditect.upgrade_tenant($1, $2)`, w.ID, w.Target).Scan(&did); err != nil {
				errs[i] = fmt.Errorf("schema %s: %w", w.Schema, err)
			} else if did {
				changed.Add(1)
			}
			n := done.Add(1)
			if progress != nil {
				progress(int(n), len(work))
			}
			return nil
		})
	}
	_ = g.Wait() // the functions return nil; their errors are in errs
	return int(changed.Load()), errors.Join(errs...)
}

// Querier is a connection, a pool or a transaction.
type Querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// CreateBlueTenant makes the schema, the tables and the gate of one blue tenant in
// one round trip and returns the schema's name. Calling it again changes nothing.
func CreateBlueTenant(ctx context.Context, q Querier, id tenant.ID, epoch int64) (string, error) {
	var schema string
	err := q.QueryRow(ctx, `SELECT coditect.create_tenant($1, $2)`, id, epoch).Scan(&schema)
	if err != nil {
		return "", fmt.Errorf("schema: create tenant %s: %w", id, err)
	}
	return schema, nil
}

// applyFiles runs one folder of files with goose; params are settings of the
// session that runs them.
func applyFiles(ctx context.Context, dsn, part string, fsys fs.FS, params map[string]string, res *Result) error {
	sub, err := fs.Sub(fsys, part)
	if err != nil {
		return err
	}
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return fmt.Errorf("schema: %s: %w", part, err)
	}
	for k, v := range params {
		cfg.RuntimeParams[k] = v
	}
	db := stdlib.OpenDB(*cfg)
	defer func() { _ = db.Close() }()
	p, err := provider(db, sub, part)
	if err != nil {
		return fmt.Errorf("schema: %s: %w", part, err)
	}
	done, err := p.Up(ctx)
	for _, d := range done {
		res.Applied = append(res.Applied, fmt.Sprintf("%s/%d", part, d.Source.Version))
	}
	if err != nil {
		return fmt.Errorf("schema: apply %s: %w", part, err)
	}
	return nil
}

func provider(db *sql.DB, fsys fs.FS, part string) (*goose.Provider, error) {
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return nil, err
	}
	return goose.NewProvider(goose.DialectPostgres, db, fsys,
		goose.WithTableName("public.coditect_version_"+part), goose.WithSessionLocker(locker), goose.WithDisableGlobalRegistry(true))
}

func exec(ctx context.Context, dsn, sql string) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol)
	return err
}

func isInsufficientPrivilege(err error) bool {
	var sqlState interface{ SQLState() string }
	return errors.As(err, &sqlState) && sqlState.SQLState() == "42501"
}
