package command_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/scripts/coditectl/internal/command"
	"github.com/coditect/platform/scripts/internal/terminal"
	"github.com/coditect/platform/shared/citus/citustest"
)

func TestMain(m *testing.M) { citustest.Main(m) }

// now is the time in all tests.
var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// result is what one call of the program did.
type result struct {
	code     int
	out, err string
}

// call runs the program. Waiting takes no time.
func call(t *testing.T, env map[string]string, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	code := command.Run(t.Context(), args, command.World{
		Out: &out, Err: &errs, Console: terminal.NewPlain(&errs),
		Getenv: func(name string) string { return env[name] },
		Now:    func() time.Time { return now },
		Wait:   func(ctx context.Context, _ time.Duration) error { return ctx.Err() },
	})
	return result{code, out.String(), errs.String()}
}

// answer is what the functions say to one request.
type answer struct {
	status int
	body   string
}

// functions stands for the platform: it gives the answers to each request line in
// turn, the last one for ever, and writes down what it was asked.
type functions struct {
	mu      sync.Mutex
	answers map[string][]answer
	asked   []string
}

func (f *functions) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	line := r.Method + " " + r.URL.RequestURI()
	body, _ := io.ReadAll(r.Body) // the test sees what is missing
	f.asked = append(f.asked, strings.TrimSpace(line+" "+string(body)))
	if r.Header.Get("Authorization") != "Bearer ck_test" {
		w.WriteHeader(http.StatusTeapot) // no case expects this
		return
	}
	list := f.answers[line]
	if len(list) == 0 {
		http.NotFound(w, r)
		return
	}
	if len(list) > 1 {
		f.answers[line] = list[1:]
	}
	kind := "application/json"
	if list[0].status >= 400 {
		kind = "application/problem+json"
	}
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(list[0].status)
	_, _ = io.WriteString(w, list[0].body) // as above
}

// golden compares with testdata/NAME.txt; UPDATE_GOLDEN=1 writes it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), got)
}

func (r result) transcript(asked []string) string {
	return fmt.Sprintf("exit code %d\n── asked\n%s\n── standard output\n%s── standard error\n%s", r.code, strings.Join(asked, "\n"), r.out, r.err)
}

const (
	run    = "0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69"
	tenant = "0190a5c4-7c1e-7e3a-9f6b-000000000001"
	runURL = "/migrations/runs/" + run
)

const running = `{"id":"` + run + `","source":"legacy","state":"running","created_by":"key:1","created_at":"2026-11-23T11:00:00Z",
	"started_at":"2026-11-23T11:00:00Z","tenants":3,"counts":{"planned":1,"fenced":1,"green":1},"rows_moved":400,
	"pause_ms":{"p50":12,"p99":30,"max":31.4},"seconds":1.25,"failed":[]}`

const allGreen = `{"id":"` + run + `","source":"legacy","state":"done","created_by":"key:1","created_at":"2026-11-23T11:00:00Z",
	"started_at":"2026-11-23T11:00:00Z","finished_at":"2026-11-23T11:00:02Z","tenants":3,"counts":{"green":3},"rows_moved":1200,
	"pause_ms":{"p50":12,"p99":30,"max":31.4},"seconds":2,"failed":[]}`

const oneBlue = `{"id":"` + run + `","source":"legacy","state":"done","created_by":"key:1","created_at":"2026-11-23T11:00:00Z",
	"tenants":3,"counts":{"green":2,"blue":1},"rows_moved":800,"pause_ms":{"p50":12,"p99":30,"max":31.4},"seconds":2,
	"failed":[{"tenant":"` + tenant + `","schema":"acme00001","state":"blue","error":"given up after 12 attempts: lock timeout"}]}`

const foundNothing = `{"source":"legacy","tenants":3,"left_out":0,"bytes":1234567,"findings":[]}`

const foundSomething = `{"source":"legacy","tenants":3,"left_out":1,"bytes":800000,"findings":[
	{"schema":"acme00001","tenant":"Acme 1","code":"no_key","severity":"blocker","table":"note","message":"table note has no primary key","action":"add one, or leave it out with exclude_tables"},
	{"code":"statistics_old","severity":"warning","message":"the estimates are rough","action":"run ANALYZE"}]}`

