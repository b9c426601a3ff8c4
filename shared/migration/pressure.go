package migration

import (
	"context"
	"fmt"
	"time"

	"github.com/coditect/platform/shared/citus"
)

// Limits say how much of blue the moves may take from its users. The tags are those of
// sethvargo/go-envconfig.
type Limits struct {
	Busy       int           `env:"CODITECT_BLUE_BUSY_SESSIONS,default=3"` // sessions of others at work in blue, from which on it counts as busy; -1: never
	BusyShare  float64       `env:"CODITECT_BLUE_BUSY_SHARE,default=0.05"` // of the time that copies take of a busy blue
	MaxLatency time.Duration `env:"CODITECT_BLUE_MAX_LATENCY,default=1s"`  // of a short statement; beyond it nothing is copied
	MaxLag     time.Duration `env:"CODITECT_BLUE_MAX_LAG,default=30s"`     // of blue's own standbys; beyond it nothing is copied
}

func (l Limits) withDefaults() Limits {
	if l.Busy == 0 {
		l.Busy = 3
	}
	if l.BusyShare <= 0 || l.BusyShare > 1 {
		l.BusyShare = 0.05
	}
	if l.MaxLatency <= 0 {
		l.MaxLatency = time.Second
	}
	if l.MaxLag <= 0 {
		l.MaxLag = 30 * time.Second
	}
	return l
}

// pressure is how blue is doing.
type pressure struct {
	active  int           // sessions of others that are at work
	lag     time.Duration // of the standby that is furthest behind
	latency time.Duration // of the statement that asked
}

// pressureOf asks a blue database how it is doing. Without pg_read_all_stats it does not see
// what others do: then only the latency tells.
func pressureOf(ctx context.Context, blue *citus.Pool) (p pressure, err error) {
	var lag float64
	began := time.Now()
	err = blue.QueryRow(ctx, `SELECT (SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND backend_type = 'client backend' AND usename <> current_user),
		(SELECT coalesce(max(extract(epoch FROM replay_lag)), 0)::float8 FROM pg_stat_replication WHERE application_name NOT LIKE 'coditect\_%')`).Scan(&p.active, &lag)
	p.latency, p.lag = time.Since(began), time.Duration(lag*float64(time.Second))
	if err != nil {
		return p, fmt.Errorf("migration: ask blue how it is doing: %w", err)
	}
	return p, nil
}

// busyFor is how long blue counts as busy after it was seen to be: a look sees only those who are at work that moment,
// and a session that is fast is idle most of the times.
const (
	busyFor   = 10 * time.Second
	busyLooks = 3
)

// pressure asks a blue database how it is doing, and remembers when it was busy.
func (m *Mover) pressure(ctx context.Context, blue *citus.Pool) (p pressure, err error) {
	limits := m.cfg.Limits
	for range busyLooks {
		if p, err = pressureOf(ctx, blue); err != nil || limits.Busy < 0 {
			return p, err
		}
		if p.active >= limits.Busy {
			m.busy.Store(blue.Name, m.now())
			return p, nil
		}
		if last, known := m.busy.Load(blue.Name); known && m.now().Sub(last.(time.Time)) < busyFor {
			p.active = limits.Busy
			return p, nil
		}
	}
	return p, nil
}

// over says why nothing is to be copied now, "" when it may.
func (l Limits) over(p pressure) string {
	switch {
	case p.latency > l.MaxLatency:
		return fmt.Sprintf("blue took %v for a short statement, more than %v (CODITECT_BLUE_MAX_LATENCY): copying waits", p.latency.Round(time.Millisecond), l.MaxLatency)
	case p.lag > l.MaxLag:
		return fmt.Sprintf("a standby of blue is %v behind, more than %v (CODITECT_BLUE_MAX_LAG): copying waits", p.lag.Round(time.Second), l.MaxLag)
	}
	return ""
}

// rest is how long to leave blue alone after work that took so long.
func (l Limits) rest(p pressure, took time.Duration) time.Duration {
	if l.Busy < 0 || p.active < l.Busy {
		return 0
	}
	return time.Duration(float64(took) * (1/l.BusyShare - 1))
}

// rest waits for so long, or until there is to be a stop, and returns what is left.
func rest(ctx context.Context, d time.Duration, stop func() bool) (left time.Duration, err error) {
	end := time.Now().Add(d)
	for time.Now().Before(end) && !stop() {
		if err := sleep(ctx, min(100*time.Millisecond, time.Until(end))); err != nil {
			return 0, err
		}
	}
	return max(time.Until(end), 0), nil
}
