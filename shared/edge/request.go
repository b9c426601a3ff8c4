package edge

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"runtime/debug"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

// request is what edge remembers of one request. It is one allocation: the
// recorder and the context that handlers see are parts of it.
type request struct {
	rec       recorder
	ctx       requestContext
	id        string
	trace     string
	path      string
	principal auth.Principal
	tenant    tenant.ID
	unknown   bool  // no operation matched
	gone      bool  // the client did not wait for the answer
	err       error // what the answer says, with its cause, for the log
}

// requestContext carries the request. A type of its own saves the copy that
// context.WithValue would make.
type requestContext struct {
	context.Context
	req *request
}

type requestKey struct{}

// Value implements context.Context.
func (c *requestContext) Value(key any) any {
	if _, ok := key.(requestKey); ok {
		return c.req
	}
	return c.Context.Value(key)
}

// requestOf returns the request of a context made by ServeHTTP.
func requestOf(ctx context.Context) *request {
	if r, ok := ctx.Value(requestKey{}).(*request); ok {
		return r
	}
	// Only a test that calls a handler without its API comes here.
	return &request{rec: recorder{ResponseWriter: discard{}}}
}

// RequestID returns the id of the request that ctx belongs to, "" outside one.
func RequestID(ctx context.Context) string { return requestOf(ctx).id }

// TraceID returns the trace id of the request that ctx belongs to, "" without one.
func TraceID(ctx context.Context) string { return requestOf(ctx).trace }

// LogTenant notes which tenant the request turned out to be about. Without it
// the log names the credential's tenant.
func LogTenant(ctx context.Context, id tenant.ID) { requestOf(ctx).tenant = id }

// ServeHTTP implements http.Handler.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	deadline, cancel := context.WithDeadline(r.Context(), start.Add(a.cfg.Deadline))
	defer cancel()
	if a.cfg.Deadline > DefaultDeadline {
		// Else the server closes the connection before the answer. What is no connection has no deadline.
		_ = http.NewResponseController(w).SetWriteDeadline(start.Add(a.cfg.Deadline + answerTime))
	}
	req := &request{id: requestID(r.Header), trace: traceID(r.Header), path: r.URL.Path}
	req.rec.ResponseWriter = w
	req.ctx = requestContext{deadline, req}
	r = r.WithContext(&req.ctx)
	h := w.Header()
	h["X-Request-Id"] = []string{req.id}
	h["Cache-Control"] = noStore
	h["X-Content-Type-Options"] = noSniff
	// Deferred calls run last to first: recover, send what is pending, log.
	defer func() {
		req.rec.finish()
		a.logRequest(r, req, start)
	}()
	defer a.recoverPanic(req)
	if !cleanPath(r) {
		req.unknown = true
		req.fail(errNoSuchPath())
		return
	}
	a.mux.ServeHTTP(&req.rec, r)
}

// Values of headers that every answer has; shared, so never changed in place.
var (
	noStore = []string{"no-store"}
	noSniff = []string{"nosniff"}
)

// cleanPath refuses what ServeMux would answer by itself with HTML or a
// redirect, and what no database takes as text.
func cleanPath(r *http.Request) bool {
	p := r.URL.Path
	return r.RequestURI != "*" && strings.HasPrefix(p, "/") && !strings.Contains(p, "//") && !strings.Contains(p, "/.") &&
		strings.IndexByte(p, 0) < 0 && utf8.ValidString(p) && r.Method != http.MethodConnect
}

// recoverPanic turns a panic into a 500, or cuts the connection when part of
// an answer is out: a cut is better than an answer that looks whole.
func (a *API) recoverPanic(req *request) {
	v := recover()
	if v == nil {
		return
	}
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(v)
	}
	if req.rec.err != nil {
		req.gone = true // huma panics when an answer cannot be written
		return
	}
	a.log.LogAttrs(context.WithoutCancel(&req.ctx), slog.LevelError, "panic",
		slog.String("request_id", req.id), slog.String("panic", fmt.Sprint(v)), slog.String("stack", string(debug.Stack())))
	if req.rec.wrote {
		panic(http.ErrAbortHandler)
	}
	req.fail(fmt.Errorf("panic: %v", v))
}

// logRequest writes the one line of a request. It holds the route's pattern,
// never the path, the query, a header or a body: those may hold secrets.
func (a *API) logRequest(r *http.Request, req *request, start time.Time) {
	status := req.rec.code()
	level := slog.LevelInfo
	switch {
	case req.gone:
		status = 499 // the client closed the connection; nginx's number
	case status == http.StatusInternalServerError:
		level = slog.LevelError
	case status > http.StatusInternalServerError:
		level = slog.LevelWarn
	}
	route := r.Pattern
	if req.unknown {
		route = "unknown"
	} else if strings.HasSuffix(route, " /health") {
		level = slog.LevelDebug
	}
	if !a.log.Enabled(r.Context(), level) {
		return
	}
	attrs := make([]slog.Attr, 0, 14)
	attrs = append(attrs,
		slog.String("function", a.cfg.Name),
		slog.String("method", r.Method),
		slog.String("route", route),
		slog.Int("status", status),
		slog.Int64("bytes", req.rec.bytes),
		slog.Float64("duration_ms", float64(time.Since(start).Microseconds())/1000),
		slog.String("request_id", req.id))
	if req.trace != "" {
		attrs = append(attrs, slog.String("trace_id", req.trace))
		if a.project != "" {
			attrs = append(attrs, slog.String("logging.googleapis.com/trace", "projects/"+a.project+"/traces/"+req.trace))
		}
	}
	if req.principal.Subject != "" {
		attrs = append(attrs, slog.String("principal", req.principal.Subject))
	}
	if req.tenant.IsZero() {
		req.tenant = req.principal.Tenant
	}
	if !req.tenant.IsZero() {
		attrs = append(attrs, slog.String("tenant", req.tenant.String()))
	}
	if req.err != nil {
		attrs = append(attrs, slog.String("code", fault.CodeOf(req.err)))
		if status >= http.StatusInternalServerError {
			attrs = append(attrs, slog.String("error", req.err.Error()))
		}
	}
	a.log.LogAttrs(context.WithoutCancel(r.Context()), level, "request", attrs...)
}

// requestID takes the caller's X-Request-ID if it is sane, else a new one.
func requestID(h http.Header) string {
	if v := h.Get("X-Request-Id"); v != "" && len(v) <= 128 && allBytes(v, isIDByte) {
		return v
	}
	// It tells requests apart and guards nothing, so a fast source is good enough.
	var b [16]byte
	for i, x := 0, [2]uint64{rand.Uint64(), rand.Uint64()}; i < 16; i++ {
		b[i] = byte(x[i/8] >> (8 * (i % 8)))
	}
	return hex.EncodeToString(b[:])
}

// traceID reads traceparent (W3C), else X-Cloud-Trace-Context (Google).
func traceID(h http.Header) string {
	v := h.Get("Traceparent")
	if len(v) >= 55 && v[2] == '-' && v[35] == '-' && v[52] == '-' {
		v = v[3:35]
	} else {
		v, _, _ = strings.Cut(h.Get("X-Cloud-Trace-Context"), "/")
	}
	if len(v) != 32 || !allBytes(v, isHexByte) || v == "00000000000000000000000000000000" {
		return ""
	}
	return v
}

func allBytes(s string, ok func(byte) bool) bool {
	for i := range len(s) {
		if !ok(s[i]) {
			return false
		}
	}
	return true
}

func isHexByte(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' }

func isIDByte(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || strings.IndexByte("-_.:/+=@", c) >= 0
}
