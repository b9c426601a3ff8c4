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
	t.Run("dies in the switch", TestAHalfDoneSwitchIsFinished)
}

// TestSoakWorkloads runs the workloads that hurt on both kinds of servers, and with 1,000 tenants.
func TestSoakWorkloads(t *testing.T) {
	t.Run("everything at once", TestASchemaThatNeedsQuotesMovesWhileItIsUsed)
	t.Run("behind a pooler", TestBehindAPoolerInTransactionMode)
	t.Run("many tenants of one row", TestManyTenantsOfOneRow)
}
