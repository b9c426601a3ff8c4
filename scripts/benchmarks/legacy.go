package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	osexec "os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/coditect/platform/shared/citus/localpg"
)

const (
	fixture  = "scripts/internal/demo/testdata/legacy-20.sql.gz"
	template = "acme00000" // the fixture's schema that is cloned: 16 tables, 400 tasks
)

// generate makes a foreign database of n tenants shaped like the fixture: its DDL word
// for word, its shared tables, its rows varied. The same tenants for the same seed.
func generate(ctx context.Context, b *bench, server *localpg.Server, database string, sizes []int) error {
	admin := server.DSN("postgres", "postgres")
	err := exec(ctx, admin, `DO $$ BEGIN
		IF to_regrole('legacy_owner') IS NULL THEN CREATE ROLE legacy_owner LOGIN; END IF;
		IF to_regrole('legacy_app') IS NULL THEN CREATE ROLE legacy_app LOGIN; END IF;
	END $$`, `CREATE DATABASE `+database+` OWNER legacy_owner`)
	if err != nil {
		return err
	}
	dsn := server.DSN(database, "legacy_owner")
	if err := exec(ctx, server.DSN(database, "postgres"), `ALTER SCHEMA public OWNER TO legacy_owner`); err != nil {
		return err
	}
	if err := restoreFixture(ctx, dsn); err != nil {
		return err
	}
	ddl, err := schemaOnly(ctx, dsn)
	if err != nil {
		return err
	}
	if err := exec(ctx, dsn, fillSQL); err != nil {
		return err
	}
	b.say("generating %d tenants in database %s …", len(sizes), database)
	if err := makeTenants(ctx, dsn, ddl, sizes); err != nil {
		return err
	}
	// The fixture's own tenants were only the pattern. A few schemas a transaction: each table is a lock.
	drop := []string{`DELETE FROM public.customers_domain`, `DELETE FROM public.customers_client WHERE schema_name LIKE 'acme%'`, `DROP FUNCTION public.bench_fill`}
	for i := range 20 {
		drop = append(drop, fmt.Sprintf(`DROP SCHEMA acme%05d CASCADE`, i))
	}
	if err := exec(ctx, dsn, append([]string{`SET client_min_messages = warning`}, drop...)...); err != nil {
		return err
	}
	// One command for all: vacuumdb sends one for each table, and at the end of each the server looks through all tables.
	return exec(ctx, server.DSN(database, "postgres"), `VACUUM (ANALYZE)`)
}

func tenantSchema(i int) string { return fmt.Sprintf("tenant%05d", i) }

