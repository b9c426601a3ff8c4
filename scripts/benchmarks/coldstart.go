package main

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"time"

	"github.com/google/uuid"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/tenant"
)

func coldstartFlags(set *flag.FlagSet) func(context.Context, *bench) (figures, error) {
	starts := set.Int("starts", 20, "starts of each function and kind of first request")
	return func(ctx context.Context, b *bench) (figures, error) { return coldstart(ctx, b, *starts) }
}

// coldstart measures exec to first answered request: one that needs nothing, and an
// authenticated one that needs the database.
func coldstart(ctx context.Context, b *bench, starts int) (figures, error) {
	p, err := b.platform(ctx)
	if err != nil {
		return nil, err
	}
	names, err := allFunctions()
	if err != nil {
		return nil, err
	}
	functions, err := b.build(ctx, names...)
	if err != nil {
		return nil, err
	}
	needs, err := firstRequests(ctx, b, p)
	if err != nil {
		return nil, err
	}
	type kind struct {
		f        function
		request  request
		status   int
		database bool
		took     []float64
	}
	var kinds []*kind
	for _, f := range functions {
		kinds = append(kinds, &kind{f: f, request: request{method: http.MethodGet, path: "/openapi.json"}, status: http.StatusOK})
		if need, ok := needs[f.name]; ok {
			kinds = append(kinds, &kind{f: f, request: need.request, status: need.status, database: true})
		} else {
			b.say("%s: no request is known here that needs its database; only /openapi.json is measured", f.name)
		}
	}
	for n := range starts + 1 { // in turns; the first brings the programs into memory and is not counted
		for _, k := range kinds {
			took, err := firstAnswer(ctx, k.f.path, p.env(k.f.name, 4), k.request, k.status)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", k.f.name, err)
			}
			if n > 0 {
				k.took = append(k.took, milliseconds(took))
			}
		}
	}
	found := map[string]map[string]any{}
	goals := map[string]goal{}
	for _, k := range kinds {
		if found[k.f.name] == nil {
			size := round(float64(k.f.bytes)/1e6, 1)
			found[k.f.name] = map[string]any{"binary_mb": size}
			goals[k.f.name+" binary"] = below(size, 40, " MB")
		}
		what := "openapi_ms"
		if k.database {
			what = "database_ms"
		}
		s := spreadOf(k.took)
		found[k.f.name][what] = s
		goals[k.f.name+" "+what] = below(s.P50, 60, " ms")
		b.say("%-14s %s %s: median %.1f ms, worst %.1f ms", k.f.name, k.request.method, k.request.path, s.P50, s.Max)
	}
	return figures{"functions": found, "goals": goals, "sizes": map[string]any{"starts": starts},
		"how": "from exec to the last byte of the first answer, in turns over all functions; -ldflags '-s -w' -trimpath"}, nil
}

type firstRequest struct {
	request request
	status  int
}

// firstRequests are, by function, requests that check a key and read the database.
func firstRequests(ctx context.Context, b *bench, p *platform) (map[string]firstRequest, error) {
	dbs, err := b.open(ctx, p.config("postgres", 4))
	if err != nil {
		return nil, err
	}
	id, err := newTenant(ctx, dbs, tenant.Green)
	if err != nil {
		return nil, err
	}
	control, err := dbs.Control(ctx)
	if err != nil {
		return nil, err
	}
	operator, _, err := auth.CreateKey(ctx, control, auth.NewKey{Name: "benchmark", Kind: auth.Operator, Scopes: auth.AllScopes()})
	if err != nil {
		return nil, err
	}
	user, _, err := auth.CreateKey(ctx, control, auth.NewKey{Name: "benchmark", Kind: auth.TenantKey, Tenant: id, Scopes: []string{auth.ProjectsRead}})
	if err != nil {
		return nil, err
	}
	return map[string]firstRequest{
		"projects":   {request{method: http.MethodGet, path: "/projects", secret: user}, http.StatusOK},
		"tenants":    {request{method: http.MethodGet, path: "/tenants", secret: operator}, http.StatusOK},
		"migrations": {request{method: http.MethodGet, path: "/runs", secret: operator}, http.StatusOK},
		// There is no such lane, which the database knows.
		"replication": {request{method: http.MethodPost, path: "/receive", secret: operator, body: []byte(`{"database":"blue","lane":9,"step":1}`)}, http.StatusOK},
		// There is no such run, which the database knows.
		"migrationstep": {request{method: http.MethodPost, path: "/step", secret: operator, body: fmt.Appendf(nil, `{"run":%q,"batch":1,"step":1}`, uuid.Must(uuid.NewV7()))}, http.StatusNoContent},
	}, nil
}

// firstAnswer starts a program, asks once as soon as it listens, and ends it.
func firstAnswer(ctx context.Context, path string, env []string, r request, want int) (took time.Duration, err error) {
	p, err := serve(path, nil, env)
	if err != nil {
		return 0, err
	}
	defer func() {
		if e := p.end(); err == nil {
			err = e
		}
	}()
	conn, err := p.dial(ctx)
	if err != nil {
		return 0, err
	}
	c := newClient(conn)
	defer func() { _ = c.Close() }()
	if err := c.do(r, want); err != nil {
		return 0, err
	}
	return time.Since(p.started), nil
}
