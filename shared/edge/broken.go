package edge

import (
	"log/slog"
	"net/http"
)

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
