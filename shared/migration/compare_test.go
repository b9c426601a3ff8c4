package migration_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/tenant"
)

// verified compares a tenant to the end, call by call.
func verified(t *testing.T, m *migration.Mover, id tenant.ID, o migration.VerifyOptions) (all migration.Verification, calls int) {
	t.Helper()
	for {
		v, err := m.Verify(t.Context(), id, o)
		require.NoError(t, err)
		require.GreaterOrEqual(t, v.Progress, all.Progress)
		v.BlueRows += all.BlueRows
		v.GreenRows += all.GreenRows
		v.Pending += all.Pending
		v.Differences = append(append([]migration.Difference{}, all.Differences...), v.Differences...)
		all = v
		if calls++; v.Cursor == "" {
			require.EqualValues(t, 1, v.Progress)
			return all, calls
		}
		o.Cursor = v.Cursor
	}
}

// Wherever a tenant's move stands, what blue and green have of it can be compared.
func TestVerifyFollowsTheMove(t *testing.T) {
	t.Parallel()
	eachServer(t, func(t *testing.T, w *world) {
		ids := blueTenants(t, w, 4)
		who := ids[3]
		before, _ := verified(t, w.Mover, who, migration.VerifyOptions{})
		require.Equal(t, migration.Verification{Tenant: who, Home: tenant.Blue, Expect: migration.GreenEmpty, Progress: 1, BlueRows: 3, Differences: []migration.Difference{}}, before)

		w.finalising(t, migration.WithCrashPoints(func(at string) {
			if at != "copy verified" {
				return
			}
			_, err := addProject(t.Context(), w.Door, who, "written after the copy")
			require.NoError(t, err)
			v, _ := verified(t, w.Mover, who, migration.VerifyOptions{})
			require.Equal(t, migration.Verification{Tenant: who, Home: tenant.Blue, State: migration.Copying, Expect: migration.Moving, Progress: 1, BlueRows: 4, GreenRows: 3, Pending: 1,
				Differences: []migration.Difference{}}, v)
			_, err = w.Mover.Repair(t.Context(), who, "test", migration.VerifyOptions{})
			require.Equal(t, "tenant_moves", fault.As(err).Code)
		}))
		run := start(t, w, ids, 10)
		w.drain(t)
		v, _ := verified(t, w.Mover, who, migration.VerifyOptions{})
		require.Equal(t, migration.Verification{Tenant: who, Home: tenant.Green, State: migration.Green, Expect: migration.InStep, Progress: 1, BlueRows: 4, GreenRows: 4, Differences: []migration.Difference{}}, v)

		// Written in green since: an update, an insert, a delete.
		var updated, deleted string
		require.NoError(t, w.Door.InTenant(t.Context(), who, func(tx *citus.Tx) error {
			if err := tx.QueryRow(t.Context(), `SELECT min(id::text), max(id::text) FROM project WHERE tenant_id = $1`, who).Scan(&updated, &deleted); err != nil {
				return err
			}
			if _, err := tx.Exec(t.Context(), `UPDATE project SET name = 'new', version = 7 WHERE tenant_id = $1 AND id = $2`, who, updated); err != nil {
				return err
			}
			_, err := tx.Exec(t.Context(), `DELETE FROM project WHERE tenant_id = $1 AND id = $2`, who, deleted)
			return err
		}))
		_, err := addProject(t.Context(), w.Door, who, "added")
		require.NoError(t, err)
		v, _ = verified(t, w.Mover, who, migration.VerifyOptions{})
		require.Empty(t, v.Differences, "they came to blue while they were looked at again")
		require.EqualValues(t, 3, v.Pending)

		// Somebody gets past the fence in blue: an update, a delete, an insert.
		var kept, added string
		execSQL(t, w.BlueAdmin, strings.ReplaceAll(`SET coditect.mover = 'on'; SET session_replication_role = 'replica'; ALTER TABLE SCHEMA.project DISABLE TRIGGER coditect_fence;
			UPDATE SCHEMA.project SET name = 'old', version = 1 WHERE name = 'new'; DELETE FROM SCHEMA.project WHERE name = 'added';
			INSERT INTO SCHEMA.project (tenant_id, id, name, created_at, updated_at) SELECT tenant_id, gen_random_uuid(), 'blue', now(), now() FROM SCHEMA.project LIMIT 1;
			ALTER TABLE SCHEMA.project ENABLE ALWAYS TRIGGER coditect_fence`, "SCHEMA", blueSchema(who)))
		require.NoError(t, w.Blue(t).QueryRow(t.Context(), `SELECT id::text FROM `+blueSchema(who)+`.project WHERE name = 'blue'`).Scan(&added))
		require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT id::text FROM app.project WHERE tenant_id = $1 AND name = 'added'`, who).Scan(&kept))
		v, _ = verified(t, w.Mover, who, migration.VerifyOptions{})
		require.ElementsMatch(t, []migration.Difference{
			{Table: "project", Key: map[string]string{"id": updated}, Where: "both", Columns: []string{"name", "version"}},
			{Table: "project", Key: map[string]string{"id": kept}, Where: "green"},
			{Table: "project", Key: map[string]string{"id": added}, Where: "blue"},
		}, v.Differences)
		v, _ = verified(t, w.Mover, who, migration.VerifyOptions{Values: true})
		for _, d := range v.Differences {
			if d.Where == "both" {
				require.Equal(t, "new 7", *d.Green[0]+" "+*d.Green[1])
				require.Equal(t, "1", *d.Blue[1])
			}
		}
		limited, err := w.Mover.Verify(t.Context(), who, migration.VerifyOptions{Limit: 2})
		require.NoError(t, err)
		require.Len(t, limited.Differences, 2)
		require.ElementsMatch(t, without(v.Differences), repaired(t, w.Mover, who).Differences)
		v, _ = verified(t, w.Mover, who, migration.VerifyOptions{})
		require.Empty(t, v.Differences)
		_, err = w.Mover.Verify(t.Context(), who, migration.VerifyOptions{Limit: migration.MaxDifferences + 1})
		require.Equal(t, "limit", fault.As(err).Fields[0].Name)

		_, err = w.Mover.Finalise(t.Context(), run.ID, who, "test", true)
		require.NoError(t, err)
		_, err = w.Mover.Verify(t.Context(), who, migration.VerifyOptions{})
		require.Equal(t, "nothing_to_compare", fault.As(err).Code)
		_, err = w.Mover.Verify(t.Context(), tenant.NewID(), migration.VerifyOptions{})
		require.Equal(t, "tenant_not_found", fault.As(err).Code)
	})
}

// A comparison is cut into parts, and each of its calls goes on where the one before has stopped.
func TestVerifyGoesOn(t *testing.T) {
	t.Parallel()
	eachServer(t, func(t *testing.T, w *world) {
		w.withLegacy(t)
		const name = "acme00003"
		id := tenant.ImportedID("legacy", name)
		_, _, err := w.Mover.Start(t.Context(), migration.Plan{Source: "legacy", Tenants: []tenant.ID{id}, Actor: "test"})
		require.NoError(t, err)
		w.drain(t)
		rows := int64(0)
		for _, d := range digestsOf(t, w.Legacy, name) {
			rows += d.Rows
		}
		whole, calls := verified(t, w.Mover, id, migration.VerifyOptions{})
		require.Equal(t, 1, calls)
		require.Equal(t, whole.BlueRows, whole.GreenRows)
		execSQL(t, w.GreenAdmin, fmt.Sprintf(`DELETE FROM coditect.write_gate; DELETE FROM legacy.work_event WHERE tenant_id = '%s' AND id %% 5 = 0; UPDATE legacy.work_event SET note = 'x' WHERE tenant_id = '%s' AND id %% 5 = 1`, id, id))

		cfg := quick
		cfg.StepBudget, cfg.CompareRows = time.Nanosecond, 8
		small := migration.New(w.Migrator, w.Queue, cfg)
		one, _ := verified(t, w.Mover, id, migration.VerifyOptions{Limit: migration.MaxDifferences})
		parts, calls := verified(t, small, id, migration.VerifyOptions{Limit: migration.MaxDifferences})
		require.Greater(t, calls, 2*len(digestsOf(t, w.Legacy, name))/2)
		require.NotEmpty(t, one.Differences)
		require.Equal(t, whole.BlueRows, parts.BlueRows, "nothing is compared twice or left out")
		require.Equal(t, one.GreenRows, parts.GreenRows)
		require.ElementsMatch(t, one.Differences, parts.Differences)
		require.LessOrEqual(t, one.BlueRows, rows)

		v, err := small.Verify(t.Context(), id, migration.VerifyOptions{})
		require.NoError(t, err)
		_, err = w.Control.Exec(t.Context(), `UPDATE control.tenant SET epoch = epoch + 1 WHERE id = $1`, id)
		require.NoError(t, err)
		_, err = small.Verify(t.Context(), id, migration.VerifyOptions{Cursor: v.Cursor})
		require.Equal(t, "tenant_moved", fault.As(err).Code)
		_, err = small.Verify(t.Context(), id, migration.VerifyOptions{Cursor: "x"})
		require.Equal(t, "cursor", fault.As(err).Fields[0].Name)
	})
}

// While one side follows the other, a row that is a moment late is no difference; one that stays behind is.
func TestVerifyLooksAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, citustest.New(t))
	ids := blueTenants(t, w, 4)
	start(t, w, ids[3:], 10)
	for _, d := range []struct{ table, state string }{{"control.move", "catching_up"}} {
		execSQL(t, w.GreenAdmin, fmt.Sprintf(`UPDATE %s SET state = '%s'`, d.table, d.state))
	}
	copyByHand := func() {
		var rows []byte
		require.NoError(t, w.Blue(t).QueryRow(t.Context(), `SELECT json_agg(p) FROM `+blueSchema(ids[3])+`.project p`).Scan(&rows))
		_, err := w.Control.Exec(t.Context(), `INSERT INTO app.project SELECT * FROM json_populate_recordset(NULL::app.project, $1)`, rows)
		require.NoError(t, err)
	}
	cfg := quick
	cfg.Settle = 3 * time.Second // the rows come in between, on a slow machine too
	looked := make(chan struct{})
	var once sync.Once
	m := migration.New(w.Migrator, w.Queue, cfg, migration.WithCrashPoints(func(at string) {
		if at == "differences found" {
			once.Do(func() { close(looked) })
		}
	}))
	done := make(chan migration.Verification)
	go func() {
		v, _ := m.Verify(t.Context(), ids[3], migration.VerifyOptions{})
		done <- v
	}()
	<-looked // all three rows are missing; then they come, but for one
	copyByHand()
	execSQL(t, w.GreenAdmin, `DELETE FROM app.project WHERE id = (SELECT min(id::text)::uuid FROM app.project)`)
	v := <-done
	require.Equal(t, migration.InStep, v.Expect)
	require.Len(t, v.Differences, 1)
	require.Equal(t, "blue", v.Differences[0].Where)
	_, err := m.Repair(t.Context(), ids[3], "test", migration.VerifyOptions{})
	require.Equal(t, "tenant_moves", fault.As(err).Code)
}
