// Package fault holds the one error type that crosses package borders: a stable
// code, a message that is safe to show to a caller, and the cause, which is
// only ever logged. The idea, and the split between code and cause, is that of
// benbjohnson/wtf's error.go.
package fault

import (
	"errors"
	"fmt"
	"time"
)

// Kind is the class of a fault. shared/edge maps each Kind to one HTTP status.
type Kind string

// The kinds.
const (
	Invalid         Kind = "invalid"         // the input breaks a rule; Fields says which
	Unauthenticated Kind = "unauthenticated" // no valid credential
	Forbidden       Kind = "forbidden"       // a valid credential that may not do this
	NotFound        Kind = "not_found"       // no such thing, or not the caller's to see
	Conflict        Kind = "conflict"        // the state of things forbids it
	Stale           Kind = "stale"           // If-Match named an older version
	TooLarge        Kind = "too_large"       // the body or the value is over its limit
	Exhausted       Kind = "exhausted"       // a rate or a quota is used up
	Unavailable     Kind = "unavailable"     // try again after RetryAfter
	Uncertain       Kind = "uncertain"       // the outcome of a commit is unknown
	Internal        Kind = "internal"        // ours
)

// Field is one broken rule of an input.
type Field struct {
	Name    string `json:"field"`   // path of the field: "title", "labels[3]"
	Message string `json:"message"` // what is allowed
}

// Error is a fault.
type Error struct {
	Kind       Kind
	Code       string // stable, snake_case, unique per situation: "tenant_suspended"
	Message    string // a sentence for the caller; never holds internals
	Fields     []Field
	RetryAfter time.Duration // for Unavailable and Exhausted
	Cause      error         // logged, never shown
}

func (e *Error) Error() string {
	if e.Cause != nil {
		return fmt.Sprintf("%s: %s: %v", e.Code, e.Message, e.Cause)
	}
	return e.Code + ": " + e.Message
}

func (e *Error) Unwrap() error { return e.Cause }

// New returns a fault without a cause. Code is a stable snake_case word.
func New(kind Kind, code, format string, args ...any) *Error {
	return &Error{Kind: kind, Code: code, Message: fmt.Sprintf(format, args...)}
}

// Wrap returns a fault with a cause.
func Wrap(cause error, kind Kind, code, format string, args ...any) *Error {
	return &Error{Kind: kind, Code: code, Message: fmt.Sprintf(format, args...), Cause: cause}
}

// BadField returns an Invalid fault for one field. Message says what is allowed.
func BadField(name, format string, args ...any) *Error {
	m := fmt.Sprintf(format, args...)
	return &Error{Kind: Invalid, Code: "invalid_field", Message: name + " " + m, Fields: []Field{{Name: name, Message: m}}}
}

// As returns the fault in err's chain, or nil.
func As(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return nil
}

// KindOf returns the kind of err: Internal for an error that is not a fault, "" for nil.
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	if e := As(err); e != nil {
		return e.Kind
	}
	return Internal
}

// CodeOf returns the code of err, "internal" for an error that is not a fault, "" for nil.
func CodeOf(err error) string {
	if err == nil {
		return ""
	}
	if e := As(err); e != nil {
		return e.Code
	}
	return "internal"
}
