// Package gateway is one address in front of all functions on a developer's
// machine: http://localhost:8080/NAME/… goes to the function NAME with the prefix
// taken off, as the load balancer's path rules do in production.
package gateway

import (
	"encoding/json"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"time"
)

// New returns the gateway's handler. Targets maps a function's name to its base URL.
func New(targets map[string]*url.URL) http.Handler {
	names := slices.Sorted(maps.Keys(targets))
	transport := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
		MaxIdleConnsPerHost: 256,
		IdleConnTimeout:     30 * time.Second, // below the functions' own: a request must not meet a closing connection
	}
	mux := http.NewServeMux()
	for name, target := range targets {
		proxy := &httputil.ReverseProxy{
			Transport: transport,
			Rewrite: func(r *httputil.ProxyRequest) {
				r.SetURL(target)
				r.SetXForwarded()
				r.Out.Host = r.In.Host
			},
			ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
				unreachable(w, r, name, err)
			},
			ErrorLog: log.New(io.Discard, "", 0), // the handler above answers; the functions log
		}
		mux.Handle("/"+name+"/", http.StripPrefix("/"+name, proxy))
	}
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		functions := map[string]string{}
		for _, n := range names {
			functions[n] = "/" + n + "/openapi.json"
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"functions": functions}) // the caller is gone
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		problem(w, http.StatusNotFound, "function_unknown", "There is no function at "+r.URL.Path+". The first part of the path must be one of: "+strings.Join(names, ", ")+".")
	})
	return mux
}

func unreachable(w http.ResponseWriter, r *http.Request, name string, err error) {
	if r.Context().Err() != nil {
		return // the caller has gone away
	}
	w.Header().Set("Retry-After", "1")
	problem(w, http.StatusBadGateway, "function_unreachable", "The function "+name+" does not answer: "+err.Error())
}

func problem(w http.ResponseWriter, status int, code, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{ // the caller is gone
		"type": "about:blank", "title": http.StatusText(status), "status": status, "code": code, "detail": detail,
	})
}
