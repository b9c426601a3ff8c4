package command

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// print writes a result: as JSON, or as text writes it.
func (p *program) print(result any, text func(w io.Writer)) error {
	if !p.json {
		text(visible{p.Out})
		return nil
	}
	b, err := json.Marshal(result)
	if err != nil {
		return err
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, b, "", "  "); err != nil {
		return err
	}
	_, err = fmt.Fprintln(p.Out, indented.String())
	return err
}

// visible replaces control characters: names come from databases and are anybody's,
// and a terminal would obey them.
type visible struct{ io.Writer }

// Write implements io.Writer.
func (v visible) Write(b []byte) (int, error) {
	if _, err := io.WriteString(v.Writer, printable(string(b))); err != nil {
		return 0, err
	}
	return len(b), nil
}

// printable replaces control characters.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && unicode.IsControl(r) {
			return '\uFFFD'
		}
		return r
	}, s)
}

// table writes rows in columns. An empty one says so.
func table(w io.Writer, empty string, head []string, rows [][]string) {
	if len(rows) == 0 {
		fmt.Fprintln(w, empty)
		return
	}
	columns(w, append([][]string{head}, rows...))
}

func columns(w io.Writer, rows [][]string) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	_ = t.Flush() // a terminal that is gone
}

// count is "1 tenant", "2 tenants".
func count[N int | int64](n N, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

func size(bytes int64) string {
	const unit = 1000
	value, names := float64(bytes), []string{"bytes", "kB", "MB", "GB", "TB"}
	for value >= unit && len(names) > 1 {
		value, names = value/unit, names[1:]
	}
	if names[0] == "bytes" {
		return count(bytes, "byte")
	}
	return fmt.Sprintf("%.1f %s", value, names[0])
}

func day(t *time.Time) string { return dayOr(t, "never") }

func dayOr(t *time.Time, none string) string {
	if t == nil {
		return none
	}
	return t.UTC().Format("2006-01-02 15:04 MST")
}

// lasting is how long something takes, to two digits or so.
func lasting(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d < time.Second:
		return "less than a second"
	case d < time.Minute:
		return d.Round(time.Second).String()
	case d < time.Hour:
		return withoutSeconds(d.Round(5 * time.Second))
	}
	return withoutSeconds(d.Round(time.Minute))
}

// withoutSeconds leaves them out if there are none: 3m, and 3m20s.
func withoutSeconds(d time.Duration) string {
	if d%time.Minute == 0 {
		return strings.TrimSuffix(d.String(), "0s")
	}
	return d.String()
}

// orNone is a list that may be absent, as it is in JSON: [] and not null.
func orNone[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// andList is "a, b and c".
func andList(names []string) string {
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}
