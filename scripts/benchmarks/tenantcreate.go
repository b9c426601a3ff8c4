package main

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/schema"
	"github.com/coditect/platform/shared/tenant"
)

func tenantCreateFlags(set *flag.FlagSet) func(context.Context, *bench) (figures, error) {
	count := set.Int("count", 200, "tenants to make by each way")
	existing := set.String("existing", "10,2000", "schemas that are there before, growing")
	return func(ctx context.Context, b *bench) (figures, error) {
		var have []int
		for _, part := range strings.Split(*existing, ",") {
			n, err := strconv.Atoi(part)
			if err != nil || n < 0 || len(have) > 0 && n < have[len(have)-1] {
				return nil, fmt.Errorf("--existing must be growing numbers with commas between; it is %q", *existing)
			}
			have = append(have, n)
		}
		return tenantCreate(ctx, b, *count, have)
	}
}

// tenantCreate measures how long making a blue tenant takes, in turns directly and
// by sign-up over HTTP.
func tenantCreate(ctx context.Context, b *bench, count int, existing []int) (figures, error) {
	p, err := b.platform(ctx)
	if err != nil {
		return nil, err
	}
	functions, err := b.build(ctx, "tenants")
	if err != nil {
		return nil, err
	}
	admin, err := b.open(ctx, p.config("postgres", 4))
	if err != nil {
		return nil, err
	}
	control, err := admin.Control(ctx)
	if err != nil {
		return nil, err
	}
	app, err := b.open(ctx, p.config("coditect_app", 4))
	if err != nil {
		return nil, err
	}
	blue, err := app.Pool(ctx, citus.BlueDatabase)
	if err != nil {
		return nil, err
	}
	operator, _, err := auth.CreateKey(ctx, control, auth.NewKey{Name: "benchmark", Kind: auth.Operator, Scopes: auth.AllScopes()})
	if err != nil {
		return nil, err
	}
	server, err := b.running(ctx, functions[0].path, nil, p.env("tenants", 4))
	if err != nil {
		return nil, err
	}
	c, err := dial(ctx, server.addr)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	found, goals, signUps := map[string]any{}, map[string]goal{}, 0
	signUp := func() error {
		signUps++
		body := fmt.Appendf(nil, `{"name":"Benchmark %[1]d","slug":"benchmark-%[1]d","owner":"owner-%[1]d"}`, signUps)
		return c.do(request{method: http.MethodPost, path: "/tenants", secret: operator, body: body}, http.StatusCreated)
	}
	direct := func() error {
		_, err := schema.CreateBlueTenant(ctx, blue, tenant.NewID(), 1)
		return err
	}
	for range 3 { // connections, caches
		if err := signUp(); err != nil {
			return nil, err
		}
		if err := direct(); err != nil {
			return nil, err
		}
	}
	for _, want := range existing {
		var have int
		if err := blue.QueryRow(ctx, `SELECT count(*) FROM coditect.gate`).Scan(&have); err != nil {
			return nil, err
		}
		if err := makeSchemas(ctx, b, p, want-have); err != nil { // the server's sessions live on
			return nil, err
		}
		if err := settle(ctx, p.blueDSN("postgres"), p.greenDSN("postgres")); err != nil {
			return nil, err
		}
		var directs, overHTTP []float64
		for range count {
			took, err := timed(direct)
			if err != nil {
				return nil, err
			}
			directs = append(directs, milliseconds(took))
			if took, err = timed(signUp); err != nil {
				return nil, err
			}
			overHTTP = append(overHTTP, milliseconds(took))
		}
		key := fmt.Sprintf("with_%d_schemas", max(want, have))
		d, h := spreadOf(directs), spreadOf(overHTTP)
		found[key] = map[string]any{"create_blue_tenant_ms": d, "sign_up_over_http_ms": h}
		goals[key+" direct p99"], goals[key+" http p99"] = below(d.P99, 100, " ms"), below(h.P99, 100, " ms")
		b.say("%s: direct %+v, sign-up %+v", key, d, h)
	}
	return figures{"tenant_create": found, "goals": goals, "sizes": map[string]any{"count": count, "existing": existing}}, nil
}

func timed(f func() error) (time.Duration, error) {
	began := time.Now()
	err := f()
	return time.Since(began), err
}
