// Package edgetest calls a function in tests and holds every answer against the
// function's own OpenAPI document, which must be valid 3.1.
package edgetest

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/stretchr/testify/require"
)

// Client calls a handler. The zero value is of no use; see New.
type Client struct {
	t       testing.TB
	handler http.Handler
	valid   validator.Validator
}

// New reads and checks the handler's OpenAPI document.
func New(t testing.TB, handler http.Handler) *Client {
	t.Helper()
	rec := httptest.NewRecorder()
	handler.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/openapi.json", nil))
	require.Equal(t, http.StatusOK, rec.Code)
	doc, err := libopenapi.NewDocument(rec.Body.Bytes())
	require.NoError(t, err)
	v, errs := validator.NewValidator(doc)
	require.Empty(t, errs)
	ok, problems := v.ValidateDocument()
	require.True(t, ok, "%v", problems)
	require.Equal(t, "3.1.0", doc.GetVersion())
	return &Client{t: t, handler: handler, valid: v}
}

// Do sends a request as the holder of key and wants a status. It returns the body as
// JSON (nil when there is none) and the headers. Headers come in pairs.
func (c *Client) Do(status int, key, method, path, body string, headers ...string) (map[string]any, http.Header) {
	c.t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if key != "" {
		r.Header.Set("Authorization", "Bearer "+key)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	rec := httptest.NewRecorder()
	c.handler.ServeHTTP(rec, r)
	text := rec.Body.Bytes()
	require.Equal(c.t, status, rec.Code, "%s %s: %s", method, path, text)
	if status != http.StatusMethodNotAllowed { // no operation answers with it
		ok, problems := c.valid.ValidateHttpResponse(r, &http.Response{StatusCode: rec.Code, Header: rec.Header(), Body: io.NopCloser(bytes.NewReader(text))})
		require.True(c.t, ok, "%s %s: %s: %v", method, path, text, problems)
	}
	if len(text) == 0 {
		return nil, rec.Header()
	}
	var o map[string]any
	require.NoError(c.t, json.Unmarshal(text, &o))
	return o, rec.Header()
}

// Refused is Do for a problem, whose code it checks.
func (c *Client) Refused(status int, code, key, method, path, body string, headers ...string) map[string]any {
	c.t.Helper()
	p, h := c.Do(status, key, method, path, body, headers...)
	require.Equal(c.t, "application/problem+json", h.Get("Content-Type"))
	require.Equal(c.t, code, p["code"], p)
	return p
}
