// Package client speaks to the platform's functions over HTTP: JSON in, JSON out,
// problem+json as errors.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Client calls the functions behind one address.
type Client struct {
	base *url.URL
	key  string
	http *http.Client
}

// patience is how long an answer may take: a preflight over many schemas is the slowest.
const patience = 2 * time.Minute

// New returns a client of the functions behind base ("http://localhost:8080") that
// authenticates with an API key.
func New(base, key string) (*Client, error) {
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("must be an address such as http://localhost:8080; it is %q", base)
	}
	return &Client{base: u, key: key, http: &http.Client{Timeout: patience}}, nil
}

// Patient returns a client that waits for an answer for as long as d.
func (c *Client) Patient(d time.Duration) *Client {
	patient := *c
	patient.http = &http.Client{Timeout: d}
	return &patient
}

// Problem is an answer other than 2xx (RFC 9457).
type Problem struct {
	Status    int     `json:"status"`
	Title     string  `json:"title"`
	Code      string  `json:"code"`
	Detail    string  `json:"detail"`
	RequestID string  `json:"request_id"`
	Errors    []Field `json:"errors"`
}

// Field is one broken rule of what was sent.
type Field struct {
	Name    string `json:"field"`
	Message string `json:"message"`
}

func (p *Problem) Error() string { return p.Detail }

// Unavailable reports whether the same call may work a little later.
func (p *Problem) Unavailable() bool {
	return p.Status == http.StatusBadGateway || p.Status == http.StatusServiceUnavailable || p.Status == http.StatusGatewayTimeout
}

// UnreachableError says that there was no answer.
type UnreachableError struct {
	Base  string
	Cause error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("no answer from %s: %v", e.Base, e.Cause)
}

func (e *UnreachableError) Unwrap() error { return e.Cause }

// maxAnswer bounds what is read; 100,000 findings fit.
const maxAnswer = 64 << 20

// Do sends one request: in, if not nil, as JSON. It returns the answer's body, nil when
// there is none. Its errors are *Problem and *UnreachableError.
func (c *Client) Do(ctx context.Context, method, path string, query url.Values, in any) (json.RawMessage, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	address := c.base.JoinPath(path)
	address.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, method, address.String(), body)
	if err != nil {
		return nil, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Authorization", "Bearer "+c.key)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode/100 != 2 {
		return nil, problemOf(resp, answer)
	}
	if len(answer) == 0 {
		return nil, nil
	}
	if !json.Valid(answer) {
		return nil, &Problem{Status: resp.StatusCode, Code: "no_json", Detail: fmt.Sprintf("%s %s did not answer with JSON; is this the platform's address?", method, address)}
	}
	return answer, nil
}

func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // without method and address, which the sentence has
	}
	return &UnreachableError{Base: c.base.String(), Cause: err}
}

// problemOf reads a problem, or makes one of whatever a proxy in between has sent.
func problemOf(resp *http.Response, body []byte) *Problem {
	p := &Problem{}
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")) // "" is no problem+json either
	if !strings.HasSuffix(media, "json") || json.Unmarshal(body, p) != nil || p.Detail == "" {
		p = &Problem{Detail: "the answer was " + resp.Status}
	}
	p.Status = resp.StatusCode
	return p
}
