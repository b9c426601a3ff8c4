package migration

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/catalog"
	"github.com/coditect/platform/shared/migration/planner"
	"github.com/coditect/platform/shared/migration/preflight"
	"github.com/coditect/platform/shared/tenant"
)

// Bounds of what a run may be asked for.
const (
	DefaultBatchSize = 50
	MaxBatchSize     = 1000
	DefaultMaxPause  = 30 * time.Second
	MaxMaxPause      = time.Minute // what is larger than this allows cannot be hashed in one step
	MaxConcurrency   = 1000
	MaxRowsPerSecond = 1_000_000_000
	MaxSoak          = 7 * 24 * time.Hour
)

// Plan is what an operator asks for.
type Plan struct {
	Source    string        `json:"source"`
	Tenants   []tenant.ID   `json:"-"`              // none: every tenant of the source that lives in blue
	Rules     planner.Rules `json:"rules,omitzero"` // and of these, whom all the rules choose
	BatchSize int           `json:"batch_size"`     // tenants in one batch; 0 is DefaultBatchSize
	MaxPause  time.Duration `json:"max_pause_ns"`   // a tenant whose estimated write pause is longer is refused by name; 0 is DefaultMaxPause

	// Waves: none is planner.DefaultWaves where there is a rule, a soak or an error budget, else one.
	Waves         planner.Waves  `json:"waves"`
	Soak          time.Duration  `json:"soak_ns"`         // between the end of a wave and the next
	Budget        planner.Budget `json:"budget"`          // of errors, which halts the run; none: planner.DefaultErrorPercent where there are several waves
	Concurrency   int            `json:"concurrency"`     // batches at work at the same time; 0: no bound
	RowsPerSecond int64          `json:"rows_per_second"` // of all batches together; 0: no bound
	Hours         planner.Hours  `json:"hours"`           // outside of them no tenant's move begins

	// Hold: every tenant is copied the online way and then follows blue, for as long as it is
	// held: Mover.LetGo has it cut over.
	Hold bool `json:"hold,omitempty"`

	Actor string `json:"-"` // who asks, for the audit trail
}

// withDefaults fills what was left out.
func (p *Plan) withDefaults() {
	if p.BatchSize == 0 {
		p.BatchSize = DefaultBatchSize
	}
	if p.MaxPause == 0 {
		p.MaxPause = DefaultMaxPause
	}
	if p.Waves == nil {
		p.Waves = planner.OneWave
		if p.Rules.Any() || p.Soak > 0 || p.Budget.Any() {
			p.Waves = planner.DefaultWaves
		}
	}
	if len(p.Waves) > 1 && !p.Budget.Any() {
		percent := planner.DefaultErrorPercent
		p.Budget.Percent = &percent
	}
}

func (p *Plan) check(now time.Time) error {
	p.withDefaults()
	r := p.Rules
	switch wrong := p.Waves.Check(); {
	case p.Source == "":
		return fault.BadField("source", "must name a source: %q for the platform's own blue tenants, or a registered foreign one", platformSource)
	case p.BatchSize < 1 || p.BatchSize > MaxBatchSize:
		return fault.BadField("batch_size", "must be between 1 and %d", MaxBatchSize)
	case p.MaxPause < time.Millisecond || p.MaxPause > MaxMaxPause:
		return fault.BadField("max_pause_ms", "must be between 1 and %d", MaxMaxPause.Milliseconds())
	case r.NewSince.After(now):
		return fault.BadField("new_since", "must not be in the future")
	case r.Percent < 0 || r.Percent > 100 || math.IsNaN(r.Percent):
		return fault.BadField("percent", "must be above 0 and at most 100")
	case r.MaxBytes < 0:
		return fault.BadField("max_bytes", "must be at least 1")
	case r.MaxActivity != nil && *r.MaxActivity < 0:
		return fault.BadField("max_activity", "must be at least 0")
	case slices.Contains(r.Plans, ""):
		return fault.BadField("plans", "must name plans")
	case wrong != "":
		return fault.BadField("waves", "%s", wrong)
	case p.Soak < 0 || p.Soak > MaxSoak:
		return fault.BadField("soak_seconds", "must be between 0 and %.0f", MaxSoak.Seconds())
	case p.Concurrency < 0 || p.Concurrency > MaxConcurrency:
		return fault.BadField("concurrency", "must be between 1 and %d", MaxConcurrency)
	case p.RowsPerSecond < 0 || p.RowsPerSecond > MaxRowsPerSecond:
		return fault.BadField("rows_per_second", "must be between 1 and %d", MaxRowsPerSecond)
	}
	return checkBudget(p.Budget)
}

