package terminal

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPlainProgressIsALineNowAndThen(t *testing.T) {
	var out strings.Builder
	now := time.Unix(0, 0).Add(time.Hour)
	c := NewPlain(&out)
	c.now = func() time.Time { return now }
	for done := range 11 {
		c.Progress(done, 10, "moving")
		now = now.Add(time.Second)
	}
	c.Done()
	require.Equal(t, "  0 of 10  moving\n  5 of 10  moving\n  10 of 10  moving\n", out.String())
}
