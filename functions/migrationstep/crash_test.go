package migrationstep_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/localpg"
	"github.com/coditect/platform/shared/citus/localpg/child"
	"github.com/coditect/platform/shared/directory"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/schema"
	"github.com/coditect/platform/shared/taskqueue"
	"github.com/coditect/platform/shared/taskqueue/tasktest"
	"github.com/coditect/platform/shared/tenant"
)

// platform is everything a move needs, each part a process of its own that can be
// killed: two databases, the task queue, the step function. A sweeper stands for Cloud
// Scheduler.
type platform struct {
	t           *testing.T
	blue, green *localpg.Server
	tasks       *tasktest.Emulator
	queue       *taskqueue.Queue
	operator    *citus.Databases // mover's
	mover       *migration.Mover
	door        *citus.Door
	admin       *citus.Databases

	functions []*function
	crashed   string // a file that says that a function has killed itself
	mu        sync.Mutex
	point     string
	hold      string // not empty: wait at the point rather than die there
}

// function is the step function, or the one that receives changes.
type function struct {
	source, path string
	program      string
	port         int
	running      *child.Process
}

func (f *function) url() string { return fmt.Sprintf("http://127.0.0.1:%d%s", f.port, f.path) }

func start(t *testing.T, more ...*function) *platform {
	t.Helper()
	ctx := t.Context()
	p := &platform{t: t, crashed: filepath.Join(t.TempDir(), "crashed"), functions: append([]*function{{source: "./cmd", path: "/step"}, {source: "../replication/cmd", path: "/receive"}}, more...)}
	for i, f := range p.functions {
		f.program = filepath.Join(t.TempDir(), strconv.Itoa(i))
		out, err := exec.CommandContext(ctx, "go", "build", "-o", f.program, f.source).CombinedOutput()
		require.NoError(t, err, string(out))
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		f.port = l.Addr().(*net.TCPAddr).Port
		require.NoError(t, l.Close())
	}
	for _, s := range []**localpg.Server{&p.blue, &p.green} {
		server, err := localpg.Start(ctx, localpg.Options{}) // durable: it will be killed
		require.NoError(t, err)
		*s = server
		t.Cleanup(func() { _ = server.Kill(); _ = server.Remove() })
	}
	green, blue := p.green.DSN("postgres", "postgres"), p.blue.DSN("postgres", "postgres")
	_, err := schema.ApplyGreen(ctx, green)
	require.NoError(t, err)
	_, err = schema.ApplyHome(ctx, schema.Database{DSN: blue, Name: citus.BlueDatabase, Kind: tenant.Blue})
	require.NoError(t, err)

	p.tasks = tasktest.Start(t)
	queue := p.tasks.Config(p.url())
	queue.ReceiveURL, queue.ReceiveAudience = p.functions[1].url(), tasktest.Audience
	p.queue, err = taskqueue.Open(ctx, queue)
	require.NoError(t, err)
	require.NoError(t, p.queue.EnsureQueues(ctx, 8))
	t.Cleanup(func() { _ = p.queue.Close() })

	open := func(role string) *citus.Databases {
		dbs, err := citus.Open(ctx, citus.Config{Green: p.green.DSN("postgres", role), Blue: p.blue.DSN("postgres", role), MaxConns: 8, ReroutePatience: 60 * time.Second})
		require.NoError(t, err)
		t.Cleanup(dbs.Close)
		return dbs
	}
	p.admin = open("postgres")
	p.operator = open("coditect_migrator")
	p.mover = migration.New(p.operator, p.queue, migration.Config{})
	dbs := open("coditect_app")
	p.door = citus.NewDoor(dbs, directory.New(dbs, 0))
	return p
}

func (p *platform) url() string { return p.functions[0].url() }

