// Package catalogtest gives the tests of structure, conversion and preflight real
// databases: empty ones, the dump of a real django-tenants application, and green
// ones with and without Citus. Each test binary starts one server; none of it is
// shared with other tests.
package catalogtest

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus/localpg"
	"github.com/coditect/platform/shared/schema"
)

var (
	server = sync.OnceValues(func() (*localpg.Server, error) {
		opts := localpg.Options{Settings: map[string]string{
			"max_locks_per_transaction":          "256",
			"max_worker_processes":               "32",
			"citus.enable_statistics_collection": "off",
			"citus.shard_count":                  "4",
		}}
		if localpg.HasCitus() {
			opts.Preload = []string{"citus"}
		}
		return localpg.Start(context.Background(), opts)
	})
	number atomic.Int64
)

// Main runs the tests of a package and removes the server they used.
func Main(m *testing.M) {
	code := m.Run()
	if number.Load() > 0 {
		if s, err := server(); err == nil {
			if err := s.Remove(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				code = 1
			}
		}
	}
	os.Exit(code)
}

// DSN returns the address of a fresh, empty database for its superuser.
func DSN(t testing.TB) string {
	t.Helper()
	n := number.Add(1)
	s, err := server()
	require.NoError(t, err)
	admin := Connect(t, s.DSN("postgres", "postgres"))
	name := fmt.Sprintf("test_%d", n)
	_, err = admin.Exec(t.Context(), "CREATE DATABASE "+name)
	require.NoError(t, err)
	return s.DSN(name, "postgres")
}

// Connect returns a connection that is closed with the test.
func Connect(t testing.TB, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close(context.Background())) })
	return conn
}

// As returns dsn for another role.
func As(dsn, role string) string { return strings.Replace(dsn, "postgres@", role+"@", 1) }

// Blue returns a connection to a fresh database after running sql in it.
func Blue(t testing.TB, sql string) *pgx.Conn {
	t.Helper()
	conn := Connect(t, DSN(t))
	Exec(t, conn, sql)
	return conn
}

// Exec runs statements.
func Exec(t testing.TB, conn *pgx.Conn, sql string) {
	t.Helper()
	_, err := conn.PgConn().Exec(t.Context(), sql).ReadAll()
	require.NoError(t, err)
}

// Legacy returns a connection to a database with the 20 tenants of the django-tenants dump.
func Legacy(t testing.TB) *pgx.Conn {
	t.Helper()
	conn := Connect(t, DSN(t))
	_, here, _, _ := runtime.Caller(0)
	f, err := os.Open(filepath.Join(filepath.Dir(here), "../../../../scripts/internal/demo/testdata/legacy-20.sql.gz"))
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	dump, err := io.ReadAll(z)
	require.NoError(t, err)
	require.NoError(t, restore(t.Context(), conn, dump))
	Exec(t, conn, "RESET ALL; ANALYZE")
	return conn
}

// restore runs what pg_dump wrote: statements, and between them COPY blocks.
func restore(ctx context.Context, conn *pgx.Conn, dump []byte) error {
	for len(dump) > 0 {
		at := bytes.Index(dump, []byte("\nCOPY "))
		statements := dump
		if at >= 0 {
			statements = dump[:at]
		}
		if _, err := conn.PgConn().Exec(ctx, withoutMeta(statements)).ReadAll(); err != nil {
			return err
		}
		if at < 0 {
			return nil
		}
		head, rest, _ := bytes.Cut(dump[at+1:], []byte("\n"))
		end := bytes.Index(append([]byte("\n"), rest...), []byte("\n\\.\n"))
		if _, err := conn.PgConn().CopyFrom(ctx, bytes.NewReader(rest[:end]), string(head)); err != nil {
			return fmt.Errorf("%s: %w", head, err)
		}
		dump = rest[end+3:]
	}
	return nil
}

// withoutMeta drops psql's own commands, which begin a line with a backslash.
func withoutMeta(sql []byte) string {
	var out strings.Builder
	for line := range strings.Lines(string(sql)) {
		if !strings.HasPrefix(line, `\`) {
			out.WriteString(line)
		}
	}
	return out.String()
}

// Greens runs a test against a plain green database and, where this machine's
// PostgreSQL has the extension, against one with Citus.
func Greens(t *testing.T, test func(t *testing.T, dsn string, citus bool)) {
	t.Run("plain", func(t *testing.T) { test(t, green(t, false), false) })
	t.Run("citus", func(t *testing.T) {
		if !localpg.HasCitus() {
			t.Skip("this PostgreSQL installation has no Citus: the plain run above is all that is tested")
		}
		test(t, green(t, true), true)
	})
}

// Green returns the address of a fresh plain green database.
func Green(t testing.TB) string { return green(t, false) }

func green(t testing.TB, citus bool) string {
	t.Helper()
	dsn := DSN(t)
	if citus {
		s, err := server()
		require.NoError(t, err)
		Exec(t, Connect(t, dsn), fmt.Sprintf("CREATE EXTENSION citus; SELECT citus_set_coordinator_host('localhost', %d); "+
			"SELECT citus_set_node_property('localhost', %d, 'shouldhaveshards', true)", s.Port(), s.Port()))
	}
	_, err := schema.ApplyGreen(t.Context(), dsn)
	require.NoError(t, err)
	return dsn
}