func checkBudget(b planner.Budget) error {
	switch {
	case b.Errors != nil && *b.Errors < 0:
		return fault.BadField("max_errors", "must be at least 0")
	case b.Percent != nil && !(*b.Percent >= 0 && *b.Percent <= 100):
		return fault.BadField("max_error_percent", "must be between 0 and 100")
	}
	return nil
}

// candidate is a tenant that a run would move.
type candidate struct {
	ID       tenant.ID
	Name     string
	Database string
	Schema   string
	Epoch    int64
	Created  time.Time
	Plan     string

	reason string // why the rules choose it
	bytes  int64  // of content, and what the preflight has estimated beside it
	rows   int64
	work   time.Duration
	pause  time.Duration
}

// candidates resolves a plan's tenants. One that is not of the source, not in blue, or
// part of another open run is a fault that names it.
func candidates(ctx context.Context, control *citus.Pool, p Plan) ([]candidate, error) {
	var known bool
	if err := control.QueryRow(ctx, `SELECT EXISTS (SELECT FROM control.source WHERE name = $1)`, p.Source).Scan(&known); err != nil {
		return nil, err
	}
	if !known {
		return nil, fault.BadField("source", "must be a registered source; there is no %q", p.Source)
	}
	if err := checkExcluded(ctx, control, p); err != nil {
		return nil, err
	}
	chosen := p.Tenants
	if chosen == nil {
		chosen = []tenant.ID{}
	}
	rows, err := control.Query(ctx, `SELECT t.id, t.name, t.database_name, t.schema_name, t.epoch, t.created_at, t.plan FROM control.tenant t
		WHERE t.source = $1 AND t.home = 'blue' AND t.status IN ('active', 'suspended') AND (cardinality($2::uuid[]) = 0 OR t.id = ANY($2))
		  AND NOT EXISTS (SELECT FROM control.move m WHERE m.tenant_id = t.id AND (m.state NOT IN ('blue', 'finalised') OR m.purge_due))
		ORDER BY t.id`, p.Source, chosen)
	if err != nil {
		return nil, err
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c candidate, err error) {
		return c, row.Scan(&c.ID, &c.Name, &c.Database, &c.Schema, &c.Epoch, &c.Created, &c.Plan)
	})
	if err != nil {
		return nil, err
	}
	got := map[tenant.ID]bool{}
	for _, c := range out {
		got[c.ID] = true
	}
	var missing []fault.Field
	for i, id := range chosen {
		if !got[id] {
			missing = append(missing, fault.Field{Name: fmt.Sprintf("tenants[%d]", i),
				Message: fmt.Sprintf("%s must be a tenant of source %q that lives in blue and takes part in no other run", id, p.Source)})
		}
	}
	if missing != nil {
		return nil, &fault.Error{Kind: fault.Invalid, Code: "tenants_not_movable", Message: "some tenants cannot be moved", Fields: missing}
	}
	return out, nil
}

// checkExcluded refuses to exclude who is not there: behind a slip of the pen is a tenant that must not move.
func checkExcluded(ctx context.Context, control *citus.Pool, p Plan) error {
	if len(p.Rules.Exclude) == 0 {
		return nil
	}
	rows, err := control.Query(ctx, `SELECT n - 1 FROM unnest($1::uuid[]) WITH ORDINALITY x (id, n)
		WHERE NOT EXISTS (SELECT FROM control.tenant t WHERE t.id = x.id AND t.source = $2) ORDER BY n`, p.Rules.Exclude, p.Source)
	if err != nil {
		return err
	}
	unknown, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil || len(unknown) == 0 {
		return err
	}
	var fields []fault.Field
	for _, i := range unknown {
		fields = append(fields, fault.Field{Name: fmt.Sprintf("exclude[%d]", i), Message: fmt.Sprintf("%s must be a tenant of source %q", p.Rules.Exclude[i], p.Source)})
	}
	return &fault.Error{Kind: fault.Invalid, Code: "tenants_unknown", Message: "some tenants to exclude are not known", Fields: fields}
}

