// Package citustest gives tests real databases: a fresh blue and a fresh green one
// for each [New], with the platform's schema applied, dropped when the test ends.
//
// The servers are those of CODITECT_TEST_BLUE and CODITECT_TEST_GREEN (connection
// strings of superusers; ./scripts/test sets them), or are started once per test
// binary. A server that cannot be had fails the test: nothing is skipped.
package citustest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	files "github.com/coditect/platform/infra/schema"
	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/localpg"
	"github.com/coditect/platform/shared/directory"
	"github.com/coditect/platform/shared/schema"
	"github.com/coditect/platform/shared/tenant"
)

// Env is one test's databases.
type Env struct {
	BlueAdmin, GreenAdmin string           // connection strings of superusers
	Config                citus.Config     // of the application's role
	Databases             *citus.Databases // of the application's role
	Migrator              *citus.Databases // of the migrator's role
	Directory             *directory.Directory
	Door                  *citus.Door
	Control               *citus.Pool // green's control tables, as a superuser
	Citus                 bool        // green is a Citus cluster

	admin *citus.Databases
}

// Main runs a package's tests and stops the servers that they started:
//
//	func TestMain(m *testing.M) { citustest.Main(m) }
func Main(m *testing.M) {
	code := m.Run()
	stopAll()
	os.Exit(code)
}

// New returns fresh databases on plain PostgreSQL.
func New(t testing.TB, opts ...citus.Option) *Env {
	t.Helper()
	return build(t, plainGreen(t), false, opts)
}

// Each runs f as a subtest on plain PostgreSQL and, where the PostgreSQL
// installation offers the extension, on a Citus coordinator with two workers; it
// says plainly when it is not offered.
func Each(t *testing.T, f func(t *testing.T, env *Env), opts ...citus.Option) {
	t.Run("plain", func(t *testing.T) { f(t, New(t, opts...)) })
	if !localpg.HasCitus() {
		fmt.Fprintf(os.Stderr, "NOT RUN on Citus: %s (this PostgreSQL does not offer the extension)\n", t.Name())
		return
	}
	t.Run("citus", func(t *testing.T) { f(t, NewCitus(t, opts...)) })
}

// NewCitus returns fresh databases whose green one is a Citus coordinator with two
// workers. It fails the test where the extension is not offered.
func NewCitus(t testing.TB, opts ...citus.Option) *Env {
	t.Helper()
	return build(t, citusGreen(t), true, opts)
}

func build(t testing.TB, greenAdmin string, isCitus bool, opts []citus.Option) *Env {
	t.Helper()
	ctx := t.Context()
	env := &Env{BlueAdmin: BlueDatabase(t), GreenAdmin: greenAdmin, Citus: isCitus}
	env.Config = citus.Config{Green: as(t, greenAdmin, "coditect_app"), Blue: as(t, env.BlueAdmin, "coditect_app"), MaxConns: 8}
	env.Databases = open(t, env.Config)
	env.Migrator = open(t, citus.Config{Green: as(t, greenAdmin, "coditect_migrator"), Blue: as(t, env.BlueAdmin, "coditect_migrator"), MaxConns: 8})
	env.admin = open(t, citus.Config{Green: greenAdmin, Blue: env.BlueAdmin, MaxConns: 8})
	control, err := env.admin.Control(ctx)
	require.NoError(t, err)
	env.Control = control
	env.Directory = directory.New(env.Databases, 0)
	env.Door = citus.NewDoor(env.Databases, env.Directory, opts...)
	return env
}

