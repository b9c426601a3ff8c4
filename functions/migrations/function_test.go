package migrations_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/functions/migrations"
	"github.com/coditect/platform/shared/archive"
	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/citus/localpg"
	"github.com/coditect/platform/shared/edge"
	"github.com/coditect/platform/shared/edge/edgetest"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/tenant"
)

func TestMain(m *testing.M) { citustest.Main(m) }

// world is the function over real databases; its steps are made when the test says so.
type world struct {
	*citustest.Env
	*edgetest.Client
	t        *testing.T
	mover    *migration.Mover
	steps    []migration.StepTask
	operator string
}

func (w *world) EnqueueStep(_ context.Context, _ string, body []byte, _ time.Time) error {
	var task migration.StepTask
	w.steps = append(w.steps, task)
	return json.Unmarshal(body, &w.steps[len(w.steps)-1])
}

// EnqueueReceive is not called: no tenant here is large.
func (w *world) EnqueueReceive(context.Context, string, []byte, time.Time) error {
	return errors.New("nobody receives here")
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{Env: citustest.New(t), t: t}
	w.mover = migration.New(w.Migrator, w, migration.Config{}, migration.WithArchive(dumps(t)))
	w.Client = edgetest.New(t, migrations.New(w.mover, auth.NewKeys(w.Databases), 0, edge.Config{Logger: edge.NewLogger(io.Discard, nil)}))
	w.operator = w.key(auth.NewKey{Name: "operator", Kind: auth.Operator, Scopes: auth.AllScopes()})
	return w
}

// dumps is an archive in a folder of the test.
func dumps(t *testing.T) migrations.Dumps {
	t.Helper()
	bin, err := localpg.Programs()
	require.NoError(t, err)
	a, err := archive.Open(archive.Config{URL: "file://" + t.TempDir(), Programs: bin})
	require.NoError(t, err)
	return migrations.Dumps{Archive: a}
}

func TestAnOperatorFinalises(t *testing.T) {
	w := newWorld(t)
	id := w.NewTenant(t, tenant.Blue)
	started, _ := w.Do(201, w.operator, "POST", "/runs", `{"source":"platform"}`)
	path := "/runs/" + started["id"].(string) + "/tenants/" + id.String() + "/finalise"
	w.Refused(409, "not_green", w.operator, "POST", path+"?now=true", "")
	w.step(100)
	w.Refused(409, "observation_time", w.operator, "POST", path, "")
	done, _ := w.Do(200, w.operator, "POST", path+"?now=true", "")
	require.Equal(t, "finalised", done["state"])
	require.Contains(t, done["archive"], id.String())
	require.NotEmpty(t, done["dropped_at"])
	swept, _ := w.Do(200, w.operator, "POST", "/sweep", "")
	require.EqualValues(t, 0, swept["finalised"])
	w.Refused(422, "invalid_field", w.operator, "POST", "/sweep?seconds=241", "")
	history, _ := w.Do(200, w.operator, "GET", "/runs/"+started["id"].(string)+"/history", "")
	require.Len(t, history["pauses"], 11)
	w.Refused(404, "run_not_found", w.operator, "GET", "/runs/"+tenant.NewID().String()+"/history", "")
}

func (w *world) key(n auth.NewKey) string {
	w.t.Helper()
	text, _, err := auth.CreateKey(w.t.Context(), w.Control, n)
	require.NoError(w.t, err)
	return text
}

// step makes the steps that are in the queue, at most n.
func (w *world) step(n int) {
	w.t.Helper()
	for ; n > 0 && len(w.steps) > 0; n-- {
		task := w.steps[0]
		w.steps = w.steps[1:]
		require.NoError(w.t, w.mover.Step(w.t.Context(), task))
	}
}

