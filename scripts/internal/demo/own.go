package demo

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/coditect/platform/scripts/internal/traffic"
	"github.com/coditect/platform/shared/tenant"
)

// parallel is how many requests at a time make and fill tenants.
const parallel = 8

// own is one of our own demo tenants.
type own struct {
	ID      tenant.ID
	Slug    string
	Project string // one of its projects: the traffic's
}

const slugPrefix = "demo-"

// makeTenants makes the tenants of our own that are missing, through the API, and fills
// them with projects and tasks. It returns all of them and the median time that
// making one took.
func (e Environment) makeTenants(ctx context.Context) ([]own, error) {
	there, err := e.ownTenants(ctx)
	if err != nil {
		return nil, err
	}
	tenants := make([]own, e.Tenants)
	var g errgroup.Group
	g.SetLimit(parallel)
	began := time.Now()
	for i := range tenants {
		g.Go(func() (err error) {
			slug := fmt.Sprintf("%s%04d", slugPrefix, i+1)
			tenants[i], err = e.makeTenant(ctx, slug, fmt.Sprintf("Demo %d", i+1), there[slug])
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	e.Console.Say("%d tenants of our own, each with 2 projects and 20 tasks, made through the API (%.1f s)", len(tenants), time.Since(began).Seconds())
	return tenants, nil
}

// ownTenants maps the slugs of the demo's own tenants to their ids.
func (e Environment) ownTenants(ctx context.Context) (map[string]tenant.ID, error) {
	conn, err := pgx.Connect(ctx, e.Green)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, `SELECT slug, id FROM control.tenant WHERE source = 'platform' AND starts_with(slug, $1)`, slugPrefix)
	if err != nil {
		return nil, err
	}
	out := map[string]tenant.ID{}
	var slug string
	var id tenant.ID
	_, err = pgx.ForEachRow(rows, []any{&slug, &id}, func() error { out[slug] = id; return nil })
	return out, err
}

func (e Environment) makeTenant(ctx context.Context, slug, name string, id tenant.ID) (own, error) {
	if id.IsZero() {
		var made struct{ ID tenant.ID }
		err := e.operatorFor("").Do(ctx, http.MethodPost, "/tenants/tenants", map[string]string{"name": name, "slug": slug}, &made)
		if err != nil {
			return own{}, err
		}
		id = made.ID
	}
	project, err := fill(ctx, e.operatorFor(id.String()), slug)
	return own{ID: id, Slug: slug, Project: project}, err
}

// fill makes two projects with ten tasks each and returns the first project's id. The
// idempotency keys make it free of duplicates when an interrupted start is repeated.
func fill(ctx context.Context, api traffic.API, slug string) (string, error) {
	first := ""
	for p, name := range []string{"Launch", "House-keeping"} {
		var made struct{ ID string }
		if err := api.Do(ctx, http.MethodPost, "/projects/projects", map[string]string{"name": name}, &made,
			"Idempotency-Key", fmt.Sprintf("%s-project-%d", slug, p)); err != nil {
			return "", err
		}
		if first == "" {
			first = made.ID
		}
		for n := range 10 {
			task := map[string]any{"title": fmt.Sprintf("%s: step %d", name, n+1), "priority": n % 5, "labels": []string{"demo"}}
			if err := api.Do(ctx, http.MethodPost, "/projects/projects/"+made.ID+"/tasks", task, nil,
				"Idempotency-Key", fmt.Sprintf("%s-task-%d-%d", slug, p, n)); err != nil {
				return "", err
			}
		}
	}
	return first, nil
}

// foreign is one imported tenant.
type foreign struct {
	ID     tenant.ID
	Schema string // in the legacy database
}

// foreignTenants lists what the directory knows of the legacy source.
func (e Environment) foreignTenants(ctx context.Context) ([]foreign, error) {
	conn, err := pgx.Connect(ctx, e.Blue.DSN(LegacyDatabase, "postgres"))
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, `SELECT schema_name FROM public.customers_client WHERE schema_name <> 'public' ORDER BY 1`)
	if err != nil {
		return nil, err
	}
	schemas, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	if len(schemas) == 0 {
		return nil, errors.New("the legacy database has no tenants")
	}
	var out []foreign
	for _, s := range schemas {
		out = append(out, foreign{ID: tenant.ImportedID(Source, s), Schema: s})
	}
	return out, nil
}
