package edge_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/GoogleCloudPlatform/functions-framework-go/funcframework"
	"github.com/GoogleCloudPlatform/functions-framework-go/functions"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/edge"
)

// A function registers its handler with the framework and serves it with
// edge.Serve: whoever runs it with the framework's own server gets the same.
func TestFrameworkServesTheSameHandler(t *testing.T) {
	a, _ := newAPI(t, edge.Config{})
	functions.HTTP("Things", a.ServeHTTP)
	t.Setenv("FUNCTION_TARGET", "Things")
	done := make(chan error, 1)
	listener := httptest.NewServer(a)
	defer listener.Close()
	port := freePort(t)
	go func() { done <- funcframework.StartHostPort("127.0.0.1", port) }()
	for _, path := range []string{"/health", "/openapi.json", "/things/" + someTenant.String(), "/nothing"} {
		theirs := get(t, "http://127.0.0.1:"+port+path, done)
		ours := get(t, listener.URL+path, nil)
		require.Equal(t, ours, theirs, path)
	}
}

func get(t *testing.T, url string, failed <-chan error) string {
	t.Helper()
	var body string
	require.Eventually(t, func() bool {
		select {
		case err := <-failed:
			require.NoError(t, err)
		default:
		}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		require.NoError(t, err)
		r.Header.Set("Authorization", "Bearer good")
		r.Header.Set("X-Request-ID", "same")
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			return false // the framework's server is not up yet
		}
		defer func() { _ = resp.Body.Close() }()
		b, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		body = resp.Status + " " + resp.Header.Get("Content-Type") + "\n" + string(b)
		return true
	}, 5e9, 5e6)
	return body
}
