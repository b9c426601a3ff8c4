package projects_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/functions/projects"
	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/edge"
	"github.com/coditect/platform/shared/project"
	"github.com/coditect/platform/shared/tenant"
)

func TestMain(m *testing.M) { citustest.Main(m) }

// server is the function over real HTTP and real databases. Each answer is held
// against the OpenAPI document.
type server struct {
	*testing.T
	url       string
	validator validator.Validator
	key       string
}

// newServer returns the function and keys of two tenants and an operator.
func newServer(t *testing.T, home tenant.Home) (s *server, other string, operator string, ids [2]tenant.ID) {
	t.Helper()
	env := citustest.New(t)
	ids = [2]tenant.ID{env.NewTenant(t, home), env.NewTenant(t, home)}
	var secrets [3]string
	for i, n := range []auth.NewKey{
		{Kind: auth.TenantKey, Tenant: ids[0], Name: "a", Scopes: []string{auth.ProjectsRead, auth.ProjectsWrite}},
		{Kind: auth.TenantKey, Tenant: ids[1], Name: "b", Scopes: []string{auth.ProjectsRead}},
		{Kind: auth.Operator, Name: "o", Scopes: []string{auth.ProjectsRead}},
	} {
		secret, _, err := auth.CreateKey(t.Context(), env.Control, n)
		require.NoError(t, err)
		secrets[i] = secret
	}
	api := projects.New(edge.Config{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}, auth.NewKeys(env.Databases), project.New(env.Door, time.Now))
	srv := httptest.NewServer(api)
	t.Cleanup(srv.Close)
	s = &server{T: t, url: srv.URL, key: secrets[0]}
	resp, err := http.Get(srv.URL + "/openapi.json")
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	doc, err := libopenapi.NewDocument(text)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(doc.GetVersion(), "3.1"), doc.GetVersion())
	v, errs := validator.NewValidator(doc)
	require.Empty(t, errs)
	ok, problems := v.ValidateDocument()
	for _, p := range problems {
		t.Log(p.Message, p.Reason)
	}
	require.True(t, ok, "the OpenAPI document is not valid")
	s.validator = v
	return s, secrets[1], secrets[2], ids
}

// do sends a request and wants a status. The answer must be what the OpenAPI
// document says.
func (s *server) do(status int, method, path, body string, headers ...string) (*http.Response, map[string]any) {
	s.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, s.url+path, strings.NewReader(body))
	require.NoError(s, err)
	req.Header.Set("Authorization", "Bearer "+s.key)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(s, err)
	raw, err := io.ReadAll(resp.Body)
	require.NoError(s, err)
	require.NoError(s, resp.Body.Close())
	require.Equal(s, status, resp.StatusCode, "%s %s: %s", method, path, raw)
	resp.Body = io.NopCloser(bytes.NewReader(raw))
	ok, errs := s.validator.ValidateHttpResponse(req, resp)
	for _, e := range errs {
		s.Log(e.Message, e.Reason, e.SchemaValidationErrors)
	}
	require.True(s, ok, "%s %s: the answer is not what the document says: %s", method, path, raw)
	if len(raw) == 0 {
		return resp, nil
	}
	var m map[string]any
	require.NoError(s, json.Unmarshal(raw, &m), "%s", raw)
	return resp, m
}

// refused sends a request that must be refused, naming a code and a field.
func (s *server) refused(status int, code, field, method, path, body string, headers ...string) {
	s.Helper()
	_, m := s.do(status, method, path, body, headers...)
	require.Equal(s, code, m["code"], "%v", m)
	if field != "" {
		require.NotEmpty(s, m["errors"], "%v", m)
		require.Equal(s, field, m["errors"].([]any)[0].(map[string]any)["field"], "%v", m)
	}
}

func (s *server) follow(resp *http.Response) string {
	s.Helper()
	at, err := resp.Request.URL.Parse(resp.Header.Get("Location"))
	require.NoError(s, err)
	return at.Path
}

func bothHomes(t *testing.T, f func(t *testing.T, home tenant.Home)) {
	for _, h := range []tenant.Home{tenant.Blue, tenant.Green} {
		t.Run(string(h), func(t *testing.T) { f(t, h) })
	}
}

