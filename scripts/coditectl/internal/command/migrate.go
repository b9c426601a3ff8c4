package command

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/coditect/platform/scripts/coditectl/internal/client"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/tenant"
)

func (p *program) migrate() *cobra.Command {
	c := &cobra.Command{Use: "migrate", Short: "Move tenants from blue to green", Args: cobra.ArbitraryArgs, RunE: group}
	c.AddCommand(p.migratePlan(), p.migrateStart(), p.migrateStatus(), p.migrateEvents(), p.migrateList(), p.migrateWatch(), p.migrateUndo(), p.migrateRollback(), p.migrateFinalise(), p.migrateReport(),
		p.migrateCutover(), p.migrateResume(), p.change("pause", "Pause a run after the tenants that are moving at the moment"),
		p.change("cancel", "End a run: green tenants stay green, the others stay blue"))
	return c
}

func (p *program) migrateStart() *cobra.Command {
	var o order
	var watch, dry bool
	c := &cobra.Command{
		Use: "start", Short: "Start moving the tenants of a source", Args: args(),
		Long: "Start moving the tenants of a source.\n\nTenants that the preflight refuses are left out and named, and the exit code is 4; when it refuses all, nothing is started and the exit code is 3." + aboutPlans,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.read(c, p.Now()); err != nil {
				return err
			}
			api, err := p.client()
			if err != nil {
				return err
			}
			if dry {
				return p.plan(c.Context(), api, o)
			}
			return p.start(c.Context(), api, o, watch)
		},
	}
	o.flags(c)
	o.batchFlag(c)
	c.Flags().BoolVar(&dry, "dry-run", false, "only say what would happen, as `migrate plan` does")
	c.Flags().BoolVar(&watch, "watch", false, "watch the run until it ends")
	return c
}

