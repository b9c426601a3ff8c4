package gateway_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/scripts/internal/gateway"
)

func TestPrefixIsTakenOff(t *testing.T) {
	function := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Method, " ", r.URL.RequestURI(), " ", r.Header.Get("Authorization"))
	}))
	defer function.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	srv := httptest.NewServer(gateway.New(map[string]*url.URL{"projects": parse(t, function.URL), "tenants": parse(t, gone.URL)}))
	defer srv.Close()

	for path, want := range map[string]string{
		"/projects/tasks?limit=2": "GET /tasks?limit=2 Bearer k",
		"/projects/":              "GET / Bearer k",
		"/projects/tasks/a%2Fb":   "GET /tasks/a%2Fb Bearer k", // an encoded slash stays one
	} {
		status, body := get(t, srv.URL+path)
		require.Equal(t, http.StatusOK, status)
		require.Equal(t, want, body)
	}

	status, body := get(t, srv.URL+"/tenants/tenants")
	require.Equal(t, http.StatusBadGateway, status)
	require.Contains(t, body, "function_unreachable")

	status, body = get(t, srv.URL+"/nowhere/x")
	require.Equal(t, http.StatusNotFound, status)
	require.Contains(t, body, "projects, tenants")

	status, body = get(t, srv.URL+"/")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, "/projects/openapi.json")
}

func parse(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	require.NoError(t, err)
	return u
}

func get(t *testing.T, target string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, target, nil)
	require.NoError(t, err)
	req.Header.Set("Authorization", "Bearer k")
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(body)
}
