package stream

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/semaphore"
)

func TestWhatSomebodyWaitsForDoesNotWait(t *testing.T) {
	taken := func() *semaphore.Weighted {
		s := semaphore.NewWeighted(waitingBytes)
		require.True(t, s.TryAcquire(waitingBytes))
		return s
	}
	w := &writer{session: &session{waiting: taken()}, committed: time.Now()}
	require.LessOrEqual(t, w.canWait(), time.Duration(0), "a position that has moved over others' changes is not held back here")
	w.take(event{change: &change{op: Insert, lsn: 7, seq: 1}})
	require.Greater(t, w.canWait(), gatherFor/2)
	w.take(event{commit: 8})
	require.Greater(t, w.canWait(), gatherFor/2)
	w.take(event{urgent: true})
	require.LessOrEqual(t, w.canWait(), time.Duration(0))
	w.take(event{change: &change{op: Insert, lsn: 9, seq: 1}})
	require.LessOrEqual(t, w.canWait(), time.Duration(0), "nor do those that come before it is spooled")
	require.False(t, w.whole, "and it is not over when what is there of it is")
	w.take(event{commit: 10})
	require.True(t, w.whole)
	w.take(event{urgent: true})
	require.False(t, w.whole, "of another one, of which nothing else is there")

	w = &writer{session: &session{waiting: taken()}, committed: time.Now().Add(-gatherFor)}
	w.take(event{change: &change{op: Insert, lsn: 7, seq: 1}})
	require.LessOrEqual(t, w.canWait(), time.Duration(0), "the first after a while goes at once")
}
