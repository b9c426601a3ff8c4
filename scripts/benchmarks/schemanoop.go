package main

import (
	"context"
	"flag"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/schema"
	"github.com/coditect/platform/shared/tenant"
)

func schemaNoopFlags(set *flag.FlagSet) func(context.Context, *bench) (figures, error) {
	n := set.Int("schemas", 10_000, "blue schemas")
	upgrade := set.Bool("upgrade", false, "also upgrade all of them by one column")
	parallel := set.Int("parallel", 4, "schemas at a time")
	return func(ctx context.Context, b *bench) (figures, error) {
		return schemaNoop(ctx, b, *n, *parallel, *upgrade)
	}
}

// schemaNoop measures how long it takes to see that nothing is to be done.
func schemaNoop(ctx context.Context, b *bench, n, parallel int, upgrade bool) (figures, error) {
	p, err := b.platform(ctx)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := makeBlueSchemas(ctx, b, p, n); err != nil {
		return nil, err
	}
	made := time.Since(began)
	if err := settle(ctx, p.blueDSN("postgres")); err != nil {
		return nil, err
	}
	dbs, err := b.open(ctx, p.config("postgres", int32(parallel)))
	if err != nil {
		return nil, err
	}
	blue, err := dbs.Pool(ctx, citus.BlueDatabase)
	if err != nil {
		return nil, err
	}
	var files, schemas []float64
	for range 5 {
		took, err := timed(func() error {
			_, err := schema.ApplyHome(ctx, schema.Database{DSN: p.blueDSN("postgres"), Name: citus.BlueDatabase, Kind: tenant.Blue})
			return err
		})
		if err != nil {
			return nil, err
		}
		files = append(files, took.Seconds())
		took, err = timed(func() error {
			changed, err := schema.UpgradeBlue(ctx, blue.Pool, parallel, nil)
			if err == nil && changed != 0 {
				err = fmt.Errorf("%d schemas were changed where there was nothing to do", changed)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		schemas = append(schemas, took.Seconds())
	}
	noop := round(median(files)+median(schemas), 4)
	out := figures{
		"sizes":             map[string]any{"schemas": n, "parallel": parallel},
		"noop_seconds":      noop,
		"apply_home_median": round(median(files), 4), "upgrade_blue_median": round(median(schemas), 4), "upgrade_blue_first": round(schemas[0], 4),
		"created_seconds": round(made.Seconds(), 1), "created_per_second": round(float64(n)/made.Seconds(), 1),
		"goals": map[string]goal{"noop": below(noop, 5, " s")},
	}
	b.say("nothing to do over %d schemas: %.4f s", n, noop)
	if upgrade {
		if out["upgrade"], err = upgradeAll(ctx, b, p, blue, n, parallel); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// upgradeAll gives every schema one more column. The version is put into the database,
// as a release would; shared/schema takes its own from the files, so the loop is
// here, and each schema is upgraded by the function it uses.
func upgradeAll(ctx context.Context, b *bench, p *platform, blue *citus.Pool, n, parallel int) (any, error) {
	var version int64
	if err := one(ctx, p.blueDSN("postgres"), `INSERT INTO coditect.tenant_version (version, name, body)
		SELECT max(version) + 1, 'benchmark', 'ALTER TABLE project ADD COLUMN benchmark text' FROM coditect.tenant_version RETURNING version`, &version); err != nil {
		return nil, err
	}
	began := time.Now()
	rows, err := blue.Query(ctx, `SELECT tenant_id FROM coditect.tenant_schema WHERE version < $1`, version)
	if err != nil {
		return nil, err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[tenant.ID])
	if err != nil {
		return nil, err
	}
	if len(ids) != n {
		return nil, fmt.Errorf("%d schemas are to be upgraded, not %d", len(ids), n)
	}
	var done atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, id := range ids {
		g.Go(func() error {
			var did bool
			if err := blue.QueryRow(ctx, `SELECT coditect.upgrade_tenant($1, $2)`, id, version).Scan(&did); err != nil {
				return err
			}
			if count := done.Add(1); count%1000 == 0 {
				b.say("%d of %d schemas upgraded", count, n)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	took := time.Since(began).Seconds()
	return map[string]any{"what": "one column more in each", "seconds": round(took, 2), "schemas_per_second": round(float64(n)/took, 0)}, nil
}
