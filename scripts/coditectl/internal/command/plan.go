package command

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/coditect/platform/scripts/coditectl/internal/client"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/migration/planner"
	"github.com/coditect/platform/shared/tenant"
)

const aboutPlans = `

Rules choose among the tenants (--new-since, --plan, --percent, --max-bytes, --max-activity, --exclude); all that are given must hold.
Without --waves, a plan with a rule, a soak or an error budget goes in waves of 1, 10, 50 and 100 % of the tenants, any other in one.

--file reads a plan from YAML or JSON instead of flags, with the fields of POST /migrations/runs:

  source: legacy
  new_since: 30d
  max_activity: 5000
  waves: [1, 10, 50, 100]
  soak_seconds: 600
  hours: 22:00-06:00@Europe/Berlin`

// order is what an operator asks for: the body of POST /preflight and POST /runs.
type order struct {
	Source     string   `json:"source"`
	Tenants    []string `json:"tenants,omitempty"`
	BatchSize  int      `json:"batch_size,omitempty"`
	MaxPauseMS int64    `json:"max_pause_ms,omitempty"`

	Exclude     []string `json:"exclude,omitempty"`
	NewSince    string   `json:"new_since,omitempty"`
	Plans       []string `json:"plans,omitempty"`
	Percent     *float64 `json:"percent,omitempty"`
	MaxBytes    *int64   `json:"max_bytes,omitempty"`
	MaxActivity *int64   `json:"max_activity,omitempty"`

	Waves           []float64 `json:"waves,omitempty"`
	SoakSeconds     int64     `json:"soak_seconds,omitempty"`
	Concurrency     *int      `json:"concurrency,omitempty"`
	RowsPerSecond   *int64    `json:"rows_per_second,omitempty"`
	Hours           string    `json:"hours,omitempty"`
	MaxErrors       *int64    `json:"max_errors,omitempty"`
	MaxErrorPercent *float64  `json:"max_error_percent,omitempty"`
	Hold            bool      `json:"hold,omitempty"`

	maxPause, soak time.Duration
	file, maxBytes string
	own            *pflag.FlagSet // those that --file stands in for
}

func (o *order) flags(c *cobra.Command) {
	o.own = pflag.NewFlagSet("plan", pflag.ContinueOnError)
	f := o.own
	f.StringVar(&o.Source, "source", "", `where the tenants come from: "platform" for the platform's own, or a registered foreign source (required)`)
	f.StringSliceVar(&o.Tenants, "tenant", nil, "a tenant's ID; may be given more than once (default all of the source that live in blue)")
	f.DurationVar(&o.maxPause, "max-pause", migration.DefaultMaxPause, "refuse tenants whose writes would wait for longer")
	f.StringSliceVar(&o.Exclude, "exclude", nil, "never this tenant; may be given more than once")
	f.StringVar(&o.NewSince, "new-since", "", "tenants entered since then: a day (2026-01-31), a time (2026-01-31T12:00:00Z) or an age (30d, 12h)")
	f.StringSliceVar(&o.Plans, "plan", nil, "tenants on this plan; may be given more than once")
	o.Percent = f.Float64("percent", 0, "this share of all tenants, always the same ones; those of a smaller percentage are among them")
	f.StringVar(&o.maxBytes, "max-bytes", "", "tenants with at most this much content, as estimated (500000, 20MB, 1GB)")
	o.MaxActivity = f.Int64("max-activity", 0, "tenants that change at most this many rows a day")
	f.Float64SliceVar(&o.Waves, "waves", nil, "percentages that grow up to 100, such as 1,10,50,100")
	f.DurationVar(&o.soak, "soak", 0, "rest between the end of a wave and the next")
	o.Concurrency = f.Int("concurrency", 0, "batches at work at the same time (default no bound)")
	o.RowsPerSecond = f.Int64("rows-per-second", 0, "rows moved in a second by all batches together, on average (default no bound)")
	f.StringVar(&o.Hours, "hours", "", "begin moving tenants only in these hours: 22:00-06:00@Europe/Berlin (default all hours)")
	o.MaxErrors = f.Int64("max-errors", 0, "halt when more tenants than this have failed")
	o.MaxErrorPercent = f.Float64("max-error-percent", 0, fmt.Sprintf("halt when more than this share of the tenants in the waves begun has failed (default %g, in several waves)", planner.DefaultErrorPercent))
	f.BoolVar(&o.Hold, "hold", false, "copy every tenant and keep it in step with blue, but let none cut over until `migrate cutover` says so")
	c.Flags().AddFlagSet(f)
	c.Flags().StringVar(&o.file, "file", "", "read the plan from this YAML or JSON file instead")
}

