package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"
	"github.com/google/uuid"

	"github.com/coditect/platform/scripts/coditectl/internal/client"
	"github.com/coditect/platform/shared/migration"
)

// dashboard draws a run on the terminal until it ends, or its operator leaves.
func (p *program) dashboard(ctx context.Context, api *client.Client, id uuid.UUID) (json.RawMessage, migration.Status, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	screen := tea.NewProgram(&board{now: p.Now}, tea.WithContext(ctx), tea.WithOutput(p.Console.File()), tea.WithInput(os.Stdin), tea.WithoutSignalHandler())
	var (
		body json.RawMessage
		s    migration.Status
		err  error
	)
	done := make(chan struct{})
	go func() {
		defer close(done)
		body, s, err = p.follow(ctx, api, id, func(_ json.RawMessage, s migration.Status, away string) error {
			screen.Send(look{s, away})
			return nil
		}, false)
		screen.Quit()
	}()
	_, drawn := screen.Run()
	cancel()
	<-done
	switch {
	case err == nil:
		return body, s, nil
	case errors.Is(err, context.Canceled):
		return nil, s, context.Canceled // left by a key or a signal
	}
	return nil, s, errors.Join(err, drawn)
}

// look is one answer about the run.
type look struct {
	status migration.Status
	away   string // why the function does not answer: the status is an old one
}

// board is the dashboard's state.
type board struct {
	look
	seen          bool
	speeds        []float64 // rows a second, newest last
	width, height int
	now           func() time.Time
}

// speedsKept are drawn beside the speed.
const speedsKept = 60

// Init implements tea.Model.
func (b *board) Init() tea.Cmd { return nil }

// Update implements tea.Model.
func (b *board) Update(m tea.Msg) (tea.Model, tea.Cmd) {
	switch m := m.(type) {
	case tea.WindowSizeMsg:
		b.width, b.height = m.Width, m.Height
	case tea.KeyPressMsg:
		if k := m.String(); k == "q" || k == "ctrl+c" || k == "esc" {
			return b, tea.Quit
		}
	case look:
		b.look, b.seen = m, true
		if m.away == "" {
			b.speeds = append(b.speeds, m.status.Rate.Rows)
			b.speeds = b.speeds[max(0, len(b.speeds)-speedsKept):]
		}
	}
	return b, nil
}

// View implements tea.Model.
func (b *board) View() tea.View {
	text := "Asking …"
	if b.seen {
		text = b.text()
	}
	v := tea.NewView(text)
	v.AltScreen = true
	v.WindowTitle = "coditectl migrate watch"
	return v
}

// text is the whole dashboard, cut to the terminal.
func (b *board) text() string {
	s := b.status
	lines := []string{
		fmt.Sprintf("Run %s   source %s   %s", s.ID, s.Source, strings.ToUpper(string(s.State))),
		bar(settled(s), s.Tenants, min(max(b.width-30, 10), 60)),
		"",
		"  tenants  " + states(s.Counts),
		fmt.Sprintf("  speed    %s rows/s   %s/s   %.1f tenants/s   %s", short(s.Rate.Rows), size(int64(s.Rate.Bytes)), s.Rate.Tenants, sparkline(b.speeds)),
		fmt.Sprintf("  moved    %s, %s in %s%s", count(s.RowsMoved, "row"), size(s.BytesMoved), lasting(s.Seconds), ends(s.ETA)),
		fmt.Sprintf("  pause    half at most %.0f ms   99 %% at most %.0f ms   longest %.0f ms", s.Pause.P50, s.Pause.P99, s.Pause.Max),
	}
	if len(s.Lanes) > 0 {
		lines = append(lines, "  lag      "+lag(s))
	}
	if len(s.Waves) > 1 {
		lines = append(lines, "  waves    "+waves(s))
	}
	lines = append(lines, notices(s, b.away, b.now())...)
	lines = append(lines, "", "q leaves; the run goes on")
	return fit(lines, b.width, b.height)
}

