package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// dumpAndRestore copies one schema as a script of an administrator would:
// pg_dump -n SCHEMA | psql.
func dumpAndRestore(ctx context.Context, from, to, schema string) (time.Duration, error) {
	dump, err := serverProgram("pg_dump")
	if err != nil {
		return 0, err
	}
	psql, err := serverProgram("psql")
	if err != nil {
		return 0, err
	}
	began := time.Now()
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	var dumpErr, psqlErr bytes.Buffer
	source := osexec.CommandContext(ctx, dump, "--no-owner", "--no-acl", "-n", schema, "-d", from)
	source.Stdout, source.Stderr = w, &dumpErr
	sink := osexec.CommandContext(ctx, psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", os.DevNull, "-d", to)
	sink.Stdin, sink.Stderr = r, &psqlErr
	err = source.Start()
	if err == nil {
		err = sink.Start()
	}
	_, _ = r.Close(), w.Close() // the programs have their own copies
	if err != nil {
		return 0, err
	}
	if err := source.Wait(); err != nil {
		return 0, fmt.Errorf("pg_dump -n %s: %w: %s", schema, err, dumpErr.Bytes())
	}
	if err := sink.Wait(); err != nil {
		return 0, fmt.Errorf("psql after pg_dump -n %s: %w: %s", schema, err, psqlErr.Bytes())
	}
	return time.Since(began), nil
}

// rawCopied is the least that copying the same rows can cost.
type rawCopied struct {
	How     string  `json:"how"`
	Seconds float64 `json:"seconds"`
	Rows    int64   `json:"rows"`
	Bytes   int64   `json:"bytes"` // of the stream
	PerRow  float64 `json:"rows_per_second"`
}

// rawCopy streams all tenants' rows of each table, as one COPY a table, into green's
// indexed tables, emptied before. They come from plain tables on the blue server.
func (m *migrate) rawCopy(ctx context.Context, want int64) (out rawCopied, err error) {
	out.How = "one session, COPY (binary where all types can) a table from one plain table into green's emptied, indexed tables; foreign keys off, as in a move"
	green, err := pgx.Connect(ctx, m.platform.greenDSN("postgres"))
	if err != nil {
		return out, err
	}
	defer func() { _ = green.Close(context.WithoutCancel(ctx)) }()
	if err := exec(ctx, m.platform.blue.DSN("postgres", "postgres"), `CREATE DATABASE staging`); err != nil {
		return out, err
	}
	blue, err := pgx.Connect(ctx, m.platform.blue.DSN("staging", "postgres"))
	if err != nil {
		return out, err
	}
	defer func() { _ = blue.Close(context.WithoutCancel(ctx)) }()
	rows, err := green.Query(ctx, `SELECT c.relname, string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum), string_agg(quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum)
		FROM control.source s JOIN pg_class c ON c.relnamespace = to_regnamespace(quote_ident(s.green_schema)) AND c.relkind = 'r'
		JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
		WHERE s.name = $1 GROUP BY 1 ORDER BY 1`, legacyName)
	if err != nil {
		return out, err
	}
	type table struct{ Name, Columns, Definition string }
	tables, err := pgx.CollectRows(rows, pgx.RowToStructByPos[table])
	if err != nil {
		return out, err
	}
	var schema string
	if err := green.QueryRow(ctx, `SELECT green_schema FROM control.source WHERE name = $1`, legacyName).Scan(&schema); err != nil {
		return out, err
	}
	relation := func(t table) string { return pgx.Identifier{schema, t.Name}.Sanitize() }
	var names []string
	for _, t := range tables {
		if _, err := blue.Exec(ctx, `CREATE TABLE `+pgx.Identifier{t.Name}.Sanitize()+` (`+t.Definition+`)`); err != nil {
			return out, err
		}
		n, _, err := pipe(ctx, green, `COPY (SELECT `+t.Columns+` FROM `+relation(t)+`) TO STDOUT (FORMAT binary)`,
			blue, `COPY `+pgx.Identifier{t.Name}.Sanitize()+` FROM STDIN (FORMAT binary)`)
		if err != nil {
			return out, err
		}
		out.Rows += n
		names = append(names, relation(t))
	}
	if out.Rows != want {
		return out, fmt.Errorf("%d rows were moved, and green has %d", want, out.Rows)
	}
	if _, err := green.Exec(ctx, `TRUNCATE `+strings.Join(names, ", ")); err != nil {
		return out, err
	}
	if err := settle(ctx, m.platform.blue.DSN("postgres", "postgres"), m.platform.green.DSN("postgres", "postgres")); err != nil {
		return out, err
	}
	began := time.Now()
	err = pgx.BeginFunc(ctx, green, func(tx pgx.Tx) error {
		for _, sql := range []string{`SET LOCAL citus.propagate_set_commands = 'local'`, `SET LOCAL session_replication_role = 'replica'`} {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		for _, t := range tables {
			_, bytes, err := pipe(ctx, blue, `COPY `+pgx.Identifier{t.Name}.Sanitize()+` TO STDOUT (FORMAT binary)`,
				green, `COPY `+relation(t)+` (`+t.Columns+`) FROM STDIN (FORMAT binary)`)
			if err != nil {
				return err
			}
			out.Bytes += bytes
		}
		return nil
	})
	took := time.Since(began).Seconds()
	out.Seconds, out.PerRow = round(took, 3), round(float64(out.Rows)/took, 0)
	m.say("raw COPY of the same rows: %.2f s", took)
	return out, err
}

// pipe streams one COPY into another and counts rows and bytes.
func pipe(ctx context.Context, from *pgx.Conn, out string, to *pgx.Conn, in string) (rows, bytes int64, err error) {
	r, w := io.Pipe()
	count := &counter{w: w}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		_, err := from.PgConn().CopyTo(ctx, count, out)
		_ = w.CloseWithError(err)
		return err
	})
	g.Go(func() error {
		tag, err := to.PgConn().CopyFrom(ctx, r, in)
		_ = r.CloseWithError(err)
		rows = tag.RowsAffected()
		return err
	})
	err = g.Wait()
	return rows, count.n, err
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.w.Write(p)
}

