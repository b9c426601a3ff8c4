// Package citus is the only door to tenant rows, and the only package that holds
// database connections.
//
// [Databases] are the pools of one instance: green with the control tables, blue,
// and foreign sources. A [Door] enters one tenant at a time: [Door.InTenant] finds
// its home in the directory, opens a transaction there, sets the tenant for
// row-level security, and hands out a [Tx] that can do nothing outside this
// transaction or tenant. A tenant that moves meanwhile is followed to its new home.
//
// It works on plain PostgreSQL and on Citus; which of the two a database is, is
// asked once per pool.
package citus

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/coditect/platform/shared/fault"
)

// Names of the databases that are not foreign sources.
const (
	GreenDatabase = "green"
	BlueDatabase  = "blue"
)

// Config says where the databases are. The tags are those of sethvargo/go-envconfig.
type Config struct {
	Green            string        `env:"CODITECT_GREEN_DSN,required"`                   // the green database: control tables and shared tenant tables
	Blue             string        `env:"CODITECT_BLUE_DSN"`                             // our own schema-per-tenant database; may be absent
	Sources          SourceDSNs    `env:"CODITECT_SOURCES"`                              // foreign databases: "name=dsn;name=dsn"
	MaxConns         int32         `env:"CODITECT_MAX_CONNS,default=4"`                  // per database and instance
	StatementTimeout time.Duration `env:"CODITECT_STATEMENT_TIMEOUT,default=5s"`         // of one statement inside a tenant
	ReroutePatience  time.Duration `env:"CODITECT_REROUTE_PATIENCE,default=10s"`         // how long a call follows a tenant that is moving
	StatementCache   int           `env:"CODITECT_STATEMENT_CACHE_CAPACITY,default=512"` // prepared statements per connection; each takes some 40 KiB of the server's memory
}

// SourceDSNs maps the name of a foreign source to its connection string.
type SourceDSNs map[string]string

// EnvDecode reads "name=dsn;name=dsn".
func (s *SourceDSNs) EnvDecode(val string) error {
	m := SourceDSNs{}
	for _, part := range strings.Split(val, ";") {
		if strings.TrimSpace(part) == "" {
			continue
		}
		name, dsn, ok := strings.Cut(part, "=")
		name = strings.TrimSpace(name)
		if !ok || name == "" || name == GreenDatabase || name == BlueDatabase {
			return fmt.Errorf("CODITECT_SOURCES must be name=dsn;name=dsn, and no name may be %q or %q", GreenDatabase, BlueDatabase)
		}
		m[name] = strings.TrimSpace(dsn)
	}
	*s = m
	return nil
}

// Databases are the connection pools of one instance, one per database, made when
// first used. Safe for concurrent use.
type Databases struct {
	cfg Config
	dsn map[string]string

	forMoves atomic.Bool

	mu     sync.Mutex
	pools  map[string]*Pool
	closed bool
}

// Pool is a pool of one database, and what is known of its server.
type Pool struct {
	*pgxpool.Pool
	Name string

	unprepared bool // nothing is prepared on its connections: the connection string asks for it
	detect     sync.Mutex
	server     atomic.Int32 // one of the constants below
}

// What is known of a pool's server.
const (
	serverUnknown int32 = iota
	serverPlain
	serverCitus
)

// Open checks the configuration. It makes no round trip: an instance that is
// started for a request that needs no database should not wait for one.
func Open(_ context.Context, cfg Config) (*Databases, error) {
	d := &Databases{cfg: cfg, dsn: map[string]string{GreenDatabase: cfg.Green}, pools: map[string]*Pool{}}
	if cfg.Blue != "" {
		d.dsn[BlueDatabase] = cfg.Blue
	}
	for name, dsn := range cfg.Sources {
		d.dsn[name] = dsn
	}
	for name := range d.dsn {
		if _, err := d.parse(name); err != nil {
			return nil, err
		}
	}
	if d.cfg.MaxConns <= 0 {
		d.cfg.MaxConns = 4
	}
	if d.cfg.StatementTimeout <= 0 {
		d.cfg.StatementTimeout = 5 * time.Second
	}
	if d.cfg.ReroutePatience <= 0 {
		d.cfg.ReroutePatience = 10 * time.Second
	}
	if d.cfg.StatementCache <= 0 {
		d.cfg.StatementCache = 512
	}
	return d, nil
}

// Names lists the databases, sorted.
func (d *Databases) Names() []string {
	var out []string
	for n := range d.dsn {
		out = append(out, n)
	}
	sort.Strings(out)
	return out
}

// Has reports whether a database of this name is configured.
func (d *Databases) Has(name string) bool { return d.dsn[name] != "" }

// DSN returns a database's connection string, "" when there is none of this name.
func (d *Databases) DSN(name string) string { return d.dsn[name] }

// MaxConns returns how many connections to each database there may be.
func (d *Databases) MaxConns() int { return int(d.cfg.MaxConns) }

