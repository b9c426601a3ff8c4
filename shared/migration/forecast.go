package migration

import (
	"cmp"
	"slices"
	"time"

	"github.com/coditect/platform/shared/migration/planner"
	"github.com/coditect/platform/shared/tenant"
)

// schedule is a run's tenants in waves, and in batches that belong to one wave each.
type schedule []scheduledWave

type scheduledWave struct {
	percent float64
	batches [][]candidate
}

// layOut puts tenants into waves and batches. In several waves the order is that of their
// positions, so that the first ones are a sample of all; a wave in which nobody is left is none.
func layOut(p Plan, chosen []candidate) schedule {
	if len(p.Waves) > 1 {
		chosen = slices.Clone(chosen)
		slices.SortFunc(chosen, func(a, b candidate) int { return planner.ByPosition(a.ID, b.ID) })
	}
	var out schedule
	for i, n := range p.Waves.Split(len(chosen)) {
		if n == 0 {
			continue
		}
		out = append(out, scheduledWave{p.Waves[i], slices.Collect(slices.Chunk(chosen[:n], p.BatchSize))})
		chosen = chosen[n:]
	}
	return out
}

// tenants counts those of one wave.
func (w scheduledWave) tenants() (n int) {
	for _, b := range w.batches {
		n += len(b)
	}
	return n
}

// loads is the work of a schedule.
func (l schedule) loads() [][]planner.Load {
	out := make([][]planner.Load, len(l))
	for i, w := range l {
		for _, b := range w.batches {
			var load planner.Load
			for _, c := range b {
				load.Work += c.work
				load.Rows += c.rows
			}
			out[i] = append(out[i], load)
		}
	}
	return out
}

// limits are a plan's, for a forecast.
func (p Plan) limits(parallel int) planner.Limits {
	return planner.Limits{Parallel: parallel, RowsPerSecond: p.RowsPerSecond, Hours: p.Hours, Soak: p.Soak}
}

// parallel is how many batches are at work at the same time.
func (m *Mover) parallel(concurrency int) int {
	if concurrency > 0 {
		return min(concurrency, m.cfg.StepsAtOnce)
	}
	return m.cfg.StepsAtOnce
}

// MaxListed bounds how many tenants a plan names one by one; its counts are of all.
const MaxListed = 10_000

// PlanReport is what a start would do: who moves when and why, who does not, and how long it takes.
type PlanReport struct {
	Chosen  int             `json:"chosen"` // by the rules and not refused by the preflight
	LeftOut int             `json:"left_out"`
	Reasons map[string]int  `json:"reasons"` // of those left out by the rules, by code
	Span    *planner.Span   `json:"span,omitempty"`
	Seconds float64         `json:"seconds"` // from begin to end, rests included
	Rows    int64           `json:"rows"`    // estimated
	Pause   PlannedPause    `json:"pause_ms"`
	Waves   []PlannedWave   `json:"waves"`
	Tenants []PlannedTenant `json:"tenants"` // at most MaxListed, in their order
	Others  []LeftOut       `json:"others"`  // left out by the rules, at most MaxListed
}

// PlannedPause is how long tenants' writes are estimated to wait, in milliseconds.
type PlannedPause struct {
	P50 float64 `json:"p50"`
	Max float64 `json:"max"`
}

// PlannedWave is one wave as it is foreseen.
type PlannedWave struct {
	Number  int          `json:"number"`
	Percent float64      `json:"percent"` // of all, the waves before it included
	Tenants int          `json:"tenants"`
	Batches int          `json:"batches"`
	Bytes   int64        `json:"bytes"`
	Rows    int64        `json:"rows"`
	Span    planner.Span `json:"span"`
}

// PlannedTenant is one tenant that would move.
type PlannedTenant struct {
	Tenant  tenant.ID `json:"tenant"`
	Name    string    `json:"name"`
	Schema  string    `json:"schema"`
	Wave    int       `json:"wave"`
	Batch   int       `json:"batch"`
	Bytes   int64     `json:"bytes"`
	Rows    int64     `json:"rows"`
	Seconds float64   `json:"seconds"` // of work
	PauseMS float64   `json:"pause_ms"`
	Reason  string    `json:"reason,omitempty"` // which rules hold
}

// plannedWithout begins a plan with those whom the rules leave out.
func plannedWithout(left []LeftOut) *PlanReport {
	p := &PlanReport{LeftOut: len(left), Reasons: map[string]int{}, Waves: []PlannedWave{}, Tenants: []PlannedTenant{}, Others: []LeftOut{}}
	for _, l := range left {
		p.Reasons[l.Code]++
	}
	p.Others = append(p.Others, left[:min(len(left), MaxListed)]...)
	return p
}

// fill adds those who move, and when.
func (p *PlanReport) fill(now time.Time, plan Plan, l schedule, parallel int) {
	if len(l) == 0 {
		return
	}
	spans := planner.Forecast(now, l.loads(), plan.limits(parallel))
	var pauses []time.Duration
	batch := 0
	for i, w := range l {
		wave := PlannedWave{Number: i + 1, Percent: w.percent, Tenants: w.tenants(), Batches: len(w.batches), Span: spans[i]}
		for _, b := range w.batches {
			batch++
			for _, c := range b {
				wave.Bytes += c.bytes
				wave.Rows += c.rows
				pauses = append(pauses, c.pause)
				if len(p.Tenants) < MaxListed {
					p.Tenants = append(p.Tenants, PlannedTenant{c.ID, c.Name, c.Schema, wave.Number, batch, c.bytes, c.rows, c.work.Seconds(), milliseconds(c.pause), c.reason})
				}
			}
		}
		p.Chosen += wave.Tenants
		p.Rows += wave.Rows
		p.Waves = append(p.Waves, wave)
	}
	slices.SortFunc(pauses, cmp.Compare[time.Duration])
	p.Pause = PlannedPause{milliseconds(pauses[(len(pauses)-1)/2]), milliseconds(pauses[len(pauses)-1])}
	p.Span = &planner.Span{Begin: spans[0].Begin, End: spans[len(spans)-1].End}
	p.Seconds = p.Span.End.Sub(p.Span.Begin).Seconds()
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
