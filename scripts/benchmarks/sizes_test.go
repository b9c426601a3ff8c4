package main

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSizesAreTheSameForASeed(t *testing.T) {
	first, again := tenantSizes(100, 1), tenantSizes(100, 1)
	require.Equal(t, first, again)
	require.NotEqual(t, tenantSizes(100, 1), tenantSizes(100, 2))
	// A smaller run has the first tenants of a bigger one.
	require.Equal(t, tenantSizes(1000, 1)[:100], tenantSizes(100, 1))
}

func TestSizesHaveALongTailAndTheFixturesMean(t *testing.T) {
	sizes := tenantSizes(1000, 1)
	sum := 0
	for _, n := range sizes {
		require.Positive(t, n)
		sum += n
	}
	slices.Sort(sizes)
	rows := fixedRows + float64(sum)/tasksPerUnit/float64(len(sizes))*rowsPerUnit
	require.InDelta(t, 345, rows, 40)
	require.InDelta(t, tasksPerUnit, sizes[500], 8, "half of the tenants are as the fixture's small ones")
	largest := 0
	for _, n := range sizes[900:] {
		largest += n
	}
	require.Greater(t, float64(largest)/float64(sum), 0.35, "a tenth of the tenants has more than a third of the rows")
	require.Greater(t, sizes[999], 20*sizes[500])
	require.LessOrEqual(t, sizes[999], maxUnits*tasksPerUnit)
}

func TestSpreadBytes(t *testing.T) {
	got := spreadBytes(3, 50_000, 5_000_000)
	require.Equal(t, []int64{50_000, 500_000, 5_000_000}, got)
	require.Equal(t, []int64{50_000}, spreadBytes(1, 50_000, 5_000_000))
}
