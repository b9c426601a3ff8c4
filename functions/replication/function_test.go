package replication_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/functions/replication"
	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/edge"
	"github.com/coditect/platform/shared/edge/edgetest"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/migration/stream"
	"github.com/coditect/platform/shared/tenant"
)

func TestMain(m *testing.M) { citustest.Main(m) }

// inbox keeps the tasks for the next run of the receiver.
type inbox struct{ bodies []string }

func (q *inbox) EnqueueStep(context.Context, string, []byte, time.Time) error {
	return errors.New("nobody steps here")
}

func (q *inbox) EnqueueReceive(_ context.Context, _ string, body []byte, _ time.Time) error {
	q.bodies = append(q.bodies, string(body))
	return nil
}

func key(t *testing.T, env *citustest.Env, n auth.NewKey) string {
	t.Helper()
	text, _, err := auth.CreateKey(t.Context(), env.Control, n)
	require.NoError(t, err)
	return text
}

// A call receives for a bounded time and has the next one made; the same task again, a late one
// and one of a lane that is not there change nothing.
func TestALaneIsReceived(t *testing.T) {
	env, queue := citustest.New(t), &inbox{}
	mover := migration.New(env.Migrator, queue, migration.Config{Stream: stream.Config{Budget: time.Second}})
	client := edgetest.New(t, replication.New(mover, auth.NewKeys(env.Databases), time.Minute, edge.Config{Logger: edge.NewLogger(io.Discard, nil)}))
	operator := key(t, env, auth.NewKey{Name: "operator", Kind: auth.Operator, Scopes: auth.AllScopes()})
	stranger := key(t, env, auth.NewKey{Name: "tenant", Kind: auth.TenantKey, Tenant: env.NewTenant(t, tenant.Blue), Scopes: []string{auth.ProjectsWrite}})
	reader := key(t, env, auth.NewKey{Name: "reader", Kind: auth.Operator, Scopes: []string{auth.MigrationsRead}})

	lane := stream.Lane{Database: "blue", Number: 1}
	_, err := stream.Open(t.Context(), env.Migrator, lane)
	require.NoError(t, err)
	const task = `{"database":"blue","lane":1,"step":0}`
	client.Do(401, "", "POST", "/receive", task)
	client.Do(403, stranger, "POST", "/receive", task)
	client.Do(403, reader, "POST", "/receive", task)
	client.Refused(422, "invalid_field", operator, "POST", "/receive", `{"database":"blue","lane":0,"step":0}`)
	client.Refused(422, "invalid_field", operator, "POST", "/receive", `{"database":"blue","step":0}`)
	require.Empty(t, queue.bodies)

	var before int64
	require.NoError(t, env.Control.QueryRow(t.Context(), `SELECT spooled FROM control.lane`).Scan(&before))
	_, err = env.Blue(t).Exec(t.Context(), `SELECT pg_logical_emit_message(true, 'coditect', 'probe')`)
	require.NoError(t, err)
	client.Do(200, operator, "POST", "/receive", task)
	require.Equal(t, []string{`{"database":"blue","lane":1,"step":1}`}, queue.bodies)
	var after int64
	require.NoError(t, env.Control.QueryRow(t.Context(), `SELECT spooled FROM control.lane`).Scan(&after))
	require.Greater(t, after, before)

	client.Do(200, operator, "POST", "/receive", task) // delivered again
	client.Do(200, operator, "POST", "/receive", `{"database":"blue","lane":1,"step":7}`)
	client.Do(200, operator, "POST", "/receive", `{"database":"nowhere","lane":1,"step":0}`)
	require.Len(t, queue.bodies, 1)
}