func TestOneProjectsLife(t *testing.T) {
	bothHomes(t, func(t *testing.T, home tenant.Home) {
		s, _, _, _ := newServer(t, home)
		resp, p := s.do(201, "POST", "/projects", `{"name":"Apollo"}`)
		require.Equal(t, `"1"`, resp.Header.Get("ETag"))
		at := s.follow(resp)
		require.Equal(t, "/projects/"+p["id"].(string), at)
		_, got := s.do(200, "GET", at, "")
		require.Equal(t, p, got)

		resp, task := s.do(201, "POST", at+"/tasks", `{"title":"Land","labels":["moon"],"priority":3,"due_date":"2031-02-03","assignee":"ann"}`)
		taskAt := s.follow(resp)
		resp, got = s.do(200, "GET", taskAt, "")
		require.Equal(t, task, got)
		etag := resp.Header.Get("ETag")
		resp, got = s.do(200, "PATCH", taskAt, `{"status":"done","assignee":null,"due_date":null,"labels":null}`, "If-Match", etag, "Content-Type", "application/merge-patch+json")
		require.Equal(t, `"2"`, resp.Header.Get("ETag"))
		require.Nil(t, got["assignee"])
		require.Nil(t, got["due_date"])
		require.Equal(t, []any{}, got["labels"])
		require.Equal(t, 3.0, got["priority"])
		s.refused(412, "version_mismatch", "", "PATCH", taskAt, `{"title":"x"}`, "If-Match", etag)
		s.refused(412, "version_mismatch", "", "DELETE", taskAt, "", "If-Match", etag)
		s.do(200, "PATCH", taskAt, `{"title":"without If-Match"}`)

		resp, c := s.do(201, "POST", taskAt+"/comments", `{"body":"well done"}`)
		commentAt := s.follow(resp)
		require.NotEmpty(t, c["author"])
		s.do(200, "PATCH", commentAt, `{"body":"well done!"}`, "If-Match", `"1"`)
		_, page := s.do(200, "GET", taskAt+"/comments", "")
		require.Len(t, page["items"], 1)
		s.do(204, "DELETE", commentAt, "", "If-Match", `"2"`)
		s.do(404, "GET", commentAt, "")

		resp, _ = s.do(201, "POST", "/labels", `{"name":"sun","color":"#ffee00"}`)
		labelAt := s.follow(resp)
		s.do(200, "PATCH", labelAt, `{"name":"sol","color":null}`)
		s.refused(409, "label_exists", "name", "POST", "/labels", `{"name":"sol"}`)
		_, page = s.do(200, "GET", "/labels", "")
		require.Len(t, page["items"], 2)
		s.do(200, "GET", labelAt, "")
		s.do(204, "DELETE", labelAt, "")

		s.do(200, "PATCH", at, `{"archived":true}`)
		_, page = s.do(200, "GET", "/projects?archived=true&sort=name", "")
		require.Len(t, page["items"], 1)
		s.refused(409, "project_not_empty", "", "DELETE", at, "")
		s.do(204, "DELETE", at+"?tasks=delete", "", "If-Match", "*")
		s.refused(404, "task_not_found", "", "GET", taskAt, "")
		s.refused(404, "project_not_found", "", "GET", at+"/tasks", "")
		s.refused(404, "task_not_found", "", "GET", taskAt+"/comments", "")
	})
}

