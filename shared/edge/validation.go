package edge

import (
	"net/http"
	"net/url"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/validation"

	"github.com/coditect/platform/shared/fault"
)

type pathURL = url.URL

// missing marks huma's message of a missing property, which names the object
// instead of the field.
const missing = "\x00missing "

// teachHuma sets huma's package variables: its errors become Problems, and its
// messages say what is allowed in the words that faults use ("title must be
// …"). They are global in huma, and this is the only package that uses it.
var teachHuma = sync.OnceFunc(func() {
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError {
		return humaProblem(nil, status, msg, errs...)
	}
	huma.NewErrorWithContext = humaProblem
	// Otherwise "Title" would pass for "title", and which of two wins is chance.
	huma.ValidateStrictCasing = true

	validation.MsgUnexpectedProperty = "is not a field this operation knows"
	validation.MsgExpectedRFC3339DateTime = "must be an RFC 3339 date-time such as 2026-01-31T12:00:00Z"
	validation.MsgExpectedRFC1123DateTime = "must be an RFC 1123 date-time"
	validation.MsgExpectedRFC3339Date = "must be a date such as 2026-01-31"
	validation.MsgExpectedRFC3339Time = "must be a time such as 12:00:00"
	validation.MsgExpectedRFC5322Email = "must be an e-mail address: %v"
	validation.MsgExpectedRFC5890Hostname = "must be a host name"
	validation.MsgExpectedRFC3986URI = "must be a URI: %v"
	validation.MsgExpectedRFC4122UUID = "must be a UUID such as 0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69 (%v)"
	validation.MsgExpectedRegexp = "must be a regular expression: %v"
	validation.MsgExpectedMatchAtLeastOneSchema = "must match one of the allowed forms"
	validation.MsgExpectedMatchExactlyOneSchema = "must match exactly one of the allowed forms"
	validation.MsgExpectedNotMatchSchema = "must not have this form"
	validation.MsgExpectedBoolean = "must be true or false"
	validation.MsgExpectedDuration = "must be a duration: %v"
	validation.MsgExpectedNumber = "must be a number"
	validation.MsgExpectedInteger = "must be an integer"
	validation.MsgExpectedString = "must be a string"
	validation.MsgExpectedBase64String = "must be base64"
	validation.MsgExpectedArray = "must be an array"
	validation.MsgExpectedObject = "must be a JSON object"
	validation.MsgExpectedArrayItemsUnique = "must not hold an item twice"
	validation.MsgExpectedOneOf = "must be one of %s"
	validation.MsgExpectedMinimumNumber = "must be at least %v"
	validation.MsgExpectedExclusiveMinimumNumber = "must be more than %v"
	validation.MsgExpectedMaximumNumber = "must be at most %v"
	validation.MsgExpectedExclusiveMaximumNumber = "must be less than %v"
	validation.MsgExpectedNumberBeMultipleOf = "must be a multiple of %v"
	validation.MsgExpectedMinLength = "must have at least %d characters"
	validation.MsgExpectedMaxLength = "must have at most %d characters"
	validation.MsgExpectedBePattern = "must be %s"
	validation.MsgExpectedMatchPattern = "must match the pattern %s"
	validation.MsgExpectedMinItems = "must have at least %d items"
	validation.MsgExpectedMaxItems = "must have at most %d items"
	validation.MsgExpectedMinProperties = "must have at least %d fields"
	validation.MsgExpectedMaxProperties = "must have at most %d fields"
	validation.MsgExpectedRequiredProperty = missing + "%s"
	validation.MsgExpectedDependentRequiredProperty = "needs the field %s when %s is there"
})

// humaWords are messages that huma does not let us set.
var humaWords = map[string]string{
	"invalid integer":                      "must be an integer",
	"invalid float":                        "must be a number",
	"invalid floating value":               "must be a number",
	"invalid boolean":                      "must be true or false",
	"required path parameter is missing":   "must not be empty",
	"required query parameter is missing":  "must be in the query",
	"required header parameter is missing": "must be among the headers",
}

// fieldOf names the field the way a fault does: without "body." or "query.".
func fieldOf(d *huma.ErrorDetail) fault.Field {
	name, message := d.Location, d.Message
	if cut := strings.IndexByte(name, '.'); cut >= 0 {
		switch name[:cut] {
		case "body", "query", "path", "header":
			name = name[cut+1:]
		}
	}
	switch {
	case strings.HasPrefix(message, missing):
		property := message[len(missing):]
		if name == "body" {
			name = property
		} else {
			name += "." + property
		}
		message = "must be present"
	case humaWords[message] != "":
		message = humaWords[message]
	case strings.HasPrefix(message, "invalid date/time for format "):
		message = "must be a time in the form " + strings.TrimPrefix(message, "invalid date/time for format ")
	case strings.HasPrefix(message, "invalid value: "):
		// The error of a type's UnmarshalText, which begins with its package.
		message = strings.TrimPrefix(message, "invalid value: ")
		if _, rest, ok := strings.Cut(message, ": "); ok {
			message = rest
		}
		message = "must be valid: " + message
	}
	return fault.Field{Name: name, Message: strings.ToValidUTF8(message, "?")}
}

// checkQuery refuses parameters that the operation does not know, repeated
// ones, and text that is not UTF-8: huma would ignore them. It allocates only
// for escaped text.
func checkQuery(raw string, known []*huma.Param) error {
	seen := uint64(0)
	for raw != "" {
		var pair string
		pair, raw, _ = strings.Cut(raw, "&")
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		name, ok := unescape(name)
		if !ok {
			return fault.BadField("query", "must be UTF-8 text, percent-encoded, without NUL")
		}
		at := -1
		for i, p := range known {
			if p.In == "query" && p.Name == name {
				at = i
				break
			}
		}
		switch {
		case at < 0:
			return fault.BadField(clip(name), "is not a query parameter this operation knows%s", knownNames(known))
		case at < 64 && seen&(1<<at) != 0 && (known[at].Explode == nil || !*known[at].Explode):
			return fault.BadField(name, "must be in the query once")
		}
		seen |= 1 << (at & 63)
		if _, ok := unescape(value); !ok {
			return fault.BadField(name, "must be UTF-8 text, percent-encoded, without NUL")
		}
	}
	return nil
}

// checkHeaders refuses parameters in headers that are there twice, of which
// huma would take the first, or empty, which huma would take for absent: an
// empty Idempotency-Key is a mistake that should not wait for a lost answer.
func checkHeaders(h http.Header, known []*huma.Param) error {
	for _, p := range known {
		if p.In != "header" {
			continue
		}
		if values := h.Values(p.Name); len(values) > 1 || len(values) == 1 && values[0] == "" {
			return fault.BadField(p.Name, "must be sent once, and not be empty")
		}
	}
	return nil
}

func unescape(s string) (string, bool) {
	if strings.ContainsAny(s, "%+") {
		u, err := url.QueryUnescape(s)
		if err != nil {
			return "", false
		}
		s = u
	}
	return s, strings.IndexByte(s, 0) < 0 && utf8.ValidString(s)
}

func knownNames(known []*huma.Param) string {
	var names []string
	for _, p := range known {
		if p.In == "query" {
			names = append(names, p.Name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return ": " + strings.Join(names, ", ")
}

// clip shortens what a caller sent and an answer repeats.
func clip(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

var _ huma.StatusError = (*Problem)(nil)
var _ interface{ GetHeaders() http.Header } = (*Problem)(nil)
