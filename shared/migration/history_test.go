package migration_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/migration"
)

func TestHistoryOfARun(t *testing.T) {
	eachServer(t, func(t *testing.T, w *world) {
		ids := blueTenants(t, w, 4)
		run := start(t, w, ids, 2)
		s := inspect(t, w, run)
		require.Zero(t, s.Rate)
		// One of them streams, and its lane is behind.
		execSQL(t, w.GreenAdmin, `INSERT INTO control.lane (database_name, number, slot, open, wal_end, spooled, heard_at) VALUES ('blue', 1, 's1', true, 5000, 2000, now() - interval '3 seconds'), ('blue', 2, 's2', true, 9000, 9000, now());
			INSERT INTO control.streamed (tenant_id, run_id, database_name, number, slot, schema_name) VALUES ('`+ids[0].String()+`', '`+run.ID.String()+`', 'blue', 1, 's1', 'x'), ('`+ids[1].String()+`', '`+run.ID.String()+`', 'blue', 2, 's2', 'y')`)
		for range 3 { // the second and the third come too soon for another sample
			_, err := w.Mover.Sweep(t.Context(), time.Hour)
			require.NoError(t, err)
		}
		execSQL(t, w.GreenAdmin, `DELETE FROM control.streamed; UPDATE control.move SET bytes = 1000`)
		w.drain(t)

		h, err := w.Mover.History(t.Context(), run.ID)
		require.NoError(t, err)
		require.Len(t, h.Lag, 1)
		require.EqualValues(t, 3000, h.Lag[0].Bytes)
		require.Greater(t, h.Lag[0].MS, int64(2900))
		var sum migration.Point
		for i, p := range h.Throughput {
			sum.Tenants, sum.Rows, sum.Bytes = sum.Tenants+p.Tenants, sum.Rows+p.Rows, sum.Bytes+p.Bytes
			require.True(t, i == 0 || p.At.After(h.Throughput[i-1].At))
		}
		s = inspect(t, w, run)
		require.EqualValues(t, 4, sum.Tenants)
		require.Equal(t, s.RowsMoved, sum.Rows)
		require.Equal(t, s.BytesMoved, sum.Bytes)
		require.Positive(t, s.BytesMoved)
		require.InDelta(t, 4/max(s.Seconds, 1), s.Rate.Tenants, 0.01)
		require.InDelta(t, float64(s.RowsMoved)/max(s.Seconds, 1), s.Rate.Rows, 0.1)
		var paused int64
		for _, b := range h.Pauses {
			paused += b.Tenants
		}
		require.EqualValues(t, 4, paused)
		_, err = w.Mover.History(t.Context(), uuid.UUID(ids[0]))
		require.Error(t, err)
	})
}
