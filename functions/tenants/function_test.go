package tenants

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2/pstest"
	"github.com/google/uuid"
	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/directory"
	"github.com/coditect/platform/shared/edge"
	"github.com/coditect/platform/shared/events"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/organisation"
	"github.com/coditect/platform/shared/tenant"
)

func TestMain(m *testing.M) { citustest.Main(m) }

const grace = 30 * 24 * time.Hour

// zone is a DNS for tests.
type zone struct {
	mu  sync.Mutex
	txt map[string][]string
	err error
}

func (z *zone) LookupTXT(_ context.Context, name string) ([]string, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.err != nil {
		return nil, z.err
	}
	if found, ok := z.txt[name]; ok {
		return found, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

func (z *zone) set(name string, values ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.txt[name] = values
}

func (z *zone) fail(err error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.err = err
}

// world is the function over real databases. Every answer is held against the
// function's own OpenAPI document.
type world struct {
	*citustest.Env
	t        *testing.T
	api      *edge.API
	valid    validator.Validator
	dns      *zone
	later    time.Duration // added to the clock
	operator string
}

func newWorld(t *testing.T, env *citustest.Env, policy string) *world {
	t.Helper()
	w := &world{Env: env, t: t, dns: &zone{txt: map[string][]string{}}}
	home, err := organisation.ParseHomePolicy(policy)
	require.NoError(t, err)
	service := organisation.New(organisation.Config{NewHome: home, Grace: grace}, organisation.Deps{
		Databases: env.Databases, Forget: env.Directory.Forget, RevokeKeys: revokeKeys, Recorder: recorder{"tenant-events"}, Resolver: w.dns,
		Now: func() time.Time { return time.Now().Add(w.later) },
	})
	w.api = New(service, auth.NewKeys(env.Databases), w.relay, edge.Config{Logger: edge.NewLogger(io.Discard, nil)})
	rec := httptest.NewRecorder()
	w.api.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/openapi.json", nil))
	doc, err := libopenapi.NewDocument(rec.Body.Bytes())
	require.NoError(t, err)
	v, errs := validator.NewValidator(doc)
	require.Empty(t, errs)
	ok, problems := v.ValidateDocument()
	require.True(t, ok, "%v", problems)
	require.Equal(t, "3.1.0", doc.GetVersion())
	w.valid = v
	w.operator = w.key(auth.NewKey{Name: "operator", Kind: auth.Operator, Scopes: auth.AllScopes()})
	return w
}

// relay publishes to a real Pub/Sub server's stand-in that its maker ships.
func (w *world) relay(ctx context.Context) (int, error) {
	server := pstest.NewServer()
	w.t.Cleanup(func() { _ = server.Close() })
	to, err := events.Open(ctx, events.Config{Project: "p", Emulator: server.Addr})
	require.NoError(w.t, err)
	defer func() { _ = to.Close() }()
	require.NoError(w.t, to.EnsureTopic(ctx, "tenant-events"))
	n, err := events.Relay(ctx, w.Control.Pool, to)
	require.Len(w.t, server.Messages(), n)
	return n, err
}

func (w *world) key(n auth.NewKey) string {
	w.t.Helper()
	text, _, err := auth.CreateKey(w.t.Context(), w.Control, n)
	require.NoError(w.t, err)
	return text
}

// tenantKey is a key of one tenant with all that such a key can do.
func (w *world) tenantKey(id string) string {
	w.t.Helper()
	parsed, err := tenant.ParseID(id)
	require.NoError(w.t, err)
	return w.key(auth.NewKey{Name: "tenant", Kind: auth.TenantKey, Tenant: parsed, Scopes: []string{auth.TenantsRead, auth.TenantsWrite}})
}

func (w *world) userKey(subject string) string {
	w.t.Helper()
	return w.key(auth.NewKey{Name: subject, Kind: auth.User, Subject: subject, Scopes: []string{auth.TenantsRead, auth.TenantsWrite, auth.TenantsCreate}})
}

type object = map[string]any

// do sends a request and wants a status.
func (w *world) do(status int, key, method, path, body string, headers ...string) (object, http.Header) {
	w.t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+key)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	rec := httptest.NewRecorder()
	w.api.ServeHTTP(rec, r)
	require.Equal(w.t, status, rec.Code, "%s %s: %s", method, path, rec.Body.String())
	text := rec.Body.Bytes()
	if status != http.StatusMethodNotAllowed {
		ok, problems := w.valid.ValidateHttpResponse(r, &http.Response{StatusCode: rec.Code, Header: rec.Header(), Body: io.NopCloser(bytes.NewReader(text))})
		require.True(w.t, ok, "%s %s: %s: %v", method, path, text, problems)
	}
	if len(text) == 0 {
		return nil, rec.Header()
	}
	var o object
	require.NoError(w.t, json.Unmarshal(text, &o))
	return o, rec.Header()
}

// refused is do for a problem, whose code it checks.
func (w *world) refused(status int, code, key, method, path, body string, headers ...string) object {
	w.t.Helper()
	p, _ := w.do(status, key, method, path, body, headers...)
	require.Equal(w.t, code, p["code"], p)
	return p
}

func (w *world) signUp(name string) string {
	w.t.Helper()
	o, _ := w.do(201, w.operator, "POST", "/tenants", fmt.Sprintf(`{"name":%q}`, name))
	return o["id"].(string)
}

// events lists the types of a tenant's events, in order.
func (w *world) events(id string) []string {
	w.t.Helper()
	rows, err := w.Control.Query(w.t.Context(), `SELECT payload->>'type' FROM control.outbox WHERE ordering_key = $1 ORDER BY seq`, id)
	require.NoError(w.t, err)
	defer rows.Close()
	var types []string
	for rows.Next() {
		var s string
		require.NoError(w.t, rows.Scan(&s))
		types = append(types, s)
	}
	require.NoError(w.t, rows.Err())
	return types
}

// What has happened is published by the next sweep, once.
func TestASweepPublishesEvents(t *testing.T) {
	w := newWorld(t, citustest.New(t), "green")
	w.signUp("One")
	w.signUp("Two")
	o, _ := w.do(200, w.operator, "POST", "/sweep", "")
	require.EqualValues(t, 2, o["events_published"])
	o, _ = w.do(200, w.operator, "POST", "/sweep", "")
	require.EqualValues(t, 0, o["events_published"])
}

// homes runs a test for tenants of each home, green also on Citus where there is one.
func homes(t *testing.T, f func(t *testing.T, w *world)) {
	t.Run("blue", func(t *testing.T) { f(t, newWorld(t, citustest.New(t), "blue")) })
	citustest.Each(t, func(t *testing.T, env *citustest.Env) { f(t, newWorld(t, env, "green")) })
}

const addTask = `INSERT INTO project (tenant_id, id, name, created_at, updated_at) VALUES ($1, $2, 'p', $3, $3)`

// write writes a row through a door, as the function projects would.
func write(ctx context.Context, door *citus.Door, id string) error {
	parsed, err := tenant.ParseID(id)
	if err != nil {
		return err
	}
	return door.InTenant(ctx, parsed, func(tx *citus.Tx) error {
		_, err := tx.Exec(ctx, addTask, tx.Tenant(), uuid.New(), time.Now())
		return err
	})
}

func TestLifeOfATenant(t *testing.T) {
	homes(t, func(t *testing.T, w *world) {
		o, h := w.do(201, w.operator, "POST", "/tenants", `{"name":"Bücher & Söhne","owner":"user:ann"}`)
		id := o["id"].(string)
		require.Equal(t, "b-cher-s-hne", o["slug"])
		require.Equal(t, "active", o["status"])
		require.Equal(t, `"1"`, h.Get("ETag"))
		require.Equal(t, "tenants/"+id, h.Get("Location"))
		require.NoError(t, write(t.Context(), w.Door, id))
		own, ann := w.tenantKey(id), w.userKey("user:ann")

		for _, key := range []string{w.operator, own, ann} {
			read, _ := w.do(200, key, "GET", "/tenants/"+id, "")
			require.Equal(t, o, read)
		}
		o, h = w.do(200, own, "PATCH", "/tenants/"+id, `{"name":"Books"}`, "If-Match", `"1"`)
		require.Equal(t, "Books", o["name"])
		require.Equal(t, `"2"`, h.Get("ETag"))
		w.refused(412, "stale_version", own, "PATCH", "/tenants/"+id, `{"name":"Other"}`, "If-Match", `"1"`)
		w.refused(422, "invalid_field", own, "PATCH", "/tenants/"+id, `{"name":"Other"}`, "If-Match", `1`)
		// The answer was lost and the request is sent again: it is done already.
		o, _ = w.do(200, ann, "PATCH", "/tenants/"+id, `{"name":"Books"}`, "If-Match", `"1"`)
		require.Equal(t, 2.0, o["version"])

		w.refused(403, "operators_only", own, "POST", "/tenants/"+id+"/suspend", "")
		o, _ = w.do(200, w.operator, "POST", "/tenants/"+id+"/suspend", "")
		require.Equal(t, "suspended", o["status"])
		again, _ := w.do(200, w.operator, "POST", "/tenants/"+id+"/suspend", "")
		require.Equal(t, o, again)
		w.refused(403, "tenant_suspended", own, "PATCH", "/tenants/"+id, `{"name":"Mine"}`)
		w.refused(403, "tenant_suspended", own, "DELETE", "/tenants/"+id, "")
		w.refused(403, "operators_only", own, "POST", "/tenants/"+id+"/resume", "")
		w.do(200, own, "GET", "/tenants/"+id, "")

		// Deleted and restored, it is still suspended.
		o, _ = w.do(200, w.operator, "DELETE", "/tenants/"+id, "")
		require.Equal(t, "deleting", o["status"])
		require.NotEmpty(t, o["delete_after"])
		w.refused(409, "tenant_deleting", w.operator, "POST", "/tenants/"+id+"/suspend", "")
		o, _ = w.do(200, w.operator, "POST", "/tenants/"+id+"/restore", "")
		require.Equal(t, "suspended", o["status"])
		require.Nil(t, o["delete_after"])
		w.do(200, w.operator, "POST", "/tenants/"+id+"/resume", "")
		require.NoError(t, write(t.Context(), w.Door, id))

		w.refused(412, "stale_version", own, "DELETE", "/tenants/"+id, "", "If-Match", `"1"`)
		w.do(200, own, "DELETE", "/tenants/"+id, "", "If-Match", "*")
		require.Error(t, write(t.Context(), w.Door, id))
		o, _ = w.do(200, w.operator, "POST", "/sweep", "")
		require.Equal(t, 0.0, o["erased"])

		w.later = grace
		w.refused(409, "grace_time_over", own, "POST", "/tenants/"+id+"/restore", "")
		w.refused(403, "operators_only", own, "POST", "/sweep", "")
		o, _ = w.do(200, w.operator, "POST", "/sweep", "")
		require.Equal(t, 1.0, o["erased"], o)
		o, _ = w.do(200, w.operator, "GET", "/tenants/"+id, "")
		require.Equal(t, "deleted", o["status"])
		w.refused(404, "tenant_not_found", ann, "GET", "/tenants/"+id, "")
		w.refused(404, "tenant_not_found", own, "POST", "/tenants/"+id+"/restore", "")
		w.refused(409, "slug_taken", w.operator, "POST", "/tenants", `{"name":"B","slug":"b-cher-s-hne"}`)
		require.Equal(t, []string{"tenant.created", "tenant.renamed", "tenant.suspended", "tenant.deleting", "tenant.restored", "tenant.resumed",
			"tenant.deleting", "tenant.deleted"}, w.events(id))
		w.nothingLeft(id)
	})
}

// nothingLeft checks that an erased tenant has left nothing but its name.
func (w *world) nothingLeft(id string) {
	w.t.Helper()
	for _, table := range []string{"app.project", "app.task", "coditect.gate", "control.membership", "control.domain", "control.gate_due", "control.sign_up"} {
		var n int
		require.NoError(w.t, w.Control.QueryRow(w.t.Context(), `SELECT count(*) FROM `+table+` WHERE tenant_id = $1`, id).Scan(&n))
		require.Zero(w.t, n, table)
	}
	var live, schemas, gates int
	require.NoError(w.t, w.Control.QueryRow(w.t.Context(), `SELECT count(*) FROM control.api_key WHERE tenant_id = $1 AND revoked_at IS NULL`, id).Scan(&live))
	require.Zero(w.t, live)
	blue := w.Blue(w.t)
	require.NoError(w.t, blue.QueryRow(w.t.Context(), `SELECT count(*) FROM pg_namespace WHERE nspname = 't_' || replace($1, '-', '')`, id).Scan(&schemas))
	require.NoError(w.t, blue.QueryRow(w.t.Context(), `SELECT count(*) FROM coditect.gate WHERE tenant_id = $1::uuid`, id).Scan(&gates))
	require.Zero(w.t, schemas+gates)
}

// An instance that read the directory before the suspension is refused by the
// gate, in either home.
func TestSuspensionReachesStaleInstances(t *testing.T) {
	homes(t, func(t *testing.T, w *world) {
		id, neighbour := w.signUp("Stale"), w.signUp("Neighbour")
		stale := citus.NewDoor(w.Databases, directory.New(w.Databases, time.Hour))
		require.NoError(t, write(t.Context(), stale, id))
		w.do(200, w.operator, "POST", "/tenants/"+id+"/suspend", "")
		err := write(t.Context(), stale, id)
		require.Equal(t, "tenant_suspended", fault.CodeOf(err), err)
		require.NoError(t, write(t.Context(), stale, neighbour))
		w.do(200, w.operator, "POST", "/tenants/"+id+"/resume", "")
		require.NoError(t, write(t.Context(), w.Door, id))
	})
}

// Every route × another tenant's id → 404, for keys and for users, whatever the
// other tenant's state.
func TestOthersTenantsDoNotExist(t *testing.T) {
	w := newWorld(t, citustest.New(t), "50%")
	mine, theirs, shut := w.signUp("Mine"), w.signUp("Theirs"), w.signUp("Shut")
	w.do(200, w.operator, "POST", "/tenants/"+shut+"/suspend", "")
	domain, _ := w.do(201, w.operator, "POST", "/tenants/"+theirs+"/domains", `{"name":"theirs.example"}`)
	d := domain["id"].(string)
	routes := []struct{ method, path, body string }{
		{"GET", "/tenants/{id}", ""},
		{"PATCH", "/tenants/{id}", `{"name":"Stolen"}`},
		{"DELETE", "/tenants/{id}", ""},
		{"POST", "/tenants/{id}/restore", ""},
		{"POST", "/tenants/{id}/suspend", ""},
		{"POST", "/tenants/{id}/resume", ""},
		{"GET", "/tenants/{id}/domains", ""},
		{"POST", "/tenants/{id}/domains", `{"name":"mine.example"}`},
		{"POST", "/tenants/{id}/domains", `{"name":"not a domain"}`},
		{"GET", "/tenants/{id}/domains/" + d, ""},
		{"POST", "/tenants/{id}/domains/" + d + "/verify", ""},
		{"DELETE", "/tenants/{id}/domains/" + d, ""},
	}
	before, _ := w.do(200, w.operator, "GET", "/tenants/"+theirs, "")
	for name, key := range map[string]string{"key": w.tenantKey(mine), "user": w.userKey("user:nobody")} {
		for _, id := range []string{theirs, shut, tenant.NewID().String(), tenant.ID{}.String()} {
			for _, r := range routes {
				t.Run(name+" "+r.method+" "+r.path, func(t *testing.T) {
					w.t = t
					w.refused(404, "tenant_not_found", key, r.method, strings.Replace(r.path, "{id}", id, 1), r.body)
				})
			}
		}
	}
	w.t = t
	after, _ := w.do(200, w.operator, "GET", "/tenants/"+theirs, "")
	require.Equal(t, before, after)

	// Every operation with an id is in the table above.
	doc := httptest.NewRecorder()
	w.api.ServeHTTP(doc, httptest.NewRequest(http.MethodGet, "/openapi.json", nil))
	var parsed struct{ Paths map[string]map[string]any }
	require.NoError(t, json.Unmarshal(doc.Body.Bytes(), &parsed))
	tested := map[string]bool{}
	for _, r := range routes {
		tested[strings.ToLower(r.method)+" "+strings.Replace(r.path, d, "{domain}", 1)] = true
	}
	for path, methods := range parsed.Paths {
		for method := range methods {
			if strings.Contains(path, "{id}") {
				require.True(t, tested[method+" "+path], "%s %s has no row in the table", method, path)
			}
		}
	}

	// Another tenant's domain under one's own id.
	own := w.tenantKey(mine)
	for _, r := range []struct{ method, path string }{{"GET", ""}, {"POST", "/verify"}, {"DELETE", ""}} {
		w.refused(404, "domain_not_found", own, r.method, "/tenants/"+mine+"/domains/"+d+r.path, "")
	}
}

func TestScopesAreNeeded(t *testing.T) {
	w := newWorld(t, citustest.New(t), "green")
	id := w.signUp("Scoped")
	reader := w.key(auth.NewKey{Name: "r", Kind: auth.Operator, Scopes: []string{auth.TenantsRead}})
	writer := w.key(auth.NewKey{Name: "w", Kind: auth.Operator, Scopes: []string{auth.TenantsWrite}})
	w.refused(403, "missing_scope", reader, "POST", "/tenants", `{"name":"X"}`)
	w.refused(403, "missing_scope", reader, "PATCH", "/tenants/"+id, `{"name":"X"}`)
	w.refused(403, "missing_scope", reader, "POST", "/sweep", "")
	w.refused(403, "missing_scope", writer, "GET", "/tenants", "")
	w.refused(403, "missing_scope", writer, "POST", "/tenants", `{"name":"X"}`)
	w.refused(401, "invalid_key", "ck_"+strings.Repeat("A", 22)+"_"+strings.Repeat("A", 43), "GET", "/tenants", "")
}

func TestSignUpIsIdempotent(t *testing.T) {
	homes(t, func(t *testing.T, w *world) {
		const body = `{"name":"Once","slug":"once"}`
		first, _ := w.do(201, w.operator, "POST", "/tenants", body, "Idempotency-Key", "k1")
		again, _ := w.do(201, w.operator, "POST", "/tenants", body, "Idempotency-Key", "k1")
		require.Equal(t, first, again)
		w.refused(422, "idempotency_key_reused", w.operator, "POST", "/tenants", `{"name":"Twice","slug":"once"}`, "Idempotency-Key", "k1")
		w.refused(409, "slug_taken", w.operator, "POST", "/tenants", body, "Idempotency-Key", "k2")
		// Another caller's key of the same name is another key.
		w.refused(409, "slug_taken", w.userKey("user:bob"), "POST", "/tenants", body, "Idempotency-Key", "k1")

		// Many at once make one.
		var wg sync.WaitGroup
		ids := make([]string, 6)
		for i := range ids {
			wg.Go(func() {
				o, _ := w.do(201, w.operator, "POST", "/tenants", `{"name":"Parallel"}`, "Idempotency-Key", "k3")
				ids[i] = o["id"].(string)
			})
		}
		wg.Wait()
		for _, id := range ids {
			require.Equal(t, ids[0], id)
		}
		require.Equal(t, []string{"tenant.created"}, w.events(ids[0]))
		// Without a slug of one's own a taken one is no obstacle.
		o, _ := w.do(201, w.operator, "POST", "/tenants", `{"name":"Once"}`)
		require.Regexp(t, `^once-[0-9a-f]{8}$`, o["slug"])
	})
}

func TestSignUpRules(t *testing.T) {
	w := newWorld(t, citustest.New(t), "green")
	for body, field := range map[string]string{
		`{"name":""}`:     "name",
		`{"name":" a"}`:   "name",
		`{"name":"a\tb"}`: "name",
		`{"name":"` + strings.Repeat("ü", 201) + `"}`:           "name",
		`{"name":"a","slug":"ab"}`:                              "slug",
		`{"name":"a","slug":"Abc"}`:                             "slug",
		`{"name":"a","slug":"a--b"}`:                            "slug",
		`{"name":"a","slug":"-ab"}`:                             "slug",
		`{"name":"a","slug":"admin"}`:                           "slug",
		`{"name":"a","slug":"` + strings.Repeat("a", 64) + `"}`: "slug",
		`{"name":"a","home":"blue"}`:                            "home",
		`{}`:                                                    "name",
	} {
		p := w.refused(422, "invalid_field", w.operator, "POST", "/tenants", body)
		require.Equal(t, field, p["errors"].([]any)[0].(object)["field"], body)
	}
	w.refused(422, "invalid_field", w.userKey("user:ann"), "POST", "/tenants", `{"name":"a","owner":"user:bob"}`)
	w.do(201, w.operator, "POST", "/tenants", `{"name":"`+strings.Repeat("ü", 200)+`"}`)
	w.do(201, w.operator, "POST", "/tenants", `{"name":"Admin"}`) // a reserved slug is not derived
}

func TestListIsOwn(t *testing.T) {
	w := newWorld(t, citustest.New(t), "50%")
	ann, bob := w.userKey("user:ann"), w.userKey("user:bob")
	var all, anns []string
	for i := range 5 {
		o, _ := w.do(201, ann, "POST", "/tenants", fmt.Sprintf(`{"name":"Ann %d"}`, i))
		anns = append(anns, o["id"].(string))
		o2, _ := w.do(201, bob, "POST", "/tenants", fmt.Sprintf(`{"name":"Bob %d"}`, i))
		all = append(all, o["id"].(string), o2["id"].(string))
	}
	require.Equal(t, anns, w.pages(ann, "/tenants?limit=2"))
	require.Equal(t, all, w.pages(w.operator, "/tenants?limit=3"))
	require.Equal(t, []string{anns[0]}, w.pages(w.tenantKey(anns[0]), "/tenants"))
	require.Empty(t, w.pages(w.userKey("user:carl"), "/tenants"))
	blue, green := w.pages(w.operator, "/tenants?home=blue"), w.pages(w.operator, "/tenants?home=green")
	require.ElementsMatch(t, all, append(blue, green...))
	w.do(200, w.operator, "POST", "/tenants/"+all[3]+"/suspend", "")
	require.Equal(t, []string{all[3]}, w.pages(w.operator, "/tenants?status=suspended"))
	p := w.refused(422, "invalid_field", ann, "GET", "/tenants?cursor=abcd", "")
	require.Equal(t, "cursor", p["errors"].([]any)[0].(object)["field"])
	w.refused(422, "invalid_field", ann, "GET", "/tenants?status=odd", "")

	// A member reads, and changes nothing.
	_, err := w.Control.Exec(t.Context(), `INSERT INTO control.membership (tenant_id, subject, role) VALUES ($1, 'user:bob', 'member')`, anns[0])
	require.NoError(t, err)
	w.do(200, bob, "GET", "/tenants/"+anns[0], "")
	w.refused(403, "role_too_low", bob, "PATCH", "/tenants/"+anns[0], `{"name":"X"}`)
}

// pages reads a list to its end and returns the ids.
func (w *world) pages(key, path string) []string {
	w.t.Helper()
	var ids []string
	next := path
	for {
		o, _ := w.do(200, key, "GET", next, "")
		for _, item := range o["items"].([]any) {
			ids = append(ids, item.(object)["id"].(string))
		}
		cursor, more := o["next_cursor"].(string)
		if !more {
			return ids
		}
		next = path + "&cursor=" + cursor
	}
}

func TestDomains(t *testing.T) {
	w := newWorld(t, citustest.New(t), "green")
	a, b := w.signUp("A"), w.signUp("B")
	keyA, keyB := w.tenantKey(a), w.tenantKey(b)
	d, _ := w.do(201, keyA, "POST", "/tenants/"+a+"/domains", `{"name":"Bücher.Example"}`)
	require.Equal(t, "xn--bcher-kva.example", d["name"])
	again, _ := w.do(201, keyA, "POST", "/tenants/"+a+"/domains", `{"name":"bücher.example"}`)
	require.Equal(t, d, again)
	record := d["record"].(object)
	require.Equal(t, "_coditect-challenge.xn--bcher-kva.example", record["name"])
	at := "/tenants/" + a + "/domains/" + d["id"].(string)

	w.refused(409, "domain_not_verified", keyA, "POST", at+"/verify", "")
	w.dns.set("_coditect-challenge.xn--bcher-kva.example.", "something else")
	w.refused(409, "domain_not_verified", keyA, "POST", at+"/verify", "")
	w.dns.fail(&net.DNSError{Err: "timeout", IsTimeout: true})
	_, h := w.do(503, keyA, "POST", at+"/verify", "")
	require.Equal(t, "10", h.Get("Retry-After"))
	w.dns.fail(nil)

	// B claims the same name, and cannot take it with A's record.
	dB, _ := w.do(201, keyB, "POST", "/tenants/"+b+"/domains", `{"name":"xn--bcher-kva.example"}`)
	require.NotEqual(t, record["value"], dB["record"].(object)["value"])
	atB := "/tenants/" + b + "/domains/" + dB["id"].(string)
	w.dns.set("_coditect-challenge.xn--bcher-kva.example.", "noise", record["value"].(string))
	w.refused(409, "domain_not_verified", keyB, "POST", atB+"/verify", "")
	d, _ = w.do(200, keyA, "POST", at+"/verify", "")
	require.Equal(t, "verified", d["status"])
	require.NotEmpty(t, d["verified_at"])
	again, _ = w.do(200, keyA, "POST", at+"/verify", "")
	require.Equal(t, d, again)
	w.dns.set("_coditect-challenge.xn--bcher-kva.example.", record["value"].(string), dB["record"].(object)["value"].(string))
	w.refused(409, "domain_taken", keyB, "POST", atB+"/verify", "")
	// Given up, it can be taken.
	w.do(204, keyA, "DELETE", at, "")
	w.refused(404, "domain_not_found", keyA, "DELETE", at, "")
	w.do(200, keyB, "POST", atB+"/verify", "")
	list, _ := w.do(200, keyB, "GET", "/tenants/"+b+"/domains", "")
	require.Len(t, list["items"], 1)
	require.Equal(t, []string{"tenant.created", "domain.verified", "domain.removed"}, w.events(a))

	for _, bad := range []string{"localhost", "a..b", "-a.example", "a_b.example", "1.2.3.4", "::1", "example.com.", "http://example.com", "exa mple.com", "x.123", "a.b:80", strings.Repeat("a", 64) + ".example", "*.example.com"} {
		w.refused(422, "invalid_field", keyA, "POST", "/tenants/"+a+"/domains", fmt.Sprintf(`{"name":%q}`, bad))
	}
	for i := range 20 {
		w.do(201, keyA, "POST", "/tenants/"+a+"/domains", fmt.Sprintf(`{"name":"d%d.example"}`, i))
	}
	w.refused(409, "too_many_domains", keyA, "POST", "/tenants/"+a+"/domains", `{"name":"one-more.example"}`)
}

func TestConfigurationNamesWhatIsWrong(t *testing.T) {
	t.Setenv("CODITECT_GREEN_DSN", "")
	t.Setenv("CODITECT_NEW_TENANT_HOME", "120%")
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/tenants", nil))
	require.Equal(t, 500, w.Code)
	require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
	_, err := open(t.Context())
	require.ErrorContains(t, err, "CODITECT_NEW_TENANT_HOME must be blue, green, or a percentage")
}
