package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/localpg"
	"github.com/coditect/platform/shared/schema"
	"github.com/coditect/platform/shared/tenant"
)

// bench is one run: its servers and programs, ended with it.
type bench struct {
	name      string
	began     time.Time
	wantCitus bool
	servers   *serverFacts
	onClose   []func() error
}

// later remembers what is to be undone at the end, in reverse order.
func (b *bench) later(f func() error) { b.onClose = append(b.onClose, f) }

func (b *bench) close() error {
	var errs []error
	for _, f := range slices.Backward(b.onClose) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// say tells the user how far it is.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%7.1f s  %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}

// serverFacts says what was measured on.
type serverFacts struct {
	PostgreSQL string            `json:"postgresql"`
	Citus      string            `json:"citus"` // version, or why green is plain PostgreSQL
	Workers    int               `json:"citus_workers"`
	Settings   map[string]string `json:"settings"` // of all servers alike; all others are PostgreSQL's defaults
}

func machine() map[string]any {
	facts := map[string]any{"nproc": runtime.NumCPU(), "os": runtime.GOOS, "arch": runtime.GOARCH, "go": runtime.Version()}
	text, _ := os.ReadFile("/proc/cpuinfo") // not everywhere
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			facts["cpu"] = strings.TrimSpace(value)
			break
		}
	}
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		facts["load_at_the_end"] = strings.Fields(string(text))[0]
	}
	return facts
}

// durable is how every server is set: what PostgreSQL does by default, which
// localpg gives up for tests, and room for the locks of a dump of thousands of
// tables, which all sides alike need.
var durable = map[string]string{
	"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "wal_level": "logical", "shared_buffers": "256MB",
	"max_locks_per_transaction": "256",
}

// platform is a blue and a green server with the platform's schema applied.
type platform struct {
	blue, green *localpg.Server
}

const greenName, blueName = "green", "blue"

// platform starts the servers.
func (b *bench) platform(ctx context.Context) (*platform, error) {
	p := &platform{}
	facts := &serverFacts{Settings: durable, Citus: "no: not asked for (--citus)"}
	isCitus := b.wantCitus && localpg.HasCitus()
	if b.wantCitus && !isCitus {
		facts.Citus = "no: this PostgreSQL does not offer the extension"
		b.say("NOT ON CITUS: this PostgreSQL does not offer the extension; green is plain PostgreSQL")
	}
	var err error
	if p.blue, err = b.server(ctx); err != nil {
		return nil, err
	}
	if isCitus {
		p.green, err = b.cluster(ctx, facts)
	} else if p.green, err = b.server(ctx); err == nil {
		err = exec(ctx, p.green.DSN("postgres", "postgres"), `CREATE DATABASE `+greenName)
	}
	if err != nil {
		return nil, err
	}
	if err := exec(ctx, p.blue.DSN("postgres", "postgres"), `CREATE DATABASE `+blueName); err != nil {
		return nil, err
	}
	if _, err := schema.ApplyGreen(ctx, p.greenDSN("postgres")); err != nil {
		return nil, err
	}
	if _, err := schema.ApplyHome(ctx, schema.Database{DSN: p.blueDSN("postgres"), Name: citus.BlueDatabase, Kind: tenant.Blue}); err != nil {
		return nil, err
	}
	if err := one(ctx, p.greenDSN("postgres"), `SHOW server_version`, &facts.PostgreSQL); err != nil {
		return nil, err
	}
	if isCitus {
		if err := one(ctx, p.greenDSN("postgres"), `SELECT extversion FROM pg_extension WHERE extname = 'citus'`, &facts.Citus); err != nil {
			return nil, err
		}
	}
	b.servers = facts
	b.say("blue and green are up: PostgreSQL %s, Citus: %s", facts.PostgreSQL, facts.Citus)
	return p, nil
}

// server starts a server, with the libraries that are to be loaded.
func (b *bench) server(ctx context.Context, preload ...string) (*localpg.Server, error) {
	settings := maps.Clone(durable)
	if len(preload) > 0 {
		settings["citus.node_conninfo"] = "sslmode=disable" // the nodes have no certificates
	}
	s, err := localpg.Start(ctx, localpg.Options{Settings: settings, Preload: preload})
	if err != nil {
		return nil, err
	}
	b.later(s.Remove)
	return s, nil
}

// cluster starts a Citus coordinator with two workers.
func (b *bench) cluster(ctx context.Context, facts *serverFacts) (*localpg.Server, error) {
	const workers = 2
	facts.Workers = workers
	var nodes []*localpg.Server
	for range 1 + workers {
		s, err := b.server(ctx, "citus")
		if err != nil {
			return nil, err
		}
		if err := exec(ctx, s.DSN("postgres", "postgres"), `CREATE DATABASE `+greenName); err != nil {
			return nil, err
		}
		if err := exec(ctx, s.DSN(greenName, "postgres"), `CREATE EXTENSION citus`); err != nil {
			return nil, err
		}
		nodes = append(nodes, s)
	}
	dsn := nodes[0].DSN(greenName, "postgres")
	if err := exec(ctx, dsn, fmt.Sprintf(`SELECT citus_set_coordinator_host('127.0.0.1', %d)`, nodes[0].Port())); err != nil {
		return nil, err
	}
	for _, w := range nodes[1:] {
		if err := exec(ctx, dsn, fmt.Sprintf(`SELECT citus_add_node('127.0.0.1', %d)`, w.Port())); err != nil {
			return nil, err
		}
	}
	return nodes[0], nil
}

func (p *platform) greenDSN(role string) string { return p.green.DSN(greenName, role) }
func (p *platform) blueDSN(role string) string  { return p.blue.DSN(blueName, role) }

// config is that of a function with a role.
func (p *platform) config(role string, conns int32) citus.Config {
	return citus.Config{Green: p.greenDSN(role), Blue: p.blueDSN(role), MaxConns: conns}
}

// open opens the databases with a role.
func (b *bench) open(ctx context.Context, cfg citus.Config) (*citus.Databases, error) {
	dbs, err := citus.Open(ctx, cfg)
	if err == nil {
		b.later(func() error { dbs.Close(); return nil })
	}
	return dbs, err
}

// exec runs statements in one session.
func exec(ctx context.Context, dsn string, statements ...string) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			return fmt.Errorf("%.200s: %w", sql, err)
		}
	}
	return nil
}

// one reads one row.
func one(ctx context.Context, dsn, sql string, dest ...any) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return conn.QueryRow(ctx, sql).Scan(dest...)
}

// settle leaves no work of the preparation to the measurement: a checkpoint due
// soon, or rows that nobody has counted.
func settle(ctx context.Context, dsns ...string) error {
	for _, dsn := range dsns {
		if err := exec(ctx, dsn, `CHECKPOINT`); err != nil {
			return err
		}
	}
	return nil
}

// prepared does work on a server that may forget it in a crash: what is measured afterwards is
// durable again, and what was prepared is on the disk.
func prepared(ctx context.Context, s *localpg.Server, work func() error) error {
	if err := s.RestartWith(ctx, map[string]string{"fsync": "off", "full_page_writes": "off", "autovacuum": "off", "max_wal_size": "8GB"}); err != nil {
		return err
	}
	if err := work(); err != nil {
		return err
	}
	if err := s.RestartWith(ctx, map[string]string{"fsync": "on", "full_page_writes": "on", "autovacuum": "on", "max_wal_size": "1GB"}); err != nil {
		return err
	}
	syscall.Sync()
	return nil
}
