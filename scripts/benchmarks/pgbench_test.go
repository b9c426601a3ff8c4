package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/project"
	"github.com/coditect/platform/shared/tenant"
)

func TestAStatementInPgbenchsWords(t *testing.T) {
	row := target{tenant: tenant.NewID(), schema: "t_1", task: project.ID(tenant.NewID()), project: project.ID(tenant.NewID())}
	update := operations[2]
	text, variables := pgbenchStatement("UPDATE task SET version = version + 1,\n\tupdated_at = $3, title = $5 WHERE tenant_id = $1 AND id = $2 AND ($4::bigint = 0 OR version = $4)", update, row, 7)
	require.Equal(t, `UPDATE "t_1"."task" SET version = version + 1, updated_at = :a3_7, title = :a5_7 WHERE tenant_id = :a1_7 AND id = :a2_7 AND (:a4_7::bigint = 0 OR version = :a4_7);`, text)
	require.Contains(t, variables, "a1_7="+row.tenant.String())
	require.Contains(t, variables, "a4_7=0")

	insert := operations[3]
	text, variables = pgbenchStatement("INSERT INTO task (tenant_id, id, project_id, parent_id) VALUES ($1, $2, $3, $4)", insert, row, 0)
	require.Equal(t, `INSERT INTO "t_1"."task" (tenant_id, id, project_id, parent_id) VALUES (:a1_0, gen_random_uuid(), :a3_0, NULL);`, text)
	for _, v := range variables {
		require.NotContains(t, v, "a4_0=")
	}
}

func TestTheRateLeavesOutTheFirstSecond(t *testing.T) {
	out := "progress: 1.0 s, 10.0 tps, lat 1 ms\nprogress: 2.0 s, 200.5 tps, lat 1 ms\nprogress: 3.0 s, 300.5 tps, lat 1 ms\nnumber of transactions actually processed: 511\n"
	rate, calls, err := rateOf(out)
	require.NoError(t, err)
	require.InDelta(t, 250.5, rate, 0.01)
	require.EqualValues(t, 511, calls)
	_, _, err = rateOf(out + "pgbench: error: client 3 script 0 aborted in command 1")
	require.Error(t, err, "a client that gave up is no result")
	_, _, err = rateOf("")
	require.Error(t, err)
}

func TestTheLongestWriteAndGap(t *testing.T) {
	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	w := &written{
		acked: []time.Time{at(0), at(1000), at(1010), at(1300), at(5000)},
		took:  []time.Duration{1, time.Millisecond, time.Millisecond, 250 * time.Millisecond, time.Millisecond},
	}
	stall, gap := w.longest(at(900), at(2000))
	require.Equal(t, 250*time.Millisecond, stall)
	require.Equal(t, 290*time.Millisecond, gap, "what is outside of the window does not count")
}
