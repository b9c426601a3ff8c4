package edge_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/edge"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

// someTenant is the tenant of the key "good".
var someTenant = tenant.NewID()

// names is an Authenticator for tests: the credential is a name.
type names struct{}

func (names) Authenticate(_ context.Context, credential string) (auth.Principal, error) {
	switch credential {
	case "good":
		return auth.Principal{Subject: "key:good", Kind: auth.TenantKey, Tenant: someTenant, Scopes: []string{auth.ProjectsRead, auth.ProjectsWrite}}, nil
	case "poor":
		return auth.Principal{Subject: "key:poor", Kind: auth.TenantKey, Tenant: someTenant}, nil
	case "later":
		return auth.Principal{}, &fault.Error{Kind: fault.Unavailable, Code: "keys_unavailable", Message: "try again", RetryAfter: 1500 * time.Millisecond}
	}
	return auth.Principal{}, fault.New(fault.Unauthenticated, "unknown_key", "this key is not good")
}

type thing struct {
	ID     tenant.ID `json:"id" format:"uuid"`
	Title  string    `json:"title" minLength:"1" maxLength:"10"`
	Labels []string  `json:"labels,omitempty" maxItems:"2" nullable:"false"`
	State  string    `json:"state,omitempty" enum:"open,done"`
	Inner  *inner    `json:"inner,omitempty"`
}

type inner struct {
	Count int8 `json:"count" maximum:"300"`
}

type makeInput struct {
	edge.Idempotency
	Body struct {
		Title  string   `json:"title" minLength:"1" maxLength:"10"`
		Labels []string `json:"labels,omitempty" maxItems:"2" nullable:"false"`
		State  string   `json:"state,omitempty" enum:"open,done"`
		Inner  *inner   `json:"inner,omitempty"`
	}
}

type thingOutput struct {
	ETag string `header:"ETag"`
	Body thing
}

type readInput struct {
	ID    tenant.ID `path:"id" format:"uuid"`
	Limit int       `query:"limit" minimum:"1" maximum:"100" default:"20"`
	Sort  string    `query:"sort" enum:"name,age"`
}

type faultInput struct {
	Kind string `path:"kind"`
}

// newAPI is an API with one operation of each sort, and its log.
func newAPI(t testing.TB, cfg edge.Config) (*edge.API, *buffer) {
	t.Helper()
	log := &buffer{}
	cfg.Name, cfg.Version = "things", "1"
	cfg.Logger = edge.NewLogger(log, slog.LevelDebug)
	if cfg.MaxBody == 0 {
		cfg.MaxBody = 512
	}
	a := edge.New(cfg, names{})
	edge.Register(a, edge.Operation{ID: "makeThing", Method: "POST", Path: "/things", Summary: "Make a thing", Scope: auth.ProjectsWrite, Status: 201},
		func(_ context.Context, _ auth.Principal, in *makeInput) (*thingOutput, error) {
			return &thingOutput{ETag: edge.ETag(1), Body: thing{ID: someTenant, Title: in.Body.Title, Labels: in.Body.Labels, State: in.Body.State, Inner: in.Body.Inner}}, nil
		})
	edge.Register(a, edge.Operation{ID: "readThing", Method: "GET", Path: "/things/{id}", Summary: "Read a thing", Scope: auth.ProjectsRead},
		func(_ context.Context, caller auth.Principal, in *readInput) (*thingOutput, error) {
			return &thingOutput{ETag: edge.ETag(7), Body: thing{ID: in.ID, Title: string(caller.Kind)}}, nil
		})
	edge.Register(a, edge.Operation{ID: "fail", Method: "GET", Path: "/fail/{kind}", Summary: "Fail", Scope: edge.Public},
		func(ctx context.Context, _ auth.Principal, in *faultInput) (*thingOutput, error) {
			switch in.Kind {
			case "panic":
				panic("secret of the panic")
			case "plain":
				return nil, errors.New("secret of the error")
			case "slow":
				<-ctx.Done()
				return nil, fmt.Errorf("query: %w", ctx.Err())
			case "encode":
				return &thingOutput{Body: thing{Inner: nil, Title: string([]byte{0xff})}}, nil
			}
			return nil, &fault.Error{Kind: fault.Kind(in.Kind), Code: "some_code", Message: "some message", RetryAfter: 3 * time.Second,
				Cause: errors.New("secret of the cause"), Fields: []fault.Field{{Name: "labels[3]", Message: "must be short"}}}
		})
	return a, log
}

