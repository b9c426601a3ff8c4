package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// stream is what `go test -json` writes, as of Go 1.26.
const stream = `{"Action":"start","Package":"p/good"}
{"Action":"run","Package":"p/good","Test":"TestA"}
{"Action":"output","Package":"p/good","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"p/good","Test":"TestA","Output":"noise NOT RUN on Citus: TestA (no extension)\n"}
{"Action":"output","Package":"p/good","Test":"TestA","Output":"--- PASS: TestA (0.00s)\n"}
{"Action":"pass","Package":"p/good","Test":"TestA/citus"}
{"Action":"pass","Package":"p/good","Test":"TestA"}
{"Action":"skip","Package":"p/good","Test":"TestB"}
{"Action":"output","Package":"p/good","Output":"PASS\n"}
{"Action":"output","Package":"p/good","Output":"ok  \tp/good\t0.01s\n"}
{"Action":"pass","Package":"p/good"}
{"Action":"output","Package":"p/none","Output":"?   \tp/none\t[no test files]\n"}
{"Action":"skip","Package":"p/none"}
`

const failing = `{"Action":"output","Package":"p/bad","Test":"TestC","Output":"quiet\n"}
{"Action":"pass","Package":"p/bad","Test":"TestC"}
{"Action":"output","Package":"p/bad","Test":"TestD","Output":"=== RUN   TestD\n"}
{"Action":"output","Package":"p/bad","Test":"TestD","Output":"why it failed\n"}
{"Action":"fail","Package":"p/bad","Test":"TestD"}
{"Action":"output","Package":"p/bad","Output":"FAIL\tp/bad\t0.01s\n"}
{"Action":"fail","Package":"p/bad"}
`

func feed(t *testing.T, live bool, text string) (*report, string) {
	var out bytes.Buffer
	r := newReport(&out, live)
	for len(text) > 0 { // in pieces that do not end where lines do
		n := min(37, len(text))
		_, err := r.Write([]byte(text[:n]))
		require.NoError(t, err)
		text = text[n:]
	}
	return r, out.String()
}

func TestReportPrintsWhatGoTestPrints(t *testing.T) {
	r, out := feed(t, false, stream)
	require.Equal(t, "ok  \tp/good\t0.01s\n?   \tp/none\t[no test files]\n", out)
	require.True(t, r.good())
	require.Equal(t, []int{2, 0, 1, 1}, []int{r.passed, r.failed, r.onCitus, r.packagesRun})

	r, out = feed(t, false, failing)
	require.Equal(t, "why it failed\nFAIL\tp/bad\t0.01s\n", out)
	require.False(t, r.good())
}

func TestReportNamesWhatDidNotRun(t *testing.T) {
	var out bytes.Buffer
	r, _ := feed(t, false, stream)
	r.out = &out
	r.summary(false)
	require.Contains(t, out.String(), "Tests: 2 passed, 0 failed, 1 skipped, in 1 packages")
	require.Contains(t, out.String(), "  SKIPPED: p/good TestB\n")
	require.Contains(t, out.String(), "Citus: NO test ran on Citus")
	require.Contains(t, out.String(), "  NOT RUN on Citus: TestA (no extension)\n")
}

func TestReportOfADeadBinaryShowsItsLastWords(t *testing.T) {
	// No verdict for the package: the test binary was killed, and go test with it.
	r, out := feed(t, false, `{"Action":"output","Package":"p/dead","Test":"TestE","Output":"panic: x\n"}`+"\n")
	require.Empty(t, out)
	var rest bytes.Buffer
	r.out = &rest
	r.summary(true)
	require.True(t, strings.HasPrefix(rest.String(), "panic: x\n"))
	require.False(t, r.good())
}

func TestReportPassesOnWhatIsNoEvent(t *testing.T) {
	_, out := feed(t, false, "go: updates to go.mod needed\n"+`{"ImportPath":"p/x","Action":"build-output","Output":"x.go:1: broken\n"}`+"\n")
	require.Equal(t, "go: updates to go.mod needed\nx.go:1: broken\n", out)
}

func TestReportIsLiveWhenAsked(t *testing.T) {
	_, out := feed(t, true, failing)
	require.Equal(t, "quiet\nwhy it failed\nFAIL\tp/bad\t0.01s\n", out)
}