func TestAnOperatorMovesTenants(t *testing.T) {
	w := newWorld(t)
	ids := []tenant.ID{w.NewTenant(t, tenant.Blue), w.NewTenant(t, tenant.Blue), w.NewTenant(t, tenant.Blue)}
	report, _ := w.Do(200, w.operator, "POST", "/preflight", `{"source":"platform"}`)
	require.EqualValues(t, 3, report["tenants"])
	require.EqualValues(t, 0, report["left_out"], report)

	started, h := w.Do(201, w.operator, "POST", "/runs", `{"source":"platform","batch_size":1}`)
	id := started["id"].(string)
	require.Equal(t, "runs/"+id, h.Get("Location"))
	w.Refused(409, "preflight_failed", w.operator, "POST", "/runs", `{"source":"platform"}`) // they are all in the first run
	w.step(1)
	paused, _ := w.Do(200, w.operator, "POST", "/runs/"+id+"/pause", "")
	require.Equal(t, "paused", paused["state"])
	w.step(100)
	status, _ := w.Do(200, w.operator, "GET", "/runs/"+id, "")
	require.Equal(t, map[string]any{"green": 1.0, "planned": 2.0}, status["counts"])

	var left tenant.ID
	require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT tenant_id FROM control.move WHERE state = 'planned' ORDER BY 1 LIMIT 1`).Scan(&left))
	w.Do(204, w.operator, "POST", "/runs/"+id+"/tenants/"+left.String()+"/undo", "")
	w.Refused(404, "move_not_found", w.operator, "POST", "/runs/"+id+"/tenants/"+tenant.NewID().String()+"/undo", "")
	w.Refused(409, "not_green", w.operator, "POST", "/runs/"+id+"/tenants/"+left.String()+"/rollback", "")
	w.Do(200, w.operator, "POST", "/runs/"+id+"/resume", "")
	w.step(100)
	status, _ = w.Do(200, w.operator, "GET", "/runs/"+id, "")
	require.Equal(t, "done", status["state"])
	require.Equal(t, map[string]any{"green": 2.0, "blue": 1.0}, status["counts"])
	w.Refused(409, "wrong_run_state", w.operator, "POST", "/runs/"+id+"/cancel", "")

	var moved tenant.ID
	require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT tenant_id FROM control.move WHERE state = 'green' ORDER BY 1 LIMIT 1`).Scan(&moved))
	w.Do(204, w.operator, "POST", "/runs/"+id+"/tenants/"+moved.String()+"/rollback", "")
	status, _ = w.Do(200, w.operator, "GET", "/runs/"+id, "")
	require.Equal(t, map[string]any{"green": 1.0, "blue": 2.0}, status["counts"])

	again, _ := w.Do(201, w.operator, "POST", "/runs", fmt.Sprintf(`{"source":"platform","tenants":[%q]}`, left))
	cancelled, _ := w.Do(200, w.operator, "POST", "/runs/"+again["id"].(string)+"/cancel", "")
	require.Equal(t, "cancelling", cancelled["state"])
	w.steps = nil // the queue loses everything
	swept, _ := w.Do(200, w.operator, "POST", "/sweep", "")
	require.EqualValues(t, 1, swept["enqueued"])
	w.step(100)
	list, _ := w.Do(200, w.operator, "GET", "/runs", "")
	require.Len(t, list["runs"], 2)
	require.Equal(t, "cancelled", list["runs"].([]any)[0].(map[string]any)["state"])
	older, _ := w.Do(200, w.operator, "GET", "/runs?limit=1&before="+again["id"].(string), "")
	require.Equal(t, id, older["runs"].([]any)[0].(map[string]any)["id"])
	for _, tenantID := range ids {
		require.NoError(t, w.Door.ReadTenant(t.Context(), tenantID, func(tx *citus.Tx) error {
			var n int
			return tx.QueryRow(t.Context(), `SELECT count(*) FROM project WHERE tenant_id = $1`, tx.Tenant()).Scan(&n)
		}))
	}
}

