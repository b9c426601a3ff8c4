package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPercentile(t *testing.T) {
	require.Zero(t, percentile(nil, 50))
	require.InDelta(t, 7, percentile([]float64{7}, 99), 0)
	values := make([]float64, 100)
	for i := range values {
		values[i] = float64(100 - i) // the order does not matter
	}
	require.InDelta(t, 50, percentile(values, 50), 0)
	require.InDelta(t, 99, percentile(values, 99), 0)
	require.InDelta(t, 100, percentile(values, 100), 0)
	require.InDelta(t, 1, percentile(values, 0), 0)
	// With few values the 99th is the greatest: it is not averaged away.
	require.InDelta(t, 9, percentile([]float64{9, 1, 2}, 99), 0)
	require.InDelta(t, 100, values[0], 0, "the caller's values stay in their order")
}

func TestMedian(t *testing.T) {
	require.Zero(t, median(nil))
	require.InDelta(t, 2, median([]float64{3, 1, 2}), 0)
	require.InDelta(t, 2.5, median([]float64{4, 1, 2, 3}), 0)
}

func TestGoals(t *testing.T) {
	require.True(t, atLeast(0.5, 0.5).Met)
	require.False(t, below(60, 60, " ms").Met)
	require.Equal(t, "< 60 ms", below(60, 60, " ms").Want)
	require.Zero(t, ratio(1, 0))
}