const refusedAll = `{"type":"urn:coditect:problem:preflight_failed","title":"Conflict","status":409,"code":"preflight_failed",
	"detail":"no tenant of source \"legacy\" can be moved: table note has no primary key","request_id":"r1"}`

const notMovable = `{"status":422,"code":"tenants_not_movable","detail":"some tenants cannot be moved","request_id":"r1","errors":[
	{"field":"tenants[0]","message":"` + tenant + ` must be a tenant of source \"legacy\" that lives in blue"},{"field":"tenants[1]","message":"x must be one, too"}]}`

const badField = `{"status":422,"code":"invalid_field","detail":"source must be a registered source; there is no \"lagacy\"","errors":[
	{"field":"source","message":"must be a registered source; there is no \"lagacy\""}]}`

var listing = `{"runs":[{"id":"` + run + `","source":"legacy","state":"done","created_by":"key:1","created_at":"2026-11-23T11:00:00Z"}]}`

func organisationNamed(name, home string) string {
	return fmt.Sprintf(`{"id":"%s","name":"%s","slug":"s","status":"active","home":%q,"source":"platform","plan":"free","created_at":"2026-11-23T11:00:00Z","updated_at":"2026-11-23T11:00:00Z","version":1}`, tenant, name, home)
}

func TestCommandsOverHTTP(t *testing.T) {
	ok := func(bodies ...string) []answer {
		var out []answer
		for _, b := range bodies {
			out = append(out, answer{http.StatusOK, b})
		}
		return out
	}
	for name, c := range map[string]struct {
		args    string
		answers map[string][]answer
	}{
		"preflight-clear":     {"preflight --source legacy", map[string][]answer{"POST /migrations/preflight": ok(foundNothing)}},
		"preflight-blocked":   {"preflight --source legacy --max-pause 2s --tenant " + tenant, map[string][]answer{"POST /migrations/preflight": ok(foundSomething)}},
		"preflight-json":      {"preflight --source legacy --json", map[string][]answer{"POST /migrations/preflight": ok(foundSomething)}},
		"preflight-none":      {"preflight --source legacy", map[string][]answer{"POST /migrations/preflight": ok(`{"source":"legacy","tenants":0,"left_out":0,"bytes":0,"findings":[]}`)}},
		"preflight-bad-field": {"preflight --source lagacy", map[string][]answer{"POST /migrations/preflight": {{422, badField}}}},
		"start":               {"migrate start --source legacy --batch-size 10", map[string][]answer{"POST /migrations/runs": {{201, `{"id":"` + run + `","run":` + running + `,"preflight":` + foundNothing + `}`}}}},
		"start-left-out":      {"migrate start --source legacy", map[string][]answer{"POST /migrations/runs": {{201, `{"run":` + running + `,"preflight":` + foundSomething + `}`}}}},
		"start-refused":       {"migrate start --source legacy", map[string][]answer{"POST /migrations/runs": {{409, refusedAll}}}},
		"start-not-movable":   {"migrate start --source legacy --tenant " + tenant, map[string][]answer{"POST /migrations/runs": {{422, notMovable}}}},
		"start-watch": {"migrate start --source legacy --watch", map[string][]answer{
			"POST /migrations/runs": {{201, `{"run":` + running + `,"preflight":` + foundNothing + `}`}}, "GET " + runURL: ok(running, allGreen)}},
		"start-watch-left-out": {"migrate start --source legacy --watch", map[string][]answer{
			"POST /migrations/runs": {{201, `{"run":` + running + `,"preflight":` + foundSomething + `}`}}, "GET " + runURL: ok(allGreen)}},
		"status":       {"migrate status " + run, map[string][]answer{"GET " + runURL: ok(running)}},
		"status-json":  {"migrate status --json " + run, map[string][]answer{"GET " + runURL: ok(running)}},
		"list":         {"migrate list --limit 5", map[string][]answer{"GET /migrations/runs?limit=5": ok(listing)}},
		"list-none":    {"migrate list", map[string][]answer{"GET /migrations/runs?limit=20": ok(`{"runs":[]}`)}},
		"list-json":    {"migrate list --json", map[string][]answer{"GET /migrations/runs?limit=20": ok(listing)}},
		"watch-failed": {"migrate watch " + run, map[string][]answer{"GET " + runURL: {{200, running}, {502, `{"detail":"The function migrations does not answer"}`}, {503, `x`}, {200, oneBlue}}}},
		"watch-json":   {"migrate watch --json " + run, map[string][]answer{"GET " + runURL: ok(running, allGreen)}},
		"watch-away":   {"migrate watch " + run, map[string][]answer{"GET " + runURL: {{503, `{"detail":"the database is away","code":"unavailable","request_id":"r9"}`}}}},
		"pause":        {"migrate pause " + run, map[string][]answer{"POST " + runURL + "/pause": ok(`{"id":"` + run + `","state":"paused"}`)}},
		"resume":       {"migrate resume " + run, map[string][]answer{"POST " + runURL + "/resume": ok(`{"id":"` + run + `","state":"running"}`)}},
		"cancel": {"migrate cancel " + run, map[string][]answer{"POST " + runURL + "/cancel": {
			{409, `{"status":409,"code":"wrong_run_state","detail":"the run is done; only a run that is running or paused can become cancelling"}`}}}},
		"undo":      {"migrate undo " + run + " " + tenant, map[string][]answer{"POST " + runURL + "/tenants/" + tenant + "/undo": {{204, ""}}}},
		"undo-json": {"migrate undo --json " + run + " " + tenant, map[string][]answer{"POST " + runURL + "/tenants/" + tenant + "/undo": {{204, ""}}}},
		"tenants": {"tenants list --home blue", map[string][]answer{
			"GET /tenants/tenants?home=blue&limit=100":              ok(`{"items":[` + organisationNamed("One", "blue") + `],"next_cursor":"n+1"}`),
			"GET /tenants/tenants?cursor=n%2B1&home=blue&limit=100": ok(`{"items":[` + organisationNamed("Two\\u001b[31m, in red", "blue") + `]}`)}},
		"tenants-json": {"tenants list --json", map[string][]answer{"GET /tenants/tenants?limit=100": ok(`{"items":[]}`)}},
		"bad-key":      {"migrate list", map[string][]answer{"GET /migrations/runs?limit=20": {{401, `{"code":"invalid_credential","detail":"the API key is not valid"}`}}}},
		"our-fault":    {"migrate list", map[string][]answer{"GET /migrations/runs?limit=20": {{500, `{"code":"internal","detail":"something went wrong on our side","request_id":"r7"}`}}}},
		"no-json":      {"migrate list", map[string][]answer{"GET /migrations/runs?limit=20": ok("<html>")}},
		"proxy":        {"migrate list", map[string][]answer{"GET /migrations/runs?limit=20": {{403, "<html>"}}}},
	} {
		t.Run(name, func(t *testing.T) {
			f := &functions{answers: c.answers}
			server := httptest.NewServer(f)
			t.Cleanup(server.Close)
			r := call(t, map[string]string{"CODITECT_URL": server.URL, "CODITECT_KEY": "ck_test"}, strings.Fields(c.args)...)
			if len(f.asked) > 6 { // as often as patience allows
				f.asked = append(f.asked[:2], "…")
			}
			golden(t, name, strings.ReplaceAll(r.transcript(f.asked), server.URL, "http://platform"))
		})
	}
}

