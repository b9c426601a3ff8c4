package main

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/schema"
	"github.com/coditect/platform/shared/tenant"
)

// newTenant makes an active tenant in a home. The databases are a superuser's.
func newTenant(ctx context.Context, dbs *citus.Databases, home tenant.Home) (tenant.ID, error) {
	id := tenant.NewID()
	control, err := dbs.Control(ctx)
	if err != nil {
		return id, err
	}
	database, name := citus.GreenDatabase, schema.GreenSchema
	if home == tenant.Blue {
		blue, err := dbs.Pool(ctx, citus.BlueDatabase)
		if err != nil {
			return id, err
		}
		database = citus.BlueDatabase
		if name, err = schema.CreateBlueTenant(ctx, blue, id, 1); err != nil {
			return id, err
		}
	} else if _, err := control.Exec(ctx, `INSERT INTO coditect.gate (tenant_id, schema_name, epoch) VALUES ($1, $2, 1)`, id, name); err != nil {
		return id, err
	}
	_, err = control.Exec(ctx, `INSERT INTO control.tenant (id, name, slug, home, database_name, schema_name, status)
		VALUES ($1, $2, $3, $4, $5, $6, 'active')`, id, "Tenant "+id.String(), id.String(), string(home), database, name)
	return id, err
}

// makeBlueSchemas makes n blue schemas as fast as it can: not what is measured, so
// their commits need not be durable.
func makeBlueSchemas(ctx context.Context, b *bench, p *platform, n int) error {
	if n <= 0 {
		return nil
	}
	return prepared(ctx, p.blue, func() error { return makeSchemas(ctx, b, p, n) })
}

func makeSchemas(ctx context.Context, b *bench, p *platform, n int) error {
	const parallel = 3
	var made atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range parallel {
		g.Go(func() error {
			conn, err := pgx.Connect(ctx, p.blueDSN("postgres"))
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
			if _, err := conn.Exec(ctx, `SET synchronous_commit = off`); err != nil {
				return err
			}
			for {
				done := made.Add(1)
				if done > int64(n) {
					return nil
				}
				if _, err := schema.CreateBlueTenant(ctx, conn, tenant.NewID(), 1); err != nil {
					return fmt.Errorf("schema %d: %w", done, err)
				}
				if done%1000 == 0 {
					b.say("%d of %d blue schemas", done, n)
				}
			}
		})
	}
	return g.Wait()
}
