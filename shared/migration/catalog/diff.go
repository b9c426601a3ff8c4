package catalog

import (
	"fmt"
	"slices"
	"strings"
)

// Difference is one way in which a schema is not like its template.
type Difference struct {
	Table string // "" for a sequence or type
	Text  string // a sentence
	// Breaks is set when rows of this schema do not fit the template's tables, or
	// may break a rule that the template has: such a schema cannot be moved. Without
	// it, the schema only loses or gains speed or a rule that nothing depends on.
	Breaks bool
}

// Diff says in sentences how other differs from template: "table work_task: column
// estimate is missing". Nothing for equal structures.
func Diff(template, other *Schema) []string {
	var out []string
	for _, d := range Differences(template, other) {
		out = append(out, d.Text)
	}
	return out
}

// Differences is Diff with what each difference means.
func Differences(template, other *Schema) []Difference {
	want, have := template.facts(), other.facts()
	missing, extra := minus(want, have), minus(have, want)
	var out []Difference
	for _, m := range missing {
		i := slices.IndexFunc(extra, func(e fact) bool { return m.name != "" && e.kind == m.kind && e.table == m.table && e.name == m.name })
		if i >= 0 {
			out = append(out, changed(m, extra[i]))
			extra = slices.Delete(extra, i, i+1)
			continue
		}
		if m.kind != "table" && m.table != "" && other.Table(m.table) == nil {
			continue // the missing table says it all
		}
		out = append(out, absent(m))
	}
	for _, e := range extra {
		if e.kind != "table" && e.table != "" && template.Table(e.table) == nil {
			continue
		}
		out = append(out, surplus(e))
	}
	return out
}

func changed(want, have fact) Difference {
	d := Difference{Table: want.table, Breaks: true}
	switch want.kind {
	case "table":
		d.Text = fmt.Sprintf("table %s is of another kind (partitioned, foreign, unlogged or inherited) than in the template", want.table)
	case "column":
		d.Text = fmt.Sprintf("table %s: column %s is %s, the template has %s", want.table, want.name, have.text, want.text)
		// A default only matters to rows that are still to come.
		d.Breaks = withoutDefault(want.text) != withoutDefault(have.text)
	default:
		d.Text = fmt.Sprintf("%s %s is %s, the template has %s", want.kind, want.name, have.text, want.text)
		d.Breaks = want.kind == "type"
	}
	d.Text = readable(d.Text)
	return d
}

func absent(m fact) Difference {
	d := Difference{Table: m.table, Breaks: true}
	switch m.kind {
	case "table":
		d.Text = fmt.Sprintf("table %s is missing", m.table)
	case "column":
		d.Text = fmt.Sprintf("table %s: column %s is missing", m.table, m.name)
	case "sequence":
		d.Text, d.Breaks = fmt.Sprintf("sequence %s is missing", m.name), false
	case "type":
		d.Text = fmt.Sprintf("type %s is missing", m.name)
	default:
		d.Text = fmt.Sprintf("table %s: %s %s is missing", m.table, m.kind, m.text)
		d.Breaks = m.kind != "index" // without the rule, rows may be there that break it
	}
	d.Text = readable(d.Text)
	return d
}

func surplus(e fact) Difference {
	d := Difference{Table: e.table}
	switch e.kind {
	case "table":
		d.Text, d.Breaks = fmt.Sprintf("table %s is not in the template", e.table), true
	case "column":
		d.Text, d.Breaks = fmt.Sprintf("table %s: column %s (%s) is not in the template", e.table, e.name, e.text), true
	case "sequence", "type":
		d.Text = fmt.Sprintf("%s %s is not in the template", e.kind, e.name)
	default:
		d.Text = fmt.Sprintf("table %s: %s %s is not in the template", e.table, e.kind, e.text)
	}
	d.Text = readable(d.Text)
	return d
}

// readable drops the placeholder: in a sentence the schema goes without saying.
func readable(s string) string { return strings.ReplaceAll(s, Self+".", "") }

func withoutDefault(describe string) string {
	s, _, _ := strings.Cut(describe, " DEFAULT ")
	return s
}

// minus returns the facts of a that are not in b. Both are sorted by key.
func minus(a, b []fact) []fact {
	var out []fact
	j := 0
	for _, f := range a {
		for j < len(b) && b[j].key < f.key {
			j++
		}
		if j < len(b) && b[j].key == f.key {
			j++
			continue
		}
		out = append(out, f)
	}
	return out
}
