package citustest

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus/localpg"
	"github.com/coditect/platform/shared/schema"
)

// cluster is a Citus coordinator with its workers, started once per test binary.
type cluster struct {
	coordinator *localpg.Server
	workers     []*localpg.Server
	once        sync.Once // of its template
}

func theCluster(t testing.TB) *cluster {
	servers.Lock()
	defer servers.Unlock()
	if servers.cluster == nil {
		settings := map[string]string{"citus.shard_count": "8", "citus.node_conninfo": "sslmode=disable", "max_prepared_transactions": "100", "citus.enable_statistics_collection": "off"}
		for k, v := range fast {
			settings[k] = v
		}
		c := &cluster{}
		for i := range 3 {
			s, err := localpg.Start(context.Background(), localpg.Options{Settings: settings, Preload: []string{"citus"}})
			require.NoError(t, err)
			if i == 0 {
				c.coordinator = s
			} else {
				c.workers = append(c.workers, s)
			}
		}
		servers.cluster = c
	}
	return servers.cluster
}

// nodes are the coordinator, first, and its workers.
func (c *cluster) nodes() []*localpg.Server {
	return append([]*localpg.Server{c.coordinator}, c.workers...)
}

const greenTemplate = "citus_template"

// template makes a green database on every node, once: a fresh one then takes a tenth of the time.
// What Citus knows of its tables stands in tables of the same database, so that copies on all nodes
// fit together as the originals do.
func (c *cluster) template(t testing.TB) {
	t.Helper()
	c.once.Do(func() {
		for _, s := range c.nodes() {
			run(t, s.DSN("postgres", "postgres"), `CREATE DATABASE `+greenTemplate)
			run(t, s.DSN(greenTemplate, "postgres"), `CREATE EXTENSION citus`)
		}
		dsn := c.coordinator.DSN(greenTemplate, "postgres")
		run(t, dsn, fmt.Sprintf(`SELECT citus_set_coordinator_host('127.0.0.1', %d)`, c.coordinator.Port()))
		for _, w := range c.workers {
			run(t, dsn, fmt.Sprintf(`SELECT citus_add_node('127.0.0.1', %d)`, w.Port()))
		}
		_, err := schema.ApplyGreen(context.Background(), dsn)
		require.NoError(t, err)
		for _, s := range c.nodes() { // Citus has a process of its own in every database that was connected to
			run(t, s.DSN("postgres", "postgres"), `ALTER DATABASE `+greenTemplate+` WITH IS_TEMPLATE true ALLOW_CONNECTIONS false`)
			run(t, s.DSN("postgres", "postgres"), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '`+greenTemplate+`'`)
		}
	})
}

// citusGreen makes a green database of the same name on every node.
func citusGreen(t testing.TB) string {
	t.Helper()
	c := theCluster(t)
	c.template(t)
	name := fmt.Sprintf("test_citus_%d_%d", os.Getpid(), counter.Add(1))
	for _, s := range c.nodes() {
		run(t, s.DSN("postgres", "postgres"), `CREATE DATABASE `+name+` TEMPLATE `+greenTemplate)
		run(t, s.DSN("postgres", "postgres"), `GRANT CREATE ON DATABASE `+name+` TO coditect_owner`) // not copied
		t.Cleanup(func() { drop(t, s, name) })
	}
	return c.coordinator.DSN(name, "postgres")
}

// drop drops a database. A process of Citus that was just told to end may still be in it.
func drop(t testing.TB, s *localpg.Server, name string) {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, s.DSN("postgres", "postgres"))
	require.NoError(t, err)
	defer conn.Close(ctx)
	for try := 0; ; try++ {
		_, err = conn.Exec(ctx, `DROP DATABASE IF EXISTS `+name+` WITH (FORCE)`)
		if err == nil || try == 100 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	require.NoError(t, err)
}

func run(t testing.TB, dsn, sql string) {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, dsn)
	require.NoError(t, err)
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, sql)
	require.NoError(t, err, sql)
}
