package migration_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/schema"
	"github.com/coditect/platform/shared/tenant"
)

// A registered source is still the old application's database: it makes and drops tables
// as ever. But a table made in a transaction that is open when the fence goes up would
// escape it, so the fence waits for that transaction.
func TestDDLInASource(t *testing.T) {
	w := newWorld(t, citustest.New(t))
	w.withLegacy(t)
	execSQL(t, citustest.As(t, w.Legacy, "legacy_app"), `CREATE TEMP TABLE mine (id int); DROP TABLE mine`)
	owner, err := pgx.Connect(t.Context(), w.Legacy)
	require.NoError(t, err)
	defer func() { _ = owner.Close(context.Background()) }()
	_, err = owner.Exec(t.Context(), `SET ROLE legacy_owner; BEGIN; CREATE TABLE acme00001.late (id int PRIMARY KEY); INSERT INTO acme00001.late VALUES (1)`, pgx.QueryExecModeSimpleProtocol)
	require.NoError(t, err)
	run, _, err := w.Mover.Start(t.Context(), migration.Plan{Source: "legacy", Tenants: []tenant.ID{tenant.ImportedID("legacy", "acme00001"), tenant.ImportedID("legacy", "acme00002")}, Actor: "test"})
	require.NoError(t, err)
	task, _ := w.Queue.take()
	require.NoError(t, w.Mover.Step(t.Context(), task))
	require.Equal(t, migration.Counts{migration.Green: 1, migration.Copying: 1}, inspect(t, w, run).Counts)
	_, err = owner.Exec(t.Context(), `COMMIT`)
	require.NoError(t, err)
	w.drain(t)
	s := inspect(t, w, run)
	require.Equal(t, migration.Counts{migration.Green: 1, migration.Blue: 1}, s.Counts)
	require.Contains(t, s.Failed[0].Error, "late")
	_, err = owner.Exec(t.Context(), `INSERT INTO acme00001.late VALUES (2); INSERT INTO acme00001.work_label (name) VALUES ('still written')`, pgx.QueryExecModeSimpleProtocol)
	require.NoError(t, err)
}

// A step dies with its tenants fenced, and the operator pauses the run: the sweep lets
// the tenants write again.
func TestNobodyWaitsForAPausedRun(t *testing.T) {
	for _, point := range []string{"fence raised", "fence recorded", "gates closed"} {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t, citustest.New(t))
			ids := blueTenants(t, w, 2)
			run := start(t, w, ids, 10)
			task, _ := w.Queue.take()
			dying := w.dying(point)
			ctx, cancel := context.WithCancel(t.Context())
			require.Panics(t, func() { _ = dying.Step(ctx, task) })
			cancel()
			_, err := w.Mover.Pause(t.Context(), run.ID, "test")
			require.NoError(t, err)
			require.Positive(t, fencesIn(t, w))
			require.Eventually(t, func() bool {
				_, err := w.Mover.Sweep(t.Context(), 0)
				require.NoError(t, err)
				w.drainBusy(t)
				return fencesIn(t, w) == 0
			}, 20*time.Second, 100*time.Millisecond)
			for _, id := range ids {
				_, err := addProject(t.Context(), w.Door, id, "p")
				require.NoError(t, err)
			}
			require.Equal(t, migration.Counts{migration.Planned: 2}, inspect(t, w, run).Counts)
			_, err = w.Mover.Resume(t.Context(), run.ID, "test")
			require.NoError(t, err)
			w.drain(t)
			require.Equal(t, migration.Counts{migration.Green: 2}, inspect(t, w, run).Counts)
		})
	}
}

// Batches that reach the same sequence at the same time leave it past all of them.
func TestSequencesAreNeverSetBack(t *testing.T) {
	w := newWorld(t, citustest.New(t))
	w.withLegacy(t)
	var ids []tenant.ID
	for i := range 12 {
		s := fmt.Sprintf("acme%05d", i)
		execSQL(t, w.Legacy, fmt.Sprintf(`SELECT setval('%s.work_event_id_seq', %d)`, s, 20_000+(12-i)*3_000_000))
		ids = append(ids, tenant.ImportedID("legacy", s))
	}
	_, _, err := w.Mover.Start(t.Context(), migration.Plan{Source: "legacy", Tenants: ids, BatchSize: 1, Actor: "test"})
	require.NoError(t, err)
	done := make(chan error, len(ids))
	for range ids {
		task, ok := w.Queue.take()
		require.True(t, ok)
		go func() { done <- w.Mover.Step(t.Context(), task) }()
	}
	for range ids {
		require.NoError(t, <-done)
	}
	var next int64
	require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT nextval('legacy.work_event_id_seq')`).Scan(&next))
	require.Greater(t, next, int64(20_000+12*3_000_000))
}

// A schema whose tenant has moved needs no upgrade any more, and is not in the way of one.
func TestUpgradeAfterAMove(t *testing.T) {
	w := newWorld(t, citustest.New(t))
	ids := blueTenants(t, w, 3)
	start(t, w, ids[:2], 10)
	w.drain(t)
	_, err := w.Blue(t).Exec(t.Context(), `INSERT INTO coditect.tenant_version (version, name, body) VALUES (900, 'colour', 'ALTER TABLE project ADD COLUMN colour text')`)
	require.NoError(t, err)
	n, err := schema.UpgradeBlue(t.Context(), w.Blue(t).Pool, 2, nil)
	require.NoError(t, err)
	require.Equal(t, 1, n)
}

// A step's machine is stopped in the middle of a COPY: it holds its move, sends nothing, and
// its kernel keeps the connection. Whoever wants the move ends that session.
func TestAFrozenMoverIsEnded(t *testing.T) {
	w := newWorld(t, citustest.New(t))
	ids := blueTenants(t, w, 1)
	run := start(t, w, ids, 1)
	frozen, err := w.Migrator.Control(t.Context())
	require.NoError(t, err)
	conn, err := frozen.Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	_, err = conn.Exec(t.Context(), `BEGIN; SELECT FROM control.move FOR UPDATE`, pgx.QueryExecModeSimpleProtocol)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		err := w.Mover.Undo(t.Context(), run.ID, ids[0], "test")
		return err == nil || citus.StateOf(err) != "55P03" && !conn.Conn().IsClosed()
	}, 30*time.Second, 100*time.Millisecond)
	require.Equal(t, migration.Counts{migration.Blue: 1}, inspect(t, w, run).Counts)
}
