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

const planned = `{"source":"legacy","tenants":4,"left_out":1,"bytes":800000,"findings":[{"schema":"acme00001","tenant":"Acme 1","code":"no_key","severity":"blocker","table":"note",
	"message":"table note has no primary key","action":"add one"}],"plan":{"chosen":3,"left_out":2,"reasons":{"too_active":1,"excluded":1},"span":{"begin":"2026-11-23T21:00:00Z","end":"2026-11-23T21:12:04Z"},
	"seconds":724.5,"rows":4000,"pause_ms":{"p50":33.1,"max":120.4},"waves":[
	{"number":1,"percent":1,"tenants":1,"batches":1,"bytes":300000,"rows":1500,"span":{"begin":"2026-11-23T21:00:00Z","end":"2026-11-23T21:00:02Z"}},
	{"number":2,"percent":100,"tenants":2,"batches":1,"bytes":500000,"rows":2500,"span":{"begin":"2026-11-23T21:10:02Z","end":"2026-11-23T21:12:04Z"}}],
	"tenants":[{"tenant":"` + tenant + `","name":"Acme 2","schema":"acme00002","wave":1,"batch":1,"bytes":300000,"rows":1500,"seconds":0.04,"pause_ms":33.1,"reason":"12 rows changed a day"}],
	"others":[{"tenant":"` + tenant + `","name":"Acme 3","schema":"acme00003","code":"too_active","reason":"changes 9000 rows a day, more than 5000"},
	{"tenant":"` + tenant + `","name":"Acme 4","schema":"acme00004","code":"excluded","reason":"is on the list of those to exclude"}]}}`

const inWaves = `,"created_by":"key:1","created_at":"2026-11-23T11:00:00Z","started_at":"2026-11-23T11:00:00Z","wave":1,"last_wave":3,"tenants":100,
	"counts":{"planned":88,"green":10,"blue":2},"rows_moved":400,"pause_ms":{"p50":12,"p99":30,"max":31.4},"seconds":60,"failed":[],"waves":[
	{"number":1,"percent":12,"tenants":12,"green":10,"blue":2,"opened_at":"2026-11-23T11:00:00Z","done_at":"2026-11-23T11:01:00Z"},
	{"number":2,"percent":50,"tenants":38,"green":0,"blue":0,"begins_at":"2026-11-23T11:05:00Z"},
	{"number":3,"percent":100,"tenants":50,"green":0,"blue":0,"begins_at":"2026-11-23T12:00:00Z"}]}`

const soaking = `{"id":"` + run + `","source":"legacy","state":"running","next_wave_at":"2026-11-23T11:11:00Z","hours":"22:00-06:00@Europe/Berlin","waits_until":"2026-11-23T21:00:00Z",
	"eta":{"at":"2026-11-23T21:10:05Z","seconds":36605.4,"basis":"measured"}` + inWaves