func (o *order) batchFlag(c *cobra.Command) {
	o.own.IntVar(&o.BatchSize, "batch-size", migration.DefaultBatchSize, fmt.Sprintf("tenants in one batch, 1 to %d", migration.MaxBatchSize))
	c.Flags().AddFlag(o.own.Lookup("batch-size"))
}

// read completes and checks what the command line says.
func (o *order) read(c *cobra.Command, now time.Time) error {
	if o.file != "" {
		if err := o.readFile(c); err != nil {
			return err
		}
	} else if err := o.readFlags(c.Flags()); err != nil {
		return err
	}
	if o.Source == "" {
		return usage(`--source must name a source: "platform" for the platform's own tenants, or a registered foreign one`)
	}
	for flag, ids := range map[string][]string{"--tenant": o.Tenants, "--exclude": o.Exclude} {
		for _, id := range ids {
			if _, err := tenant.ParseID(id); err != nil {
				return usage("%s must be a tenant's ID such as 0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69; it is %q", flag, id)
			}
		}
	}
	if o.NewSince != "" {
		since, err := parseSince(o.NewSince, now)
		if err != nil {
			return err
		}
		o.NewSince = since.UTC().Format(time.RFC3339)
	}
	if o.Waves != nil {
		if wrong := planner.Waves(o.Waves).Check(); wrong != "" {
			return usage("--waves %s", wrong)
		}
	}
	if _, err := planner.ParseHours(o.Hours); err != nil {
		return usage("--hours %v", err)
	}
	return nil
}

// readFlags takes the flags that were given; the functions know the defaults of the others.
func (o *order) readFlags(f *pflag.FlagSet) error {
	unlessGiven(f, "percent", &o.Percent)
	unlessGiven(f, "max-activity", &o.MaxActivity)
	unlessGiven(f, "concurrency", &o.Concurrency)
	unlessGiven(f, "rows-per-second", &o.RowsPerSecond)
	unlessGiven(f, "max-errors", &o.MaxErrors)
	unlessGiven(f, "max-error-percent", &o.MaxErrorPercent)
	if o.maxPause < time.Millisecond || o.maxPause > migration.MaxMaxPause {
		return usage("--max-pause must be between 1ms and %v; it is %v", migration.MaxMaxPause, o.maxPause)
	}
	if f.Lookup("batch-size") != nil && (o.BatchSize < 1 || o.BatchSize > migration.MaxBatchSize) {
		return usage("--batch-size must be between 1 and %d; it is %d", migration.MaxBatchSize, o.BatchSize)
	}
	if o.soak < 0 || o.soak > migration.MaxSoak || o.soak%time.Second != 0 {
		return usage("--soak must be between 0s and %v, in whole seconds; it is %v", migration.MaxSoak, o.soak)
	}
	if o.maxBytes != "" {
		n, err := parseSize(o.maxBytes)
		if err != nil {
			return err
		}
		o.MaxBytes = &n
	}
	o.MaxPauseMS, o.SoakSeconds = o.maxPause.Milliseconds(), int64(o.soak/time.Second)
	return nil
}

func unlessGiven[T any](f *pflag.FlagSet, name string, value **T) {
	if !f.Changed(name) {
		*value = nil
	}
}

