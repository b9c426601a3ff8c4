package edge_test

import (
	"encoding/base64"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/edge"
	"github.com/coditect/platform/shared/fault"
)

func TestIfMatch(t *testing.T) {
	for header, want := range map[string]int64{``: 0, `*`: 0, ` * `: 0, `"1"`: 1, edge.ETag(9223372036854775807): 9223372036854775807} {
		v, err := edge.ParseIfMatch(header)
		require.NoError(t, err, header)
		require.Equal(t, want, v, header)
	}
	for _, header := range []string{`7`, `"`, `""`, `"0"`, `"07"`, `"-1"`, `"x"`, `"1", "2"`, `"9223372036854775808"`, `**`} {
		_, err := edge.ParseIfMatch(header)
		require.Equal(t, fault.Invalid, fault.KindOf(err), header)
		require.Equal(t, "If-Match", fault.As(err).Fields[0].Name, header)
	}
	_, err := edge.ParseIfMatch(`W/"7"`)
	require.Equal(t, fault.Stale, fault.KindOf(err))
}

type position struct {
	After string `json:"after"`
	N     int    `json:"n"`
}

func TestCursor(t *testing.T) {
	c, err := edge.EncodeCursor(position{"é", 7})
	require.NoError(t, err)
	require.Regexp(t, `^[A-Za-z0-9_-]+$`, c)
	var p position
	require.NoError(t, edge.DecodeCursor(c, &p))
	require.Equal(t, position{"é", 7}, p)

	// Changing any one character is noticed.
	for i := range c {
		b := []byte(c)
		if b[i]++; b[i] == '{' || b[i] == '[' || b[i] == ':' || b[i] == '.' || b[i] == '`' {
			b[i] = 'A'
		}
		err := edge.DecodeCursor(string(b), &p)
		require.Equal(t, fault.Invalid, fault.KindOf(err), i)
		require.Equal(t, "cursor", fault.As(err).Fields[0].Name)
	}
	for _, bad := range []string{"", "a", "!!!!", c + "AAAA", c[:len(c)-1], base64.RawURLEncoding.EncodeToString([]byte(`{"after":"x","n":1}`))} {
		require.Equal(t, fault.Invalid, fault.KindOf(edge.DecodeCursor(bad, &p)), bad)
	}
	other, err := edge.EncodeCursor(map[string]int{"colour": 1})
	require.NoError(t, err)
	require.Equal(t, fault.Invalid, fault.KindOf(edge.DecodeCursor(other, &p)))
}

func FuzzDecodeCursor(f *testing.F) {
	c, err := edge.EncodeCursor(position{"a", 1})
	require.NoError(f, err)
	f.Add(c)
	f.Fuzz(func(t *testing.T, s string) {
		var p position
		if err := edge.DecodeCursor(s, &p); err != nil {
			require.Equal(t, fault.Invalid, fault.KindOf(err))
		}
	})
}