func TestBadPlansAreRefusedByField(t *testing.T) {
	w := newWorld(t)
	green := w.NewTenant(t, tenant.Green)
	for body, field := range map[string]string{
		`{}`:                                                                         "source",
		`{"source":"nowhere"}`:                                                       "source",
		`{"source":"platform","tenants":["x"]}`:                                      "tenants[0]",
		`{"source":"platform","batch_size":0}`:                                       "batch_size",
		`{"source":"platform","batch_size":1001}`:                                    "batch_size",
		`{"source":"platform","max_pause_ms":-1}`:                                    "max_pause_ms",
		`{"source":"platform","tenant":"x"}`:                                         "tenant",
		`{"source":"platform","exclude":["x"]}`:                                      "exclude[0]",
		fmt.Sprintf(`{"source":"platform","exclude":[%q]}`, tenant.NewID()):          "exclude[0]",
		`{"source":"platform","new_since":"yesterday"}`:                              "new_since",
		`{"source":"platform","new_since":"2999-01-01T00:00:00Z"}`:                   "new_since",
		`{"source":"platform","plans":[""]}`:                                         "plans",
		`{"source":"platform","percent":0}`:                                          "percent",
		`{"source":"platform","percent":100.5}`:                                      "percent",
		`{"source":"platform","max_bytes":0}`:                                        "max_bytes",
		`{"source":"platform","max_activity":-1}`:                                    "max_activity",
		`{"source":"platform","waves":[10,5,100]}`:                                   "waves",
		`{"source":"platform","waves":[1,50]}`:                                       "waves",
		`{"source":"platform","soak_seconds":604801}`:                                "soak_seconds",
		`{"source":"platform","concurrency":0}`:                                      "concurrency",
		`{"source":"platform","rows_per_second":0}`:                                  "rows_per_second",
		`{"source":"platform","hours":"22-06"}`:                                      "hours",
		`{"source":"platform","hours":"22:00-06:00@Mars"}`:                           "hours",
		`{"source":"platform","max_errors":-1}`:                                      "max_errors",
		`{"source":"platform","max_error_percent":101}`:                              "max_error_percent",
		fmt.Sprintf(`{"source":"platform","tenants":[%q]}`, green):                   "tenants[0]",
		fmt.Sprintf(`{"source":"platform","tenants":[%q]}`, tenant.NewID().String()): "tenants[0]",
	} {
		for _, path := range []string{"/runs", "/preflight"} {
			p, _ := w.Do(422, w.operator, "POST", path, body)
			require.NotEmpty(t, p["errors"], body)
			require.Equal(t, field, p["errors"].([]any)[0].(map[string]any)["field"], "%s: %v", body, p)
		}
	}
	w.Refused(404, "run_not_found", w.operator, "GET", "/runs/"+tenant.NewID().String(), "")
}

func TestAnOperatorVerifiesAndRepairs(t *testing.T) {
	w := newWorld(t)
	id := w.NewTenant(t, tenant.Blue)
	path := "/tenants/" + id.String()
	v, _ := w.Do(200, w.operator, "POST", path+"/verify", "")
	require.Equal(t, "green_empty", v["expect"])
	require.Empty(t, v["differences"])
	_, err := w.Control.Exec(t.Context(), `INSERT INTO app.project (tenant_id, id, name, created_at, updated_at) VALUES ($1, $1, 'left', now(), now())`, id)
	require.NoError(t, err)
	want := []any{map[string]any{"table": "project", "key": map[string]any{"id": id.String()}, "where": "green"}}
	v, _ = w.Do(200, w.operator, "POST", path+"/verify?limit=5&values=true", "")
	require.Equal(t, want, v["differences"])
	v, _ = w.Do(200, w.operator, "POST", path+"/repair", "")
	require.Equal(t, want, v["differences"])
	v, _ = w.Do(200, w.operator, "POST", path+"/verify", "")
	require.Empty(t, v["differences"])
	w.Refused(404, "tenant_not_found", w.operator, "POST", "/tenants/"+tenant.NewID().String()+"/verify", "")
	reader := w.key(auth.NewKey{Name: "reader", Kind: auth.Operator, Scopes: []string{auth.MigrationsRead}})
	w.Do(200, reader, "POST", path+"/verify", "")
	w.Refused(403, "scope_missing", reader, "POST", path+"/verify?values=true", "")
}

