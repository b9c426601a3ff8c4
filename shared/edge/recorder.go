package edge

import "net/http"

// recorder keeps back the status until the first byte, so that jsonFormat can
// still set Content-Length and a failed encoding can still become a 500.
type recorder struct {
	http.ResponseWriter
	status int
	wrote  bool
	bytes  int64
	err    error // of a write: the client went away
}

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(status int) {
	if !r.wrote {
		r.status = status
	}
}

// Write implements http.ResponseWriter.
func (r *recorder) Write(b []byte) (int, error) {
	r.finish()
	n, err := r.ResponseWriter.Write(b)
	r.bytes += int64(n)
	if err != nil {
		r.err = err
	}
	return n, err
}

// finish sends the status if it is still pending.
func (r *recorder) finish() {
	if !r.wrote {
		r.wrote = true
		r.ResponseWriter.WriteHeader(r.code())
	}
}

func (r *recorder) code() int {
	if r.status == 0 {
		return http.StatusOK
	}
	return r.status
}

// Unwrap lets http.ResponseController, and huma's read deadline, reach the
// connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// discard is the writer of a request that came from nowhere.
type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) WriteHeader(int)             {}
