// Package directory knows where each tenant lives: blue or green, which database,
// which schema. It reads control.tenant and remembers what it read for a bounded
// time.
//
// Correctness never depends on the memory: the gate in the database decides, and a
// caller that was refused there asks for the placement anew ([Directory.Relocate]).
package directory

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/maypok86/otter/v2"
	"golang.org/x/sync/singleflight"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

// DefaultTTL bounds how old a remembered placement may be.
const DefaultTTL = 5 * time.Second

// maxEntries bounds the memory: about 200 bytes an entry.
const maxEntries = 50_000

// Directory is a cache of placements in front of control.tenant. Safe for
// concurrent use.
type Directory struct {
	dbs    *citus.Databases
	cache  *otter.Cache[tenant.ID, tenant.Placement]
	flight singleflight.Group
	now    func() time.Time
}

var _ citus.Locator = (*Directory)(nil)

// New returns a directory over the control tables of dbs. A ttl of 0 is DefaultTTL.
func New(dbs *citus.Databases, ttl time.Duration) *Directory {
	if ttl <= 0 {
		ttl = DefaultTTL
	}
	return &Directory{
		dbs: dbs,
		now: time.Now,
		cache: otter.Must(&otter.Options[tenant.ID, tenant.Placement]{
			MaximumSize:      maxEntries,
			ExpiryCalculator: otter.ExpiryWriting[tenant.ID, tenant.Placement](ttl),
		}),
	}
}

// Open opens the databases of a configuration and the door to their tenants: what
// every function that serves tenants begins with.
func Open(ctx context.Context, cfg citus.Config) (*citus.Databases, *citus.Door, *Directory, error) {
	dbs, err := citus.Open(ctx, cfg)
	if err != nil {
		return nil, nil, nil, err
	}
	dir := New(dbs, 0)
	return dbs, citus.NewDoor(dbs, dir), dir, nil
}

// Locate returns a tenant's placement, remembered or read; a NotFound fault when
// there is no such tenant.
func (d *Directory) Locate(ctx context.Context, id tenant.ID) (tenant.Placement, error) {
	if p, ok := d.cache.GetIfPresent(id); ok {
		return p, nil
	}
	return d.read(ctx, id)
}

// Relocate returns a placement that was read after stale.
func (d *Directory) Relocate(ctx context.Context, stale tenant.Placement) (tenant.Placement, error) {
	if p, ok := d.cache.GetIfPresent(stale.Tenant); ok && p.Read.After(stale.Read) {
		return p, nil
	}
	return d.read(ctx, stale.Tenant)
}

// Forget drops what is remembered of a tenant, for callers that changed it.
func (d *Directory) Forget(id tenant.ID) { d.cache.Invalidate(id) }

// read asks the control tables; callers that ask for one tenant at the same time
// share an answer.
func (d *Directory) read(ctx context.Context, id tenant.ID) (tenant.Placement, error) {
	v, err, _ := d.flight.Do(id.String(), func() (any, error) {
		// The question is not the first caller's alone: its cancellation must not fail the others.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		p := tenant.Placement{Tenant: id, Read: d.now()}
		pool, err := d.dbs.Control(ctx)
		if err != nil {
			return p, err
		}
		err = pool.QueryRow(ctx, `SELECT home, database_name, schema_name, epoch, status FROM control.tenant WHERE id = $1`, id).
			Scan(&p.Home, &p.Database, &p.Schema, &p.Epoch, &p.Status)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			d.cache.Invalidate(id)
			return p, fault.New(fault.NotFound, "tenant_not_found", "there is no such organisation")
		case err != nil:
			f := fault.Wrap(fmt.Errorf("directory: %s: %w", id, err), fault.Unavailable, "directory_unavailable",
				"it cannot be told at the moment where the organisation lives; try again")
			f.RetryAfter = time.Second
			return p, f
		}
		d.cache.Set(id, p)
		return p, nil
	})
	if err != nil {
		return tenant.Placement{}, err
	}
	return v.(tenant.Placement), nil
}
