package project

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/coditect/platform/shared/fault"
)

// Limits. The tags of the input types say the same to readers of the OpenAPI
// document; a test holds the two together.
const (
	maxTitle    = 200 // also bounds the longest cursor
	maxText     = 20000
	maxLabel    = 50
	maxLabels   = 20
	maxAssignee = 200
	maxPriority = 4
	maxQuery    = 200
)

// Fields names fields of a change that are to be emptied: JSON's null.
type Fields []string

// Has reports whether name is among them.
func (f Fields) Has(name string) bool { return slices.Contains(f, name) }

// readMergePatch decodes a merge patch into a struct whose fields are pointers,
// and names the fields that were null, which a pointer cannot tell from absent.
func readMergePatch(data []byte, into any) (Fields, error) {
	if err := json.Unmarshal(data, into); err != nil {
		return nil, err
	}
	if !bytes.Contains(data, []byte("null")) {
		return nil, nil
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(data, &members); err != nil {
		return nil, err
	}
	var null Fields
	for name, value := range members {
		if string(value) == "null" {
			null = append(null, name)
		}
	}
	slices.Sort(null)
	return null, nil
}

// checks collects the broken rules of one input.
type checks struct{ fields []fault.Field }

func (c *checks) bad(name, format string, args ...any) {
	c.fields = append(c.fields, fault.Field{Name: name, Message: fmt.Sprintf(format, args...)})
}

// text: any text PostgreSQL can hold.
func (c *checks) text(name, s string, least, most int) {
	if n := utf8.RuneCountInString(s); n < least || n > most {
		c.bad(name, "must have %d to %d characters", least, most)
	} else if !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0 {
		c.bad(name, "must be UTF-8 text without NUL")
	} else if least > 0 && strings.TrimSpace(s) == "" {
		c.bad(name, "must not be blank")
	}
}

// line: text on one line.
func (c *checks) line(name, s string, least, most int) {
	c.text(name, s, least, most)
	if strings.ContainsFunc(s, unicode.IsControl) {
		c.bad(name, "must be one line, without control characters")
	}
}

func (c *checks) label(name, s string) {
	c.line(name, s, 1, maxLabel)
	// A filter lists labels with commas between them.
	if strings.ContainsRune(s, ',') || strings.TrimSpace(s) != s {
		c.bad(name, "must have no comma, and no space at either end")
	}
}

func (c *checks) color(name, s string) {
	ok := s == "" || len(s) == 7 && s[0] == '#' && strings.Trim(s[1:], "0123456789abcdef") == ""
	if !ok {
		c.bad(name, "must be #rrggbb in lower case, or empty")
	}
}

func (c *checks) labels(name string, labels []string) {
	if len(labels) > maxLabels {
		c.bad(name, "must have at most %d items", maxLabels)
		return
	}
	for i, l := range labels {
		c.label(fmt.Sprintf("%s[%d]", name, i), l)
	}
}

func (c *checks) status(name string, s Status) {
	if !slices.Contains(Statuses, s) {
		c.bad(name, "must be one of %s", list(Statuses))
	}
}

func (c *checks) priority(name string, p int) {
	if p < 0 || p > maxPriority {
		c.bad(name, "must be 0 to %d", maxPriority)
	}
}

// clearable: only these fields may be null.
func (c *checks) clearable(null Fields, allowed ...string) {
	for _, name := range null {
		if !slices.Contains(allowed, name) {
			c.bad(name, "must not be null")
		}
	}
}

func (c *checks) err() error {
	if len(c.fields) == 0 {
		return nil
	}
	f := fault.BadField(c.fields[0].Name, "%s", c.fields[0].Message)
	f.Fields = c.fields
	if n := len(c.fields) - 1; n > 0 {
		f.Message = fmt.Sprintf("%s, and %d more", f.Message, n)
	}
	return f
}

func list[T ~string](words []T) string {
	var b strings.Builder
	for i, w := range words {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(w))
	}
	return b.String()
}
