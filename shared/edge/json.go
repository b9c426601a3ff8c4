package edge

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
)

// jsonFormat is how bodies are read and written.
var jsonFormat = huma.Format{Marshal: writeJSON, Unmarshal: readJSON}

type encoder struct {
	buf bytes.Buffer
	enc *json.Encoder
}

var encoders = sync.Pool{New: func() any {
	e := &encoder{}
	e.enc = json.NewEncoder(&e.buf)
	e.enc.SetEscapeHTML(false) // for JSON inside HTML, which this is not
	return e
}}

// keepEncoder is the largest buffer worth keeping for the next answer.
const keepEncoder = 256 << 10

// writeJSON encodes the whole body before the first byte leaves: its length is
// then known, which saves the chunks, and what cannot be encoded becomes a 500
// by way of the panic. (An error here would make huma write text into a body
// that is already promised to be a 200.)
func writeJSON(w io.Writer, v any) error {
	e := encoders.Get().(*encoder)
	e.buf.Reset()
	if err := e.enc.Encode(v); err != nil {
		panic(fmt.Errorf("edge: encoding %T: %w", v, err))
	}
	if rec, ok := w.(*recorder); ok {
		rec.Header()["Content-Length"] = []string{strconv.Itoa(e.buf.Len())}
	}
	_, err := w.Write(e.buf.Bytes())
	if e.buf.Cap() <= keepEncoder {
		encoders.Put(e)
	}
	return err
}

// readJSON decodes a body. huma calls it twice: into an any, which it
// validates, and into the operation's struct. Only the first pass refuses what
// encoding/json would repair or drop in silence.
func readJSON(data []byte, v any) error {
	tree, ok := v.(*any)
	if !ok {
		return explain(json.Unmarshal(data, v))
	}
	if !utf8.Valid(data) {
		return errors.New("must be UTF-8")
	}
	if err := explain(json.Unmarshal(data, tree)); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	return checkTokens(d)
}

// checkTokens refuses objects that hold a key twice (validation would see one
// value and the struct might get a mix of both) and text that PostgreSQL cannot
// store. The syntax is known to be good.
func checkTokens(d *json.Decoder) error {
	var open []map[string]struct{} // the keys of each open object, nil for an array
	key := false                   // whether a string at this place is a key
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return explain(err)
		}
		switch t := t.(type) {
		case json.Delim:
			switch t {
			case '{':
				open = append(open, map[string]struct{}{})
			case '[':
				open = append(open, nil)
			default:
				open = open[:len(open)-1]
			}
			key = len(open) > 0 && open[len(open)-1] != nil
			continue
		case string:
			if strings.IndexByte(t, 0) >= 0 {
				return errors.New(`must not hold the character \u0000`)
			}
			if key {
				keys := open[len(open)-1]
				if _, twice := keys[t]; twice {
					return fmt.Errorf("must not hold the key %q twice", clip(t))
				}
				keys[t] = struct{}{}
				key = false
				continue
			}
		}
		key = len(open) > 0 && open[len(open)-1] != nil
	}
}

// explain says in our words what encoding/json found.
func explain(err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &syntax):
		return fmt.Errorf("must be valid JSON: %s (at byte %d)", syntax.Error(), syntax.Offset)
	case errors.As(err, &kind) && kind.Field != "":
		return fmt.Errorf("must fit: %s holds a %s that is not one of type %s", kind.Field, kind.Value, kind.Type)
	default:
		return fmt.Errorf("must be valid: %w", err)
	}
}
