package citustest

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus/localpg"
	"github.com/coditect/platform/shared/schema"
)

// cluster is a Citus coordinator with its workers, started once per test binary.
type cluster struct {
	coordinator *localpg.Server
	workers     []*localpg.Server
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

// citusGreen makes a database of the same name on every node, joins them and
// applies the green schema.
func citusGreen(t testing.TB) string {
	t.Helper()
	ctx := context.Background()
	c := theCluster(t)
	name := fmt.Sprintf("test_citus_%d_%d", os.Getpid(), counter.Add(1))
	for _, s := range append([]*localpg.Server{c.coordinator}, c.workers...) {
		run(t, s.DSN("postgres", "postgres"), `CREATE DATABASE `+name)
		run(t, s.DSN(name, "postgres"), `CREATE EXTENSION citus`)
		t.Cleanup(func() { run(t, s.DSN("postgres", "postgres"), `DROP DATABASE IF EXISTS `+name+` WITH (FORCE)`) })
	}
	dsn := c.coordinator.DSN(name, "postgres")
	run(t, dsn, fmt.Sprintf(`SELECT citus_set_coordinator_host('127.0.0.1', %d)`, c.coordinator.Port()))
	for _, w := range c.workers {
		run(t, dsn, fmt.Sprintf(`SELECT citus_add_node('127.0.0.1', %d)`, w.Port()))
	}
	_, err := schema.ApplyGreen(ctx, dsn)
	require.NoError(t, err)
	return dsn
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
