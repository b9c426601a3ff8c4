package traffic

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// API is a caller of the platform's HTTP API: one base URL, one key.
type API struct {
	Base   string // of the gateway: http://localhost:8080
	Key    string
	Tenant string // for an operator's key: the tenant it acts for
	HTTP   *http.Client
}

// StatusError is an answer other than 2xx.
type StatusError struct {
	Request string
	Status  int
	Body    string
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("%s: %d %s: %s", e.Request, e.Status, http.StatusText(e.Status), e.Body)
}

// Do sends one request and reads the JSON answer into out, if given. Headers
// come in pairs.
func (a API) Do(ctx context.Context, method, path string, in, out any, headers ...string) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.Base+path, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Authorization", "Bearer "+a.Key)
	if a.Tenant != "" {
		req.Header.Set("X-Tenant-ID", a.Tenant)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := a.HTTP.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	if err != nil {
		return fmt.Errorf("%s %s: read the answer: %w", method, path, err)
	}
	if resp.StatusCode/100 != 2 {
		return &StatusError{Request: method + " " + path, Status: resp.StatusCode, Body: string(bytes.TrimSpace(answer[:min(len(answer), 300)]))}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

// Tasks is the client of a tenant of our own: tasks of one project, over HTTP
// through the gateway.
type Tasks struct {
	API     API
	Project string
}

// Kind implements Client.
func (Tasks) Kind() string { return "task" }

// Create implements Client.
func (c Tasks) Create(ctx context.Context, key, text string) (string, error) {
	var made struct{ ID string }
	err := c.API.Do(ctx, http.MethodPost, "/projects/projects/"+c.Project+"/tasks", map[string]string{"title": text}, &made, "Idempotency-Key", key)
	return made.ID, refusal(err)
}

// Update implements Client.
func (c Tasks) Update(ctx context.Context, id, text string) error {
	return refusal(c.API.Do(ctx, http.MethodPatch, "/projects/tasks/"+id, map[string]string{"title": text}, nil, "Content-Type", "application/merge-patch+json"))
}

// Read implements Client.
func (c Tasks) Read(ctx context.Context, id string) (string, error) {
	var task struct{ Title string }
	err := c.API.Do(ctx, http.MethodGet, "/projects/tasks/"+id, nil, &task)
	return task.Title, err
}

// Page implements Client.
func (c Tasks) Page(ctx context.Context) error {
	return c.API.Do(ctx, http.MethodGet, "/projects/tasks?limit=20&project="+url.QueryEscape(c.Project), nil, nil)
}

// refusal says of an answer of class 4xx that nothing was written. A 5xx says nothing.
func refusal(err error) error {
	var s *StatusError
	if errors.As(err, &s) && s.Status/100 == 4 {
		return Refusal{err}
	}
	return err
}