func TestUsage(t *testing.T) {
	for args, want := range map[string]string{
		"":                                    "coditectl needs a command: archive, keys, migrate, preflight, repair, schema, source, tenants or verify",
		"move":                                `coditectl has no command "move"; it must be archive, keys, migrate, preflight, repair, schema, source, tenants or verify`,
		"migrate":                             "coditectl migrate needs a command: cancel, finalise, list, pause, resume, start, status, undo or watch",
		"migrate stop":                        `coditectl migrate has no command "stop"; it must be cancel, finalise, list, pause, resume, start, status, undo or watch`,
		"migrate status":                      "coditectl migrate status needs RUN, the run's ID",
		"migrate status x":                    `RUN must be a run's ID such as 0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69; it is "x"`,
		"migrate status " + run + " y":        `coditectl migrate status takes no argument "y"`,
		"migrate undo " + run:                 "coditectl migrate undo needs TENANT, the tenant's ID",
		"migrate undo " + run + " x":          `TENANT must be a tenant's ID such as 0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69; it is "x"`,
		"migrate list --limit 0":              "--limit must be between 1 and 100; it is 0",
		"migrate start":                       `--source must name a source: "platform" for the platform's own tenants, or a registered foreign one`,
		"migrate start --sauce x":             "unknown flag: --sauce",
		"migrate start --source x --tenant y": `--tenant must be a tenant's ID such as 0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69; it is "y"`,
		"migrate start --source x --batch-size 0":    "--batch-size must be between 1 and 1000; it is 0",
		"migrate start --source x --batch-size 1001": "--batch-size must be between 1 and 1000; it is 1001",
		"preflight --source x --max-pause 1h":        "--max-pause must be between 1ms and 1m0s; it is 1h0m0s",
		"preflight --source x --max-pause soon":      `invalid argument "soon" for "--max-pause" flag: time: invalid duration "soon"`,
		"tenants list --home red":                    `--home must be blue or green; it is "red"`,
		"tenants list --url localhost:8080":          `--url must be an address such as http://localhost:8080; it is "localhost:8080"`,
		"schema apply":                               "CODITECT_GREEN_DSN must be set to the connection string of an administrator, such as postgres://admin@host:5432/coditect",
		"verify " + tenant + " --limit 0":            "--limit must be between 1 and 1000; it is 0",
		"repair " + tenant:                           "repair changes rows: look at them with `coditectl verify`, then give --confirm",
		"schema apply --parallel 65":                 "--parallel must be between 1 and 64; it is 65",
		"keys create --scope x":                      "either --operator or --tenant must be given: a key is an operator's or one tenant's",
		"keys create --operator --tenant " + tenant:  "either --operator or --tenant must be given: a key is an operator's or one tenant's",
		"keys create --operator --expires soon":      `--expires must be a day (2027-01-31), a time (2027-01-31T12:00:00Z) or a time from now (90d, 12h); it is "soon"`,
		"keys revoke ck_x":                           "KEY-ID must be a key's ID as `keys list` shows it, such as 0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69",
		"source review /nowhere.yaml":                "the source file cannot be read: open /nowhere.yaml: no such file or directory",
	} {
		r := call(t, map[string]string{"CODITECT_KEY": "ck_test"}, strings.Fields(args)...)
		require.Equal(t, result{2, "", "error: " + strings.Replace(want, "error: ", "", 1) + "\n"}, r, args)
	}
	r := call(t, nil, "tenants", "list")
	require.Equal(t, result{2, "", "error: CODITECT_KEY must be set to an operator's API key; `coditectl keys create --operator` makes one\n"}, r)
}

