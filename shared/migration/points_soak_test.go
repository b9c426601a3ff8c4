//go:build soak

package migration_test

import "testing"

// everything: go through all crash points, not a sample of them.
const everything = true

// TestSoakEveryPoint dies, sleeps and wakes up late at every named point of every way.
func TestSoakEveryPoint(t *testing.T) {
	t.Run("dies", TestAStepDiesAnywhere)
	t.Run("sleeps", TestAZombieStepIsHarmless)
	t.Run("sleeps through an undo", TestAZombieAfterAnUndo)
	t.Run("dies on the way back", TestARollbackDiesAnywhere)
}
