package edge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/coditect/platform/shared/fault"
)

// statuses is the one place where a kind of fault becomes an HTTP status.
var statuses = map[fault.Kind]int{
	fault.Invalid:         http.StatusUnprocessableEntity,
	fault.Unauthenticated: http.StatusUnauthorized,
	fault.Forbidden:       http.StatusForbidden,
	fault.NotFound:        http.StatusNotFound,
	fault.Conflict:        http.StatusConflict,
	fault.Stale:           http.StatusPreconditionFailed,
	fault.TooLarge:        http.StatusRequestEntityTooLarge,
	fault.Exhausted:       http.StatusTooManyRequests,
	fault.Unavailable:     http.StatusServiceUnavailable,
	fault.Uncertain:       http.StatusServiceUnavailable,
	fault.Internal:        http.StatusInternalServerError,
}

func statusOf(k fault.Kind) int {
	if s, ok := statuses[k]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// problemSpace begins the type of every problem. The rest is the code. It is a
// name, not an address: it stays the same wherever the documentation moves.
const problemSpace = "urn:coditect:problem:"

// Problem is the body of every error answer (RFC 9457).
type Problem struct {
	Type      string         `json:"type" format:"uri" doc:"Stable name of the kind of problem: urn:coditect:problem: and the code"`
	Title     string         `json:"title" doc:"The status in words"`
	Status    int            `json:"status" doc:"The HTTP status"`
	Detail    string         `json:"detail" doc:"What went wrong, for a person"`
	Code      string         `json:"code" doc:"Stable word for programs: tenant_suspended"`
	Instance  string         `json:"instance" format:"uri-reference" doc:"The path that was asked for"`
	RequestID string         `json:"request_id" doc:"The X-Request-ID of this answer; quote it when you report a problem"`
	Errors    []ProblemField `json:"errors,omitempty" nullable:"false" doc:"The fields that break a rule"`

	retryAfter time.Duration
}

// ProblemField is one broken rule of the input.
type ProblemField struct {
	Field   string `json:"field" doc:"Path of the field: title, labels[3], or the name of a parameter or header"`
	Message string `json:"message" doc:"What is allowed"`
}

// Error, GetStatus, GetHeaders and ContentType are huma's interfaces of an
// error answer.
func (p *Problem) Error() string { return p.Code + ": " + p.Detail }

// GetStatus implements huma.StatusError.
func (p *Problem) GetStatus() int { return p.Status }

// GetHeaders implements huma.HeadersError.
func (p *Problem) GetHeaders() http.Header {
	h := http.Header{}
	p.setHeaders(h)
	return h
}

// ContentType implements huma.ContentTypeFilter.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

func (p *Problem) setHeaders(h http.Header) {
	switch p.Status {
	case http.StatusUnauthorized:
		if p.Code == "missing_credential" {
			h.Set("WWW-Authenticate", "Bearer")
		} else {
			h.Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		}
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		// Whole seconds, rounded up: a caller that comes back too early would only be sent away again.
		s := int((p.retryAfter + time.Second - 1) / time.Second)
		h.Set("Retry-After", strconv.Itoa(max(s, 1)))
	}
}

// newProblem fills in what every problem has.
func (r *request) newProblem(status int, code, detail string) *Problem {
	return &Problem{
		Type: problemSpace + code, Title: http.StatusText(status), Status: status,
		Detail: detail, Code: code, Instance: instanceOf(r.path), RequestID: r.id,
	}
}

// problem turns an error into the answer. What is not a fault is ours, and its
// text is for the log only.
func (r *request) problem(err error) *Problem {
	r.err = err
	f := fault.As(err)
	if f == nil {
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			f = fault.New(fault.Unavailable, "deadline_exceeded", "the request took too long; it may or may not have had an effect")
		case errors.Is(err, context.Canceled):
			r.gone = true
			f = fault.New(fault.Unavailable, "cancelled", "the request was cancelled; it may or may not have had an effect")
		default:
			f = fault.New(fault.Internal, "internal", "")
		}
		r.err = fault.Wrap(err, f.Kind, f.Code, "%s", f.Message)
	}
	code, detail := f.Code, f.Message
	switch f.Kind {
	case fault.Internal:
		detail = "something went wrong on our side; the request_id helps us find it"
	case fault.Uncertain:
		code = "commit_uncertain"
	}
	p := r.newProblem(statusOf(f.Kind), code, detail)
	p.retryAfter = f.RetryAfter
	for _, x := range f.Fields {
		p.Errors = append(p.Errors, ProblemField{Field: x.Name, Message: x.Message})
	}
	return p
}