// readFile reads a plan as the functions take it.
func (o *order) readFile(c *cobra.Command) error {
	var also []string
	o.own.VisitAll(func(f *pflag.Flag) {
		if c.Flags().Changed(f.Name) {
			also = append(also, "--"+f.Name)
		}
	})
	if also != nil {
		return usage("--file stands for the whole plan: %s must be in it", andList(also))
	}
	text, err := os.ReadFile(o.file)
	if err != nil {
		return usage("the plan's file cannot be read: %v", err)
	}
	asJSON, err := yaml.YAMLToJSON(text)
	if err != nil {
		return usage("%s must be YAML or JSON: %v", o.file, err)
	}
	var read order
	d := json.NewDecoder(bytes.NewReader(asJSON))
	d.DisallowUnknownFields()
	if err := d.Decode(&read); err != nil {
		return usage("%s must be a plan: %v", o.file, err)
	}
	*o = read
	return nil
}

// parseSince reads a day, a time, or an age.
func parseSince(s string, now time.Time) (time.Time, error) {
	if m := days.FindStringSubmatch(s); m != nil {
		n, _ := strconv.Atoi(m[1]) // at most five digits
		return now.AddDate(0, 0, -n), nil
	}
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		return now.Add(-d), nil
	}
	if t, ok := dayOrTime(s); ok {
		return t, nil
	}
	return time.Time{}, usage("--new-since must be a day (2026-01-31), a time (2026-01-31T12:00:00Z) or an age (30d, 12h); it is %q", s)
}

var sizes = regexp.MustCompile(`^([1-9][0-9]{0,14})(B|kB|MB|GB|TB)?$`)

// parseSize reads a number of bytes, such as 500000 or 20MB.
func parseSize(s string) (int64, error) {
	if m := sizes.FindStringSubmatch(s); m != nil {
		n, _ := strconv.ParseInt(m[1], 10, 64) // at most 15 digits
		unit := map[string]int64{"": 1, "B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[m[2]]
		if n <= (1<<62)/unit {
			return n * unit, nil
		}
	}
	return 0, usage("--max-bytes must be a size such as 500000, 20MB or 1GB; it is %q", s)
}

func (p *program) migratePlan() *cobra.Command {
	var o order
	c := &cobra.Command{
		Use: "plan", Short: "Say who would move, when and for how long; changes nothing", Args: args(),
		Long: "Say who would move, in which wave and why, who would not, and how long it would take. It changes nothing." + aboutPlans,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.read(c, p.Now()); err != nil {
				return err
			}
			api, err := p.client()
			if err != nil {
				return err
			}
			return p.plan(c.Context(), api, o)
		},
	}
	o.flags(c)
	o.batchFlag(c)
	return c
}

// plan asks for a plan's preflight and prints what a start would do.
func (p *program) plan(ctx context.Context, api *client.Client, o order) error {
	body, err := api.Do(ctx, http.MethodPost, "/migrations/preflight", nil, o)
	if err != nil {
		return err
	}
	var found migration.Preflight
	if err := json.Unmarshal(body, &found); err != nil {
		return err
	}
	if err := p.print(body, func(w io.Writer) { showPlan(w, found) }); err != nil {
		return err
	}
	return verdict(found)
}

// shownTenants is how many tenants a plan shows as text.
const shownTenants = 20