func open(t testing.TB, cfg citus.Config) *citus.Databases {
	dbs, err := citus.Open(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(dbs.Close)
	return dbs
}

// Blue returns a pool of the blue database, as a superuser.
func (e *Env) Blue(t testing.TB) *citus.Pool {
	t.Helper()
	p, err := e.admin.Pool(t.Context(), citus.BlueDatabase)
	require.NoError(t, err)
	return p
}

// NewTenant makes an active tenant in a home.
func (e *Env) NewTenant(t testing.TB, home tenant.Home) tenant.ID {
	t.Helper()
	id := tenant.NewID()
	ctx := t.Context()
	database, name := citus.GreenDatabase, schema.GreenSchema
	var err error
	if home == tenant.Blue {
		database = citus.BlueDatabase
		name, err = schema.CreateBlueTenant(ctx, e.Blue(t), id, 1)
	} else {
		_, err = e.Control.Exec(ctx, `INSERT INTO coditect.gate (tenant_id, schema_name, epoch) VALUES ($1, $2, 1)`, id, name)
	}
	require.NoError(t, err)
	_, err = e.Control.Exec(ctx, `INSERT INTO control.tenant (id, name, slug, home, database_name, schema_name, status)
		VALUES ($1, $2, $3, $4, $5, $6, 'active')`, id, "Tenant "+id.String(), id.String(), string(home), database, name)
	require.NoError(t, err)
	return id
}

// as returns a connection string for another role of the same database.
func as(t testing.TB, dsn, role string) string {
	cfg, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	return fmt.Sprintf("postgres://%s@%s:%d/%s?sslmode=disable", role, cfg.Host, cfg.Port, cfg.Database)
}

// As returns a connection string for another role of the database that dsn names.
func As(t testing.TB, dsn, role string) string { return as(t, dsn, role) }

// BlueDatabase returns a fresh blue database: a superuser's connection string.
func BlueDatabase(t testing.TB) string {
	t.Helper()
	return clone(t, blueServer(t), "blue", func(ctx context.Context, dsn string) error {
		_, err := schema.ApplyHome(ctx, schema.Database{DSN: dsn, Name: citus.BlueDatabase, Kind: tenant.Blue})
		return err
	})
}

// EmptyDatabase returns a fresh database with nothing in it, on the blue server.
func EmptyDatabase(t testing.TB) string {
	t.Helper()
	return clone(t, blueServer(t), "empty", func(context.Context, string) error { return nil })
}

func plainGreen(t testing.TB) string {
	t.Helper()
	return clone(t, greenServer(t), "green", func(ctx context.Context, dsn string) error {
		_, err := schema.ApplyGreen(ctx, dsn)
		return err
	})
}

var counter atomic.Int64

// SortedDatabase is an empty one that sorts text as people do, and not by code points as the others.
func SortedDatabase(t testing.TB) string {
	t.Helper()
	return cloneOf(t, blueServer(t), "sorted", `TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US'`, func(context.Context, string) error { return nil })
}

// clone makes a database from a template that is made once per server and version
// of the SQL: a fresh database then takes some 50 ms.
func clone(t testing.TB, admin, kind string, fill func(ctx context.Context, dsn string) error) string {
	t.Helper()
	return cloneOf(t, admin, kind, "", fill)
}

// cloneOf is clone where the template is made with options.
func cloneOf(t testing.TB, admin, kind, options string, fill func(ctx context.Context, dsn string) error) string {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, admin)
	require.NoError(t, err)
	defer conn.Close(ctx)
	template := "coditect_" + kind + "_" + sqlVersion(t)
	_, err = conn.Exec(ctx, `SELECT pg_advisory_lock(hashtextextended($1, 0))`, template)
	require.NoError(t, err)
	var ready bool
	require.NoError(t, conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1 AND datistemplate)`, template).Scan(&ready))
	if !ready {
		_, err = conn.Exec(ctx, `DROP DATABASE IF EXISTS `+template+` WITH (FORCE)`)
		require.NoError(t, err)
		_, err = conn.Exec(ctx, `CREATE DATABASE `+template+` `+options)
		require.NoError(t, err)
		require.NoError(t, fill(ctx, inDatabase(t, admin, template)))
		_, err = conn.Exec(ctx, `ALTER DATABASE `+template+` WITH IS_TEMPLATE true`)
		require.NoError(t, err)
	}
	_, err = conn.Exec(ctx, `SELECT pg_advisory_unlock_all()`)
	require.NoError(t, err)
	name := fmt.Sprintf("test_%s_%d_%d", kind, os.Getpid(), counter.Add(1))
	for try := 0; ; try++ {
		// Autovacuum may look into the template at this moment.
		_, err = conn.Exec(ctx, `CREATE DATABASE `+name+` TEMPLATE `+template)
		if err == nil || try == 20 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	require.NoError(t, err)
	if kind != "empty" && kind != "sorted" {
		// Rights on the database itself are not copied with a template.
		_, err = conn.Exec(ctx, `GRANT CREATE ON DATABASE `+name+` TO coditect_owner`)
		require.NoError(t, err)
	}
	t.Cleanup(func() {
		conn, err := pgx.Connect(ctx, admin)
		if err != nil {
			return // the test has stopped the server itself
		}
		defer conn.Close(ctx)
		for try := 0; ; try++ {
			// The reader of a replication slot outlives its connection for a moment, and FORCE does not end it.
			_, err = conn.Exec(ctx, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = $1 AND active_pid IS NOT NULL`, name)
			require.NoError(t, err)
			_, err = conn.Exec(ctx, `DROP DATABASE IF EXISTS `+name+` WITH (FORCE)`)
			if err == nil || try == 100 {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		require.NoError(t, err)
	})
	return inDatabase(t, admin, name)
}

