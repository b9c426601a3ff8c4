package migration

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/fault"
)

// A delivery that waits for a place until its own deadline would be given up in the middle of its work.
func TestAStepDoesNotWaitForAPlaceForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &Mover{steps: make(chan struct{}, 1)}
		m.steps <- struct{}{}
		began := time.Now()
		err := m.Step(t.Context(), StepTask{})
		require.Equal(t, "steps_busy", fault.CodeOf(err))
		require.Equal(t, fault.Unavailable, fault.KindOf(err))
		require.Equal(t, 10*time.Second, time.Since(began), "with a budget of 10 s, within the 30 s that a delivery has")
	})
}
