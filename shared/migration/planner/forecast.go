package planner

import (
	"slices"
	"time"
)

// Load is the work of one batch.
type Load struct {
	Work time.Duration // of one step after the other
	Rows int64
}

// Limits bound how fast a run is.
type Limits struct {
	Parallel      int   // batches at work at the same time, at least 1
	RowsPerSecond int64 // of all batches together; 0: no bound
	Hours         Hours
	Soak          time.Duration // between two waves
}

// Span is from when to when something is done.
type Span struct {
	Begin time.Time `json:"begin"`
	End   time.Time `json:"end"`
}

// Forecast returns when each wave begins and ends, the first not before begin. A wave's batches
// are given to whoever is free, in their order.
func Forecast(begin time.Time, waves [][]Load, l Limits) []Span {
	out := make([]Span, len(waves))
	for i, batches := range waves {
		if len(batches) == 0 {
			out[i] = Span{begin, begin}
			continue
		}
		s := Span{Begin: l.Hours.Next(begin)}
		s.End = l.Hours.After(s.Begin, l.duration(batches))
		out[i] = s
		begin = s.End.Add(l.Soak)
	}
	return out
}

// duration is how long one wave takes without rests.
func (l Limits) duration(batches []Load) time.Duration {
	free := make([]time.Duration, max(1, min(l.Parallel, len(batches)))) // when each worker is
	var rows int64
	for _, b := range batches {
		first := slices.Index(free, slices.Min(free))
		free[first] += b.Work
		rows += b.Rows
	}
	d := slices.Max(free)
	if l.RowsPerSecond > 0 {
		d = max(d, time.Duration(float64(rows)/float64(l.RowsPerSecond)*float64(time.Second)))
	}
	return d
}

// Credit is how many rows a run may move before it has to wait: a token bucket that holds one
// second's rows, and owes what a group or a chunk has moved beyond it. So the average over a minute
// is the rate, as long as none of them alone has a minute's rows.
type Credit struct {
	RowsPerSecond int64 // 0: no bound
	Rows          float64
	At            time.Time // when Rows was true
}

// Wait returns how long the next group has to wait at a moment.
func (c Credit) Wait(now time.Time) time.Duration {
	if c.RowsPerSecond <= 0 || c.Rows >= 0 {
		return 0
	}
	paid := c.At.Add(time.Duration(-c.Rows / float64(c.RowsPerSecond) * float64(time.Second)))
	return max(0, paid.Sub(now))
}

// Spend returns the credit after rows were moved.
func (c Credit) Spend(rows int64, now time.Time) Credit {
	if c.RowsPerSecond <= 0 {
		return c
	}
	if since := now.Sub(c.At); !c.At.IsZero() && since > 0 {
		c.Rows += since.Seconds() * float64(c.RowsPerSecond)
	}
	c.Rows = min(c.Rows, float64(c.RowsPerSecond)) - float64(rows)
	if now.After(c.At) { // another machine's clock may be ahead
		c.At = now
	}
	return c
}