// serve runs the functions and starts them again whenever they die, as Cloud Run does.
// The first one that comes to the point kills itself there.
func (p *platform) serve(point string) {
	p.point = point
	ctx, cancel := context.WithCancel(p.t.Context())
	var stopped sync.WaitGroup
	for _, f := range p.functions {
		stopped.Go(func() {
			for ctx.Err() == nil {
				proc, err := p.startFunction(f)
				if err != nil {
					p.t.Errorf("start a function: %v", err)
					return
				}
				select {
				case <-proc.Done():
				case <-ctx.Done():
					_ = proc.KillGroup()
					<-proc.Done()
				}
			}
		})
	}
	p.t.Cleanup(func() { cancel(); stopped.Wait() })
}

func (p *platform) startFunction(f *function) (*child.Process, error) {
	cmd := exec.Command(f.program)
	cmd.Env = append(os.Environ(), "HOST=127.0.0.1", "PORT="+strconv.Itoa(f.port),
		"CODITECT_GREEN_DSN="+p.green.DSN("postgres", "coditect_migrator"), "CODITECT_BLUE_DSN="+p.blue.DSN("postgres", "coditect_migrator"),
		"CODITECT_TASKS_EMULATOR="+p.tasks.Addr, "CODITECT_TASKS_QUEUE="+tasktest.QueueName, "CODITECT_STEP_URL="+p.url(),
		"CODITECT_RECEIVE_URL="+p.functions[1].url(), "CODITECT_RECEIVE_AUDIENCE="+tasktest.Audience,
		"CODITECT_TASKS_SERVICE_ACCOUNT="+tasktest.Caller, "CODITECT_TASKS_AUDIENCE="+tasktest.Audience,
		"CODITECT_IDENTITY_ISSUER="+p.tasks.Issuer, "CODITECT_IDENTITY_AUDIENCE="+tasktest.Audience, "CODITECT_IDENTITY_CALLERS="+tasktest.Caller,
		"CODITECT_GROUP_TENANTS=2", "CODITECT_BATCH_LEASE=1s", "CODITECT_CRASH_POINT="+p.point, "CODITECT_CRASH_ONCE="+p.crashed,
		"CODITECT_CRASH_HOLD="+p.hold)
	proc, err := child.Start(cmd, syscall.SIGKILL)
	p.mu.Lock()
	defer p.mu.Unlock()
	f.running = proc
	return proc, err
}

// killStep is kill -9 of the step function; serve starts another one.
func (p *platform) killStep() { p.killFunction(p.functions[0]) }

// killReceiver is the same of the function that receives changes.
func (p *platform) killReceiver() { p.killFunction(p.functions[1]) }

func (p *platform) killFunction(f *function) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f.running != nil {
		_ = f.running.KillGroup()
	}
}

func (p *platform) killQueue() {
	p.tasks.Kill()
	p.tasks.Restart()
	require.NoError(p.t, p.queue.EnsureQueues(p.t.Context(), 8))
}

func (p *platform) killBlue() { p.killServer(p.blue, citus.BlueDatabase) }

func (p *platform) killGreen() { p.killServer(p.green, citus.GreenDatabase) }

func (p *platform) killServer(s *localpg.Server, name string) {
	require.NoError(p.t, s.Kill())
	require.NoError(p.t, s.Restart(p.t.Context()))
	for _, dbs := range []*citus.Databases{p.admin, p.operator} { // the operator of this test begins anew; the functions find out
		pool, err := dbs.Pool(p.t.Context(), name)
		require.NoError(p.t, err)
		pool.Reset()
	}
}

func (p *platform) tenants(n int) []tenant.ID {
	p.t.Helper()
	blue, err := p.admin.Pool(p.t.Context(), citus.BlueDatabase)
	require.NoError(p.t, err)
	control, err := p.admin.Control(p.t.Context())
	require.NoError(p.t, err)
	var ids []tenant.ID
	for range n {
		id := tenant.NewID()
		name, err := schema.CreateBlueTenant(p.t.Context(), blue, id, 1)
		require.NoError(p.t, err)
		_, err = control.Exec(p.t.Context(), `INSERT INTO control.tenant (id, name, slug, home, database_name, schema_name, status) VALUES ($1, $2, $2, 'blue', 'blue', $3, 'active')`,
			id, id.String(), name)
		require.NoError(p.t, err)
		ids = append(ids, id)
	}
	return ids
}

