package report_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/html"

	"github.com/coditect/platform/scripts/coditectl/internal/report"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/tenant"
)

var began = time.Date(2026, 11, 23, 11, 0, 0, 0, time.UTC)

func sample() report.Run {
	ended, halted := began.Add(20*time.Second), "2 errors"
	s := migration.Status{Run: migration.Run{ID: uuid.Must(uuid.NewV7()), Source: `<b>"legacy"`, State: migration.Done, StartedAt: &began, FinishedAt: &ended, Halted: &halted},
		Tenants: 9, Counts: migration.Counts{migration.Green: 7, migration.CatchingUp: 2}, RowsMoved: 4000, Seconds: 20, Pause: migration.Pauses{P50: 12, P99: 40, Max: 81},
		Failed: []migration.Failure{{Tenant: tenant.NewID(), Schema: "acme</td><script>alert(1)</script>", State: migration.Blue, Error: "verification failed: http://evil.example/x"}}}
	h := migration.History{Throughput: []migration.Point{{At: began, Seconds: 10, Tenants: 3, Rows: 1000}, {At: began.Add(10 * time.Second), Seconds: 10, Tenants: 4, Rows: 3000}},
		Lag:    []migration.Lag{{At: began, MS: 100, Bytes: 5}, {At: began.Add(5 * time.Second), MS: 400, Bytes: 77}},
		Pauses: []migration.PauseBucket{{UpToMS: 50, Tenants: 6}, {UpToMS: 100, Tenants: 1}}}
	return report.Run{Status: s, History: h, Made: began, Action: func(migration.Failure) string { return "look at it" }}
}

// elements lists an HTML document's elements; every one that is opened must be closed in its turn.
func elements(t *testing.T, text string) map[string][]*html.Node {
	t.Helper()
	doc, err := html.Parse(strings.NewReader(text))
	require.NoError(t, err)
	out := map[string][]*html.Node{}
	for n := range doc.Descendants() {
		if n.Type == html.ElementNode {
			out[n.Data] = append(out[n.Data], n)
		}
	}
	var open []string
	for z := html.NewTokenizer(strings.NewReader(text)); z.Next() != html.ErrorToken; {
		switch token := z.Token(); {
		case token.Type == html.StartTagToken && token.Data != "meta":
			open = append(open, token.Data)
		case token.Type == html.EndTagToken:
			require.NotEmpty(t, open, token.Data)
			require.Equal(t, open[len(open)-1], token.Data)
			open = open[:len(open)-1]
		}
	}
	require.Empty(t, open)
	return out
}

func textOf(n *html.Node) string {
	var b strings.Builder
	for d := range n.Descendants() {
		if d.Type == html.TextNode {
			b.WriteString(d.Data + " ")
		}
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

func TestTheReport(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, report.Write(&out, sample()))
	e := elements(t, out.String())
	require.Len(t, e["svg"], 4)
	require.Len(t, e["table"], 6, "facts, one beside each chart, errors")
	require.Len(t, e["polyline"], 1)
	require.Len(t, e["rect"], 2+2+2)
	require.Empty(t, e["script"])
	require.Empty(t, e["link"])
	require.Empty(t, e["img"])
	require.Empty(t, e["b"], "a name is no HTML")
	for _, elements := range e {
		for _, n := range elements {
			for _, a := range n.Attr {
				require.NotContains(t, []string{"src", "href", "xlink:href", "action"}, a.Key, "nothing is fetched")
				require.NotRegexp(t, `(?i)url\(|^https?:|^//`, a.Val)
			}
		}
	}
	require.NotRegexp(t, `(?i)@import|url\(`, textOf(e["style"][0]))

	// Each drawing has a name, which is told to who cannot see it.
	ids := map[string]bool{}
	for _, elements := range e {
		for _, n := range elements {
			for _, a := range n.Attr {
				if a.Key == "id" {
					require.False(t, ids[a.Val], a.Val)
					ids[a.Val] = true
				}
			}
		}
	}
	for _, svg := range e["svg"] {
		for _, a := range svg.Attr {
			if a.Key == "aria-labelledby" {
				for _, id := range strings.Fields(a.Val) {
					require.True(t, ids[id], id)
				}
			}
		}
	}
	body := textOf(e["body"][0])
	for _, part := range []string{`of source <b>"legacy"`, "4000 in 20.0 s", "99 % at most 40 ms, longest 81 ms", "Halted 2 errors", "at most 300.", "50 ms 6", "100 ms 1", "green 7", "catching up 2",
		"2026-11-23 11:00:05 UTC 400 77", "acme</td><script>alert(1)</script> blue verification failed: http://evil.example/x look at it"} {
		require.Contains(t, body, part)
	}
	var highest string
	for _, a := range e["rect"][1].Attr {
		if a.Key == "height" {
			highest = a.Val
		}
	}
	require.Equal(t, "200.0", highest, "the greatest value fills the drawing")
}

func TestTheReportOfARunThatHasDoneNothing(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, report.Write(&out, report.Run{}))
	e := elements(t, out.String())
	require.Empty(t, e["svg"])
	require.Contains(t, textOf(e["body"][0]), "No tenant of this run was streamed.")
	require.Contains(t, textOf(e["body"][0]), "Errors None.")
}
