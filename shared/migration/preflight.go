package migration

import (
	"context"

	"github.com/coditect/platform/shared/migration/preflight"
	"github.com/coditect/platform/shared/migration/source"
	"github.com/coditect/platform/shared/schema"
)

// Preflight is what a look before the start has found.
type Preflight struct {
	Source   string              `json:"source"`
	Tenants  int                 `json:"tenants"`  // chosen by the rules, and looked at
	LeftOut  int                 `json:"left_out"` // of these, refused by name
	Bytes    int64               `json:"bytes"`    // estimated, of those that can be moved
	Online   bool                `json:"online"`   // blue lets its changes be read, so tenants may move while they are written
	Findings []preflight.Finding `json:"findings"`
	Plan     *PlanReport         `json:"plan,omitempty"` // what a start would do; none when nobody can be moved
}

// summary names the first blockers, for an error message.
func (p Preflight) summary() string {
	out, n := "", 0
	for _, f := range p.Findings {
		if f.Severity == preflight.Warning {
			continue
		}
		if n++; n > 5 {
			return out + "; and more"
		}
		if out != "" {
			out += "; "
		}
		if f.Schema != "" {
			out += "schema " + f.Schema + ": "
		}
		out += f.Message
	}
	if out == "" {
		return "there is none in blue"
	}
	return out
}

// Check looks for everything that would make the moves of a plan fail. It changes nothing.
func (m *Mover) Check(ctx context.Context, p Plan) (Preflight, error) {
	if err := p.check(m.clock()); err != nil {
		return Preflight{}, err
	}
	report, _, err := m.preflight(ctx, p)
	return report, err
}

// preflight resolves the tenants of a checked plan and lays out those that can be moved.
func (m *Mover) preflight(ctx context.Context, p Plan) (Preflight, schedule, error) {
	report := Preflight{Source: p.Source, Findings: []preflight.Finding{}}
	control, err := m.control(ctx)
	if err != nil {
		return report, nil, err
	}
	all, err := candidates(ctx, control, p)
	if err != nil || len(all) == 0 {
		return report, nil, err
	}
	all, left, err := m.choose(ctx, p, all)
	if err != nil {
		return report, nil, err
	}
	report.Plan = plannedWithout(left)
	if len(all) == 0 {
		return report, nil, nil
	}
	report.Tenants = len(all)
	in := preflight.Input{Green: control, GreenSchema: schema.GreenSchema, MaxPause: p.MaxPause, Speed: preflight.Speed{AheadMax: m.cfg.AheadMax}}
	blue, err := m.dbs.Pool(ctx, all[0].Database)
	if err != nil {
		return report, nil, err
	}
	in.Blue = blue
	if in.Speed.Online, err = m.online(ctx, blue); err != nil {
		return report, nil, err
	}
	report.Online = in.Speed.Online
	if p.Source != platformSource {
		if in.Source, err = descriptionOf(ctx, control, p.Source); err != nil {
			return report, nil, err
		}
	}
	for _, c := range all {
		in.Tenants = append(in.Tenants, source.Tenant{ID: c.ID.String(), Schema: c.Schema, Name: c.Name})
	}
	found, err := preflight.Run(ctx, in)
	if err != nil {
		return report, nil, err
	}
	report.Findings = append(report.Findings, found.Findings...)
	waves := layOut(p, m.movable(all, found, &report))
	report.Plan.fill(m.clock(), p, waves, m.parallel(p.Concurrency))
	return report, waves, nil
}

// contentOf estimates what a tenant's rows take. The size of small tables says little:
// each has a page that is almost empty, so the number of rows counts where it is known.
func contentOf(e preflight.Estimate, tables int) int64 {
	const (
		emptyTable = 8 << 10 // a page of the heap
		smallRow   = 512
		small      = 2 << 20
	)
	n := max(e.Bytes-emptyTable*int64(tables), 0)
	if n < small && e.Rows > 0 {
		n = min(n, e.Rows*smallRow)
	}
	return n
}

// movable leaves out the tenants that a finding stops; one that stops the source stops all.
func (m *Mover) movable(all []candidate, found *preflight.Report, report *Preflight) []candidate {
	stopped := map[string]bool{}
	for _, f := range found.Findings {
		if f.Severity != preflight.Warning {
			stopped[f.Schema] = true
		}
	}
	estimate := map[string]preflight.Estimate{}
	for _, e := range found.Estimates {
		estimate[e.Schema] = e
	}
	var out []candidate
	for _, c := range all {
		if stopped[""] || stopped[c.Schema] {
			report.LeftOut++
			continue
		}
		e := estimate[c.Schema]
		c.bytes, c.rows, c.work, c.pause = contentOf(e, len(found.Layout.Tables)), e.Rows, e.Work, e.Pause
		report.Bytes += c.bytes
		out = append(out, c)
	}
	return out
}
