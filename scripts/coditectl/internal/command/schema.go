package command

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/schema"
	"github.com/coditect/platform/shared/tenant"
)

func (p *program) schema() *cobra.Command {
	c := &cobra.Command{Use: "schema", Short: "Bring databases up to date", Args: cobra.ArbitraryArgs, RunE: group}
	c.AddCommand(p.schemaApply())
	return c
}

// applied is the result of `schema apply`.
type applied struct {
	Green    *appliedDatabase `json:"green"`
	Blue     *appliedDatabase `json:"blue,omitempty"` // absent without a blue database
	Upgraded int              `json:"upgraded"`       // tenants' schemas in blue
}

type appliedDatabase struct {
	Applied []string `json:"applied"`
	Notes   []string `json:"notes"`
	Citus   bool     `json:"citus"`
}

func appliedOf(r schema.Result) *appliedDatabase {
	return &appliedDatabase{Applied: orNone(r.Applied), Notes: orNone(r.Notes), Citus: r.Citus}
}

const maxParallel = 64

func (p *program) schemaApply() *cobra.Command {
	var parallel int
	c := &cobra.Command{
		Use: "apply", Short: "Apply the platform's SQL to green, to blue, and to every tenant's schema in blue", Args: args(),
		Long: "Apply the platform's SQL to the database of " + greenVariable + ", to that of " + blueVariable + " if it is set, and to\nevery tenant's schema there. What is up to date is left alone; after a failure or an interruption, apply again.",
		RunE: func(c *cobra.Command, _ []string) error {
			if parallel < 1 || parallel > maxParallel {
				return usage("--parallel must be between 1 and %d; it is %d", maxParallel, parallel)
			}
			green, err := p.dsn(greenVariable)
			if err != nil {
				return err
			}
			result, err := p.apply(c.Context(), green, p.Getenv(blueVariable), parallel)
			if err != nil {
				return err
			}
			return p.print(result, func(w io.Writer) { showApplied(w, result) })
		},
	}
	c.Flags().IntVar(&parallel, "parallel", 4, fmt.Sprintf("tenants' schemas at a time, 1 to %d", maxParallel))
	return c
}

func (p *program) apply(ctx context.Context, green, blue string, parallel int) (applied, error) {
	var out applied
	p.Console.Say("Applying to green …")
	res, err := schema.ApplyGreen(ctx, green)
	if err != nil {
		return out, err
	}
	out.Green = appliedOf(res)
	if blue == "" {
		return out, nil
	}
	p.Console.Say("Applying to blue …")
	if res, err = schema.ApplyHome(ctx, schema.Database{DSN: blue, Name: citus.BlueDatabase, Kind: tenant.Blue}); err != nil {
		return out, err
	}
	out.Blue = appliedOf(res)
	dbs, err := citus.Open(ctx, citus.Config{Green: green, Blue: blue, MaxConns: int32(parallel)})
	if err != nil {
		return out, err
	}
	defer dbs.Close()
	pool, err := dbs.Pool(ctx, citus.BlueDatabase)
	if err != nil {
		return out, err
	}
	defer p.Console.Done()
	out.Upgraded, err = schema.UpgradeBlue(ctx, pool.Pool, parallel, func(done, total int) {
		p.Console.Progress(done, total, "tenants' schemas in blue")
	})
	return out, err
}

func showApplied(w io.Writer, a applied) {
	show := func(name string, d *appliedDatabase) {
		if d == nil {
			return
		}
		kind := "plain PostgreSQL"
		if d.Citus {
			kind = "Citus"
		}
		if len(d.Applied) == 0 {
			fmt.Fprintf(w, "%s (%s): up to date\n", name, kind)
		} else {
			fmt.Fprintf(w, "%s (%s): applied %s\n", name, kind, andList(d.Applied))
		}
		for _, n := range d.Notes {
			fmt.Fprintf(w, "  note: %s\n", n)
		}
	}
	show("Green", a.Green)
	show("Blue", a.Blue)
	if a.Blue != nil {
		fmt.Fprintf(w, "Tenants' schemas in blue: %d changed\n", a.Upgraded)
	}
}
