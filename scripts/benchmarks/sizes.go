package main

import (
	"math"
	"math/rand/v2"
	"strconv"
)

// Shape of a generated tenant, as the fixture's: these rows every tenant has ...
const (
	fixedRows = 17 + 56 + 14 + 5 + 8 + 5 + 6 // migrations, permissions, content types, users, labels, projects, settings
	// ... and these come per unit of its size: 40 tasks, 40 labels of tasks, 20 events, 8 time entries, 4 attachments.
	tasksPerUnit = 40
	rowsPerUnit  = 112
)

// Sizes are log-normal, as those of customers are: half have about one unit (the
// fixture's small tenants), the mean is that of the fixture (345 rows), and a few
// are a hundred times as big.
const (
	meanUnits = 2.09
	sigma     = 1.2
	maxUnits  = 250
)

// tenantSizes returns the number of tasks of n tenants: always the same for a seed.
func tenantSizes(n int, seed uint64) []int {
	r := rand.New(rand.NewPCG(seed, 0))
	mu := math.Log(meanUnits) - sigma*sigma/2
	out := make([]int, n)
	for i := range out {
		units := math.Exp(mu + sigma*r.NormFloat64())
		out[i] = max(1, int(min(units, maxUnits)*tasksPerUnit))
	}
	return out
}

// spreadBytes returns n sizes from low to high, evenly on a logarithmic scale.
func spreadBytes(n int, low, high float64) []int64 {
	out := make([]int64, n)
	for i := range out {
		at := 0.0
		if n > 1 {
			at = float64(i) / float64(n-1)
		}
		out[i] = int64(math.Round(low * math.Pow(high/low, at)))
	}
	return out
}

func number(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
