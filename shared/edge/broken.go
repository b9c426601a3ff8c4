package edge

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
)

// Lazy is a function that is made at its first request: an instance answers the platform's
// probes at once, and what is wrong with its settings is said by every answer.
func Lazy(open func(context.Context) (http.Handler, error)) http.Handler {
	once := sync.OnceValues(func() (http.Handler, error) { return open(context.Background()) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, err := once()
		if err != nil {
			h = Broken(err)
		}
		h.ServeHTTP(w, r)
	})
}

// Broken answers every request with 500: the function could not be made, which
// is logged each time, for a missing setting should not be found by guessing.
func Broken(err error) http.Handler {
	log := Logger()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req := &request{id: requestID(r.Header), trace: traceID(r.Header), path: r.URL.Path}
		req.rec.ResponseWriter = w
		w.Header().Set("X-Request-Id", req.id)
		log.LogAttrs(r.Context(), slog.LevelError, "the function could not start", slog.String("error", err.Error()), slog.String("request_id", req.id))
		req.fail(err)
	})
}
