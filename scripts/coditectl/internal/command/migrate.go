package command

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/coditect/platform/scripts/coditectl/internal/client"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/tenant"
)

// order is what an operator asks for: the body of POST /preflight and POST /runs.
type order struct {
	Source     string   `json:"source"`
	Tenants    []string `json:"tenants,omitempty"`
	BatchSize  int      `json:"batch_size,omitempty"`
	MaxPauseMS int64    `json:"max_pause_ms,omitempty"`

	maxPause time.Duration
}

func (o *order) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.Source, "source", "", `where the tenants come from: "platform" for the platform's own, or a registered foreign source (required)`)
	f.StringSliceVar(&o.Tenants, "tenant", nil, "a tenant's ID; may be given more than once (default all of the source that live in blue)")
	f.DurationVar(&o.maxPause, "max-pause", migration.DefaultMaxPause, "refuse tenants whose writes would wait for longer")
}

func (o *order) check() error {
	if o.Source == "" {
		return usage(`--source must name a source: "platform" for the platform's own tenants, or a registered foreign one`)
	}
	for _, id := range o.Tenants {
		if _, err := tenant.ParseID(id); err != nil {
			return usage("--tenant must be a tenant's ID such as 0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69; it is %q", id)
		}
	}
	if o.maxPause < time.Millisecond || o.maxPause > migration.MaxMaxPause {
		return usage("--max-pause must be between 1ms and %v; it is %v", migration.MaxMaxPause, o.maxPause)
	}
	o.MaxPauseMS = o.maxPause.Milliseconds()
	return nil
}

func (p *program) migrate() *cobra.Command {
	c := &cobra.Command{Use: "migrate", Short: "Move tenants from blue to green", Args: cobra.ArbitraryArgs, RunE: group}
	c.AddCommand(p.migrateStart(), p.migrateStatus(), p.migrateList(), p.migrateWatch(), p.migrateUndo(), p.migrateFinalise(),
		p.change("pause", "Pause a run after the tenants that are moving at the moment"),
		p.change("resume", "Go on with a paused run"),
		p.change("cancel", "End a run: green tenants stay green, the others stay blue"))
	return c
}

func (p *program) migrateStart() *cobra.Command {
	var o order
	var watch bool
	c := &cobra.Command{
		Use: "start", Short: "Start moving the tenants of a source", Args: args(),
		Long: "Start moving the tenants of a source.\n\nTenants that the preflight refuses are left out and named, and the exit code is 4; when it refuses all, nothing is started and the exit code is 3.",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			if o.BatchSize < 1 || o.BatchSize > migration.MaxBatchSize {
				return usage("--batch-size must be between 1 and %d; it is %d", migration.MaxBatchSize, o.BatchSize)
			}
			api, err := p.client()
			if err != nil {
				return err
			}
			return p.start(c.Context(), api, o, watch)
		},
	}
	o.flags(c)
	c.Flags().IntVar(&o.BatchSize, "batch-size", migration.DefaultBatchSize, fmt.Sprintf("tenants in one batch, 1 to %d", migration.MaxBatchSize))
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
		RunE: func(c *cobra.Command, args []string) error {
			api, id, err := p.ofRun(args[0])
			if err != nil {
				return err
			}
			body, err := api.Do(c.Context(), http.MethodPost, "/migrations/runs/"+id.String()+"/"+verb, nil, nil)
			if err != nil {
				return err
			}
			var r migration.Run
			if err := json.Unmarshal(body, &r); err != nil {
				return err
			}
			return p.print(body, func(w io.Writer) { fmt.Fprintf(w, "Run %s is %s\n", r.ID, r.State) })
		},
	}
}

func (p *program) migrateUndo() *cobra.Command {
	return &cobra.Command{
		Use: "undo RUN TENANT", Short: "Leave one tenant that is not green yet in blue", Args: args("RUN, the run's ID", "TENANT, the tenant's ID"),
		RunE: func(c *cobra.Command, args []string) error {
			api, id, err := p.ofRun(args[0])
			if err != nil {
				return err
			}
			who, err := tenant.ParseID(args[1])
			if err != nil {
				return usage("TENANT must be a tenant's ID such as 0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69; it is %q", args[1])
			}
			if _, err := api.Do(c.Context(), http.MethodPost, "/migrations/runs/"+id.String()+"/tenants/"+who.String()+"/undo", nil, nil); err != nil {
				return err
			}
			result := map[string]string{"run": id.String(), "tenant": who.String(), "home": string(tenant.Blue)}
			return p.print(result, func(w io.Writer) { fmt.Fprintf(w, "Tenant %s stays in blue\n", who) })
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
