package migration

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Rate is how fast a run moves: over the last minute, or of a run that has ended over all of it.
type Rate struct {
	Tenants float64 `json:"tenants"` // each second
	Rows    float64 `json:"rows"`
	Bytes   float64 `json:"bytes"` // as the preflight has estimated them
}

// Lag is how far the lane of a run that is furthest behind was behind.
type Lag struct {
	At    time.Time `json:"at"`
	Bytes int64     `json:"bytes"` // of blue's WAL that is not spooled yet
	MS    int64     `json:"ms"`    // since the last spooled commit; 0 when nothing is missing
}

// Point is what a run has moved in a piece of its time.
type Point struct {
	At      time.Time `json:"at"`      // its beginning
	Seconds float64   `json:"seconds"` // its length
	Tenants int64     `json:"tenants"`
	Rows    int64     `json:"rows"`
	Bytes   int64     `json:"bytes"`
}

// PauseBucket counts the tenants whose write pause was at most so long, and longer than the bucket before.
type PauseBucket struct {
	UpToMS  float64 `json:"up_to_ms"`
	Tenants int64   `json:"tenants"`
}

// History is a run over time.
type History struct {
	Throughput []Point       `json:"throughput"`
	Lag        []Lag         `json:"lag"` // none, if nothing was streamed
	Pauses     []PauseBucket `json:"pauses"`
}

// historyPoints are how many pieces a run's time is cut into.
const historyPoints = 120

// pauseBounds are the buckets of write pauses, in milliseconds: 100 is the goal for 99 of 100 tenants, 500 for all.
var pauseBounds = []float64{5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 60000}

// History reads a run's throughput, lag and pauses.
func (m *Mover) History(ctx context.Context, id uuid.UUID) (History, error) {
	h := History{Throughput: []Point{}, Lag: []Lag{}, Pauses: []PauseBucket{}}
	control, err := m.control(ctx)
	if err != nil {
		return h, err
	}
	run, err := getRun(ctx, control, id)
	if err != nil || run.StartedAt == nil {
		return h, err
	}
	end := m.clock()
	if run.FinishedAt != nil {
		end = *run.FinishedAt
	}
	width := max(end.Sub(*run.StartedAt).Seconds()/historyPoints, 1)
	moved := map[int]Point{}
	b := &pgx.Batch{}
	b.Queue(`SELECT floor(extract(epoch FROM green_at - $2) / $3)::int AS i, count(*), sum(rows)::bigint, sum(bytes)::bigint FROM control.move
		WHERE run_id = $1 AND green_at >= $2 GROUP BY i ORDER BY i`, id, *run.StartedAt, width).Query(func(rows pgx.Rows) error {
		var (
			i int
			p Point
		)
		_, err := pgx.ForEachRow(rows, []any{&i, &p.Tenants, &p.Rows, &p.Bytes}, func() error { moved[min(i, historyPoints-1)] = p; return nil })
		return err
	})
	b.Queue(`SELECT at, lag_bytes, lag_ms FROM control.run_sample WHERE run_id = $1 ORDER BY at`, id).Query(func(rows pgx.Rows) (err error) {
		h.Lag, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Lag])
		return err
	})
	b.Queue(`SELECT width_bucket(pause_us / 1000.0, $2::float8[]::numeric[]), count(*) FROM control.move WHERE run_id = $1 AND pause_us IS NOT NULL GROUP BY 1`, id, pauseBounds).Query(func(rows pgx.Rows) error {
		var i int
		var n int64
		counts := make([]int64, len(pauseBounds)+1)
		_, err := pgx.ForEachRow(rows, []any{&i, &n}, func() error { counts[i] += n; return nil })
		for i, bound := range pauseBounds {
			h.Pauses = append(h.Pauses, PauseBucket{bound, counts[i]})
		}
		h.Pauses[len(pauseBounds)-1].Tenants += counts[len(pauseBounds)]
		return err
	})
	if err := control.SendBatch(ctx, b).Close(); err != nil {
		return h, fmt.Errorf("migration: history of run %s: %w", id, err)
	}
	for i := range historyPoints {
		at := run.StartedAt.Add(time.Duration(float64(i) * width * float64(time.Second)))
		if at.After(end) {
			break
		}
		p := moved[i]
		p.At, p.Seconds = at, width
		h.Throughput = append(h.Throughput, p)
	}
	return h, nil
}

// queueRate adds the query for how fast a run is.
func queueRate(b *pgx.Batch, id uuid.UUID, s *Status) {
	b.Queue(`SELECT coalesce(sum(m.bytes), 0)::bigint, x.s, count(*) FILTER (WHERE m.green_at > x.since) / x.s,
			coalesce(sum(m.rows) FILTER (WHERE m.green_at > x.since), 0)::float8 / x.s, coalesce(sum(m.bytes) FILTER (WHERE m.green_at > x.since), 0)::float8 / x.s
		FROM (SELECT since, greatest(extract(epoch FROM until - since), 1)::float8 AS s FROM (
			SELECT coalesce(finished_at, clock_timestamp()) AS until, CASE WHEN finished_at IS NULL THEN greatest(started_at, clock_timestamp() - interval '1 minute') ELSE started_at END AS since
			FROM control.run WHERE id = $1 AND started_at IS NOT NULL) y) x
		LEFT JOIN control.move m ON m.run_id = $1 AND m.state IN ('green', 'finalised') GROUP BY x.s, x.since`, id).Query(func(rows pgx.Rows) error {
		var seconds float64
		_, err := pgx.ForEachRow(rows, []any{&s.BytesMoved, &seconds, &s.Rate.Tenants, &s.Rate.Rows, &s.Rate.Bytes}, func() error { return nil })
		return err
	})
}

// lagOf is the lag of the lanes in which tenants are streamed, by run.
const lagOf = `SELECT s.run_id, clock_timestamp(), max(greatest(l.wal_end - l.spooled, 0)),
		max(CASE WHEN l.wal_end > l.spooled THEN 1000 * greatest(extract(epoch FROM clock_timestamp() - coalesce(l.last_commit, l.heard_at)), 0) ELSE 0 END)::bigint
	FROM control.streamed s JOIN control.lane l USING (database_name, number) WHERE l.open`

// sample notes the lag of the runs that stream.
func (m *Mover) sample(ctx context.Context) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	_, err = control.Exec(ctx, `INSERT INTO control.run_sample (run_id, at, lag_bytes, lag_ms)
		SELECT x.* FROM (`+lagOf+` GROUP BY s.run_id) x JOIN control.run r ON r.id = x.run_id
		WHERE NOT EXISTS (SELECT FROM control.run_sample y WHERE y.run_id = r.id AND y.at > clock_timestamp() - greatest(interval '2 seconds', (clock_timestamp() - r.created_at) / 500))`)
	if err != nil {
		return fmt.Errorf("migration: sample: %w", err)
	}
	return nil
}