// Nobody who belongs to a tenant may move one, and nobody without the scope.
func TestOnlyOperatorsMove(t *testing.T) {
	w := newWorld(t)
	own := w.NewTenant(t, tenant.Blue)
	id := tenant.NewID().String()
	tenantKey := w.key(auth.NewKey{Name: "tenant", Kind: auth.TenantKey, Tenant: own, Scopes: []string{auth.TenantsRead, auth.ProjectsWrite}})
	reader := w.key(auth.NewKey{Name: "reader", Kind: auth.Operator, Scopes: []string{auth.MigrationsRead}})
	routes := map[string]string{"POST /preflight": `{"source":"platform"}`, "POST /runs": `{"source":"platform"}`, "GET /runs": "", "GET /runs/" + id: "", "GET /runs/" + id + "/events": "", "GET /runs/" + id + "/history": "", "POST /runs/" + id + "/pause": "",
		"POST /runs/" + id + "/resume": "", "POST /runs/" + id + "/cutover": "", "POST /runs/" + id + "/cancel": "", "POST /runs/" + id + "/tenants/" + own.String() + "/undo": "",
		"POST /runs/" + id + "/tenants/" + own.String() + "/rollback": "", "POST /runs/" + id + "/tenants/" + own.String() + "/finalise": "", "POST /tenants/" + own.String() + "/verify": "", "POST /tenants/" + own.String() + "/repair": "", "POST /sweep": ""}
	for route, body := range routes {
		var method, path string
		_, err := fmt.Sscan(route, &method, &path)
		require.NoError(t, err)
		w.Do(401, "", method, path, body)
		w.Do(401, "ck_garbage", method, path, body)
		w.Do(403, tenantKey, method, path, body)
		if method == "POST" && path != "/preflight" && !strings.HasSuffix(path, "/verify") {
			w.Do(403, reader, method, path, body)
		}
	}
}

// A run that is held lets its tenants go when, and as far as, an operator says so.
func TestAnOperatorHoldsARun(t *testing.T) {
	w := newWorld(t)
	ids := []tenant.ID{w.NewTenant(t, tenant.Blue), w.NewTenant(t, tenant.Blue), w.NewTenant(t, tenant.Blue)}
	started, _ := w.Do(201, w.operator, "POST", "/runs", `{"source":"platform","hold":true}`)
	cutover := "/runs/" + started["id"].(string) + "/cutover"
	w.Refused(422, "invalid_field", w.operator, "POST", cutover, `{"limit":-1}`)
	w.Refused(422, "invalid_field", w.operator, "POST", cutover, `{"tenants":["x"]}`)
	w.Refused(409, "tenant_not_held", w.operator, "POST", cutover, fmt.Sprintf(`{"tenants":[%q]}`, tenant.NewID()))
	w.Refused(404, "run_not_found", w.operator, "POST", "/runs/"+tenant.NewID().String()+"/cutover", "")
	gone, _ := w.Do(200, w.operator, "POST", cutover, fmt.Sprintf(`{"tenants":[%q]}`, ids[1]))
	require.EqualValues(t, 1, gone["tenants"])
	gone, _ = w.Do(200, w.operator, "POST", cutover, `{"limit":1}`)
	require.EqualValues(t, 1, gone["tenants"])
	gone, _ = w.Do(200, w.operator, "POST", cutover, "")
	require.EqualValues(t, 1, gone["tenants"])
	w.Refused(409, "nobody_held", w.operator, "POST", cutover, "")

	own := w.NewTenant(t, tenant.Blue)
	w.mover = migration.New(w.Migrator, w, migration.Config{Lanes: -1})
	w.Client = edgetest.New(t, migrations.New(w.mover, auth.NewKeys(w.Databases), 0, edge.Config{Logger: edge.NewLogger(io.Discard, nil)}))
	w.Refused(409, "no_change_stream", w.operator, "POST", "/runs", fmt.Sprintf(`{"source":"platform","hold":true,"tenants":[%q]}`, own))
}

