package demo

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	_ "embed"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus/localpg"
)

//go:embed testdata/legacy-20.sql.gz
var legacyDump []byte

//go:embed legacy.yaml
var legacyFile []byte

// importLegacy loads the dump into a database of its own on the blue server, the way
// the old application's deployment had it: one role owns the tables, another,
// with rights on rows only, works with them. An owner could switch the fence off.
func importLegacy(ctx context.Context, blue Server) error {
	admin, err := pgx.Connect(ctx, blue.DSN("postgres", "postgres"))
	if err != nil {
		return err
	}
	defer admin.Close(context.WithoutCancel(ctx))
	for _, role := range []string{legacyOwner, legacyApp} {
		if _, err := admin.Exec(ctx, `DO $$ BEGIN CREATE ROLE `+role+` LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$`); err != nil {
			return fmt.Errorf("role %s: %w", role, err)
		}
	}
	var there bool
	if err := admin.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, LegacyDatabase).Scan(&there); err != nil {
		return err
	}
	if !there {
		if _, err := admin.Exec(ctx, `CREATE DATABASE `+LegacyDatabase+` OWNER `+legacyOwner); err != nil {
			return err
		}
	}
	owner, err := pgx.Connect(ctx, blue.DSN(LegacyDatabase, legacyOwner))
	if err != nil {
		return err
	}
	defer owner.Close(context.WithoutCancel(ctx))
	if err := owner.QueryRow(ctx, `SELECT to_regclass('public.customers_client') IS NOT NULL`).Scan(&there); err != nil || there {
		return err
	}
	return loadDump(ctx, blue.DSN(LegacyDatabase, legacyOwner))
}

// grantRows gives the old application its rights, in the transaction of the import.
const grantRows = `
DO $$
DECLARE s text;
BEGIN
    FOR s IN SELECT nspname FROM pg_namespace WHERE nspowner = 'legacy_owner'::regrole OR nspname = 'public' LOOP
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO legacy_app', s);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %I TO legacy_app', s);
        EXECUTE format('GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA %I TO legacy_app', s);
    END LOOP;
END $$;
`

// loadDump feeds the dump to psql, which alone understands COPY within a script.
func loadDump(ctx context.Context, dsn string) error {
	bin, err := localpg.Programs()
	if err != nil {
		return err
	}
	zip, err := gzip.NewReader(bytes.NewReader(legacyDump))
	if err != nil {
		return err
	}
	script, feed := io.Pipe()
	go func() { feed.CloseWithError(withoutRestrict(zip, feed)) }()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "psql"), "-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-d", dsn)
	cmd.Stdin, cmd.Stderr = script, &out
	err = cmd.Run()
	_ = script.Close() // ends the feeder when psql ended early
	if err != nil {
		return fmt.Errorf("import the dump: %w: %s", err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}

// withoutRestrict copies the script and appends the grants. Lines \restrict and
// \unrestrict are left out: they are younger than some psql programs, which stop at them.
func withoutRestrict(from io.Reader, to io.Writer) error {
	lines := bufio.NewReader(from)
	for {
		line, err := lines.ReadString('\n')
		if !strings.HasPrefix(line, `\restrict `) && !strings.HasPrefix(line, `\unrestrict `) {
			if _, err := io.WriteString(to, line); err != nil {
				return err
			}
		}
		if err == io.EOF {
			_, err := io.WriteString(to, grantRows)
			return err
		}
		if err != nil {
			return err
		}
	}
}
