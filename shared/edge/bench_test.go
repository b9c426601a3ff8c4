package edge_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/edge"
	"github.com/coditect/platform/shared/tenant"
)

type row struct {
	ID        tenant.ID `json:"id" format:"uuid"`
	Title     string    `json:"title"`
	Status    string    `json:"status"`
	Priority  int       `json:"priority"`
	Labels    []string  `json:"labels" nullable:"false"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

type page struct {
	Body struct {
		Items      []row  `json:"items" nullable:"false"`
		NextCursor string `json:"next_cursor,omitempty"`
	}
}

type listInput struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"100" default:"20"`
	Status string `query:"status" enum:"open,done"`
	Cursor string `query:"cursor" maxLength:"2048"`
}

// devNull is a ResponseWriter that costs nothing.
type devNull struct{ h http.Header }

func (d *devNull) Header() http.Header         { return d.h }
func (d *devNull) Write(b []byte) (int, error) { return len(b), nil }
func (d *devNull) WriteHeader(int)             {}

// pages is an API with one operation that returns rows from memory.
func pages(rows int) *edge.API {
	a := edge.New(edge.Config{Name: "bench", Version: "1", Logger: edge.NewLogger(io.Discard, nil)}, names{})
	out := &page{}
	out.Body.Items = make([]row, rows)
	for i := range out.Body.Items {
		out.Body.Items[i] = row{ID: tenant.NewID(), Title: "Write the release notes of the next version", Status: "open", Priority: 3,
			Labels: []string{"docs", "release"}, CreatedAt: time.Now().UTC(), UpdatedAt: time.Now().UTC()}
	}
	edge.Register(a, edge.Operation{ID: "list", Method: "GET", Path: "/tasks", Summary: "List", Scope: auth.ProjectsRead},
		func(context.Context, auth.Principal, *listInput) (*page, error) { return out, nil })
	return a
}

// benchmarkEdge measures all of edge, request log included, around a handler
// that returns rows from memory.
func benchmarkEdge(b *testing.B, rows int) {
	a := pages(rows)
	r := httptest.NewRequest(http.MethodGet, "/tasks?limit=20&status=open", http.NoBody)
	r.Header.Set("Authorization", "Bearer good")
	w := httptest.NewRecorder()
	a.ServeHTTP(w, r)
	require.Equal(b, 200, w.Code, w.Body.String())
	b.ReportAllocs()
	for b.Loop() {
		a.ServeHTTP(&devNull{h: make(http.Header, 8)}, r)
	}
}

func BenchmarkEdgeEmptyPage(b *testing.B) { benchmarkEdge(b, 0) }
func BenchmarkEdgePageOf20(b *testing.B)  { benchmarkEdge(b, 20) }

// BenchmarkPageOf20OverHTTP has the client, on the same cores, in its figures.
func BenchmarkPageOf20OverHTTP(b *testing.B) {
	server := httptest.NewServer(pages(20))
	defer server.Close()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, server.URL+"/tasks?limit=20&status=open", nil)
			require.NoError(b, err)
			r.Header.Set("Authorization", "Bearer good")
			resp, err := client.Do(r)
			require.NoError(b, err)
			_, err = io.Copy(io.Discard, resp.Body)
			require.NoError(b, err)
			require.NoError(b, resp.Body.Close())
		}
	})
}

// BenchmarkNew is what building an API with ten operations adds to a cold start.
func BenchmarkNew(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		a := edge.New(edge.Config{Name: "bench", Version: "1", Logger: edge.NewLogger(io.Discard, nil)}, names{})
		for _, p := range []string{"a", "b", "c", "d", "e"} {
			edge.Register(a, edge.Operation{ID: "list" + p, Method: "GET", Path: "/" + p, Summary: "List", Scope: auth.ProjectsRead},
				func(context.Context, auth.Principal, *listInput) (*page, error) { return nil, nil })
			edge.Register(a, edge.Operation{ID: "make" + p, Method: "POST", Path: "/" + p, Summary: "Make", Scope: auth.ProjectsRead},
				func(context.Context, auth.Principal, *makeInput) (*thingOutput, error) { return nil, nil })
		}
	}
}
