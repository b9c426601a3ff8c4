package migration

import (
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/migration/planner"
)

// Wave is one wave of a run: as it was planned, and how far it is.
type Wave struct {
	Number   int        `json:"number"`
	Percent  float64    `json:"percent"` // of the run's tenants, the waves before it included
	Tenants  int64      `json:"tenants"`
	Green    int64      `json:"green"`
	Blue     int64      `json:"blue"`                // undone
	BeginsAt *time.Time `json:"begins_at,omitempty"` // as it was planned
	EndsAt   *time.Time `json:"ends_at,omitempty"`
	OpenedAt *time.Time `json:"opened_at,omitempty"`
	DoneAt   *time.Time `json:"done_at,omitempty"`
}

// ETA is when a run will have ended, if it goes on as it does.
type ETA struct {
	At      time.Time `json:"at"`
	Seconds float64   `json:"seconds"` // from now on, soaks and closed hours included
	Basis   Basis     `json:"basis"`
}

// Basis is where an ETA comes from.
type Basis string

// The bases.
const (
	Estimated Basis = "estimated" // the speeds that the preflight assumes
	Measured  Basis = "measured"  // what this run's steps took for the tenants they have moved
)

// queueWaves adds the query for a run's waves.
func queueWaves(b *pgx.Batch, id uuid.UUID, out *[]Wave) {
	b.Queue(`SELECT w.number, w.percent, w.tenants, coalesce(x.green, 0), coalesce(x.blue, 0), w.begins_at, w.ends_at, w.opened_at, w.done_at
		FROM control.wave w LEFT JOIN (SELECT b.wave, count(*) FILTER (WHERE m.state IN ('green', 'fenced_back', 'finalised')) AS green, count(*) FILTER (WHERE m.state = 'blue') AS blue
			FROM control.move m JOIN control.batch b ON b.run_id = m.run_id AND b.number = m.batch WHERE m.run_id = $1 GROUP BY 1) x ON x.wave = w.number
		WHERE w.run_id = $1 ORDER BY w.number`, id).
		Query(func(rows pgx.Rows) (err error) {
			*out, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Wave])
			return err
		})
}

// pace is how much of a run's work is left, and what the done work took.
type pace struct {
	left        map[int][]planner.Load // by wave
	done, spent time.Duration          // estimated, and measured over all steps
}

// queuePace adds the queries for a run's pace.
func queuePace(b *pgx.Batch, id uuid.UUID, p *pace) {
	p.left = map[int][]planner.Load{}
	b.Queue(`SELECT b.wave, sum(m.planned_ms)::bigint, sum(m.planned_rows)::bigint FROM control.batch b JOIN control.move m ON m.run_id = b.run_id AND m.batch = b.number
		WHERE b.run_id = $1 AND m.state IN `+openStates+` GROUP BY b.wave, b.number ORDER BY b.number`, id).
		Query(func(rows pgx.Rows) error {
			var (
				wave   int
				ms, nr int64
			)
			_, err := pgx.ForEachRow(rows, []any{&wave, &ms, &nr}, func() error {
				p.left[wave] = append(p.left[wave], planner.Load{Work: time.Duration(ms) * time.Millisecond, Rows: nr})
				return nil
			})
			return err
		})
	b.Queue(`SELECT (SELECT coalesce(sum(planned_ms), 0)::bigint FROM control.move WHERE run_id = $1 AND (state IN ('green', 'fenced_back', 'finalised') OR state = 'blue' AND attempts > 0)),
			coalesce(sum(busy_ms + CASE WHEN lease_until >= clock_timestamp() THEN coalesce(1000 * extract(epoch FROM clock_timestamp() - busy_since), 0) ELSE 0 END), 0)::bigint
		FROM control.batch WHERE run_id = $1`, id).
		QueryRow(func(row pgx.Row) error {
			var done, spent int64
			err := row.Scan(&done, &spent)
			p.done, p.spent = time.Duration(done)*time.Millisecond, time.Duration(spent)*time.Millisecond
			return err
		})
}

// eta foresees the end of a running run from what is left, at the speed of what is done. It is
// nil when that cannot be told: the run is not running, or was made without estimates.
func (p pace) eta(now time.Time, run Run, parallel int) *ETA {
	if run.State != Running {
		return nil
	}
	out := &ETA{Basis: Estimated}
	slower := 1.0
	if p.done > 0 && p.spent > 0 {
		out.Basis, slower = Measured, p.spent.Seconds()/p.done.Seconds()
	}
	var waves [][]planner.Load
	var work time.Duration
	for n := run.Wave; n <= run.LastWave; n++ {
		var loads []planner.Load
		for _, l := range p.left[n] {
			work += l.Work
			l.Work = time.Duration(float64(l.Work) * slower)
			loads = append(loads, l)
		}
		waves = append(waves, loads)
	}
	if work == 0 {
		return nil
	}
	begin := now
	if run.NextWaveAt != nil && run.NextWaveAt.After(now) {
		begin = *run.NextWaveAt
	}
	if wait := run.credit.Wait(begin); wait > 0 {
		begin = begin.Add(wait)
	}
	spans := planner.Forecast(begin, waves, planner.Limits{Parallel: parallel, RowsPerSecond: run.RowsPerSecond, Hours: run.Hours, Soak: run.Soak})
	out.At = spans[len(spans)-1].End
	out.Seconds = out.At.Sub(now).Seconds()
	return out
}
