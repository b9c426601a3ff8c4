package main

import (
	"math"
	"slices"
	"time"
)

// percentile returns the value that p percent of the values do not exceed (nearest
// rank); 0 for no values.
func percentile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// median returns the middle value, or the mean of the two in the middle.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

// spread is how values are reported.
type spread struct {
	N   int     `json:"n"`
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

func spreadOf(values []float64) spread {
	return spread{N: len(values), P50: round(percentile(values, 50), 3), P99: round(percentile(values, 99), 3), Max: round(percentile(values, 100), 3)}
}

// round keeps as many digits behind the point as mean something.
func round(v float64, digits int) float64 {
	scale := math.Pow10(digits)
	return math.Round(v*scale) / scale
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// ratio is a / b, 0 when there is no b.
func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return round(a/b, 3)
}

// goal says what is asked for and whether it was reached.
type goal struct {
	Want string  `json:"want"`
	Got  float64 `json:"got"`
	Met  bool    `json:"met"`
}

func atLeast(got, want float64) goal {
	return goal{Want: ">= " + number(want), Got: got, Met: got >= want}
}

func below(got, want float64, unit string) goal {
	return goal{Want: "< " + number(want) + unit, Got: got, Met: got < want}
}
