package projects_test

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/functions/projects"
	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/edge"
	"github.com/coditect/platform/shared/project"
	"github.com/coditect/platform/shared/tenant"
)

// BenchmarkPage reads pages of 20 tasks over HTTP, 8 connections, in both homes.
// The clients read raw bytes: net/http's own client would cost more than the server.
func BenchmarkPage(b *testing.B) {
	env := citustest.New(b)
	api := projects.New(edge.Config{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}, auth.NewKeys(env.Databases), project.New(env.Door, time.Now))
	srv := httptest.NewServer(api)
	b.Cleanup(srv.Close)
	store := project.New(env.Door, time.Now)
	for _, home := range []tenant.Home{tenant.Blue, tenant.Green} {
		id := env.NewTenant(b, home)
		secret, _, err := auth.CreateKey(b.Context(), env.Control, auth.NewKey{Kind: auth.TenantKey, Tenant: id, Name: "bench", Scopes: []string{auth.ProjectsRead}})
		require.NoError(b, err)
		p, _, err := store.CreateProject(b.Context(), id, "", project.NewProject{Name: "p"})
		require.NoError(b, err)
		for i := range 1000 {
			_, _, err := store.CreateTask(b.Context(), id, p.ID, "", project.NewTask{Title: fmt.Sprint("task ", i), Description: "what is to be done", Priority: i % 5})
			require.NoError(b, err)
		}
		analyze(b, env, home, id)
		for _, path := range []string{"/tasks", "/projects/" + p.ID.String() + "/tasks?sort=-updated", "/tasks?sort=priority&status=todo"} {
			name, _, _ := strings.Cut(path, p.ID.String())
			b.Run(string(home)+name, func(b *testing.B) {
				b.SetParallelism(4) // 8 clients on 2 cores
				ours, theirs := cpuTime(b), backendTime(b, env, home)
				b.RunParallel(func(pb *testing.PB) {
					c, err := net.Dial("tcp", srv.Listener.Addr().String())
					if err != nil {
						b.Error(err)
						return
					}
					defer c.Close()
					r := bufio.NewReaderSize(c, 32<<10)
					request := []byte("GET " + path + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + secret + "\r\n\r\n")
					for pb.Next() {
						if _, err := c.Write(request); err != nil {
							b.Error(err)
							return
						}
						resp, err := http.ReadResponse(r, nil)
						if err != nil || resp.StatusCode != http.StatusOK {
							b.Error(resp, err)
							return
						}
						_, _ = io.Copy(io.Discard, resp.Body)
					}
				})
				// What a page costs says more than pages per second on a machine that others use too.
				b.ReportMetric(float64((cpuTime(b)-ours).Microseconds())/float64(b.N), "go-cpu-us/page")
				b.ReportMetric(float64((backendTime(b, env, home)-theirs).Microseconds())/float64(b.N), "pg-cpu-us/page")
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pages/s")
			})
		}
	}
}

// cpuTime is the time this process, clients and server, has computed so far.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// backendTime is the time the home's database sessions have computed so far.
func backendTime(b *testing.B, env *citustest.Env, home tenant.Home) (sum time.Duration) {
	b.Helper()
	pool := env.Control
	if home == tenant.Blue {
		pool = env.Blue(b)
	}
	rows, err := pool.Query(b.Context(), `SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND usename = 'coditect_app'`)
	require.NoError(b, err)
	pids, err := pgx.CollectRows(rows, pgx.RowTo[int])
	require.NoError(b, err)
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		require.NoError(b, err)
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')'):]))
		for _, f := range fields[12:14] { // utime, stime in 1/100 s
			var ticks int
			_, err := fmt.Sscan(f, &ticks)
			require.NoError(b, err)
			sum += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	return sum
}

// analyze tells the planner of the rows, as autovacuum does within a minute.
func analyze(b *testing.B, env *citustest.Env, home tenant.Home, id tenant.ID) {
	b.Helper()
	pool := env.Control
	if home == tenant.Blue {
		pool = env.Blue(b)
	}
	p, err := env.Directory.Locate(b.Context(), id)
	require.NoError(b, err)
	_, err = pool.Exec(b.Context(), `ANALYZE `+pgx.Identifier{p.Schema, "task"}.Sanitize())
	require.NoError(b, err)
}