const halted = `{"id":"` + run + `","source":"legacy","state":"paused","halted":"not moved because of errors: 2 of 12 tenants; allowed: 5 %"` + inWaves

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
		"cutover":      {"migrate cutover --limit 3 " + run, map[string][]answer{"POST " + runURL + "/cutover": ok(`{"tenants":3}`)}},
		"cutover-one":  {"migrate cutover --tenant " + tenant + " " + run, map[string][]answer{"POST " + runURL + "/cutover": {{409, `{"status":409,"code":"tenant_not_held","detail":"tenant ` + tenant + ` is not held by this run"}`}}}},
		"hold":         {"migrate start --source legacy --hold", map[string][]answer{"POST /migrations/runs": {{409, `{"status":409,"code":"no_change_stream","detail":"blue does not let its changes be read"}`}}}},
		"resume":       {"migrate resume " + run, map[string][]answer{"POST " + runURL + "/resume": ok(`{"id":"` + run + `","state":"running"}`)}},
		"cancel": {"migrate cancel " + run, map[string][]answer{"POST " + runURL + "/cancel": {
			{409, `{"status":409,"code":"wrong_run_state","detail":"the run is done; only a run that is running or paused can become cancelling"}`}}}},
		"plan": {"migrate plan --source legacy --new-since 30d --max-bytes 20MB --max-activity 5000 --plan free,team --percent 12.5 --exclude " + tenant +
			" --waves 1,100 --soak 10m --concurrency 4 --rows-per-second 50000 --hours 22:00-06:00@Europe/Berlin --max-errors 0 --max-error-percent 2.5 --batch-size 20",
			map[string][]answer{"POST /migrations/preflight": ok(planned)}},
		"plan-file": {"migrate start --dry-run --file testdata/plan.yaml", map[string][]answer{"POST /migrations/preflight": ok(planned)}},
		"plan-none": {"migrate plan --source legacy", map[string][]answer{"POST /migrations/preflight": ok(foundNothing)}},
		"events": {"migrate events " + run, map[string][]answer{
			"GET " + runURL + "/events?limit=1000":          ok(`{"events":[{"id":1,"at":"2026-11-23T11:00:00Z","actor":"key:1","event":"started","detail":{"tenants":3}}],"next_cursor":"n"}`),
			"GET " + runURL + "/events?cursor=n&limit=1000": ok(`{"events":[{"id":2,"at":"2026-11-23T11:00:01Z","tenant":"` + tenant + `","actor":"mover","event":"green","detail":{}}]}`)}},
		"resume-budget": {"migrate resume --max-errors 0 --max-error-percent 7.5 " + run, map[string][]answer{"POST " + runURL + "/resume": ok(`{"id":"` + run + `","state":"running"}`)}},
		"status-waves":  {"migrate status " + run, map[string][]answer{"GET " + runURL: ok(soaking)}},
		"watch-halted":  {"migrate watch " + run, map[string][]answer{"GET " + runURL: ok(soaking, halted)}},
		"nobody-chosen": {"migrate start --source legacy --max-activity 0", map[string][]answer{"POST /migrations/runs": {{409, `{"status":409,"code":"nobody_chosen","detail":"the rules leave out every tenant of source \"legacy\" that could be moved: 3 too active"}`}}}},
		"bad-waves":     {"migrate start --source legacy --percent 101", map[string][]answer{"POST /migrations/runs": {{422, `{"status":422,"code":"invalid_field","detail":"percent must be at most 100","errors":[{"field":"percent","message":"must be at most 100"}]}`}}}},
		"undo":          {"migrate undo " + run + " " + tenant, map[string][]answer{"POST " + runURL + "/tenants/" + tenant + "/undo": {{204, ""}}}},
		"undo-json":     {"migrate undo --json " + run + " " + tenant, map[string][]answer{"POST " + runURL + "/tenants/" + tenant + "/undo": {{204, ""}}}},
		"rollback":      {"migrate rollback " + run + " " + tenant, map[string][]answer{"POST " + runURL + "/tenants/" + tenant + "/rollback": {{204, ""}}}},
		"rollback-refused": {"migrate rollback " + run + " " + tenant, map[string][]answer{"POST " + runURL + "/tenants/" + tenant + "/rollback": {
			{409, `{"status":409,"code":"not_green","detail":"the tenant's move is blue; only a tenant whose move is green can go back"}`}}}},
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
		"migrate":                             "coditectl migrate needs a command: cancel, cutover, events, finalise, list, pause, plan, report, resume, rollback, start, status, undo or watch",
		"migrate stop":                        `coditectl migrate has no command "stop"; it must be cancel, cutover, events, finalise, list, pause, plan, report, resume, rollback, start, status, undo or watch`,
		"migrate status":                      "coditectl migrate status needs RUN, the run's ID",
		"migrate status x":                    `RUN must be a run's ID such as 0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69; it is "x"`,
		"migrate status " + run + " y":        `coditectl migrate status takes no argument "y"`,
		"migrate undo " + run:                 "coditectl migrate undo needs TENANT, the tenant's ID",
		"migrate undo " + run + " x":          `TENANT must be a tenant's ID such as 0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69; it is "x"`,
		"migrate cutover --limit 0 " + run:    "--limit must be at least 1; it is 0",
		"migrate list --limit 0":              "--limit must be between 1 and 100; it is 0",
		"migrate start":                       `--source must name a source: "platform" for the platform's own tenants, or a registered foreign one`,
		"migrate start --sauce x":             "unknown flag: --sauce",
		"migrate start --source x --tenant y": `--tenant must be a tenant's ID such as 0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69; it is "y"`,
		"migrate start --source x --batch-size 0":                        "--batch-size must be between 1 and 1000; it is 0",
		"migrate start --source x --batch-size 1001":                     "--batch-size must be between 1 and 1000; it is 1001",
		"migrate plan --source x --exclude y":                            `--exclude must be a tenant's ID such as 0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69; it is "y"`,
		"migrate plan --source x --new-since soon":                       `--new-since must be a day (2026-01-31), a time (2026-01-31T12:00:00Z) or an age (30d, 12h); it is "soon"`,
		"migrate plan --source x --max-bytes 1MiB":                       `--max-bytes must be a size such as 500000, 20MB or 1GB; it is "1MiB"`,
		"migrate plan --source x --max-bytes 999999999999999TB":          `--max-bytes must be a size such as 500000, 20MB or 1GB; it is "999999999999999TB"`,
		"migrate plan --source x --waves 10,5":                           "--waves must be percentages above 0 that grow, such as 1,10,50,100",
		"migrate plan --source x --hours 22-06":                          `--hours must look like 22:00-06:00@Europe/Berlin: from, to and a time zone, and is "22-06"`,
		"migrate plan --source x --soak 10ms":                            "--soak must be between 0s and 168h0m0s, in whole seconds; it is 10ms",
		"migrate plan --file /nowhere.yaml":                              "the plan's file cannot be read: open /nowhere.yaml: no such file or directory",
		"migrate plan --file testdata/plan.yaml --percent 5 --waves 100": "--file stands for the whole plan: --percent and --waves must be in it",
		"migrate plan --file testdata/not-a-plan.yaml":                   `testdata/not-a-plan.yaml must be a plan: json: unknown field "wave"`,
		"preflight --source x --max-pause 1h":                            "--max-pause must be between 1ms and 1m0s; it is 1h0m0s",
		"preflight --source x --max-pause soon":                          `invalid argument "soon" for "--max-pause" flag: time: invalid duration "soon"`,
		"tenants list --home red":                                        `--home must be blue or green; it is "red"`,
		"tenants list --url localhost:8080":                              `--url must be an address such as http://localhost:8080; it is "localhost:8080"`,
		"schema apply":                                                   "CODITECT_GREEN_DSN must be set to the connection string of an administrator, such as postgres://admin@host:5432/coditect",
		"verify " + tenant + " --limit 0":                                "--limit must be between 1 and 1000; it is 0",
		"repair x":                                                       `TENANT must be a tenant's ID such as 0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69; it is "x"`,
		"schema apply --parallel 65":                                     "--parallel must be between 1 and 64; it is 65",
		"keys create --scope x":                                          "either --operator or --tenant must be given: a key is an operator's or one tenant's",
		"keys create --operator --tenant " + tenant:                      "either --operator or --tenant must be given: a key is an operator's or one tenant's",
		"keys create --operator --expires soon":                          `--expires must be a day (2027-01-31), a time (2027-01-31T12:00:00Z) or a time from now (90d, 12h); it is "soon"`,
		"keys revoke ck_x":                                               "KEY-ID must be a key's ID as `keys list` shows it, such as 0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69",
		"source review /nowhere.yaml":                                    "the source file cannot be read: open /nowhere.yaml: no such file or directory",
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