func TestListsFilterSortAndPage(t *testing.T) {
	bothHomes(t, func(t *testing.T, home tenant.Home) {
		s, _, _, _ := newServer(t, home)
		_, p := s.do(201, "POST", "/projects", `{"name":"Apollo"}`)
		tasks := "/projects/" + p["id"].(string) + "/tasks"
		for i := range 25 {
			s.do(201, "POST", tasks, fmt.Sprintf(`{"title":"task %02d","priority":%d,"status":%q,"labels":["l%d"],"due_date":"2031-01-%02d","description":"the quick fox %d"}`,
				i, i%5, []string{"todo", "blocked", "done"}[i%3], i%2, i+1, i))
		}
		count := func(query string) int {
			t.Helper()
			_, page := s.do(200, "GET", "/tasks?limit=100&"+query, "")
			_, same := s.do(200, "GET", tasks+"?limit=100&"+query, "")
			require.Len(t, same["items"], len(page["items"].([]any)))
			return len(page["items"].([]any))
		}
		require.Equal(t, 25, count(""))
		require.Equal(t, 9, count("status=todo"))
		require.Equal(t, 17, count("status=todo,done"))
		require.Equal(t, 10, count("priority=0,4"))
		require.Equal(t, 13, count("label=l0"))
		require.Equal(t, 0, count("label=l0,l1"))
		require.Equal(t, 3, count("due_before=2031-01-04"))
		require.Equal(t, 2, count("due_after=2031-01-23"))
		require.Equal(t, 1, count("q="+url.QueryEscape(`"fox 7"`)))
		require.Equal(t, 24, count("q="+url.QueryEscape("quick -24")))
		require.Equal(t, 0, count("assignee=ann"))
		require.Equal(t, 25, count("parent=none"))

		var seen []string
		path := "/tasks?sort=-title&limit=10&status=todo,blocked,done"
		cursor := ""
		for n := 0; ; n++ {
			_, page := s.do(200, "GET", path+cursor, "")
			for _, item := range page["items"].([]any) {
				seen = append(seen, item.(map[string]any)["title"].(string))
			}
			next, more := page["next_cursor"].(string)
			if !more {
				require.Equal(t, 2, n)
				break
			}
			cursor = "&cursor=" + next
		}
		require.Len(t, seen, 25)
		require.Equal(t, "task 24", seen[0])
		require.Equal(t, "task 00", seen[24])
		s.refused(422, "invalid_field", "cursor", "GET", "/tasks?sort=title&limit=10"+cursor, "")
		s.refused(422, "invalid_field", "cursor", "GET", "/tasks?sort=-title&limit=10"+cursor, "")
		s.refused(422, "invalid_field", "cursor", "GET", "/tasks?cursor=abc", "")
	})
}

func TestBadInputIsNamed(t *testing.T) {
	s, _, _, _ := newServer(t, tenant.Green)
	_, p := s.do(201, "POST", "/projects", `{"name":"Apollo"}`)
	tasks := "/projects/" + p["id"].(string) + "/tasks"
	_, task := s.do(201, "POST", tasks, `{"title":"t"}`)
	at := "/tasks/" + task["id"].(string)
	for _, c := range []struct{ field, method, path, body string }{
		{"name", "POST", "/projects", `{}`},
		{"name", "POST", "/projects", `{"name":""}`},
		{"colour", "POST", "/projects", `{"name":"x","colour":"red"}`},
		{"title", "POST", tasks, `{"title":"` + strings.Repeat("x", 201) + `"}`},
		{"title", "POST", tasks, `{"title":7}`},
		{"status", "POST", tasks, `{"title":"x","status":"open"}`},
		{"priority", "POST", tasks, `{"title":"x","priority":5}`},
		{"due_date", "POST", tasks, `{"title":"x","due_date":"tomorrow"}`},
		{"labels", "POST", tasks, `{"title":"x","labels":["1","2","3","4","5","6","7","8","9","10","11","12","13","14","15","16","17","18","19","20","21"]}`},
		{"labels[0]", "POST", tasks, `{"title":"x","labels":["a,b"]}`},
		{"parent_id", "POST", tasks, `{"title":"x","parent_id":"` + p["id"].(string) + `"}`},
		{"parent_id", "POST", tasks, `{"title":"x","parent_id":"7"}`},
		{"title", "PATCH", at, `{"title":null}`},
		{"status", "PATCH", at, `{"status":null}`},
		{"parent_id", "PATCH", at, `{"parent_id":"` + task["id"].(string) + `"}`},
		{"id", "GET", "/tasks/7", ""},
		{"limit", "GET", "/tasks?limit=101", ""},
		{"limit", "GET", "/tasks?limit=0", ""},
		{"sort", "GET", "/tasks?sort=colour", ""},
		{"status[1]", "GET", "/tasks?status=todo,open", ""},
		{"priority[0]", "GET", "/tasks?priority=9", ""},
		{"due_before", "GET", "/tasks?due_before=soon", ""},
		{"parent", "GET", "/tasks?parent=all", ""},
		{"colour", "GET", "/tasks?colour=red", ""},
		{"tasks", "DELETE", "/projects/" + p["id"].(string) + "?tasks=keep", ""},
	} {
		s.refused(422, "invalid_field", c.field, c.method, c.path, c.body)
	}
	s.refused(422, "invalid_field", "If-Match", "DELETE", at, "", "If-Match", "1")
	s.refused(412, "weak_etag", "", "DELETE", at, "", "If-Match", `W/"1"`)
	s.refused(422, "invalid_field", "Idempotency-Key", "POST", tasks, `{"title":"x"}`, "Idempotency-Key", strings.Repeat("k", 256))
}

