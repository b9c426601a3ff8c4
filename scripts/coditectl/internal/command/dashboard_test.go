package command

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/migration"
)

func runOf(t *testing.T, body string) (s migration.Status) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(body), &s))
	return s
}

const moving = `{"id":"0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69","source":"legacy","state":"running","tenants":1000,"counts":{"green":440,"finalised":10,"catching_up":2,"copying":3,"planned":540,"blue":5},
	"rows_moved":4500000,"bytes_moved":1200000000,"seconds":200.2,"rate":{"tenants":4.54,"rows":12345.6,"bytes":3200000},"lanes":[{"database":"legacy","lane":1,"behind_bytes":3000,"behind_seconds":0.25,"retained_bytes":16000000,"lost":"it was gone"}],"streams":[{"tenant":"0190a5c4-7c1e-7e3a-9f6b-000000000003","state":"catching_up","changes":12,"behind_seconds":1.5}],
	"pause_ms":{"p50":12,"p99":40,"max":80.6},"wave":2,"last_wave":3,"waves":[{"number":1,"percent":1,"tenants":10,"green":10,"opened_at":"2026-11-23T11:00:00Z","done_at":"2026-11-23T11:00:02Z"},
	{"number":2,"percent":10,"tenants":90,"green":40,"blue":5,"opened_at":"2026-11-23T11:00:02Z"},{"number":3,"percent":100,"tenants":900}],
	"eta":{"at":"2026-11-23T12:00:00Z","seconds":3600,"basis":"measured"},
	"failed":[{"tenant":"0190a5c4-7c1e-7e3a-9f6b-000000000001","schema":"acme\u001b[2J","state":"blue","error":"verification failed: table x has 3 rows in blue and 2 in green"},
	{"tenant":"0190a5c4-7c1e-7e3a-9f6b-000000000002","schema":"acme2","state":"copying","error":"a transaction of the tenant holds its tables for longer than the fence may wait; it is tried again"}]}`

func TestTheDashboardShowsTheRun(t *testing.T) {
	b := &board{now: func() time.Time { return time.Date(2026, 11, 23, 11, 0, 0, 0, time.UTC) }}
	require.Equal(t, "Asking …", b.View().Content)
	for _, rows := range []float64{0, 5000, 10000} {
		s := runOf(t, moving)
		s.Rate.Rows = rows
		b.Update(look{status: s})
	}
	b.Update(look{status: runOf(t, moving)})
	text := b.View().Content
	for _, part := range []string{
		"source legacy   RUNNING\n", "] 46 %  455 of 1000 tenants\n", "440 green   10 finalised   2 catching up   3 copying   540 planned   5 blue\n",
		"12.3 k rows/s   3.2 MB/s   4.5 tenants/s   ▁▃▆█\n", "4500000 rows, 1.2 GB in 3m20s   ends in about 1h0m (measured)\n",
		"half at most 12 ms   99 % at most 40 ms   longest 81 ms\n", "lag      lanes 3.0 kB, 0.2 s (blue keeps 16.0 MB)   tenants 12 changes, 1.5 s\n", "! lane 1 of database legacy had lost its slot: it was gone\n", "1 (1 %) done 10 of 10   2 (10 %) open 45 of 90   3 (100 %) waits 0 of 900\n",
		"verification failed", "→ look with: coditectl verify 0190a5c4-7c1e-7e3a-9f6b-000000000001; then move it again: coditectl migrate start --source legacy --tenant 0190a5c4-7c1e-7e3a-9f6b-000000000001\n",
		"→ end the tenant's long transaction",
	} {
		require.Contains(t, text, part)
	}
	require.NotContains(t, text, "\x1b")
	require.NotContains(t, text, "no answer")

	b.Update(look{status: b.status, away: "connection refused"})
	require.Contains(t, b.View().Content, "! no answer: connection refused\n")
	b.Update(tea.WindowSizeMsg{Width: 100, Height: 60})
	require.Contains(t, b.View().Content, "coditectl\n    migrate start --source legacy --tenant 0190a5c4-7c1e-7e3a-9f6b-000000000001\n", "a command is not cut")
	b.Update(tea.WindowSizeMsg{Width: 40, Height: 12})
	lines := strings.Split(b.View().Content, "\n")
	require.Len(t, lines, 12)
	require.Equal(t, "q leaves; the run goes on", lines[11])
	for _, l := range lines {
		require.LessOrEqual(t, len([]rune(l)), 40)
	}
}

func TestTheDashboardSaysWhyNothingMoves(t *testing.T) {
	b := &board{now: func() time.Time { return time.Date(2026, 11, 23, 11, 0, 0, 0, time.UTC) }}
	for extra, want := range map[string]string{
		`"state":"paused","halted":"3 errors"`:       "! the run has halted: 3 errors\n  → look at the errors below; coditectl migrate resume 0190",
		`"state":"running","counts":{"following":2}`: "! 2 tenants in step with blue, and held\n  → coditectl migrate cutover 0190",
		`"state":"running","lanes":[{"database":"legacy","lane":1,"behind_bytes":2000000,"behind_seconds":90,"alarmed_at":"2026-11-23T10:58:00Z"}]`: "! lane 1 of database legacy is behind since 2026-11-23 10:58 UTC: 2.0 MB, 90 s\n  → see that the replication",
		`"state":"paused"`: "! the run is paused\n  → coditectl migrate resume 0190",
		`"state":"running","waits_until":"2026-11-23T22:00:00Z"`:           "! the run waits for its hours, until 2026-11-23 22:00 UTC\n",
		`"state":"running","wave":1,"next_wave_at":"2026-11-23T11:30:00Z"`: "! wave 1 is done; the next one begins 2026-11-23 11:30 UTC\n",
	} {
		b.Update(look{status: runOf(t, `{"id":"0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69","source":"x",`+extra+`}`)})
		require.Contains(t, b.View().Content, want)
	}
}

func TestAKeyLeavesTheDashboard(t *testing.T) {
	b := &board{now: time.Now}
	for _, key := range []tea.KeyPressMsg{{Code: 'q', Text: "q"}, {Code: tea.KeyEscape}, {Code: 'c', Mod: tea.ModCtrl}} {
		_, cmd := b.Update(key)
		require.NotNil(t, cmd, key.String())
		require.Equal(t, tea.Quit(), cmd())
	}
	_, cmd := b.Update(tea.KeyPressMsg{Code: 'x', Text: "x"})
	require.Nil(t, cmd)
}