// buffer is a bytes.Buffer that a server's goroutines may share.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func do(a http.Handler, method, path, body string, headers ...string) *httptest.ResponseRecorder {
	var r *http.Request
	if body == "" {
		r = httptest.NewRequest(method, path, http.NoBody)
	} else {
		r = httptest.NewRequest(method, path, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
	}
	r.Header.Set("Authorization", "Bearer good")
	for i := 0; i+1 < len(headers); i += 2 {
		switch headers[i+1] {
		case "":
			r.Header.Del(headers[i])
		case "\x00":
			r.Header.Set(headers[i], "")
		default:
			r.Header.Set(headers[i], headers[i+1])
		}
	}
	w := httptest.NewRecorder()
	a.ServeHTTP(w, r)
	return w
}

func problemOf(t *testing.T, w *httptest.ResponseRecorder) edge.Problem {
	t.Helper()
	require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"), w.Body.String())
	var p edge.Problem
	d := json.NewDecoder(w.Body)
	d.DisallowUnknownFields()
	require.NoError(t, d.Decode(&p))
	require.Equal(t, w.Code, p.Status)
	require.Equal(t, "urn:coditect:problem:"+p.Code, p.Type)
	require.Equal(t, http.StatusText(w.Code), p.Title)
	require.NotEmpty(t, p.Detail)
	require.NotEmpty(t, p.Instance)
	require.Equal(t, w.Header().Get("X-Request-Id"), p.RequestID)
	require.NotEmpty(t, p.RequestID)
	return p
}

func TestOperationAnswers(t *testing.T) {
	a, _ := newAPI(t, edge.Config{})
	w := do(a, "POST", "/things", `{"title":"one","labels":["a"],"state":"open","inner":{"count":1}}`)
	require.Equal(t, 201, w.Code, w.Body.String())
	require.Equal(t, `"1"`, w.Header().Get("ETag"))
	require.Equal(t, "application/json", w.Header().Get("Content-Type"))
	require.Equal(t, fmt.Sprint(w.Body.Len()), w.Header().Get("Content-Length"))
	require.JSONEq(t, `{"id":"`+someTenant.String()+`","title":"one","labels":["a"],"state":"open","inner":{"count":1}}`, w.Body.String())

	w = do(a, "GET", "/things/"+someTenant.String()+"?limit=5&sort=name", "")
	require.Equal(t, 200, w.Code, w.Body.String())
	require.Equal(t, `"7"`, w.Header().Get("ETag"))
	require.Equal(t, "no-store", w.Header().Get("Cache-Control"))

	require.Equal(t, 200, do(a, "GET", "/health", "").Code)
	w = do(a, "GET", "/openapi.json", "")
	require.Equal(t, 200, w.Code)
	require.Contains(t, w.Body.String(), `"openapi":"3.1.0"`)
}

