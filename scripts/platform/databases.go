package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/scripts/internal/demo"
	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/localpg"
	"github.com/coditect/platform/shared/schema"
	"github.com/coditect/platform/shared/tenant"
)

// databases are the PostgreSQL servers: blue and green apart, so that nothing works
// by accident of sharing one.
type databases struct {
	blue, green *localpg.Server
	workers     []*localpg.Server // of green, when it is a Citus coordinator
}

// config is how a function with this role reaches the databases.
func (d databases) config(role string) citus.Config {
	return citus.Config{
		Green:   d.green.DSN("green", role),
		Blue:    d.blue.DSN("blue", role),
		Sources: citus.SourceDSNs{demo.Source: d.blue.DSN(demo.LegacyDatabase, role)},
	}
}

// durable are the settings of data worth keeping.
var durable = map[string]string{"fsync": "on", "full_page_writes": "on", "max_wal_size": "2GB", "checkpoint_timeout": "15min"}

func (p *platform) startDatabases(ctx context.Context) error {
	if err := p.decideWorkers(); err != nil {
		return err
	}
	base := p.state.Path("postgres")
	if err := localpg.CanServe(filepath.Join(base, "blue")); err != nil {
		if base = p.refuge(); localpg.CanServe(filepath.Join(base, "blue")) != nil {
			return err
		}
		p.console.Say("The databases are in %s: %v", base, err)
	}
	if err := os.MkdirAll(base, 0o755); err != nil {
		return err
	}
	names := []string{"blue", "green"}
	for i := range p.workers {
		names = append(names, fmt.Sprintf("worker%d", i+1))
	}
	servers := make([]*localpg.Server, len(names))
	err := each(len(names), func(i int) (err error) {
		var preload []string
		if p.workers > 0 && names[i] != "blue" {
			preload = []string{"citus"}
		}
		servers[i], err = p.startDatabase(ctx, names[i], filepath.Join(base, names[i]), preload)
		return err
	})
	for i, s := range servers { // also those beside one that failed
		if s != nil {
			p.watch(ctx, names[i], s)
		}
	}
	if err != nil {
		return err
	}
	p.databases = databases{blue: servers[0], green: servers[1], workers: servers[2:]}
	if p.workers > 0 {
		p.console.Say("PostgreSQL: blue on port %d, green on port %d (Citus coordinator with %d workers)", servers[0].Port(), servers[1].Port(), p.workers)
	} else {
		p.console.Say("PostgreSQL: blue on port %d, green on port %d", servers[0].Port(), servers[1].Port())
	}
	return nil
}

// decideWorkers settles what green is. Data made with one number of workers stays
// with it: adding workers to it is a matter of its own, not of a flag.
func (p *platform) decideWorkers() error {
	if p.workers < 0 {
		return fmt.Errorf("--workers must be 0 or more, not %d", p.workers)
	}
	if p.workers > 0 && !localpg.HasCitus() {
		p.console.Say("This PostgreSQL installation does not offer the Citus extension: green is plain PostgreSQL, and --workers %d is ignored.", p.workers)
		p.workers = 0
	}
	before := p.remembered.Workers
	if before != nil && *before != p.workers {
		if p.workers != 0 {
			return fmt.Errorf("the state in %s was made with --workers %d: use that, or start over with --fresh", p.state.Path(), *before)
		}
		p.workers = *before // no flag: as it was
	}
	workers := p.workers
	p.remembered.Workers = &workers
	return p.state.Save(memory, p.remembered)
}

// startDatabase starts one server, on the port it had before if that is free.
func (p *platform) startDatabase(ctx context.Context, name, dir string, preload []string) (*localpg.Server, error) {
	for {
		port, err := p.portFor("postgres " + name)
		if err != nil {
			return nil, err
		}
		s, err := localpg.Start(ctx, localpg.Options{Dir: dir, Port: port, Settings: durable, Preload: preload})
		if errors.Is(err, localpg.ErrPortTaken) {
			continue // somebody was faster: portFor finds another
		}
		if err != nil {
			return nil, fmt.Errorf("PostgreSQL %s: %w", name, err)
		}
		return s, nil
	}
}

// watch starts a server that ends by itself again, until the platform stops.
func (p *platform) watch(ctx context.Context, name string, s *localpg.Server) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-s.Exited():
			}
			p.console.Say("PostgreSQL %s ended; starting it again", name)
			if err := s.Restart(ctx); err != nil && ctx.Err() == nil {
				p.console.Say("PostgreSQL %s: %v", name, err)
				select {
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
			}
		}
	}()
	p.onStop(func() error {
		cancel()
		<-done
		patience, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		return s.Stop(patience)
	})
}

// refuge is where databases are kept when root runs the platform from a folder
// that the user postgres may not enter.
func (p *platform) refuge() string {
	sum := sha256.Sum256([]byte(p.state.Path()))
	return filepath.Join("/var/tmp", "coditect-dev-"+hex.EncodeToString(sum[:6]))
}

// applySchema makes the databases and brings them up to date.
func (p *platform) applySchema(ctx context.Context) error {
	d := p.databases
	if err := each(2, func(i int) error {
		if i == 0 {
			return createDatabase(ctx, d.blue, "blue")
		}
		return createDatabase(ctx, d.green, "green")
	}); err != nil {
		return err
	}
	if err := p.formCluster(ctx); err != nil {
		return err
	}
	return each(2, func(i int) error {
		if i == 0 {
			_, err := schema.ApplyHome(ctx, schema.Database{DSN: d.blue.DSN("blue", "postgres"), Name: citus.BlueDatabase, Kind: tenant.Blue})
			return err
		}
		_, err := schema.ApplyGreen(ctx, d.green.DSN("green", "postgres"))
		return err
	})
}

func createDatabase(ctx context.Context, s *localpg.Server, name string) error {
	conn, err := pgx.Connect(ctx, s.DSN("postgres", "postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var there bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name).Scan(&there); err != nil || there {
		return err
	}
	_, err = conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize())
	return err
}

// formCluster makes green the coordinator of its workers. Ports may have changed
// since the last start, so the nodes are told where the others are now.
func (p *platform) formCluster(ctx context.Context) error {
	d := p.databases
	if len(d.workers) == 0 {
		return nil
	}
	for _, w := range append([]*localpg.Server{d.green}, d.workers...) {
		if err := createDatabase(ctx, w, "green"); err != nil {
			return err
		}
		if err := execute(ctx, w, "CREATE EXTENSION IF NOT EXISTS citus"); err != nil {
			return err
		}
	}
	if err := execute(ctx, d.green, "SELECT citus_set_coordinator_host('127.0.0.1', $1)", d.green.Port()); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, d.green.DSN("green", "postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, "SELECT nodeid FROM pg_dist_node WHERE groupid <> 0 ORDER BY nodeid")
	if err != nil {
		return err
	}
	nodes, err := pgx.CollectRows(rows, pgx.RowTo[int32])
	if err != nil {
		return err
	}
	for i, w := range d.workers { // nodes were added in this order
		if i < len(nodes) {
			_, err = conn.Exec(ctx, "SELECT citus_update_node($1, '127.0.0.1', $2)", nodes[i], w.Port())
		} else {
			_, err = conn.Exec(ctx, "SELECT citus_add_node('127.0.0.1', $1)", w.Port())
		}
		if err != nil {
			return fmt.Errorf("worker %d of Citus: %w", i+1, err)
		}
	}
	return nil
}

func execute(ctx context.Context, s *localpg.Server, sql string, args ...any) error {
	conn, err := pgx.Connect(ctx, s.DSN("green", "postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, sql, args...); err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	return nil
}