// An operator asks what would happen, lets it happen, and reads what was decided.
func TestAPlannedRun(t *testing.T) {
	w := newWorld(t)
	ids := []tenant.ID{w.NewTenant(t, tenant.Blue), w.NewTenant(t, tenant.Blue), w.NewTenant(t, tenant.Blue)}
	body := fmt.Sprintf(`{"source":"platform","exclude":[%q],"waves":[50,100],"batch_size":1,"concurrency":1,"rows_per_second":1000,"max_errors":0}`, ids[2])
	report, _ := w.Do(200, w.operator, "POST", "/preflight", body)
	plan := report["plan"].(map[string]any)
	require.EqualValues(t, 2, plan["chosen"])
	require.Equal(t, map[string]any{"excluded": 1.0}, plan["reasons"])
	require.Len(t, plan["waves"], 2)
	require.Len(t, plan["tenants"], 2)
	require.Equal(t, ids[2].String(), plan["others"].([]any)[0].(map[string]any)["tenant"])

	started, _ := w.Do(201, w.operator, "POST", "/runs", body)
	id := started["id"].(string)
	var broken tenant.ID // of the first wave
	require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT tenant_id FROM control.move WHERE batch = 1`).Scan(&broken))
	_, err := w.Blue(t).Exec(t.Context(), fmt.Sprintf(`ALTER TABLE "t_%x".project ADD COLUMN odd int`, [16]byte(broken)))
	require.NoError(t, err)
	w.step(100)
	status, _ := w.Do(200, w.operator, "GET", "/runs/"+id, "")
	require.Equal(t, "paused", status["state"])
	require.Equal(t, "not moved because of errors: 1; allowed: 0", status["halted"])
	require.Len(t, status["waves"], 2)
	require.NotContains(t, status, "eta")
	w.Refused(422, "invalid_field", w.operator, "POST", "/runs/"+id+"/resume", `{"max_errors":-1}`)
	resumed, _ := w.Do(200, w.operator, "POST", "/runs/"+id+"/resume", `{"max_errors":3}`)
	require.Equal(t, map[string]any{"max_errors": 3.0}, resumed["budget"])
	require.Equal(t, "running", resumed["state"])
	status, _ = w.Do(200, w.operator, "GET", "/runs/"+id, "")
	require.Contains(t, status["eta"], "seconds")
	w.step(100)
	status, _ = w.Do(200, w.operator, "GET", "/runs/"+id, "")
	require.Equal(t, map[string]any{"green": 1.0, "blue": 1.0}, status["counts"])

	var events []string
	for query := "?limit=2"; ; {
		page, _ := w.Do(200, w.operator, "GET", "/runs/"+id+"/events"+query, "")
		for _, e := range page["events"].([]any) {
			events = append(events, e.(map[string]any)["event"].(string))
		}
		next, more := page["next_cursor"].(string)
		if !more {
			break
		}
		query = "?limit=2&cursor=" + next
	}
	require.Equal(t, []string{"started", "wave opened", "undone", "halted", "running", "wave done", "wave opened", "green", "done"}, events)
	w.Refused(422, "invalid_field", w.operator, "GET", "/runs/"+id+"/events?cursor=x", "")
	w.Refused(404, "run_not_found", w.operator, "GET", "/runs/"+tenant.NewID().String()+"/events", "")
}