func TestAPostSentAgainGivesTheFirstAnswer(t *testing.T) {
	bothHomes(t, func(t *testing.T, home tenant.Home) {
		s, _, _, _ := newServer(t, home)
		first, p := s.do(201, "POST", "/projects", `{"name":"Apollo"}`, "Idempotency-Key", "k1")
		require.Empty(t, first.Header.Get("Idempotent-Replayed"))
		s.do(200, "PATCH", "/projects/"+p["id"].(string), `{"name":"Changed"}`)
		again, q := s.do(201, "POST", "/projects", `{"name":"Apollo"}`, "Idempotency-Key", "k1")
		require.Equal(t, p, q)
		require.Equal(t, "true", again.Header.Get("Idempotent-Replayed"))
		require.Equal(t, first.Header.Get("Location"), again.Header.Get("Location"))
		require.Equal(t, first.Header.Get("ETag"), again.Header.Get("ETag"))
		s.refused(422, "idempotency_key_reused", "Idempotency-Key", "POST", "/projects", `{"name":"Gemini"}`, "Idempotency-Key", "k1")
		s.refused(422, "idempotency_key_reused", "Idempotency-Key", "POST", "/labels", `{"name":"Apollo"}`, "Idempotency-Key", "k1")
		_, page := s.do(200, "GET", "/projects", "")
		require.Len(t, page["items"], 1)
	})
}

func TestAccess(t *testing.T) {
	s, other, operator, ids := newServer(t, tenant.Green)
	_, p := s.do(201, "POST", "/projects", `{"name":"Apollo"}`)
	at := "/projects/" + p["id"].(string)
	mine := s.key
	s.refused(404, "tenant_not_found", "", "GET", at, "", "X-Tenant-ID", ids[1].String())

	s.key = other
	s.refused(404, "project_not_found", "", "GET", at, "")
	s.refused(404, "tenant_not_found", "", "GET", at, "", "X-Tenant-ID", ids[0].String())
	s.refused(403, "missing_scope", "", "POST", "/projects", `{"name":"x"}`)
	_, page := s.do(200, "GET", "/projects", "")
	require.Empty(t, page["items"])

	s.key = operator
	s.refused(422, "invalid_field", "X-Tenant-ID", "GET", at, "")
	s.do(200, "GET", at, "", "X-Tenant-ID", ids[0].String())
	s.refused(404, "project_not_found", "", "GET", at, "", "X-Tenant-ID", ids[1].String())

	s.key = mine + "x"
	_, m := s.do(401, "GET", at, "")
	require.NotEmpty(t, m["code"])
}

// A cursor is bound to its tenant: another tenant's is refused, not read.
func TestACursorIsNoUseToAnotherTenant(t *testing.T) {
	s, other, _, _ := newServer(t, tenant.Green)
	for range 2 {
		s.do(201, "POST", "/projects", `{"name":"x"}`)
	}
	_, page := s.do(200, "GET", "/projects?limit=1", "")
	s.key = other
	s.refused(422, "invalid_field", "cursor", "GET", "/projects?limit=1&cursor="+page["next_cursor"].(string), "")
}