func inDatabase(t testing.TB, dsn, database string) string {
	cfg, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	return fmt.Sprintf("postgres://%s@%s:%d/%s?sslmode=disable", cfg.User, cfg.Host, cfg.Port, database)
}

// sqlVersion is a hash of all SQL files.
func sqlVersion(t testing.TB) string {
	h := sha256.New()
	for _, fsys := range []fs.FS{files.Control, files.Home, files.Tenant} {
		require.NoError(t, fs.WalkDir(fsys, ".", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := fs.ReadFile(fsys, path)
			fmt.Fprintln(h, path)
			h.Write(b)
			return err
		}))
	}
	return hex.EncodeToString(h.Sum(nil))[:12]
}

// servers started by this test binary.
var servers struct {
	sync.Mutex
	blue, green *localpg.Server
	cluster     *cluster
}

func blueServer(t testing.TB) string  { return server(t, "CODITECT_TEST_BLUE", &servers.blue) }
func greenServer(t testing.TB) string { return server(t, "CODITECT_TEST_GREEN", &servers.green) }

func server(t testing.TB, env string, own **localpg.Server) string {
	if dsn := os.Getenv(env); dsn != "" {
		return dsn
	}
	servers.Lock()
	defer servers.Unlock()
	if *own == nil {
		s, err := localpg.Start(context.Background(), localpg.Options{Settings: fast})
		require.NoError(t, err, "a test needs PostgreSQL: install the package postgresql, or set %s", env)
		*own = s
	}
	return (*own).DSN("postgres", "postgres")
}

// fast gives up durability, which a test that is not about crashes does not need.
var fast = map[string]string{"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "max_connections": "300"}

func stopAll() {
	servers.Lock()
	defer servers.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	all := []*localpg.Server{servers.blue, servers.green}
	if servers.cluster != nil {
		all = append(all, servers.cluster.coordinator)
		all = append(all, servers.cluster.workers...)
	}
	for _, s := range all {
		if s != nil {
			_ = s.Stop(ctx)
			_ = s.Remove()
		}
	}
}

// Fixture returns the path of a file in this repository, from its top folder.
func Fixture(t testing.TB, path string) string {
	t.Helper()
	dir, err := os.Getwd()
	require.NoError(t, err)
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, path)
		}
		require.NotEqual(t, dir, filepath.Dir(dir), "no go.mod above the test")
	}
}
