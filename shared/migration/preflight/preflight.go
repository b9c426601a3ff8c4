package preflight

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/catalog"
	"github.com/coditect/platform/shared/migration/convert"
	"github.com/coditect/platform/shared/migration/source"
)

// Database is a *pgxpool.Pool or *pgx.Conn.
type Database interface {
	Begin(ctx context.Context) (pgx.Tx, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// Input says what is to be moved.
type Input struct {
	// Blue is the database the tenants are in, as the role that will move them:
	// its rights are a part of what is checked.
	Blue Database
	// Green is the target, as the role that will write there.
	Green Database
	// Source describes a foreign database; nil for our own blue schemas.
	Source *source.Source
	// GreenSchema is where our own tenants go; a source names its own.
	GreenSchema string
	// Tenants are those to move. Only they are looked at.
	Tenants []source.Tenant
	// MaxPause is how long a tenant's writes may be refused; 0 means no limit.
	MaxPause time.Duration
	// Speed is what the copier is assumed to do; zero fields get their defaults.
	Speed Speed
}

// Speed is what pauses are estimated by.
type Speed struct {
	BytesPerSecond float64       // default 20 MiB: copied, written and verified
	RowsPerSecond  float64       // default 60,000
	PerTable       time.Duration // default 1.5 ms: fence, copy and verify an empty table
	PerTenant      time.Duration // default 25 ms: fence, flip
	// AheadMax is the size in bytes up to which a tenant is copied before its fence goes up:
	// its writes wait while its rows are counted, not while they are copied. 0: none is.
	AheadMax        int64
	Online          bool    // a larger one is copied while it is written, and waits for its last changes only
	CountsPerSecond float64 // default 2,000,000: rows counted in one database
}

// Estimate is how large one tenant is, how long its writes would wait, and how long it would
// keep a step busy.
type Estimate struct {
	Schema string        `json:"schema"`
	Tenant string        `json:"tenant"`
	Bytes  int64         `json:"bytes"`
	Rows   int64         `json:"rows"`
	Pause  time.Duration `json:"pause"`
	Work   time.Duration `json:"work"` // of a step, all in all
}

// Report is the outcome of Run.
type Report struct {
	Findings  []Finding  `json:"findings"` // blockers first
	Estimates []Estimate `json:"estimates"`
	// Template is the schema that all others are compared with; "" when there is none.
	Template string `json:"template"`
	// Conversion is what will be made on green; nil for our own schemas.
	Conversion *convert.Conversion `json:"-"`
	Layout     convert.Layout      `json:"-"`
}

// Count returns how many findings have a severity.
func (r *Report) Count(s Severity) int {
	n := 0
	for _, f := range r.Findings {
		if f.Severity == s {
			n++
		}
	}
	return n
}

// Clear reports whether a move may start: nothing blocks, and everything could be checked.
func (r *Report) Clear() bool { return r.Count(Blocker) == 0 && r.Count(Unknown) == 0 }

// Run checks everything and changes nothing. An error means that blue could not be
// read at all; everything else is a finding.
func Run(ctx context.Context, in Input) (*Report, error) {
	if len(in.Tenants) == 0 {
		return nil, fault.BadField("tenants", "must name at least one tenant")
	}
	if in.Source != nil {
		in.GreenSchema = in.Source.GreenSchema
	}
	in.Speed = in.Speed.withDefaults()
	c := &checker{in: in, report: &Report{}, shared: map[shape][]string{}, names: map[string]string{}}
	var schemas []string
	for _, t := range in.Tenants {
		schemas = append(schemas, t.Schema)
		c.names[t.Schema] = t.Name
	}
	if err := c.read(ctx, schemas); err != nil {
		return nil, err
	}
	c.tenants()
	c.server(ctx, "blue", in.Blue)
	c.server(ctx, "green", in.Green)
	c.databases(ctx)
	c.blueRights(ctx)
	c.application(ctx)
	c.guards(ctx)
	c.subscriptions(ctx)
	c.structure()
	c.estimates()
	if c.chooseTemplate() {
		c.drift()
		c.conversion(ctx)
		c.green(ctx)
	}
	return c.finish(), nil
}

// read reads the tenants' schemas, and beside them the two that are not moved: public
// and the source's template. The template's tenant may be none of this run's, or may
// have moved already: its schema stays in blue with its structure.
func (c *checker) read(ctx context.Context, tenants []string) error {
	var template string
	var without []string
	if s := c.in.Source; s != nil {
		template, without = s.TemplateSchema, s.ExcludeTables
	}
	all := append(slices.Clone(tenants), "public")
	if template != "" {
		all = append(all, template)
	}
	blue, err := catalog.Read(ctx, c.in.Blue, all)
	if err != nil {
		return err
	}
	c.blue, c.public = blue, blue.Schemas["public"]
	delete(blue.Schemas, "public")
	for name, s := range blue.Schemas {
		blue.Schemas[name] = s.Without(without)
	}
	c.template = blue.Schemas[template]
	if !slices.Contains(tenants, template) {
		delete(blue.Schemas, template)
	}
	return nil
}

func (s Speed) withDefaults() Speed {
	return Speed{
		BytesPerSecond: cmp.Or(s.BytesPerSecond, 20<<20), RowsPerSecond: cmp.Or(s.RowsPerSecond, 60_000),
		PerTable: cmp.Or(s.PerTable, 1500*time.Microsecond), PerTenant: cmp.Or(s.PerTenant, 25*time.Millisecond),
		AheadMax: s.AheadMax, Online: s.Online, CountsPerSecond: cmp.Or(s.CountsPerSecond, 2_000_000),
	}
}

// checker gathers findings.
type checker struct {
	in     Input
	report *Report
	blue   *catalog.Catalog
	public *catalog.Schema
	// template is what the tenants' schemas are compared with; nil when there is none.
	template *catalog.Schema
	names    map[string]string // schema → tenant's name
	// shared holds findings that may be the same for many tenants.
	shared map[shape][]string
}

// shape is a finding without its tenant.
type shape struct {
	code          string
	severity      Severity
	table         string
	message, what string
}

// overall adds a finding about the source or a server.
func (c *checker) overall(code string, s Severity, table, action, format string, args ...any) {
	c.report.Findings = append(c.report.Findings, Finding{
		Code: code, Severity: s, Table: table, Message: fmt.Sprintf(format, args...), Action: action,
	})
}

// of adds a finding about one tenant. What holds for every tenant is told once.
func (c *checker) of(schema, code string, s Severity, table, action, format string, args ...any) {
	k := shape{code, s, table, fmt.Sprintf(format, args...), action}
	c.shared[k] = append(c.shared[k], schema)
}

// unknown adds what could not be checked.
func (c *checker) unknown(what, action string, err error) {
	c.overall("not_checked", Unknown, "", action, "could not check %s: %v", what, err)
}

func (c *checker) finish() *Report {
	r := c.report
	for k, schemas := range c.shared {
		f := Finding{Code: k.code, Severity: k.severity, Table: k.table, Message: k.message, Action: k.what}
		if len(schemas) > 1 && len(schemas) == len(c.blue.Schemas) {
			r.Findings = append(r.Findings, f)
			continue
		}
		for _, s := range schemas {
			f.Schema, f.Tenant = s, c.names[s]
			r.Findings = append(r.Findings, f)
		}
	}
	weight := map[Severity]int{Blocker: 0, Unknown: 1, Warning: 2}
	slices.SortFunc(r.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(weight[a.Severity], weight[b.Severity]), cmp.Compare(a.Schema, b.Schema), cmp.Compare(a.Table, b.Table),
			cmp.Compare(a.Code, b.Code), cmp.Compare(a.Message, b.Message))
	})
	slices.SortFunc(r.Estimates, func(a, b Estimate) int { return cmp.Compare(a.Schema, b.Schema) })
	return r
}

// tenants checks the list itself.
func (c *checker) tenants() {
	seen := map[string]bool{}
	for _, t := range c.in.Tenants {
		if seen[t.Schema] {
			c.overall("schema_twice", Blocker, "", "name it once", "schema %s is listed twice", t.Schema)
		}
		seen[t.Schema] = true
		if c.blue.Schemas[t.Schema] == nil {
			c.report.Findings = append(c.report.Findings, Finding{
				Schema: t.Schema, Tenant: t.Name, Code: "schema_missing", Severity: Blocker,
				Message: fmt.Sprintf("tenant %s is listed, but there is no schema %s", t.Name, t.Schema),
				Action:  "delete it from the tenant table, or list its schema in exclude",
			})
		}
		if n := len([]rune(t.Name)); n == 0 || n > maxName {
			c.of(t.Schema, "name_length", Blocker, "", "shorten it in the tenant table", "the tenant's name has %d characters, 1 to %d are allowed", n, maxName)
		}
	}
}

// maxName is the limit of control.tenant.name.
const maxName = 200
