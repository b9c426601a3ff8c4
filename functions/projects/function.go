// Package projects serves a tenant's own data over HTTP: projects, tasks, comments
// and labels. It decodes, authorises, asks shared/project, and replies.
//
// The tenant is the one the caller's credential is bound to; an operator names it
// in X-Tenant-ID.
//
//   - Reading needs the scope projects:read, all else projects:write.
//   - Every row has an ETag. PATCH (a JSON merge patch: what is absent stays, null
//     empties) and DELETE take If-Match and answer 412 when the row has changed since.
//     Without If-Match the change is made to whichever version is there: a merge patch
//     names the fields it means, so it overwrites nothing else.
//   - POST takes an Idempotency-Key: for 24 hours the same key gives the first answer
//     again, with Idempotent-Replayed: true, also across a move of the tenant.
//   - Lists answer with next_cursor while there is more; it goes with the list's sort
//     and filters.
package projects

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/GoogleCloudPlatform/functions-framework-go/functions"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/directory"
	"github.com/coditect/platform/shared/edge"
	"github.com/coditect/platform/shared/project"
)

func init() {
	functions.HTTP("Projects", func(w http.ResponseWriter, r *http.Request) {
		h, _, err := Handler()
		if err != nil {
			edge.Logger().Error("the function cannot start", "error", err.Error())
			http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// Handler returns the function's handler, made once from the environment, and what
// closes it. No connection is opened before a request needs one.
func Handler() (http.Handler, func(), error) {
	s, err := start()
	return s.handler, s.close, err
}

type started struct {
	handler http.Handler
	close   func()
}

var start = sync.OnceValues(func() (started, error) {
	ctx := context.Background()
	cfg, err := readConfig(ctx)
	if err != nil {
		return started{}, err
	}
	dbs, door, _, err := directory.Open(ctx, cfg.Databases)
	if err != nil {
		return started{}, err
	}
	return started{New(edge.Config{}, auth.NewKeys(dbs), project.New(door, time.Now)), dbs.Close}, nil
})

// New returns the function's API. Name, version and description are filled in.
func New(cfg edge.Config, authenticator auth.Authenticator, store *project.Store) *edge.API {
	cfg.Name, cfg.Version = "projects", "1"
	cfg.Description = "A tenant's projects, tasks, comments and labels"
	api := edge.New(cfg, authenticator)
	s := &service{store}
	s.registerProjects(api)
	s.registerTasks(api)
	s.registerComments(api)
	s.registerLabels(api)
	return api
}

// service holds what the handlers need.
type service struct{ store *project.Store }