// journal is what writers were told is saved.
type journal struct {
	p      *platform
	stop   context.CancelFunc
	group  sync.WaitGroup
	mu     sync.Mutex
	acked  map[tenant.ID]map[tenant.ID]bool
	unsure map[tenant.ID]bool // the answer to COMMIT was lost: may be there, once
	failed []error
	n      int
}

// write starts two writers per tenant. One that is told "try again" does so with the same
// row; one that is told nothing looks whether the row is there.
func (p *platform) write(ids []tenant.ID) *journal {
	ctx, cancel := context.WithCancel(p.t.Context())
	j := &journal{p: p, stop: cancel, acked: map[tenant.ID]map[tenant.ID]bool{}, unsure: map[tenant.ID]bool{}}
	for _, id := range ids {
		j.acked[id] = map[tenant.ID]bool{}
		for range 2 {
			j.group.Go(func() {
				pace := time.NewTicker(10 * time.Millisecond)
				defer pace.Stop()
				for ctx.Err() == nil {
					<-pace.C
					j.insert(ctx, id)
				}
			})
		}
	}
	p.t.Cleanup(func() { cancel(); j.group.Wait() })
	return j
}

func (j *journal) insert(ctx context.Context, id tenant.ID) {
	row := tenant.NewID()
	err := j.p.door.InTenant(ctx, id, func(tx *citus.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO project (tenant_id, id, name, created_at, updated_at) VALUES ($1, $2, 'p', now(), now())`, tx.Tenant(), row)
		return err
	})
	j.mu.Lock()
	defer j.mu.Unlock()
	switch kind := fault.KindOf(err); {
	case err == nil:
		j.acked[id][row] = true
		j.n++
	case kind == fault.Uncertain, ctx.Err() != nil:
		j.unsure[row] = true
	case kind == fault.Unavailable: // a database is down: the client tries again
	default:
		j.failed = append(j.failed, err)
	}
}

// await waits for so many more acknowledged writes.
func (j *journal) await(more int) {
	count := func() int {
		j.mu.Lock()
		defer j.mu.Unlock()
		return j.n
	}
	enough := count() + more
	require.Eventually(j.p.t, func() bool { return count() >= enough }, 20*time.Second, 10*time.Millisecond)
}

// check stops the writers and looks every acknowledged row up.
func (j *journal) check() {
	t := j.p.t
	t.Helper()
	j.stop()
	j.group.Wait()
	require.Empty(t, j.failed)
	require.Positive(t, j.n)
	for id, acked := range j.acked {
		have := map[tenant.ID]int{}
		require.NoError(t, j.p.door.ReadTenant(t.Context(), id, func(tx *citus.Tx) error {
			rows, err := tx.Query(t.Context(), `SELECT id FROM project WHERE tenant_id = $1`, tx.Tenant())
			if err != nil {
				return err
			}
			var row tenant.ID
			_, err = pgx.ForEachRow(rows, []any{&row}, func() error { have[row]++; return nil })
			return err
		}))
		for row := range acked {
			require.Equal(t, 1, have[row], "tenant %s: row %s was acknowledged", id, row)
			delete(have, row)
		}
		for row := range have {
			require.True(t, j.unsure[row], "tenant %s: row %s was never acknowledged", id, row)
		}
	}
}

// sweepUntilDone calls the sweeper as Cloud Scheduler does until the run has ended.
func (p *platform) sweepUntilDone(run migration.Run, meanwhile func(migration.Status)) migration.Status {
	p.t.Helper()
	var last migration.Status
	require.Eventually(p.t, func() bool {
		_, _ = p.mover.Sweep(p.t.Context(), 2*time.Second) // a database may be down
		s, err := p.mover.Inspect(p.t.Context(), run.ID)
		if err != nil {
			return false
		}
		last = s
		if meanwhile != nil {
			meanwhile(s)
		}
		return s.State == migration.Done
	}, 60*time.Second, 100*time.Millisecond, "%+v", &last)
	return last
}

func (p *platform) run(ids []tenant.ID) migration.Run {
	p.t.Helper()
	run, report, err := p.mover.Start(p.t.Context(), migration.Plan{Source: "platform", Tenants: ids, BatchSize: 4, Actor: "test"})
	require.NoError(p.t, err, "%+v", report)
	return run
}

// sample takes one in so many points, from the first on; scripts/soak goes through all of them.
func sample(oneIn, first int, points ...string) (out []string) {
	if everything {
		return points
	}
	for i := first; i < len(points); i += oneIn {
		out = append(out, points[i])
	}
	return out
}

// The step function is killed with kill -9 right after each of its effects, while
// tenants are written; another one goes on by itself.
func TestStepIsKilledAnywhere(t *testing.T) {
	p := start(t)
	for _, point := range sample(2, 0, "claimed", "copying", "copied", "copy verified", "fence raised", "fence recorded", "verified", "gates closed", "flipped", "step named", "batch done") {
		t.Run(point, func(t *testing.T) {
			whole := p.t
			p.t = t
			t.Cleanup(func() { p.t = whole })
			require.NoError(t, os.RemoveAll(p.crashed))
			ids := p.tenants(4)
			j := p.write(ids)
			if point == "step named" {
				t.Setenv("CODITECT_STEP_BUDGET", "1ns")
			}
			p.serve(point)
			s := p.sweepUntilDone(p.run(ids), nil)
			require.FileExists(t, p.crashed, "the step was not killed")
			require.Equal(t, migration.Counts{migration.Green: 4}, s.Counts, "%+v", s.Failed)
			j.check()
		})
	}
}

// The same for tenants that move online; at "spooled" it is the receiver that dies.
func TestFunctionsAreKilledWhileTenantsMoveOnline(t *testing.T) {
	p := start(t)
	t.Setenv("CODITECT_AHEAD_MAX", "-1")
	for _, point := range sample(2, 0, "lane joined", "chunk copied", "spooled", "changes applied", "fence recorded", "verified", "flipped") {
		t.Run(point, func(t *testing.T) {
			whole := p.t
			p.t = t
			t.Cleanup(func() { p.t = whole })
			require.NoError(t, os.RemoveAll(p.crashed))
			ids := p.tenants(2)
			j := p.write(ids)
			p.serve(point)
			s := p.sweepUntilDone(p.run(ids), nil)
			require.FileExists(t, p.crashed, "no function was killed")
			require.Equal(t, migration.Counts{migration.Green: 2}, s.Counts, "%+v", s.Failed)
			j.check()
		})
	}
}

// The function that brings tenants back is killed with kill -9 right after each of its effects,
// while they are written; the next one goes on when it is told to sweep.
func TestMigrationsIsKilledWhileTenantsGoBack(t *testing.T) {
	migrations := &function{source: "../migrations/cmd", path: ""}
	p := start(t, migrations)
	control, err := p.admin.Control(t.Context())
	require.NoError(t, err)
	key, _, err := auth.CreateKey(t.Context(), control, auth.NewKey{Name: "operator", Kind: auth.Operator, Scopes: auth.AllScopes()})
	require.NoError(t, err)
	post := func(path string) (status int) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, migrations.url()+path, nil)
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+key)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0 // it has died, or is starting
		}
		defer func() { _ = resp.Body.Close() }()
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode
	}
	for _, point := range backPoints {
		t.Run(point, func(t *testing.T) {
			whole := p.t
			p.t = t
			t.Cleanup(func() { p.t = whole })
			require.NoError(t, os.RemoveAll(p.crashed))
			ids := p.tenants(2)
			p.serve(point)
			run := p.run(ids)
			s := p.sweepUntilDone(run, nil)
			require.Equal(t, migration.Counts{migration.Green: 2}, s.Counts, "%+v", s.Failed)
			require.NoFileExists(t, p.crashed, "only the way back is to come to the point")
			j := p.write(ids)
			j.await(100)
			require.Eventually(t, func() bool {
				status := post("/runs/" + run.ID.String() + "/tenants/" + ids[0].String() + "/rollback")
				require.Contains(t, []int{0, http.StatusNoContent, http.StatusServiceUnavailable}, status)
				return status != 0 || exists(p.crashed)
			}, 20*time.Second, 20*time.Millisecond)
			require.Eventually(t, func() bool {
				post("/sweep")
				var back bool
				require.NoError(t, control.QueryRow(t.Context(), `SELECT t.home = 'blue' AND NOT m.fence_up AND NOT m.purge_due FROM control.tenant t JOIN control.move m ON m.tenant_id = t.id WHERE t.id = $1`, ids[0]).Scan(&back))
				return back
			}, 60*time.Second, 100*time.Millisecond)
			require.FileExists(t, p.crashed, "the function was not killed")
			j.await(100)
			j.check()
		})
	}
}

func exists(file string) bool { _, err := os.Stat(file); return err == nil }

// The queue is killed and forgets everything; the sweeper makes up for it.
func TestQueueIsKilled(t *testing.T) {
	p := start(t)
	ids := p.tenants(12)
	j := p.write(ids)
	t.Setenv("CODITECT_STEP_BUDGET", "1ns")
	run := p.run(ids)
	p.killQueue() // before the first delivery has an answer: the step function is not there yet
	p.serve("")
	killed := false
	s := p.sweepUntilDone(run, func(s migration.Status) {
		if !killed && s.Counts[migration.Green] > 0 {
			killed = true
			p.killQueue()
		}
	})
	require.True(t, killed)
	require.Equal(t, migration.Counts{migration.Green: 12}, s.Counts, "%+v", s.Failed)
	j.check()
}

// Each database is killed with kill -9 while the step function stands at each of its
// points, and started again; the step goes on by itself.
func TestDatabasesAreKilledAnywhere(t *testing.T) {
	p := start(t)
	for i, kill := range []func(){p.killBlue, p.killGreen} {
		name := []string{"blue", "green"}[i]
		for _, point := range sample(3, i+1, "claimed", "copying", "copied", "copy verified", "fence raised", "fence recorded", "verified", "gates closed", "flipped") {
			t.Run(name+"/"+point, func(t *testing.T) {
				whole := p.t
				p.t, p.hold = t, "yes"
				t.Cleanup(func() { p.t, p.hold = whole, "" })
				ids := p.tenants(4)
				j := p.write(ids)
				p.serve(point)
				run := p.run(ids)
				require.Eventually(t, func() bool { _, err := os.Stat(p.crashed); return err == nil }, 20*time.Second, 5*time.Millisecond, "the point was not reached")
				kill()
				require.NoError(t, os.Remove(p.crashed))
				s := p.sweepUntilDone(run, nil)
				require.Equal(t, migration.Counts{migration.Green: 4}, s.Counts, "%+v", s.Failed)
				j.check()
			})
		}
	}
}

// Only the queue's account and operators may make a step.
func TestStrangersMayNotStep(t *testing.T) {
	p := start(t)
	p.serve("")
	require.Eventually(t, func() bool {
		for _, credential := range []string{"", "Bearer garbage", "Bearer ck_garbage"} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.url(), strings.NewReader(`{"run":"01a208fc-0550-732e-b4fa-5c76d61216c4","batch":1,"step":1}`))
			require.NoError(t, err)
			req.Header.Set("Content-Type", "application/json")
			if credential != "" {
				req.Header.Set("Authorization", credential)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return false // it is starting
			}
			_ = resp.Body.Close()
			require.Equal(t, http.StatusUnauthorized, resp.StatusCode, credential)
		}
		return true
	}, 10*time.Second, 50*time.Millisecond)
}