func makeTenants(ctx context.Context, dsn, ddl string, sizes []int) error {
	const parallel = 2
	g, ctx := errgroup.WithContext(ctx)
	next := make(chan int)
	g.Go(func() error {
		defer close(next)
		for i := range sizes {
			select {
			case next <- i:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	word := regexp.MustCompile(`\b` + template + `\b`)
	for range parallel {
		g.Go(func() error {
			// A session keeps the plans of all foreign keys that it has checked, and looks through them at every CREATE: it
			// makes some tenants and ends.
			const each = 25
			for {
				conn, err := pgx.Connect(ctx, dsn)
				if err != nil {
					return err
				}
				more, err := makeSome(ctx, conn, next, each, func(i int) string {
					return word.ReplaceAllString(ddl, tenantSchema(i)) + fmt.Sprintf("\nSELECT public.bench_fill('%s', %d, %d)", tenantSchema(i), sizes[i], i)
				})
				if closeErr := conn.Close(context.WithoutCancel(ctx)); err == nil {
					err = closeErr
				}
				if err != nil || !more {
					return err
				}
			}
		})
	}
	return g.Wait()
}

// makeSome makes tenants until there are enough of them or there is no next, each in a transaction.
func makeSome(ctx context.Context, conn *pgx.Conn, next <-chan int, enough int, script func(i int) string) (more bool, err error) {
	// Preparation only: what is measured writes durably.
	if _, err := conn.Exec(ctx, `SET synchronous_commit = off`); err != nil {
		return false, err
	}
	for range enough {
		i, ok := <-next
		if !ok {
			return false, nil
		}
		if _, err := conn.Exec(ctx, "BEGIN;\n"+script(i)+";\nCOMMIT", pgx.QueryExecModeSimpleProtocol); err != nil {
			return false, fmt.Errorf("generate %s: %w", tenantSchema(i), err)
		}
	}
	return true, nil
}

// fillSQL fills a cloned schema. Values are the fixture's, in another order and with a
// part that is the row's own, so that neither side profits from repetition.
const fillSQL = `
CREATE FUNCTION public.bench_fill(s name, tasks int, seed int) RETURNS void LANGUAGE plpgsql AS $f$
DECLARE
    serial record;
BEGIN
    PERFORM set_config('search_path', quote_ident(s), true);
    INSERT INTO django_migrations SELECT * FROM acme00000.django_migrations;
    INSERT INTO django_content_type SELECT * FROM acme00000.django_content_type;
    INSERT INTO auth_permission SELECT * FROM acme00000.auth_permission;
    INSERT INTO auth_user SELECT id, password, last_login, is_superuser, username, first_name, last_name, username || '@' || s || '.example', is_staff, is_active,
        date_joined + seed * interval '1 minute' FROM acme00000.auth_user;
    INSERT INTO work_label SELECT id, name || seed FROM acme00000.work_label;
    INSERT INTO work_setting SELECT key, value || ' ' || seed FROM acme00000.work_setting;
    INSERT INTO work_project SELECT id, left(name || ' ' || s, 200), status, settings || jsonb_build_object('tenant', seed), created_at, owner_id FROM acme00000.work_project;
    INSERT INTO work_task (id, title, body, status, priority, estimate, due_on, watchers, created_at, parent_id, project_id)
        SELECT i, left(i || ' ' || t.title, 300), t.body || md5(i::text || s), t.status, t.priority, t.estimate, t.due_on + i % 90, t.watchers || i,
               t.created_at + i * interval '1 second', CASE WHEN t.parent_id IS NOT NULL AND i > 1 THEN i / 2 END, 1 + i % 5
        FROM generate_series(1, tasks) i JOIN acme00000.work_task t ON t.id = 1 + (i * 7 + seed) % 400;
    INSERT INTO work_task_labels (id, task_id, label_id) SELECT i, i, 1 + i % 8 FROM generate_series(1, tasks) i;
    INSERT INTO work_event (id, object_id, note, at, score, content_type_id)
        SELECT i, i::text, e.note || i, e.at + i * interval '1 second', e.score + i, e.content_type_id
        FROM generate_series(1, tasks / 2) i JOIN acme00000.work_event e ON e.id = 1 + (i * 7 + seed) % 200;
    INSERT INTO work_timeentry (id, period, rate, task_id, user_id)
        SELECT i, tstzrange(lower(e.period) + i * interval '1 hour', upper(e.period) + i * interval '1 hour'), e.rate + i, i, e.user_id
        FROM generate_series(1, tasks / 5) i JOIN acme00000.work_timeentry e ON e.id = 1 + (i * 7 + seed) % 80;
    INSERT INTO work_attachment (id, content, size, task_id)
        SELECT md5(s || i)::uuid, decode(md5(i::text), 'hex') || a.content, a.size, i
        FROM (SELECT row_number() OVER (ORDER BY id) AS n, * FROM acme00000.work_attachment) a
        JOIN generate_series(1, tasks / 10) i ON a.n = 1 + (i * 7 + seed) % 40;
    FOR serial IN SELECT c.relname AS seq, left(c.relname, -length('_id_seq')) AS tab FROM pg_depend d JOIN pg_class c ON c.oid = d.objid
             WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = s::regnamespace AND d.classid = 'pg_class'::regclass
               AND c.relkind = 'S' AND c.relname LIKE '%\_id\_seq' LOOP
        EXECUTE format('SELECT setval(%L, greatest(1, (SELECT max(id) FROM %I)))', serial.seq, serial.tab);
    END LOOP;
    -- By name: for ALL TABLES IN SCHEMA the server looks through all tables there are.
    EXECUTE (SELECT format('GRANT USAGE ON SCHEMA %I TO legacy_app; GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO legacy_app; GRANT USAGE ON SEQUENCE %s TO legacy_app', s,
            string_agg(c.oid::regclass::text, ', ') FILTER (WHERE c.relkind = 'r'), string_agg(c.oid::regclass::text, ', ') FILTER (WHERE c.relkind = 'S'))
        FROM pg_depend d JOIN pg_class c ON c.oid = d.objid WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = s::regnamespace AND d.classid = 'pg_class'::regclass);
    INSERT INTO public.customers_client (schema_name, name, on_trial, created_on) VALUES (s, 'Tenant ' || s, false, now());
END $f$`

// restoreFixture feeds the dump to psql, which alone understands COPY within a script.
func restoreFixture(ctx context.Context, dsn string) error {
	file, err := os.Open(fixture)
	if err != nil {
		return fmt.Errorf("%w (start it from the repository's top folder)", err)
	}
	defer func() { _ = file.Close() }()
	zip, err := gzip.NewReader(file)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(zip)
	if err != nil {
		return err
	}
	return program(ctx, bytes.NewReader(withoutRestrict(text)), "psql", "-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-o", os.DevNull, "-d", dsn)
}

var restrictLine = regexp.MustCompile(`(?m)^\\(un)?restrict .*\n`)

// withoutRestrict leaves out what only the newest psql programs understand.
func withoutRestrict(script []byte) []byte { return restrictLine.ReplaceAll(script, nil) }

// schemaOnly returns the DDL of the schema that is cloned.
func schemaOnly(ctx context.Context, dsn string) (string, error) {
	path, err := serverProgram("pg_dump")
	if err != nil {
		return "", err
	}
	out, err := osexec.CommandContext(ctx, path, "--schema-only", "--no-owner", "--no-acl", "-n", template, "-d", dsn).Output()
	if err != nil {
		return "", fmt.Errorf("pg_dump: %w", err)
	}
	// The session's search_path is emptied by the dump; bench_fill sets its own.
	return string(withoutRestrict(out)), nil
}

// serverProgram is the path of a program of the PostgreSQL installation that runs.
func serverProgram(name string) (string, error) {
	dir, err := localpg.Programs()
	return filepath.Join(dir, name), err
}

// program runs a program of the PostgreSQL installation.
func program(ctx context.Context, in io.Reader, name string, args ...string) error {
	path, err := serverProgram(name)
	if err != nil {
		return err
	}
	cmd := osexec.CommandContext(ctx, path, args...)
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w: %.2000s", name, strings.Join(args, " "), err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}