// cloned is what pgcopydb took.
type cloned struct {
	How       string  `json:"how"` // or why there are no figures
	Tenants   int     `json:"tenants,omitempty"`
	Seconds   float64 `json:"seconds,omitempty"`
	PerTenant float64 `json:"seconds_per_tenant,omitempty"`
}

// clone runs pgcopydb over a database of the first tenants.
func (m *migrate) clone(ctx context.Context) (out cloned, err error) {
	path, err := osexec.LookPath("pgcopydb")
	switch {
	case err != nil:
		return cloned{How: "not installed (Debian package pgcopydb)"}, nil
	case m.pgcopydb == 0:
		return cloned{How: "not asked for (--pgcopydb 0)"}, nil
	}
	n := min(m.pgcopydb, m.tenants)
	err = prepared(ctx, m.platform.blue, func() error { return generate(ctx, m.bench, m.platform.blue, "legacy_for_pgcopydb", m.sizes[:n]) })
	if err != nil {
		return out, err
	}
	green := m.platform.green.DSN("postgres", "postgres")
	if err := exec(ctx, green, `CREATE DATABASE pgcopydb`); err != nil {
		return out, err
	}
	dir, err := os.MkdirTemp("", "pgcopydb")
	if err != nil {
		return out, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	bin, err := serverProgram("")
	if err != nil {
		return out, err
	}
	began := time.Now()
	cmd := osexec.CommandContext(ctx, path, "clone", "--source", m.platform.blue.DSN("legacy_for_pgcopydb", "postgres"),
		"--target", m.platform.green.DSN("pgcopydb", "postgres"), "--dir", filepath.Join(dir, "work"), "--no-owner", "--no-acl", "--skip-large-objects",
		"--table-jobs", "2", "--index-jobs", "2")
	cmd.Env = append(os.Environ(), "PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		// A rival that stops is stated, not hidden.
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return cloned{How: fmt.Sprintf("failed: %v: %s", err, strings.Join(lines[max(0, len(lines)-3):], " | "))}, nil
	}
	took := time.Since(began)
	m.say("pgcopydb clone of %d tenants: %.2f s", n, took.Seconds())
	return cloned{How: "clone --no-owner --no-acl --table-jobs 2 --index-jobs 2, nothing verified", Tenants: n, Seconds: round(took.Seconds(), 2), PerTenant: round(took.Seconds()/float64(n), 4)}, nil
}
