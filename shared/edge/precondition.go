package edge

import (
	"strconv"
	"strings"

	"github.com/coditect/platform/shared/fault"
)

// ETag returns the strong entity tag of a version number: "7" with its quotes.
func ETag(version int64) string {
	b := make([]byte, 0, 12)
	b = append(b, '"')
	b = strconv.AppendInt(b, version, 10)
	return string(append(b, '"'))
}

// IfMatch is embedded in the input of an operation that changes something that
// has an ETag.
type IfMatch struct {
	IfMatch string `header:"If-Match" maxLength:"64" doc:"The ETag of the version to change, or *; without it the change is unconditional" example:"\"7\""`
}

// Version returns the version the caller wants to change; 0 for any.
func (m IfMatch) Version() (int64, error) { return ParseIfMatch(m.IfMatch) }

// ParseIfMatch reads an If-Match header: 0, meaning any version, for "" and *.
// Versions begin with 1.
func ParseIfMatch(h string) (int64, error) {
	h = strings.TrimSpace(h)
	if h == "" || h == "*" {
		return 0, nil
	}
	if strings.HasPrefix(h, `W/"`) {
		// RFC 9110, 13.1.1: If-Match compares strongly, so a weak tag matches nothing.
		return 0, fault.New(fault.Stale, "weak_etag", `If-Match must be a strong entity tag such as "7": a weak one (W/) never matches`)
	}
	if len(h) > 2 && h[0] == '"' && h[len(h)-1] == '"' && h[1] != '0' && allBytes(h[1:len(h)-1], isDigit) {
		if v, err := strconv.ParseInt(h[1:len(h)-1], 10, 64); err == nil {
			return v, nil
		}
	}
	return 0, fault.BadField("If-Match", `must be one entity tag that this API gave out, such as "7" with its quotes, or *`)
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// Idempotency is embedded in the input of a POST that may be sent again.
type Idempotency struct {
	IdempotencyKey string `header:"Idempotency-Key" minLength:"1" maxLength:"255" pattern:"^[ -~]*$" patternDescription:"printable ASCII" doc:"A name for this request, unique per caller; sending it again gives the first answer instead of a second effect"`
}
