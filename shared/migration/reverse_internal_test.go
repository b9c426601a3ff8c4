package migration

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/migration/change"
)

func TestRowsAreReadAsTheyWerePrinted(t *testing.T) {
	text := func(s string) change.Cell { return change.Cell{Text: s} }
	null := change.Cell{Null: true}
	for in, want := range map[string][]change.Cell{
		`(1)`:                            {text("1")},
		`()`:                             {null},
		`(,)`:                            {null, null},
		`("",,"")`:                       {text(""), null, text("")},
		`(a,"b c","d,e","f)g")`:          {text("a"), text("b c"), text("d,e"), text("f)g")},
		`("say ""x""","\\back")`:         {text(`say "x"`), text(`\back`)},
		"(\"line\nend\t\",\"{a,b}\")":    {text("line\nend\t"), text("{a,b}")},
		`("(1,""inner"")","\\x00")`:      {text(`(1,"inner")`), text(`\x00`)},
		`("2026-01-01 00:00:00+00",t,ü)`: {text("2026-01-01 00:00:00+00"), text("t"), text("ü")},
	} {
		got, err := parseRow(in)
		require.NoError(t, err, in)
		require.Equal(t, want, got, in)
	}
	for _, in := range []string{``, `(`, `)`, `1,2`, `("open)`, `(1`} {
		_, err := parseRow(in)
		require.Error(t, err, in)
	}
}