// notices are what an operator is to know, and to do.
func notices(s migration.Status, away string, now time.Time) []string {
	var out []string
	add := func(what, do string) {
		out = append(out, "", "! "+what)
		if do != "" {
			out = append(out, "  → "+do)
		}
	}
	if away != "" {
		add("no answer: "+away, "what you see is the last one; it is asked for again")
	}
	switch {
	case s.Halted != nil && s.State == migration.Paused:
		add("the run has halted: "+*s.Halted, "look at the errors below; coditectl migrate resume "+s.ID.String()+" accepts them and goes on")
	case s.State == migration.Paused:
		add("the run is paused", "coditectl migrate resume "+s.ID.String())
	case s.WaitsUntil != nil && s.WaitsUntil.After(now):
		add("the run waits for its hours, until "+day(s.WaitsUntil), "")
	case s.NextWaveAt != nil && s.NextWaveAt.After(now):
		add(fmt.Sprintf("wave %d is done; the next one begins %s", s.Wave, day(s.NextWaveAt)), "")
	}
	if n := s.Counts[migration.Following]; n > 0 {
		add(fmt.Sprintf("%s in step with blue, and held", count(n, "tenant")), "coditectl migrate cutover "+s.ID.String()+" lets them cut over")
	}
	for _, l := range s.Lanes {
		if l.AlarmedAt != nil {
			add(fmt.Sprintf("lane %d of database %s is behind since %s: %s, %.0f s", l.Lane, l.Database, day(l.AlarmedAt), size(l.Bytes), l.Seconds), "see that the replication function is called and that its database has room: coditectl migrate events "+s.ID.String())
		}
		if l.Lost != "" {
			add(fmt.Sprintf("lane %d of database %s had lost its slot: %s", l.Lane, l.Database, l.Lost), "nothing; its tenants are copied again")
		}
	}
	for i, f := range s.Failed {
		if i == maxTroubles {
			add(fmt.Sprintf("and %d more", len(s.Failed)-i), "coditectl migrate status "+s.ID.String()+" lists them")
			break
		}
		add(fmt.Sprintf("%s (%s) is %s: %s", f.Schema, f.Tenant, f.State, f.Error), nextAction(s, f))
	}
	return out
}

// maxTroubles are shown on a dashboard.
const maxTroubles = 8

// actions say what to do about an error, by a part of its sentence.
var actions = []struct{ part, do string }{
	{"verification failed", "look with: coditectl verify TENANT; then move it again: coditectl migrate start --source SOURCE --tenant TENANT"},
	{"schema was changed after the run was planned", "move it again, as it is now: coditectl migrate start --source SOURCE --tenant TENANT"},
	{"copied again when both agree", "bring both to the same tables (README: schema changes while a run is held)"},
	{"differs from green's tables", "bring its schema up to date, then: coditectl preflight --source SOURCE --tenant TENANT"},
	{"holds its tables for longer", "end the tenant's long transaction, or wait for the end of a VACUUM or CREATE INDEX; it is tried again by itself"},
	{"was fenced for longer than", "it is too large for its pause: move it with a longer --max-pause, or when it is quiet"},
	{"cannot go back", "write down why, and leave it in green"},
	{"the run was cancelled", "nothing; to move it: coditectl migrate start --source SOURCE --tenant TENANT"},
	{"the run is paused", "nothing; it is planned anew when the run is resumed"},
	{"undone by", "nothing; to move it: coditectl migrate start --source SOURCE --tenant TENANT"},
}

// nextAction is what an operator can do about a tenant in trouble.
func nextAction(s migration.Status, f migration.Failure) string {
	do := "mend the cause, then: coditectl migrate start --source SOURCE --tenant TENANT"
	if f.State != migration.Blue {
		do = "wait: it is tried again; to give it up: coditectl migrate undo RUN TENANT"
	}
	for _, a := range actions {
		if strings.Contains(f.Error, a.part) {
			do = a.do
			break
		}
	}
	return strings.NewReplacer("SOURCE", s.Source, "TENANT", f.Tenant.String(), "RUN", s.ID.String()).Replace(do)
}

// stateOrder is that of a dashboard and a report.
var stateOrder = []migration.State{migration.Green, migration.Finalised, migration.Following, migration.CatchingUp, migration.Copying, migration.Fenced, migration.FencedBack, migration.Planned, migration.Blue}

func states(c migration.Counts) string {
	var out []string
	for _, s := range stateOrder {
		if n := c[s]; n > 0 {
			out = append(out, fmt.Sprintf("%d %s", n, strings.ReplaceAll(string(s), "_", " ")))
		}
	}
	return strings.Join(out, "   ")
}