// Pool returns the pool of a database: a fault when none of this name is configured.
func (d *Databases) Pool(ctx context.Context, name string) (*Pool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.pools[name]; p != nil {
		return p, nil
	}
	if d.closed {
		return nil, fault.New(fault.Unavailable, "shutting_down", "this instance is shutting down")
	}
	dsn := d.dsn[name]
	if dsn == "" {
		return nil, fault.Wrap(fmt.Errorf("no database %q; there are %s", name, strings.Join(d.Names(), ", ")),
			fault.Internal, "database_unknown", "this function is not configured for the database that the tenant lives in")
	}
	cfg, err := d.parse(name)
	if err != nil {
		return nil, err
	}
	// Many small instances share the database: few connections each, given back soon, and not all at once.
	cfg.MaxConns = d.cfg.MaxConns
	cfg.MinConns = 0
	cfg.MaxConnIdleTime = time.Minute
	cfg.MaxConnLifetime = 5 * time.Minute
	cfg.MaxConnLifetimeJitter = time.Minute
	cfg.PingTimeout = 2 * time.Second
	cfg.ConnConfig.ConnectTimeout = 5 * time.Second
	if cfg.ConnConfig.RuntimeParams["application_name"] == "" {
		cfg.ConnConfig.RuntimeParams["application_name"] = "coditect"
	}
	cfg.AfterConnect, cfg.PrepareConn = d.connected, d.fresh
	pool, err := pgxpool.NewWithConfig(context.WithoutCancel(ctx), cfg)
	if err != nil {
		return nil, fmt.Errorf("citus: database %q: %w", name, err)
	}
	p := &Pool{Pool: pool, Name: name, unprepared: cfg.ConnConfig.DefaultQueryExecMode == pgx.QueryExecModeExec}
	d.pools[name] = p
	return p, nil
}

// parse reads a database's connection string. Of pgx's ways to send statements it may name
// those that the door has: the others look at a statement's types before the tenant is entered,
// when no table is found.
func (d *Databases) parse(name string) (*pgxpool.Config, error) {
	cfg, err := pgxpool.ParseConfig(d.dsn[name])
	if err != nil {
		return nil, fmt.Errorf("citus: connection string of database %q: %w", name, err)
	}
	if mode := cfg.ConnConfig.DefaultQueryExecMode; mode != pgx.QueryExecModeCacheStatement && mode != pgx.QueryExecModeExec {
		return nil, fmt.Errorf("citus: connection string of database %q: default_query_exec_mode must be cache_statement or exec", name)
	}
	return cfg, nil
}

// manyUses is how often a connection for moves is used: then it has seen the tables of some hundred tenants.
const manyUses = 1000

// ForMoves prepares all connections for whoever moves tenants from one database to another:
//
//   - A commit waits until it is on its server's disk, also where the server itself would not wait
//     (synchronous_commit = off): what is done in one database relies on a commit in the other, which a crash
//     of that one would take back.
//   - A statement is planned each time. A plan that was made while a queue was empty reads all of it
//     when it is full.
//   - A connection is closed when it has been acquired a thousand times. A server process keeps what it has
//     read of every table that it ever looked at, tens of kilobytes for each: whoever goes through the
//     schemas of thousands of tenants must begin anew now and then, or it takes the server's memory.
func (d *Databases) ForMoves() {
	if d.forMoves.Swap(true) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.pools {
		p.Reset()
	}
}

// connected prepares a new connection. Where commits wait for standbys, too, that stays as it is.
func (d *Databases) connected(ctx context.Context, conn *pgx.Conn) error {
	if !d.forMoves.Load() {
		return nil
	}
	_, err := conn.Exec(ctx, `SET plan_cache_mode = 'force_custom_plan'; SELECT set_config('synchronous_commit', 'local', false) WHERE current_setting('synchronous_commit') = 'off'`, pgx.QueryExecModeSimpleProtocol)
	return err
}

// fresh counts the uses of a connection and reports whether it may have another one.
func (d *Databases) fresh(_ context.Context, conn *pgx.Conn) (bool, error) {
	if !d.forMoves.Load() {
		return true, nil
	}
	const key = "uses"
	data := conn.PgConn().CustomData()
	n, _ := data[key].(int)
	data[key] = n + 1
	return n < manyUses, nil
}

// Control returns the pool of the green database for its control tables. Their
// names are to be qualified: control.tenant.
func (d *Databases) Control(ctx context.Context) (*Pool, error) { return d.Pool(ctx, GreenDatabase) }

// Close closes all pools. It waits for connections that are in use; whoever holds one may ask for another pool
// meanwhile, of which there are no new ones, and gets no connection from it any more.
func (d *Databases) Close() {
	d.mu.Lock()
	d.closed = true
	pools := slices.Collect(maps.Values(d.pools))
	d.mu.Unlock()
	for _, p := range pools {
		p.Close()
	}
}

// HasCitus reports whether the database uses the Citus extension. It asks once.
func (p *Pool) HasCitus(ctx context.Context) (bool, error) {
	if known := p.server.Load(); known != serverUnknown {
		return known == serverCitus, nil
	}
	p.detect.Lock()
	defer p.detect.Unlock()
	if known := p.server.Load(); known != serverUnknown {
		return known == serverCitus, nil
	}
	var citus bool
	if err := p.QueryRow(ctx, `SELECT coditect.has_citus()`).Scan(&citus); err != nil {
		return false, err
	}
	if citus {
		p.server.Store(serverCitus)
	} else {
		p.server.Store(serverPlain)
	}
	return citus, nil
}
