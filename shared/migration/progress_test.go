package migration

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/migration/planner"
)

// The end of a run follows from what is left, at the speed of what is done; soaks, closed hours
// and a bound of rows come on top.
func TestETA(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	night, err := planner.ParseHours("22:00-06:00@UTC")
	require.NoError(t, err)
	batches := func(n int) (out []planner.Load) {
		for range n {
			out = append(out, planner.Load{Work: 10 * time.Second, Rows: 1000})
		}
		return out
	}
	at := now.Add(time.Hour)
	for name, c := range map[string]struct {
		run         Run
		left        map[int][]planner.Load
		done, spent time.Duration
		want        time.Duration
		basis       Basis
	}{
		"nothing is done yet":      {Run{Wave: 1, LastWave: 1}, map[int][]planner.Load{1: batches(4)}, 0, 0, 20 * time.Second, Estimated},
		"half as long as foreseen": {Run{Wave: 1, LastWave: 1}, map[int][]planner.Load{1: batches(4)}, time.Minute, 30 * time.Second, 10 * time.Second, Measured},
		"three times as long":      {Run{Wave: 1, LastWave: 1}, map[int][]planner.Load{1: batches(4)}, time.Minute, 3 * time.Minute, time.Minute, Measured},
		"waves and soaks":          {Run{Wave: 1, LastWave: 3, Soak: time.Minute}, map[int][]planner.Load{1: batches(2), 2: batches(2), 3: batches(2)}, 0, 0, 150 * time.Second, Estimated},
		"the last wave":            {Run{Wave: 3, LastWave: 3, Soak: time.Minute}, map[int][]planner.Load{3: batches(2)}, 0, 0, 10 * time.Second, Estimated},
		"it soaks":                 {Run{Wave: 1, LastWave: 2, NextWaveAt: &at}, map[int][]planner.Load{2: batches(2)}, 0, 0, time.Hour + 10*time.Second, Estimated},
		"rows a second":            {Run{Wave: 1, LastWave: 1, RowsPerSecond: 10}, map[int][]planner.Load{1: batches(2)}, 0, 0, 200 * time.Second, Estimated},
		"hours":                    {Run{Wave: 1, LastWave: 1, Hours: night}, map[int][]planner.Load{1: batches(2)}, 0, 0, 10*time.Hour + 10*time.Second, Estimated},
	} {
		c.run.State = Running
		eta := pace{left: c.left, done: c.done, spent: c.spent}.eta(now, c.run, 2)
		require.NotNil(t, eta, name)
		require.Equal(t, ETA{At: now.Add(c.want), Seconds: c.want.Seconds(), Basis: c.basis}, *eta, name)
	}
	require.Nil(t, pace{}.eta(now, Run{State: Running, Wave: 1, LastWave: 1}, 2), "without estimates")
	require.Nil(t, pace{left: map[int][]planner.Load{1: batches(1)}}.eta(now, Run{State: Paused, Wave: 1, LastWave: 1}, 2), "who knows when it is resumed")
}