func TestNobodyAnswers(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	env := map[string]string{"CODITECT_URL": server.URL, "CODITECT_KEY": "ck_test", "CODITECT_GREEN_DSN": "postgres://nobody@127.0.0.1:1/none"}
	r := call(t, env, "tenants", "list")
	require.Equal(t, 5, r.code)
	require.Regexp(t, `^error: no answer from http://127.0.0.1:\d+: .*connection refused; is the platform running there \(scripts/dev\), and is --url right\?\n$`, r.err)
	require.Equal(t, 5, call(t, env, "migrate", "watch", run).code)
	for _, args := range []string{"schema apply", "keys list", "keys create --operator --scope tenants:read"} {
		r = call(t, env, strings.Fields(args)...)
		require.Equal(t, 5, r.code, r.err)
		require.Contains(t, r.err, "connection refused")
		require.Empty(t, r.out)
	}
}

func TestInterrupted(t *testing.T) {
	f := &functions{answers: map[string][]answer{"GET " + runURL: {{200, running}}}}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	ctx, cancel := context.WithCancel(t.Context())
	var out, errs bytes.Buffer
	code := command.Run(ctx, []string{"migrate", "watch", run}, command.World{
		Out: &out, Err: &errs, Console: terminal.NewPlain(&errs), Now: time.Now,
		Getenv: func(name string) string {
			return map[string]string{"CODITECT_URL": server.URL, "CODITECT_KEY": "ck_test"}[name]
		},
		Wait: func(ctx context.Context, _ time.Duration) error { cancel(); return ctx.Err() },
	})
	require.Equal(t, 130, code)
	require.Empty(t, out.String())
	require.Contains(t, errs.String(), "error: interrupted; what runs on the server goes on there\n")
}
