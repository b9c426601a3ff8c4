package command

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/coditect/platform/scripts/coditectl/internal/client"
	"github.com/coditect/platform/shared/fault"
)

// Exit codes. The help of the program lists them.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitRefused     = 3
	exitNotAll      = 4
	exitUnreachable = 5
	exitDifferent   = 6
	exitInterrupted = 130
)

// usageError is a wrong command line or environment.
type usageError struct{ sentence string }

func (e *usageError) Error() string { return e.sentence }

func usage(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// outcome is how a command ended whose result has been printed already.
type outcome struct {
	code     int
	sentence string
}

func (o *outcome) Error() string { return o.sentence }

// report prints an error as one sentence and returns the exit code.
func (p *program) report(err error) int {
	if err == nil {
		return exitOK
	}
	code, sentence := explain(err)
	fmt.Fprintln(visible{p.Err}, "error: "+strings.TrimSuffix(sentence, "."))
	return code
}

func explain(err error) (code int, sentence string) {
	var (
		wrong   *usageError
		done    *outcome
		problem *client.Problem
		nobody  *client.UnreachableError
		connect *pgconn.ConnectError
	)
	switch f := fault.As(err); {
	case errors.Is(err, context.Canceled):
		return exitInterrupted, "interrupted; what runs on the server goes on there"
	case errors.As(err, &done):
		return done.code, done.sentence
	case errors.As(err, &wrong):
		return exitUsage, wrong.sentence
	case errors.As(err, &problem):
		return codeOf(problem), sentenceOf(problem)
	case errors.As(err, &nobody):
		return exitUnreachable, nobody.Error() + "; is the platform running there (scripts/dev), and is --url right?"
	case f != nil && f.Code == "cannot_convert":
		return exitRefused, f.Message
	case f != nil && f.Kind == fault.Invalid:
		return exitUsage, withFields(f.Message, fieldsOf(f))
	case f != nil:
		return exitFailed, withFields(f.Message, fieldsOf(f))
	case errors.As(err, &connect):
		return exitUnreachable, err.Error()
	}
	return exitFailed, err.Error()
}

func codeOf(p *client.Problem) int {
	switch {
	case p.Code == "preflight_failed" || p.Code == "nobody_chosen":
		return exitRefused
	case p.Unavailable():
		return exitUnreachable
	}
	return exitFailed
}

// sentenceOf makes a sentence of what a function has answered.
func sentenceOf(p *client.Problem) string {
	s := withFields(p.Detail, p.Errors)
	switch {
	case p.Status == http.StatusUnauthorized:
		s += "; look at " + keyVariable
	case p.Code == "preflight_failed":
		s += "; `coditectl preflight` tells all it found"
	case p.Status >= http.StatusInternalServerError && p.RequestID != "":
		s += " (request " + p.RequestID + ")"
	}
	return s
}

func fieldsOf(f *fault.Error) []client.Field {
	var out []client.Field
	for _, x := range f.Fields {
		out = append(out, client.Field{Name: x.Name, Message: x.Message})
	}
	return out
}

// flags maps fields of the functions and domains to the flags they come from.
var flags = map[string]string{
	"source": "--source", "tenants": "--tenant", "batch_size": "--batch-size", "max_pause_ms": "--max-pause",
	"exclude": "--exclude", "new_since": "--new-since", "plans": "--plan", "percent": "--percent", "max_bytes": "--max-bytes", "max_activity": "--max-activity",
	"waves": "--waves", "soak_seconds": "--soak", "concurrency": "--concurrency", "rows_per_second": "--rows-per-second", "hours": "--hours",
	"max_errors": "--max-errors", "max_error_percent": "--max-error-percent",
	"name": "--name", "scopes": "--scope", "expires": "--expires", "tenant": "--tenant",
}

// withFields says what is wrong with each field, once, by the name of its flag.
func withFields(message string, fields []client.Field) string {
	if len(fields) == 0 {
		return message
	}
	var parts []string
	if !strings.HasPrefix(message, fields[0].Name+" ") { // it does when it is only about the field
		parts = append(parts, strings.TrimSuffix(message, ".")+":")
	}
	for i, f := range fields {
		name, _, _ := strings.Cut(strings.TrimPrefix(f.Name, "body."), "[")
		flag, ok := flags[name]
		if !ok {
			flag = f.Name
		}
		s := flag + " " + strings.TrimSuffix(f.Message, ".")
		if i < len(fields)-1 {
			s += ";"
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, " ")
}

// orList is "a, b or c".
func orList(names []string) string {
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:len(names)-1], ", ") + " or " + names[len(names)-1]
}