func TestEveryRefusalIsAProblem(t *testing.T) {
	a, _ := newAPI(t, edge.Config{})
	id := someTenant.String()
	for name, c := range map[string]struct {
		method, path, body string
		headers            []string
		status             int
		code               string
		fields             []edge.ProblemField
	}{
		"no credential":      {"GET", "/things/" + id, "", []string{"Authorization", ""}, 401, "missing_credential", nil},
		"basic credential":   {"GET", "/things/" + id, "", []string{"Authorization", "Basic abc"}, 401, "malformed_credential", nil},
		"unknown credential": {"GET", "/things/" + id, "", []string{"Authorization", "Bearer bad"}, 401, "unknown_key", nil},
		"keys unavailable":   {"GET", "/things/" + id, "", []string{"Authorization", "Bearer later"}, 503, "keys_unavailable", nil},
		"no scope":           {"GET", "/things/" + id, "", []string{"Authorization", "Bearer poor"}, 403, "missing_scope", nil},
		"unknown path":       {"GET", "/nothing", "", nil, 404, "path_not_found", nil},
		"unclean path":       {"GET", "/things//" + id, "", nil, 404, "path_not_found", nil},
		"dots":               {"GET", "/things/../health", "", nil, 404, "path_not_found", nil},
		"NUL in the path":    {"GET", "/things/%00", "", nil, 404, "path_not_found", nil},
		"wrong method":       {"DELETE", "/things", "", nil, 405, "method_not_allowed", nil},
		"odd method":         {"BREW", "/things", "", nil, 405, "method_not_allowed", nil},
		"bad id":             {"GET", "/things/7", "", nil, 422, "invalid_field", []edge.ProblemField{{"id", `must be valid: "7" is not a UUID such as 0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69`}}},
		"unknown parameter":  {"GET", "/things/" + id + "?page=2", "", nil, 422, "invalid_field", []edge.ProblemField{{"page", "is not a query parameter this operation knows: limit, sort"}}},
		"repeated parameter": {"GET", "/things/" + id + "?limit=2&limit=3", "", nil, 422, "invalid_field", []edge.ProblemField{{"limit", "must be in the query once"}}},
		"broken escape":      {"GET", "/things/" + id + "?sort=%zz", "", nil, 422, "invalid_field", []edge.ProblemField{{"sort", "must be UTF-8 text, percent-encoded, without NUL"}}},
		"limit too large":    {"GET", "/things/" + id + "?limit=101", "", nil, 422, "invalid_field", []edge.ProblemField{{"limit", "must be at most 100"}}},
		"limit not a number": {"GET", "/things/" + id + "?limit=x", "", nil, 422, "invalid_field", []edge.ProblemField{{"limit", "must be an integer"}}},
		"enum":               {"GET", "/things/" + id + "?sort=size", "", nil, 422, "invalid_field", []edge.ProblemField{{"sort", "must be one of name, age"}}},
		"empty body":         {"POST", "/things", "", nil, 400, "malformed_body", []edge.ProblemField{{"body", "must be a JSON object"}}},
		"malformed body":     {"POST", "/things", `{"title":`, nil, 400, "malformed_body", []edge.ProblemField{{"body", "must be valid JSON: unexpected end of JSON input (at byte 9)"}}},
		"two values":         {"POST", "/things", `{"title":"a"} {}`, nil, 400, "malformed_body", []edge.ProblemField{{"body", "must be valid JSON: invalid character '{' after top-level value (at byte 15)"}}},
		"duplicate key":      {"POST", "/things", `{"title":"a","inner":{"count":1,"count":2}}`, nil, 400, "malformed_body", []edge.ProblemField{{"body", `must not hold the key "count" twice`}}},
		"not UTF-8":          {"POST", "/things", "{\"title\":\"\xff\"}", nil, 400, "malformed_body", []edge.ProblemField{{"body", "must be UTF-8"}}},
		"NUL":                {"POST", "/things", `{"title":"\u0000"}`, nil, 400, "malformed_body", []edge.ProblemField{{"body", `must not hold the character \u0000`}}},
		"array":              {"POST", "/things", `[]`, nil, 422, "invalid_field", []edge.ProblemField{{"body", "must be a JSON object"}}},
		"missing field":      {"POST", "/things", `{}`, nil, 422, "invalid_field", []edge.ProblemField{{"title", "must be present"}}},
		"null":               {"POST", "/things", `{"title":null}`, nil, 422, "invalid_field", []edge.ProblemField{{"title", "must be a string"}}},
		"unknown field":      {"POST", "/things", `{"title":"a","colour":"red"}`, nil, 422, "invalid_field", []edge.ProblemField{{"colour", "is not a field this operation knows"}}},
		"case of a field":    {"POST", "/things", `{"title":"a","Title":"b"}`, nil, 422, "invalid_field", []edge.ProblemField{{"Title", "is not a field this operation knows"}}},
		"nested":             {"POST", "/things", `{"title":"a","inner":{}}`, nil, 422, "invalid_field", []edge.ProblemField{{"inner.count", "must be present"}}},
		"several": {"POST", "/things", `{"title":"a long title","labels":["a","b",3]}`, nil, 422, "invalid_field", []edge.ProblemField{
			{"labels", "must have at most 2 items"}, {"labels[2]", "must be a string"}, {"title", "must have at most 10 characters"}}},
		"does not fit":    {"POST", "/things", `{"title":"a","inner":{"count":299}}`, nil, 422, "invalid_field", []edge.ProblemField{{"body", "must fit: inner.count holds a number 299 that is not one of type int8"}}},
		"content type":    {"POST", "/things", `{"title":"a"}`, []string{"Content-Type", "text/plain"}, 415, "unsupported_media_type", []edge.ProblemField{{"Content-Type", "must be application/json"}}},
		"too large":       {"POST", "/things", `{"title":"` + strings.Repeat("a", 600) + `"}`, nil, 413, "body_too_large", nil},
		"idempotency key": {"POST", "/things", `{"title":"a"}`, []string{"Idempotency-Key", "a\tb"}, 422, "invalid_field", []edge.ProblemField{{"Idempotency-Key", "must be printable ASCII"}}},
		"empty key":       {"POST", "/things", `{"title":"a"}`, []string{"Idempotency-Key", "\x00"}, 422, "invalid_field", []edge.ProblemField{{"Idempotency-Key", "must be sent once, and not be empty"}}},
		"long key":        {"POST", "/things", `{"title":"a"}`, []string{"Idempotency-Key", strings.Repeat("k", 256)}, 422, "invalid_field", []edge.ProblemField{{"Idempotency-Key", "must have at most 255 characters"}}},
	} {
		t.Run(name, func(t *testing.T) {
			w := do(a, c.method, c.path, c.body, c.headers...)
			require.Equal(t, c.status, w.Code, w.Body.String())
			p := problemOf(t, w)
			require.Equal(t, c.code, p.Code)
			require.Equal(t, c.fields, p.Errors)
			switch c.status {
			case 401:
				require.Contains(t, w.Header().Get("WWW-Authenticate"), "Bearer")
			case 403:
				require.Equal(t, `Bearer error="insufficient_scope", scope="projects:read"`, w.Header().Get("WWW-Authenticate"))
			case 405:
				require.Equal(t, "POST", w.Header().Get("Allow"))
			case 503:
				require.Equal(t, "2", w.Header().Get("Retry-After"))
			}
		})
	}
	require.Equal(t, "GET, HEAD", do(a, "POST", "/things/"+id, "").Header().Get("Allow"))
}

