package planner

import (
	"fmt"
	"math"
	"strconv"
)

// Waves are shares of a run's tenants, in percent of all of them: 1, 10, 50, 100 moves one in a
// hundred, then nine more, and so on. A wave begins when the one before it is done and well.
type Waves []float64

// The waves of a plan that names none: with rules, a soak or an error budget there is something
// to learn from the first; without, there is one.
var (
	DefaultWaves = Waves{1, 10, 50, 100}
	OneWave      = Waves{100}
)

// MaxWaves bounds the number of waves.
const MaxWaves = 20

// Check says what is wrong with the waves, "" when nothing is.
func (w Waves) Check() string {
	if len(w) == 0 || len(w) > MaxWaves {
		return fmt.Sprintf("must be 1 to %d percentages, such as 1,10,50,100", MaxWaves)
	}
	last := 0.0
	for _, p := range w {
		if !(p > last) || p > 100 { // also what is no number
			return "must be percentages above 0 that grow, such as 1,10,50,100"
		}
		last = p
	}
	if last != 100 {
		return "must end with 100, and ends with " + strconv.FormatFloat(last, 'g', -1, 64)
	}
	return ""
}

// Split returns how many of n tenants each wave moves, rounded up; 0 where an earlier one has
// taken them already.
func (w Waves) Split(n int) []int {
	sizes, taken := make([]int, len(w)), 0
	for i, p := range w {
		upTo := min(n, int(math.Ceil(float64(n)*p/100)))
		sizes[i], taken = max(0, upTo-taken), max(taken, upTo)
	}
	return sizes
}

// Budget is how many tenants may fail to move before a run halts. Both bounds hold; nil is none.
type Budget struct {
	Errors  *int64   `json:"max_errors,omitempty"`
	Percent *float64 `json:"max_error_percent,omitempty"` // of the tenants of the waves begun so far
}

// DefaultErrorPercent is the error budget of a run in several waves that names none.
const DefaultErrorPercent = 5.0

// Any reports whether there is a bound.
func (b Budget) Any() bool { return b.Errors != nil || b.Percent != nil }

// Exceeded says why a run must halt, "" when it need not: failed tenants of those in the waves
// begun so far. So a wave halts at the moment when it cannot end within the share any more, and
// not because the first of a hundred has failed.
func (b Budget) Exceeded(failed, begun int64) string {
	switch {
	case b.Errors != nil && failed > *b.Errors:
		return fmt.Sprintf("not moved because of errors: %d; allowed: %d", failed, *b.Errors)
	case b.Percent != nil && float64(failed) > *b.Percent/100*float64(begun):
		return fmt.Sprintf("not moved because of errors: %d of %d tenants; allowed: %g %%", failed, begun, *b.Percent)
	}
	return ""
}