// LeftOut is a tenant that the rules do not choose, and why.
type LeftOut struct {
	Tenant tenant.ID `json:"tenant"`
	Name   string    `json:"name"`
	Schema string    `json:"schema"`
	Code   string    `json:"code"` // one of those of package planner
	Reason string    `json:"reason"`
}

// choose applies a plan's rules.
func (m *Mover) choose(ctx context.Context, p Plan, all []candidate) (chosen []candidate, left []LeftOut, err error) {
	judge := func(c candidate, v planner.Verdict) {
		if v.LeftOut != "" {
			left = append(left, LeftOut{c.ID, c.Name, c.Schema, v.LeftOut, v.Reason})
			return
		}
		if c.reason != "" && v.Reason != "" {
			c.reason += ", "
		}
		c.reason += v.Reason
		chosen = append(chosen, c)
	}
	for _, c := range all {
		judge(c, p.Rules.Directory(planner.Tenant{ID: c.ID, Created: c.Created, Plan: c.Plan}))
	}
	if !p.Rules.LookInside() || len(chosen) == 0 {
		return chosen, left, nil
	}
	blue, err := m.dbs.Pool(ctx, chosen[0].Database)
	if err != nil {
		return nil, nil, err
	}
	inside, err := contents(ctx, blue, chosen)
	if err != nil {
		return nil, nil, err
	}
	some := chosen
	chosen = nil
	for _, c := range some {
		t := planner.Tenant{ID: c.ID, Bytes: inside[c.Schema].bytes, Activity: inside[c.Schema].activity}
		if p.Source == platformSource && c.Created.After(t.Activity.Since) {
			t.Activity.Since = c.Created // an imported one is older than its entry in the directory
		}
		judge(c, p.Rules.Inside(t, m.clock()))
	}
	return chosen, left, nil
}

// content is what a tenant's own database knows of it.
type content struct {
	bytes    int64
	activity planner.Activity
}

// contents asks blue for the size and the activity of tenants, by schema. The activity is that of
// PostgreSQL's cumulative statistics. They begin anew after a crash and when they are reset, which
// shows in stats_reset of the database, or of all the server's parts together. (A promoted standby
// has counted nothing while it was one, and does not tell.)
func contents(ctx context.Context, blue *citus.Pool, of []candidate) (map[string]content, error) {
	schemas := make([]string, len(of))
	for i, c := range of {
		schemas[i] = c.Schema
	}
	var (
		counted bool
		since   *time.Time
		out     = map[string]content{}
		b       = &pgx.Batch{}
	)
	b.Queue(`SELECT current_setting('track_counts')::bool, greatest(d.stats_reset, least(g.stats_reset, a.stats_reset, w.stats_reset))
		FROM pg_stat_database d, pg_stat_bgwriter g, pg_stat_archiver a, pg_stat_wal w WHERE d.datname = current_database()`).
		QueryRow(func(row pgx.Row) error { return row.Scan(&counted, &since) })
	b.Queue(`SELECT n.nspname, count(*), sum(x.bytes)::bigint, sum(CASE WHEN c.reltuples >= 0 THEN c.reltuples::bigint ELSE x.bytes / $2 END)::bigint,
			sum(pg_stat_get_tuples_inserted(c.oid) + pg_stat_get_tuples_updated(c.oid) + pg_stat_get_tuples_deleted(c.oid))::bigint
		FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p') CROSS JOIN LATERAL (SELECT `+catalog.BytesOfTable+` AS bytes) x
		WHERE n.nspname = ANY($1) GROUP BY 1`, schemas, preflight.BytesPerRow).
		Query(func(rows pgx.Rows) error {
			var (
				schema  string
				tables  int
				e       preflight.Estimate
				changes int64
			)
			_, err := pgx.ForEachRow(rows, []any{&schema, &tables, &e.Bytes, &e.Rows, &changes}, func() error {
				out[schema] = content{contentOf(e, tables), planner.Activity{Changes: changes}}
				return nil
			})
			return err
		})
	if err := blue.SendBatch(ctx, b).Close(); err != nil {
		return nil, fmt.Errorf("migration: size and activity of tenants: %w", err)
	}
	for _, s := range schemas {
		c, there := out[s]
		switch {
		case !there:
			c.activity.Unknown = "its schema has no tables"
		case !counted:
			c.activity.Unknown = "blue does not count changes (track_counts is off)"
		case since == nil:
			c.activity.Unknown = "blue does not know since when it counts changes"
		default:
			c.activity.Since = *since
		}
		out[s] = c
	}
	return out, nil
}
