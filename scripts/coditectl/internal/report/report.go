// Package report writes a run as one HTML file: charts as inline SVG, each with its figures as
// a table beside it. The file needs nothing from anywhere, and prints well.
package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"strings"
	"time"

	"github.com/coditect/platform/shared/migration"
)

// Run is what a report tells.
type Run struct {
	Status  migration.Status
	History migration.History
	Action  func(migration.Failure) string // what an operator can do about it
	Made    time.Time
}

//go:embed report.html
var page string

var layout = template.Must(template.New("report").Parse(page))

// Write writes the report.
func Write(w io.Writer, r Run) error {
	s := r.Status
	data := struct {
		Title  string
		Facts  [][2]string
		Charts []chart
		Errors []trouble
		Made   string
	}{
		Title:  fmt.Sprintf("Run %s of source %s", s.ID, s.Source),
		Facts:  facts(s),
		Charts: []chart{throughput(r.History), lag(r.History), pauses(r.History), states(s)},
		Made:   moment(&r.Made),
	}
	for _, f := range s.Failed {
		data.Errors = append(data.Errors, trouble{f, r.Action(f)})
	}
	if err := layout.Execute(w, data); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

type trouble struct {
	migration.Failure
	Action string
}

func facts(s migration.Status) [][2]string {
	out := [][2]string{
		{"State", string(s.State)},
		{"Started", moment(s.StartedAt)},
		{"Ended", moment(s.FinishedAt)},
		{"Tenants", fmt.Sprint(s.Tenants)},
		{"Rows moved", fmt.Sprintf("%d in %.1f s", s.RowsMoved, s.Seconds)},
		{"Bytes moved", fmt.Sprintf("%d, as the preflight has estimated them", s.BytesMoved)},
		{"Write pause", fmt.Sprintf("half of the tenants at most %.0f ms, 99 %% at most %.0f ms, longest %.0f ms", s.Pause.P50, s.Pause.P99, s.Pause.Max)},
		{"Started by", s.CreatedBy},
	}
	if s.Halted != nil {
		out = append(out, [2]string{"Halted", *s.Halted})
	}
	return out
}

func moment(t *time.Time) string {
	if t == nil || t.IsZero() {
		return "–"
	}
	return t.UTC().Format("2006-01-02 15:04:05 MST")
}

// The drawing's size and margins, in units of its own: it grows with the page.
const (
	width, height = 720.0, 240.0
	left, right   = 70.0, 10.0
	top, bottom   = 10.0, 30.0
)

// chart is a drawing and its figures.
type chart struct {
	ID, Title, Summary string
	Bars               []rectangle
	Line               string // points of a line; "": none
	Across, Up         []label
	Head               []string
	Rows               [][]string
}

// Empty says that there is nothing to draw.
func (c chart) Empty() bool { return len(c.Rows) == 0 }

type rectangle struct{ X, Y, W, H float64 }

type label struct {
	X, Y float64
	Text string
}

// scale returns the greatest value, at least 1, and labels for the axis.
func (c *chart) scale(values []float64, text func(float64) string) float64 {
	most := 1.0
	for _, v := range values {
		most = max(most, v)
	}
	for _, part := range []float64{0, 0.5, 1} {
		c.Up = append(c.Up, label{left - 6, height - bottom - part*(height-top-bottom) + 4, text(part * most)})
	}
	return most
}

// bars draws a bar for each value, and a label below some of them.
func (c *chart) bars(values []float64, text func(float64) string, below func(i int) string) {
	most := c.scale(values, text)
	step := (width - left - right) / float64(max(len(values), 1))
	every := max(len(values)/8, 1)
	for i, v := range values {
		h := v / most * (height - top - bottom)
		c.Bars = append(c.Bars, rectangle{left + float64(i)*step + step*0.1, height - bottom - h, step * 0.8, h})
		if i%every == 0 {
			c.Across = append(c.Across, label{left + (float64(i)+0.5)*step, height - bottom + 16, below(i)})
		}
	}
}

func whole(v float64) string { return fmt.Sprintf("%.0f", v) }

func throughput(h migration.History) chart {
	c := chart{ID: "throughput", Title: "Throughput", Head: []string{"From", "Seconds", "Tenants", "Rows", "Rows a second", "Bytes"}}
	var values []float64
	var most float64
	for _, p := range h.Throughput {
		rate := float64(p.Rows) / max(p.Seconds, 1e-9)
		values, most = append(values, rate), max(most, rate)
		c.Rows = append(c.Rows, []string{moment(&p.At), fmt.Sprintf("%.1f", p.Seconds), fmt.Sprint(p.Tenants), fmt.Sprint(p.Rows), whole(rate), fmt.Sprint(p.Bytes)})
	}
	c.Summary = fmt.Sprintf("Rows a second of tenants when they came to green; at most %.0f.", most)
	c.bars(values, whole, func(i int) string { return h.Throughput[i].At.UTC().Format("15:04:05") })
	return c
}

func lag(h migration.History) chart {
	c := chart{ID: "lag", Title: "Lag of the change stream", Head: []string{"At", "Milliseconds", "Bytes"}}
	var values []float64
	for _, l := range h.Lag {
		values = append(values, float64(l.MS))
		c.Rows = append(c.Rows, []string{moment(&l.At), fmt.Sprint(l.MS), fmt.Sprint(l.Bytes)})
	}
	if c.Empty() {
		c.Summary = "No tenant of this run was streamed."
		return c
	}
	most := c.scale(values, whole)
	begin, span := h.Lag[0].At, max(h.Lag[len(h.Lag)-1].At.Sub(h.Lag[0].At).Seconds(), 1)
	var points []string
	for i, l := range h.Lag {
		x := left + l.At.Sub(begin).Seconds()/span*(width-left-right)
		points = append(points, fmt.Sprintf("%.1f,%.1f", x, height-bottom-values[i]/most*(height-top-bottom)))
		if i%max(len(h.Lag)/8, 1) == 0 {
			c.Across = append(c.Across, label{x, height - bottom + 16, l.At.UTC().Format("15:04:05")})
		}
	}
	c.Line = strings.Join(points, " ")
	c.Summary = fmt.Sprintf("Milliseconds that the lane furthest behind was behind its database; at most %.0f.", most)
	return c
}

func pauses(h migration.History) chart {
	c := chart{ID: "pauses", Title: "Write pauses", Summary: "Tenants by the time for which their writes waited. The goal is 100 ms for 99 of 100.", Head: []string{"Up to", "Tenants"}}
	var values []float64
	text := func(i int) string { return fmt.Sprintf("%.0f ms", h.Pauses[i].UpToMS) }
	for i, b := range h.Pauses {
		values = append(values, float64(b.Tenants))
		c.Rows = append(c.Rows, []string{text(i), fmt.Sprint(b.Tenants)})
	}
	c.bars(values, whole, text)
	return c
}

func states(s migration.Status) chart {
	c := chart{ID: "states", Title: "Tenants by state", Summary: "Where the run's tenants are.", Head: []string{"State", "Tenants"}}
	var values []float64
	var names []string
	for _, state := range migration.States {
		if n, ok := s.Counts[state]; ok {
			values, names = append(values, float64(n)), append(names, strings.ReplaceAll(string(state), "_", " "))
			c.Rows = append(c.Rows, []string{names[len(names)-1], fmt.Sprint(n)})
		}
	}
	c.bars(values, whole, func(i int) string { return names[i] })
	return c
}
