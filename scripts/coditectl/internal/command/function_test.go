package command_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/functions/migrations"
	"github.com/coditect/platform/scripts/coditectl/internal/command"
	"github.com/coditect/platform/scripts/internal/gateway"
	"github.com/coditect/platform/scripts/internal/terminal"
	"github.com/coditect/platform/shared/archive"
	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/citus/localpg"
	"github.com/coditect/platform/shared/edge"
	"github.com/coditect/platform/shared/migration"
	tenants "github.com/coditect/platform/shared/tenant"
)

// inline is a task queue whose tasks are done while the operator waits.
type inline chan migration.StepTask

func (q inline) EnqueueStep(_ context.Context, _ string, body []byte, _ time.Time) error {
	var t migration.StepTask
	if err := json.Unmarshal(body, &t); err != nil {
		return err
	}
	q <- t
	return nil
}

// EnqueueReceive is not called: no tenant here is large.
func (q inline) EnqueueReceive(context.Context, string, []byte, time.Time) error {
	return errors.New("nobody receives here")
}

// The golden answers of the other tests are what we believe the functions say; here the
// commands meet the real one, behind the real gateway.
func TestCommandsMeetTheFunction(t *testing.T) {
	db := citustest.New(t)
	moving, staying := db.NewTenant(t, tenants.Blue), db.NewTenant(t, tenants.Blue)
	queue := make(inline, 1000)
	bin, err := localpg.Programs()
	require.NoError(t, err)
	dumps, err := archive.Open(archive.Config{URL: "file://" + t.TempDir(), Programs: bin})
	require.NoError(t, err)
	mover := migration.New(db.Migrator, queue, migration.Config{}, migration.WithArchive(migrations.Dumps{Archive: dumps}))
	function := httptest.NewServer(migrations.New(mover, auth.NewKeys(db.Databases), 0, edge.Config{Logger: edge.NewLogger(io.Discard, nil)}))
	t.Cleanup(function.Close)
	target, err := url.Parse(function.URL)
	require.NoError(t, err)
	door := httptest.NewServer(gateway.New(map[string]*url.URL{"migrations": target}))
	t.Cleanup(door.Close)

	env := map[string]string{"CODITECT_URL": door.URL, "CODITECT_GREEN_DSN": db.GreenAdmin, "CODITECT_PG_PROGRAMS": bin}
	r := call(t, env, "keys", "create", "--operator", "--scope", "migrations:read,migrations:write")
	require.Equal(t, 0, r.code, r.err)
	env["CODITECT_KEY"] = strings.TrimSpace(r.out)

	r = call(t, env, "preflight", "--source", "platform")
	require.Equal(t, 0, r.code, r.out+r.err)
	require.Contains(t, r.out, "Source platform: looked at 2 tenants; 2 can be moved (")
	r = call(t, env, "preflight", "--source", "nowhere")
	require.Equal(t, result{1, "", "error: --source must be a registered source; there is no \"nowhere\"\n"}, r)

	r = call(t, env, "migrate", "plan", "--source", "platform", "--exclude", staying.String(), "--max-bytes", "1GB", "--percent", "100", "--hours", "00:00-23:59", "--new-since", "1h", "--soak", "5m")
	require.Equal(t, 0, r.code, r.out+r.err)
	require.Contains(t, r.out, "Source platform: 1 tenant would move; the rules leave out 1 (1 excluded)\nIt would take about ")
	require.Contains(t, r.out, staying.String()+"  Tenant "+staying.String()+"  is on the list of those to exclude\n")
	r = call(t, env, "migrate", "start", "--source", "platform", "--max-activity", "5")
	require.Equal(t, result{3, "", "error: the rules leave out every tenant of source \"platform\" that could be moved: 2 activity unknown\n"}, r)

	r = call(t, env, "migrate", "start", "--source", "platform", "--json")
	require.Equal(t, 0, r.code, r.err)
	var started struct{ Run struct{ ID string } }
	require.NoError(t, json.Unmarshal([]byte(r.out), &started))
	id := started.Run.ID
	require.Equal(t, "Run "+id+" is paused\n", call(t, env, "migrate", "pause", id).out)
	require.Equal(t, "Tenant "+staying.String()+" stays in blue\n", call(t, env, "migrate", "undo", id, staying.String()).out)
	require.Equal(t, "Run "+id+" is running\n", call(t, env, "migrate", "resume", id).out)
	require.Contains(t, call(t, env, "migrate", "list").out, id+"  platform  running")
	require.Regexp(t, `mover  +wave opened .*"tenants":2(.|\n)* paused (.|\n)* undone +`+staying.String()+`(.|\n)* running`, call(t, env, "migrate", "events", id).out)
	require.Contains(t, call(t, env, "migrate", "status", id).out, "tenants      2: 0 green, 1 in blue, 0 moving, 1 waiting\n")

	var out, errs bytes.Buffer
	code := command.Run(t.Context(), []string{"migrate", "watch", id}, command.World{
		Out: &out, Err: &errs, Console: terminal.NewPlain(&errs), Now: time.Now, Getenv: func(name string) string { return env[name] },
		Wait: func(ctx context.Context, _ time.Duration) error {
			for len(queue) > 0 {
				if err := mover.Step(ctx, <-queue); err != nil {
					return err
				}
			}
			return nil
		},
	})
	require.Equal(t, 4, code, errs.String())
	require.Contains(t, out.String(), "Run "+id+" of source platform is done\n  tenants      2: 1 green, 1 in blue, 0 moving, 0 waiting\n")
	require.Contains(t, errs.String(), "error: not moved: 1 of 2 tenants\n")
	placed, err := db.Directory.Locate(t.Context(), moving)
	require.NoError(t, err)
	require.Equal(t, tenants.Green, placed.Home)

	file := filepath.Join(t.TempDir(), "run.html")
	require.Equal(t, "Report of run "+id+": "+file+"\n", call(t, env, "migrate", "report", id, "--html", file).out)
	page, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Contains(t, string(page), "Run "+id+" of source platform")
	require.Equal(t, 2, call(t, env, "migrate", "report", id).code)
	require.Equal(t, 2, call(t, env, "migrate", "report", id, "--html", "/nowhere/x").code)

	r = call(t, env, "verify", moving.String())
	require.Equal(t, 0, r.code, r.err)
	require.Contains(t, r.out, "  rows         0 in blue, 0 in green, 0 on their way\n  differences  none\n")
	_, err = db.Control.Exec(t.Context(), `INSERT INTO app.project (tenant_id, id, name, created_at, updated_at) VALUES ($1, $1, 'left', now(), now())`, staying)
	require.NoError(t, err)
	r = call(t, env, "verify", staying.String())
	require.Equal(t, 6, r.code, r.err)
	require.Contains(t, r.out, "  table project, id="+staying.String()+": only in green\n")
	require.Contains(t, r.err, "error: blue and green differ in 1 row\n")
	r = call(t, env, "repair", staying.String())
	require.Equal(t, 6, r.code, r.err)
	require.Contains(t, r.out, "  table project, id="+staying.String()+": only in green\n")
	require.Contains(t, r.err, "error: 1 row would be deleted from green; nothing was changed: give --confirm\n")
	r = call(t, env, "repair", staying.String(), "--confirm")
	require.Equal(t, 0, r.code, r.err)
	require.Contains(t, r.out, "Repaired: 1 row\n")
	require.Equal(t, 0, call(t, env, "verify", staying.String(), "--json").code)
	_, err = db.Control.Exec(t.Context(), `INSERT INTO app.project (tenant_id, id, name, created_at, updated_at) VALUES ($1, $1, 'green', now(), now())`, moving)
	require.NoError(t, err)
	_, err = db.Control.Exec(t.Context(), `DELETE FROM coditect.captured`)
	require.NoError(t, err)
	r = call(t, env, "repair", moving.String())
	require.Equal(t, 6, r.code, r.err)
	require.Contains(t, r.err, "error: 1 row would become in blue what green has; nothing was changed: give --confirm\n")
	r = call(t, env, "repair", moving.String(), "--confirm")
	require.Equal(t, 0, r.code, r.err)
	require.Contains(t, r.out, "table project, id="+moving.String()+": only in green\nRepaired: 1 row\n")
	r = call(t, env, "repair", moving.String())
	require.Equal(t, 0, r.code, r.err)
	require.Contains(t, r.out, "  differences  none\n")

	require.Equal(t, "There is no dump.\n", call(t, env, "archive", "list").out)
	r = call(t, env, "migrate", "finalise", id, moving.String())
	require.Equal(t, 1, r.code)
	require.Contains(t, r.err, "error: the tenant can go back to blue until ")
	r = call(t, env, "migrate", "finalise", id, moving.String(), "--now")
	require.Equal(t, 0, r.code, r.err)
	require.Contains(t, r.out, "Tenant "+moving.String()+" is finalised: schema t_")
	require.Contains(t, call(t, env, "archive", "list").out, moving.String()+"  platform  t_")
	into := citustest.EmptyDatabase(t)
	r = call(t, env, "archive", "restore", moving.String(), "--into", into)
	require.Equal(t, result{1, "", "error: the database lacks the platform's functions, which the tenant's tables need; --prepare makes them\n"}, r)
	r = call(t, env, "archive", "restore", moving.String(), "--into", into, "--prepare")
	require.Equal(t, 0, r.code, r.err)
	require.Contains(t, r.out, "tables with 1 row, the same as were archived\n")
	r = call(t, env, "archive", "restore", moving.String(), "--into", into)
	require.Equal(t, 1, r.code)
	require.Contains(t, r.err, "error: the database has a schema t_")
	r = call(t, env, "archive", "restore", staying.String(), "--into", into)
	require.Equal(t, result{1, "", "error: tenant " + staying.String() + " has no dump in the archive\n"}, r)

	r = call(t, env, "migrate", "cancel", id)
	require.Equal(t, result{1, "", "error: the run is done; only a run that is running or paused can become cancelling\n"}, r)
	r = call(t, env, "migrate", "undo", id, moving.String())
	require.Equal(t, result{1, "", "error: the tenant's move is finalised; only one that is planned, copying, catching up or fenced can be undone\n"}, r)
	r = call(t, env, "migrate", "start", "--source", "platform", "--tenant", moving.String())
	require.Equal(t, 1, r.code)
	require.Contains(t, r.err, "error: some tenants cannot be moved: --tenant "+moving.String()+" must be a tenant of source \"platform\"")
}