func (p *program) start(ctx context.Context, api *client.Client, o order, watch bool) error {
	body, err := api.Do(ctx, http.MethodPost, "/migrations/runs", nil, o)
	if err != nil {
		return err
	}
	var answer struct {
		Run       migration.Run       `json:"run"`
		Preflight migration.Preflight `json:"preflight"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return err
	}
	found := answer.Preflight
	if watch {
		p.Console.Say("Run %s moves %s of source %s (%s)", answer.Run.ID, count(found.Tenants-found.LeftOut, "tenant"), found.Source, size(found.Bytes))
		findings(visible{p.Err}, found.Findings)
		return p.watch(ctx, api, answer.Run.ID, found.LeftOut)
	}
	err = p.print(body, func(w io.Writer) {
		fmt.Fprintf(w, "Run %s moves %s of source %s (%s)\n", answer.Run.ID, count(found.Tenants-found.LeftOut, "tenant"), found.Source, size(found.Bytes))
		findings(w, found.Findings)
		fmt.Fprintf(w, "Watch it: coditectl migrate watch %s\n", answer.Run.ID)
	})
	if err == nil && found.LeftOut > 0 {
		return &outcome{exitNotAll, fmt.Sprintf("the preflight refused %d of %s; the others are being moved", found.LeftOut, count(found.Tenants, "tenant"))}
	}
	return err
}

func (p *program) migrateStatus() *cobra.Command {
	return &cobra.Command{
		Use: "status RUN", Short: "Show how far a run is", Args: args("RUN, the run's ID"),
		RunE: func(c *cobra.Command, args []string) error {
			api, id, err := p.ofRun(args[0])
			if err != nil {
				return err
			}
			body, s, err := status(c.Context(), api, id)
			if err != nil {
				return err
			}
			return p.print(body, func(w io.Writer) { showStatus(w, s) })
		},
	}
}

func (p *program) migrateList() *cobra.Command {
	var limit int
	c := &cobra.Command{
		Use: "list", Short: "List the newest runs", Args: args(),
		RunE: func(c *cobra.Command, _ []string) error {
			if limit < 1 || limit > 100 {
				return usage("--limit must be between 1 and 100; it is %d", limit)
			}
			api, err := p.client()
			if err != nil {
				return err
			}
			body, err := api.Do(c.Context(), http.MethodGet, "/migrations/runs", url.Values{"limit": {strconv.Itoa(limit)}}, nil)
			if err != nil {
				return err
			}
			var list struct{ Runs []migration.Run }
			if err := json.Unmarshal(body, &list); err != nil {
				return err
			}
			return p.print(body, func(w io.Writer) {
				var rows [][]string
				for _, r := range list.Runs {
					rows = append(rows, []string{r.ID.String(), r.Source, string(r.State), day(&r.CreatedAt), r.CreatedBy})
				}
				table(w, "There is no run.", []string{"RUN", "SOURCE", "STATE", "CREATED", "BY"}, rows)
			})
		},
	}
	c.Flags().IntVar(&limit, "limit", 20, "how many, 1 to 100")
	return c
}

// change is pause, resume or cancel.
func (p *program) change(verb, short string) *cobra.Command {
	return &cobra.Command{
		Use: verb + " RUN", Short: short, Args: args("RUN, the run's ID"),
		RunE: func(c *cobra.Command, args []string) error { return p.changeRun(c.Context(), args[0], verb, nil) },
	}
}

func (p *program) changeRun(ctx context.Context, run, verb string, in any) error {
	api, id, err := p.ofRun(run)
	if err != nil {
		return err
	}
	body, err := api.Do(ctx, http.MethodPost, "/migrations/runs/"+id.String()+"/"+verb, nil, in)
	if err != nil {
		return err
	}
	var r migration.Run
	if err := json.Unmarshal(body, &r); err != nil {
		return err
	}
	return p.print(body, func(w io.Writer) { fmt.Fprintf(w, "Run %s is %s\n", r.ID, r.State) })
}

func (p *program) migrateCutover() *cobra.Command {
	var in struct {
		Tenants []string `json:"tenants,omitempty"`
		Limit   int      `json:"limit,omitempty"`
	}
	c := &cobra.Command{Use: "cutover RUN", Short: "Let tenants that a run holds in step with blue cut over", Args: args("RUN, the run's ID")}
	c.Long = "Let tenants that a run holds in step with blue (`migrate start --hold`) cut over, each as soon as it can: those that are named,\nor the smallest ones up to --limit, or all. Blue's tables must be exactly those of green by then."
	c.Flags().StringSliceVar(&in.Tenants, "tenant", nil, "a tenant's ID; may be given more than once (default all that are held)")
	c.Flags().IntVar(&in.Limit, "limit", 0, "at most so many, those that are in step first, the smallest first (default no bound)")
	c.RunE = func(c *cobra.Command, args []string) error {
		if c.Flags().Changed("limit") && in.Limit < 1 {
			return usage("--limit must be at least 1; it is %d", in.Limit)
		}
		for _, id := range in.Tenants {
			if _, err := tenant.ParseID(id); err != nil {
				return usage("--tenant must be a tenant's ID such as 0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69; it is %q", id)
			}
		}
		api, id, err := p.ofRun(args[0])
		if err != nil {
			return err
		}
		body, err := api.Do(c.Context(), http.MethodPost, "/migrations/runs/"+id.String()+"/cutover", nil, in)
		if err != nil {
			return err
		}
		var out struct{ Tenants int64 }
		if err := json.Unmarshal(body, &out); err != nil {
			return err
		}
		return p.print(body, func(w io.Writer) { fmt.Fprintf(w, "%s let go\n", count(out.Tenants, "tenant")) })
	}
	return c
}

func (p *program) migrateResume() *cobra.Command {
	var budget struct {
		MaxErrors       *int64   `json:"max_errors,omitempty"`
		MaxErrorPercent *float64 `json:"max_error_percent,omitempty"`
	}
	var errs int64
	var percent float64
	c := &cobra.Command{Use: "resume RUN", Short: "Go on with a paused run", Args: args("RUN, the run's ID")}
	c.Long = "Go on with a paused run. One that has halted over its errors goes on too: those it has are accepted, and what fails from now on counts anew."
	f := c.Flags()
	f.Int64Var(&errs, "max-errors", 0, "another number of tenants that may fail")
	f.Float64Var(&percent, "max-error-percent", 0, "another share of the tenants that may fail")
	c.RunE = func(c *cobra.Command, args []string) error {
		if f.Changed("max-errors") {
			budget.MaxErrors = &errs
		}
		if f.Changed("max-error-percent") {
			budget.MaxErrorPercent = &percent
		}
		if budget.MaxErrors == nil && budget.MaxErrorPercent == nil {
			return p.changeRun(c.Context(), args[0], "resume", nil)
		}
		return p.changeRun(c.Context(), args[0], "resume", budget)
	}
	return c
}

func (p *program) migrateUndo() *cobra.Command {
	return p.ofTenant("undo", "Leave one tenant that is not green yet in blue", "Tenant %s stays in blue\n")
}

func (p *program) migrateRollback() *cobra.Command {
	return p.ofTenant("rollback", "Bring one green tenant back to blue, with everything it has written since", "Tenant %s is back in blue\n")
}

// ofTenant is a command that ends one tenant's move in blue.
func (p *program) ofTenant(name, short, done string) *cobra.Command {
	return &cobra.Command{
		Use: name + " RUN TENANT", Short: short, Args: args("RUN, the run's ID", "TENANT, the tenant's ID"),
		RunE: func(c *cobra.Command, args []string) error {
			api, id, err := p.ofRun(args[0])
			if err != nil {
				return err
			}
			who, err := tenantArg(args[1])
			if err != nil {
				return err
			}
			if _, err := api.Do(c.Context(), http.MethodPost, "/migrations/runs/"+id.String()+"/tenants/"+who.String()+"/"+name, nil, nil); err != nil {
				return err
			}
			result := map[string]string{"run": id.String(), "tenant": who.String(), "home": string(tenant.Blue)}
			return p.print(result, func(w io.Writer) { fmt.Fprintf(w, done, who) })
		},
	}
}

// ofRun is what every command on one run begins with.
func (p *program) ofRun(arg string) (*client.Client, uuid.UUID, error) {
	id, err := uuid.Parse(arg)
	if err != nil || len(arg) != 36 {
		return nil, id, usage("RUN must be a run's ID such as 0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69; it is %q", arg)
	}
	api, err := p.client()
	return api, id, err
}