func showPlan(w io.Writer, found migration.Preflight) {
	plan := found.Plan
	if plan == nil {
		showPreflight(w, found)
		return
	}
	fmt.Fprintf(w, "Source %s: %s would move", found.Source, count(plan.Chosen, "tenant"))
	if plan.LeftOut > 0 {
		fmt.Fprintf(w, "; the rules leave out %d (%s)", plan.LeftOut, reasons(plan.Reasons))
	}
	if found.LeftOut > 0 {
		fmt.Fprintf(w, "; the preflight refuses %d", found.LeftOut)
	}
	fmt.Fprintln(w)
	findings(w, found.Findings)
	if plan.Span != nil {
		fmt.Fprintf(w, "It would take about %s, from %s to %s\n", lasting(plan.Seconds), day(&plan.Span.Begin), day(&plan.Span.End))
		fmt.Fprintf(w, "Writes would wait about %.0f ms for half of the tenants, %.0f ms for the slowest\n", plan.Pause.P50, plan.Pause.Max)
		var rows [][]string
		for _, v := range plan.Waves {
			rows = append(rows, []string{strconv.Itoa(v.Number), fmt.Sprintf("%g %%", v.Percent), strconv.Itoa(v.Tenants), strconv.Itoa(v.Batches), size(v.Bytes),
				strconv.FormatInt(v.Rows, 10), day(&v.Span.Begin), day(&v.Span.End)})
		}
		table(w, "", []string{"WAVE", "UP TO", "TENANTS", "BATCHES", "SIZE", "ROWS", "BEGINS", "ENDS"}, rows)
	}
	var moving, staying [][]string
	for _, t := range plan.Tenants[:min(len(plan.Tenants), shownTenants)] {
		moving = append(moving, []string{t.Tenant.String(), strconv.Itoa(t.Wave), size(t.Bytes), fmt.Sprintf("%.0f ms", t.PauseMS), t.Name, t.Reason})
	}
	for _, t := range plan.Others[:min(len(plan.Others), shownTenants)] {
		staying = append(staying, []string{t.Tenant.String(), t.Name, t.Reason})
	}
	shown(w, []string{"MOVES", "WAVE", "SIZE", "PAUSE", "NAME", "BECAUSE"}, moving, plan.Chosen)
	shown(w, []string{"STAYS", "NAME", "BECAUSE IT"}, staying, plan.LeftOut)
}

// shown prints the first of many rows.
func shown(w io.Writer, head []string, rows [][]string, all int) {
	if len(rows) == 0 {
		return
	}
	table(w, "", head, rows)
	if all > len(rows) {
		fmt.Fprintf(w, "… and %d more (--json lists up to %d)\n", all-len(rows), migration.MaxListed)
	}
}

// reasons is "2 too large and 1 excluded".
func reasons(byCode map[string]int) string {
	var out []string
	for _, code := range slices.Sorted(maps.Keys(byCode)) {
		out = append(out, fmt.Sprintf("%d %s", byCode[code], strings.ReplaceAll(code, "_", " ")))
	}
	return andList(out)
}

func (p *program) migrateEvents() *cobra.Command {
	return &cobra.Command{
		Use: "events RUN", Short: "Show what was decided and done in a run, by whom and when", Args: args("RUN, the run's ID"),
		RunE: func(c *cobra.Command, args []string) error {
			api, id, err := p.ofRun(args[0])
			if err != nil {
				return err
			}
			all, query := []migration.Event{}, url.Values{"limit": {"1000"}}
			for {
				body, err := api.Do(c.Context(), http.MethodGet, "/migrations/runs/"+id.String()+"/events", query, nil)
				if err != nil {
					return err
				}
				var page struct {
					Events []migration.Event `json:"events"`
					Next   string            `json:"next_cursor"`
				}
				if err := json.Unmarshal(body, &page); err != nil {
					return err
				}
				all = append(all, page.Events...)
				if page.Next == "" {
					break
				}
				query.Set("cursor", page.Next)
			}
			return p.print(map[string]any{"events": all}, func(w io.Writer) { showEvents(w, all) })
		},
	}
}

func showEvents(w io.Writer, all []migration.Event) {
	var rows [][]string
	for _, e := range all {
		who := ""
		if e.Tenant != nil {
			who = e.Tenant.String()
		}
		detail, _ := json.Marshal(e.Detail) // it came from JSON
		if len(e.Detail) == 0 {
			detail = nil
		}
		rows = append(rows, []string{e.At.UTC().Format(time.DateTime), e.Actor, e.Event, who, string(detail)})
	}
	table(w, "Nothing has happened.", []string{"AT (UTC)", "BY", "EVENT", "TENANT", "DETAIL"}, rows)
}