// lag is how far lanes and tenants are behind, of each kind the furthest.
func lag(s migration.Status) string {
	var lane migration.LaneLag
	for _, l := range s.Lanes {
		lane.Bytes, lane.Seconds, lane.Retained = max(lane.Bytes, l.Bytes), max(lane.Seconds, l.Seconds), max(lane.Retained, l.Retained)
	}
	out := fmt.Sprintf("lanes %s, %.1f s (blue keeps %s)", size(lane.Bytes), lane.Seconds, size(lane.Retained))
	var behind migration.TenantLag
	for _, t := range s.Streams {
		behind.Changes, behind.Seconds = max(behind.Changes, t.Changes), max(behind.Seconds, t.Seconds)
	}
	if len(s.Streams) > 0 {
		out += fmt.Sprintf("   tenants %s, %.1f s", count(behind.Changes, "change"), behind.Seconds)
	}
	return out
}

func waves(s migration.Status) string {
	var out []string
	for _, w := range s.Waves {
		mark := "waits"
		switch {
		case w.DoneAt != nil:
			mark = "done"
		case w.OpenedAt != nil:
			mark = "open"
		}
		out = append(out, fmt.Sprintf("%d (%.0f %%) %s %d of %d", w.Number, w.Percent, mark, w.Green+w.Blue, w.Tenants))
	}
	return strings.Join(out, "   ")
}

func ends(e *migration.ETA) string {
	if e == nil {
		return ""
	}
	return fmt.Sprintf("   ends in about %s (%s)", lasting(e.Seconds), e.Basis)
}

// bar is a progress bar with its figures.
func bar(done, total int64, width int) string {
	share := 0.0
	if total > 0 {
		share = float64(done) / float64(total)
	}
	full := int(share * float64(width))
	return fmt.Sprintf("[%s%s] %.0f %%  %d of %s", strings.Repeat("█", full), strings.Repeat("░", width-full), 100*share, done, count(total, "tenant"))
}

var levels = []rune("▁▂▃▄▅▆▇█")

// sparkline draws numbers as a line of bars.
func sparkline(values []float64) string {
	top := 0.0
	for _, v := range values {
		top = max(top, v)
	}
	var b strings.Builder
	for _, v := range values {
		i := 0
		if top > 0 {
			i = int(v / top * float64(len(levels)-1))
		}
		b.WriteRune(levels[i])
	}
	return b.String()
}

// short is a number with a unit that fits: 12.3 k.
func short(n float64) string {
	for _, unit := range []string{"", " k", " M"} {
		if n < 1000 {
			if unit == "" {
				return fmt.Sprintf("%.0f", n)
			}
			return fmt.Sprintf("%.1f%s", n, unit)
		}
		n /= 1000
	}
	return fmt.Sprintf("%.1f G", n)
}

// fit cuts lines to a terminal, whose last line stays; 0 is no bound. What an operator is to know and do
// is wrapped. Names come from databases: what a terminal would obey is replaced.
func fit(lines []string, width, height int) string {
	var out []string
	for _, l := range lines {
		l = printable(l)
		if width > 0 && (strings.HasPrefix(l, "! ") || strings.HasPrefix(l, "  → ")) {
			out = append(out, wrap(l, width)...)
			continue
		}
		out = append(out, cut(l, width))
	}
	if height > 0 && len(out) > height {
		last := out[len(out)-1]
		out = append(out[:max(height-2, 0)], "…", last)
	}
	return strings.Join(out, "\n")
}

func cut(line string, width int) string {
	r := []rune(line)
	if width <= 0 || len(r) <= width {
		return line
	}
	return string(r[:width-1]) + "…"
}

// wrap breaks a line between words; what follows is indented.
func wrap(line string, width int) []string {
	var out []string
	now := line[:len(line)-len(strings.TrimLeft(line, " "))]
	for i, word := range strings.Fields(line) {
		switch {
		case i == 0:
			now += word
		case utf8.RuneCountInString(now)+1+utf8.RuneCountInString(word) > width:
			out = append(out, cut(now, width))
			now = "    " + word
		default:
			now += " " + word
		}
	}
	return append(out, cut(now, width))
}