// fail answers with err.
func (r *request) fail(err error) { r.write(r.problem(err)) }

// write answers with p, past huma.
func (r *request) write(p *Problem) {
	h := r.rec.Header()
	h.Set("Content-Type", p.ContentType(""))
	if h.Get("WWW-Authenticate") == "" {
		p.setHeaders(h)
	}
	body, err := json.Marshal(p)
	if err != nil {
		body = []byte(`{}`)
	}
	h.Set("Content-Length", strconv.Itoa(len(body)+1))
	r.rec.WriteHeader(p.Status)
	_, _ = r.rec.Write(append(body, '\n'))
}

// instanceOf makes a path a valid URI reference, and a short one.
func instanceOf(path string) string {
	if len(path) > 512 {
		path = path[:512]
	}
	return (&pathURL{Path: strings.ToValidUTF8(path, "?")}).String()
}

func tooLarge(limit int64) error {
	return fault.New(fault.TooLarge, "body_too_large", "the body must be at most %d bytes", limit)
}

// humaProblem turns what huma found wrong with a request into a Problem of the
// same shape as the faults'. It never repeats a value: it may be a secret.
func humaProblem(hc huma.Context, status int, message string, errs ...error) huma.StatusError {
	r := &request{}
	if hc != nil {
		r = requestOf(hc.Context())
	}
	var fields []fault.Field
	for _, err := range errs {
		if d, ok := err.(huma.ErrorDetailer); ok {
			fields = append(fields, fieldOf(d.ErrorDetail()))
		} else if err != nil {
			fields = append(fields, fault.Field{Name: "body", Message: err.Error()})
		}
	}
	var p *Problem
	switch status {
	case http.StatusBadRequest:
		if len(fields) == 0 {
			fields = []fault.Field{{Name: "body", Message: "must be a JSON object"}}
		}
		p = r.newProblem(status, "malformed_body", "body "+fields[0].Message)
	case http.StatusUnprocessableEntity:
		detail := message
		if len(fields) > 0 {
			detail = fields[0].Name + " " + fields[0].Message
		}
		if len(fields) > 1 {
			detail = fmt.Sprintf("%s, and %d more", detail, len(fields)-1)
		}
		p = r.newProblem(status, "invalid_field", detail)
	case http.StatusRequestEntityTooLarge:
		limit := int64(DefaultMaxBody)
		if hc != nil {
			limit = hc.Operation().MaxBodyBytes - 1
		}
		return r.problem(tooLarge(limit))
	case http.StatusUnsupportedMediaType:
		fields = []fault.Field{{Name: "Content-Type", Message: "must be application/json"}}
		p = r.newProblem(status, "unsupported_media_type", "Content-Type must be application/json")
	case http.StatusRequestTimeout:
		fields = nil
		p = r.newProblem(status, "body_timeout", "the body took too long to arrive")
	default:
		cause := error(nil)
		if len(errs) > 0 {
			cause = errors.Join(errs...)
		}
		return r.problem(fmt.Errorf("huma: %d %s: %w", status, message, cause))
	}
	for _, f := range fields {
		p.Errors = append(p.Errors, ProblemField{Field: f.Name, Message: f.Message})
	}
	r.err = fault.New(fault.Invalid, p.Code, "%s", p.Detail)
	return p
}