func TestBodyAtTheLimitIsTaken(t *testing.T) {
	a, _ := newAPI(t, edge.Config{MaxBody: 16})
	require.Equal(t, 201, do(a, "POST", "/things", `{"title":"1234"}`).Code)
	require.Equal(t, 413, do(a, "POST", "/things", `{"title":"12345"}`).Code)
	// Without a Content-Length the limit is found while reading.
	r := httptest.NewRequest(http.MethodPost, "/things", strings.NewReader(`{"title":"12345"}`))
	r.ContentLength = -1
	r.Header.Set("Authorization", "Bearer good")
	w := httptest.NewRecorder()
	a.ServeHTTP(w, r)
	require.Equal(t, "body_too_large", problemOf(t, w).Code)
}

// An API that may take longer than the server lets a connection write moves that limit.
func TestALateAnswerGetsOut(t *testing.T) {
	a, _ := newAPI(t, edge.Config{Deadline: time.Minute})
	late := make(chan struct{})
	edge.Register(a, edge.Operation{ID: "late", Method: "GET", Path: "/late", Scope: edge.Public, Status: 204}, func(ctx context.Context, _ auth.Principal, _ *struct{}) (*struct{}, error) {
		<-late
		return nil, nil
	})
	const limit = 20 * time.Millisecond
	srv := httptest.NewUnstartedServer(a)
	srv.Config.WriteTimeout = limit
	srv.Start()
	defer srv.Close()
	time.AfterFunc(10*limit, func() { close(late) })
	resp, err := srv.Client().Get(srv.URL + "/late")
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	require.Equal(t, 204, resp.StatusCode)
}

