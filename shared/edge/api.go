package edge

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"os"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/fault"
)

// Defaults of a Config.
const (
	DefaultDeadline = 25 * time.Second
	DefaultMaxBody  = 1 << 20
)

// Config describes one function's API.
type Config struct {
	Name        string // of the function: "tenants"
	Version     string
	Description string
	Deadline    time.Duration // of a request; DefaultDeadline if zero
	MaxBody     int64         // bytes of a request's body; DefaultMaxBody if zero
	Logger      *slog.Logger  // Logger() if nil
}

// API is an http.Handler with its operations.
type API struct {
	cfg     Config
	log     *slog.Logger
	project string // of Google Cloud, to name traces fully; "" elsewhere
	auth    auth.Authenticator
	mux     *http.ServeMux
	huma    huma.API
	openAPI func() ([]byte, error)
}

// New returns an API without operations. Beside those registered later it
// answers GET /openapi.json and GET /health.
func New(cfg Config, authenticator auth.Authenticator) *API {
	if cfg.Deadline == 0 {
		cfg.Deadline = DefaultDeadline
	}
	if cfg.MaxBody == 0 {
		cfg.MaxBody = DefaultMaxBody
	}
	if cfg.Logger == nil {
		cfg.Logger = Logger()
	}
	teachHuma()
	a := &API{cfg: cfg, log: cfg.Logger, project: os.Getenv("GOOGLE_CLOUD_PROJECT"), auth: authenticator, mux: http.NewServeMux()}
	// Not huma.DefaultConfig: its $schema links cost a reflection-built copy of every answer, and its documentation
	// page loads scripts from elsewhere.
	a.huma = humago.New(a.mux, huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info:    &huma.Info{Title: "CODITECT " + cfg.Name, Version: cfg.Version, Description: cfg.Description},
			Components: &huma.Components{
				Schemas: huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer),
				SecuritySchemes: map[string]*huma.SecurityScheme{
					securityScheme: {Type: "http", Scheme: "bearer", BearerFormat: "ck_…", Description: "An API key. The scope an operation needs is in its x-scope."},
				},
			},
		},
		Formats:       map[string]huma.Format{"application/json": jsonFormat, "json": jsonFormat},
		DefaultFormat: "application/json",
	})
	a.openAPI = sync.OnceValues(func() ([]byte, error) { return json.Marshal(a.huma.OpenAPI()) })
	a.mux.HandleFunc("GET /openapi.json", a.serveOpenAPI)
	a.mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"status":"ok"}` + "\n"))
	})
	a.mux.HandleFunc("/", a.serveUnknown)
	return a
}

const securityScheme = "apiKey"

// Public is the Scope of an operation that needs no credential.
const Public = "public"

// Operation describes one operation of an API.
type Operation struct {
	ID          string // camelCase, unique in the API
	Method      string
	Path        string // http.ServeMux's syntax: /tenants/{id}
	Summary     string
	Description string
	Tags        []string
	Scope       string       // the scope the caller needs, or Public; empty panics
	Status      int          // of success; 200, or 204 without a body, if zero
	MaxBody     int64        // the API's if zero
	Faults      []fault.Kind // documented beside those that edge itself can answer with
}

// Register adds an operation. The handler gets the caller as a parameter. It
// panics on a mistake in the operation: the first request, and every test,
// shows it.
func Register[I, O any](a *API, op Operation, handler func(ctx context.Context, caller auth.Principal, in *I) (*O, error)) {
	if op.ID == "" || op.Scope == "" {
		panic("edge: operation " + op.Method + " " + op.Path + " needs an ID and a Scope")
	}
	refuseHidden(reflect.TypeFor[I](), op.ID)
	h := huma.Operation{
		OperationID: op.ID, Method: op.Method, Path: op.Path,
		Summary: op.Summary, Description: op.Description, Tags: op.Tags,
		DefaultStatus: op.Status,
		Errors:        documentedStatuses(op),
	}
	// huma refuses a body of exactly MaxBodyBytes; the limit itself is allowed.
	limit := op.MaxBody
	if limit == 0 {
		limit = a.cfg.MaxBody
	}
	h.MaxBodyBytes = limit + 1
	if op.Scope != Public {
		h.Security = []map[string][]string{{securityScheme: {}}}
		h.Extensions = map[string]any{"x-scope": op.Scope}
	}
	h.Middlewares = huma.Middlewares{a.guard(op.Scope, limit)}
	huma.Register(a.huma, h, func(ctx context.Context, in *I) (*O, error) {
		req := requestOf(ctx)
		out, err := handler(ctx, req.principal, in)
		if err != nil {
			return nil, req.problem(err)
		}
		return out, nil
	})
}

// refuseHidden panics where huma would leave parameters out in silence: it does
// not look into embedded structs whose type is not exported, and their fields
// would stay zero.
func refuseHidden(t reflect.Type, operation string) {
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.Anonymous || f.Type.Kind() != reflect.Struct {
			continue
		}
		if !f.IsExported() {
			panic("edge: operation " + operation + ": the embedded " + f.Type.Name() + " must be exported, or huma ignores its fields")
		}
		refuseHidden(f.Type, operation)
	}
}

// documentedStatuses lists the error statuses of op for the OpenAPI document.
func documentedStatuses(op Operation) []int {
	kinds := []fault.Kind{fault.Invalid, fault.Internal, fault.Unavailable}
	if op.Scope != Public {
		kinds = append(kinds, fault.Unauthenticated, fault.Forbidden, fault.Exhausted)
	}
	if strings.Contains(op.Path, "{") {
		kinds = append(kinds, fault.NotFound)
	}
	statuses := []int{}
	switch op.Method {
	case http.MethodPost, http.MethodPut, http.MethodPatch:
		kinds = append(kinds, fault.TooLarge)
		statuses = append(statuses, http.StatusBadRequest, http.StatusRequestTimeout, http.StatusUnsupportedMediaType)
	}
	for _, k := range append(kinds, op.Faults...) {
		statuses = append(statuses, statusOf(k))
	}
	return statuses
}

// guard stands before huma's handler: it lets a request through that carries a
// good credential with the scope, a query of known names, and no body over the
// limit.
func (a *API) guard(scope string, limit int64) func(huma.Context, func(huma.Context)) {
	return func(hc huma.Context, next func(huma.Context)) {
		r, w := humago.Unwrap(hc)
		req := requestOf(r.Context())
		if scope != Public {
			principal, err := a.authenticate(r)
			if err == nil && !principal.Has(scope) {
				err = fault.New(fault.Forbidden, "missing_scope", "this credential lacks the scope %s", scope)
				w.Header().Set("WWW-Authenticate", `Bearer error="insufficient_scope", scope="`+scope+`"`)
			}
			req.principal = principal
			if err != nil {
				req.fail(err)
				return
			}
		}
		if err := checkQuery(r.URL.RawQuery, hc.Operation().Parameters); err != nil {
			req.fail(err)
			return
		}
		if err := checkHeaders(r.Header, hc.Operation().Parameters); err != nil {
			req.fail(err)
			return
		}
		if r.ContentLength > limit {
			req.fail(tooLarge(limit))
			return
		}
		next(hc)
	}
}

// authenticate reads the Authorization header.
func (a *API) authenticate(r *http.Request) (auth.Principal, error) {
	headers := r.Header["Authorization"]
	if len(headers) == 0 {
		return auth.Principal{}, fault.New(fault.Unauthenticated, "missing_credential", "send an API key as Authorization: Bearer ck_…")
	}
	scheme, credential, ok := strings.Cut(headers[0], " ")
	if len(headers) > 1 || !ok || !strings.EqualFold(scheme, "Bearer") || credential == "" {
		return auth.Principal{}, fault.New(fault.Unauthenticated, "malformed_credential", "the Authorization header must be one: Bearer ck_…")
	}
	return a.auth.Authenticate(r.Context(), credential)
}

func (a *API) serveOpenAPI(w http.ResponseWriter, r *http.Request) {
	doc, err := a.openAPI()
	if err != nil {
		requestOf(r.Context()).fail(err)
		return
	}
	w.Header().Set("Content-Type", "application/openapi+json")
	w.Header().Set("Content-Length", strconv.Itoa(len(doc)))
	_, _ = w.Write(doc)
}

// serveUnknown answers what no operation matches: 405 where another method
// would, else 404. Asking the mux again for each method costs only those who
// err, and nothing at the start.
func (a *API) serveUnknown(w http.ResponseWriter, r *http.Request) {
	req := requestOf(r.Context())
	req.unknown = true
	var allow []string
	probe := r.Clone(r.Context())
	for _, m := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		probe.Method = m
		if _, pattern := a.mux.Handler(probe); pattern != "/" {
			allow = append(allow, m)
		}
	}
	if len(allow) == 0 {
		req.fail(errNoSuchPath())
		return
	}
	list := strings.Join(allow, ", ")
	w.Header().Set("Allow", list)
	req.write(req.newProblem(http.StatusMethodNotAllowed, "method_not_allowed", "this path allows "+list))
}

func errNoSuchPath() error {
	return fault.New(fault.NotFound, "path_not_found", "there is nothing at this path")
}
