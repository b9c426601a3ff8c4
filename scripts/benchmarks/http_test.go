package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheClientReadsEveryKindOfAnswer(t *testing.T) {
	big := strings.Repeat("x", 100_000)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/chunked":
			_, _ = w.Write([]byte(big))
		case "/empty":
			w.WriteHeader(http.StatusNoContent)
		case "/refused":
			http.Error(w, "because", http.StatusForbidden)
		default:
			_, _ = w.Write([]byte("short"))
		}
	}))
	t.Cleanup(srv.Close)
	c, err := dial(t.Context(), srv.Listener.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	for range 2 { // one connection for all: each answer was read to its end
		require.NoError(t, c.do(request{method: http.MethodGet, path: "/"}, http.StatusOK))
		require.NoError(t, c.do(request{method: http.MethodGet, path: "/chunked"}, http.StatusOK))
		require.NoError(t, c.do(request{method: http.MethodGet, path: "/empty"}, http.StatusNoContent))
		require.NoError(t, c.do(request{method: http.MethodPost, path: "/", secret: "s", body: []byte("{}")}, http.StatusOK))
	}
	require.ErrorContains(t, c.do(request{method: http.MethodGet, path: "/refused"}, http.StatusOK), "403, not 200: because")
}