func TestFaultsBecomeStatuses(t *testing.T) {
	a, log := newAPI(t, edge.Config{Deadline: 20 * time.Millisecond})
	for kind, status := range map[fault.Kind]int{
		fault.Invalid: 422, fault.Unauthenticated: 401, fault.Forbidden: 403, fault.NotFound: 404, fault.Conflict: 409, fault.Stale: 412,
		fault.TooLarge: 413, fault.Exhausted: 429, fault.Unavailable: 503, fault.Uncertain: 503, fault.Internal: 500, "odd": 500,
	} {
		w := do(a, "GET", "/fail/"+string(kind), "")
		require.Equal(t, status, w.Code, kind)
		body := w.Body.String()
		p := problemOf(t, w)
		require.NotContains(t, body, "secret", kind)
		require.Equal(t, []edge.ProblemField{{"labels[3]", "must be short"}}, p.Errors)
		switch kind {
		case fault.Unavailable, fault.Exhausted, fault.Uncertain:
			require.Equal(t, "3", w.Header().Get("Retry-After"))
		case fault.Internal:
			require.NotContains(t, p.Detail, "some message")
		}
		if kind == fault.Uncertain {
			require.Equal(t, "commit_uncertain", p.Code)
		}
	}
	w := do(a, "GET", "/fail/plain", "")
	require.Equal(t, 500, w.Code)
	require.NotContains(t, w.Body.String(), "secret")
	w = do(a, "GET", "/fail/panic", "")
	require.Equal(t, 500, w.Code)
	require.Equal(t, "internal", problemOf(t, w).Code)
	w = do(a, "GET", "/fail/slow", "")
	require.Equal(t, 503, w.Code)
	require.Equal(t, "deadline_exceeded", problemOf(t, w).Code)
	require.Contains(t, log.String(), "secret of the cause")
	require.Contains(t, log.String(), "secret of the panic")
}

func TestRequestLog(t *testing.T) {
	t.Setenv("GOOGLE_CLOUD_PROJECT", "p1")
	a, log := newAPI(t, edge.Config{})
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	w := do(a, "GET", "/things/"+someTenant.String()+"?sort=name", "", "X-Request-ID", "abc-1", "traceparent", "00-"+trace+"-00f067aa0ba902b7-01")
	require.Equal(t, "abc-1", w.Header().Get("X-Request-Id"))
	var line map[string]any
	require.NoError(t, json.Unmarshal([]byte(log.String()), &line))
	require.IsType(t, 0.5, line["duration_ms"])
	require.NotEmpty(t, line["time"])
	delete(line, "duration_ms")
	delete(line, "time")
	require.Equal(t, map[string]any{
		"severity": "INFO", "message": "request", "function": "things", "method": "GET", "route": "GET /things/{id}", "status": 200.0,
		"bytes": float64(w.Body.Len()), "request_id": "abc-1", "trace_id": trace, "logging.googleapis.com/trace": "projects/p1/traces/" + trace,
		"principal": "key:good", "tenant": someTenant.String(),
	}, line)
	require.NotContains(t, log.String(), "Bearer")

	w = do(a, "GET", "/nothing", "", "X-Request-ID", "bad\nid", "X-Cloud-Trace-Context", trace+"/1;o=1")
	require.Len(t, w.Header().Get("X-Request-Id"), 32)
	require.Contains(t, log.String(), `"route":"unknown"`)
	require.Equal(t, 2, strings.Count(log.String(), `"trace_id":"`+trace))
}

func TestClientThatLeftIsNotOurError(t *testing.T) {
	a, log := newAPI(t, edge.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodGet, "/fail/slow", nil))
	require.Contains(t, log.String(), `"status":499`)
	require.NotContains(t, log.String(), `"severity":"ERROR"`)
}

type hidden struct {
	ID string `path:"id"`
}

func TestMistakesInOperationsPanic(t *testing.T) {
	a := edge.New(edge.Config{Name: "x", Version: "1"}, names{})
	type input struct{ hidden }
	for _, op := range []edge.Operation{
		{Method: "GET", Path: "/x/{id}", Scope: edge.Public},
		{ID: "x", Method: "GET", Path: "/x/{id}"},
		{ID: "x", Method: "GET", Path: "/x/{id}", Scope: edge.Public},
	} {
		require.Panics(t, func() {
			edge.Register(a, op, func(context.Context, auth.Principal, *input) (*thingOutput, error) { return nil, nil })
		})
	}
}
