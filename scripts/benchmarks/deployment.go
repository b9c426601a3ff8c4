package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	osexec "os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/scripts/internal/ports"
	"github.com/coditect/platform/shared/citus/localpg/child"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/taskqueue"
	"github.com/coditect/platform/shared/taskqueue/issuer"
	"github.com/coditect/platform/shared/tenant"
)

// deployment is what moves tenants in production, in its default configuration: the step
// function and the receiver of changes, each a process of its own, the queue that calls them, and
// the sweep.
type deployment struct {
	platform       *platform
	step, receiver *process
	mover          *migration.Mover // the operator's
}

const (
	emulatorProgram = ".bin/cloud-tasks-emulator" // built by scripts/bench
	queueName       = "projects/dev/locations/local/queues/migration"
	queueAccount    = "tasks@dev.example"
	queueParallel   = 2 // steps at a time, as scripts/dev has it
	sweepEvery      = 5 * time.Second
)

// deploy starts them. Settings are environment variables for both functions.
func (b *bench) deploy(ctx context.Context, p *platform, settings ...string) (*deployment, error) {
	programs, err := b.build(ctx, "migrationstep", "replication")
	if err != nil {
		return nil, err
	}
	var at [3]int
	for i := range at {
		if at[i], err = ports.Free(0); err != nil {
			return nil, err
		}
	}
	queue := taskqueue.Config{
		Emulator: local(at[2]), Queue: queueName, ServiceAccount: queueAccount, StepDeadline: 30 * time.Second,
		URL: "http://" + local(at[0]) + "/step", Audience: "step", ReceiveURL: "http://" + local(at[1]) + "/receive", ReceiveAudience: "receive",
	}
	who, err := issuer.Start(0)
	if err != nil {
		return nil, err
	}
	b.later(who.Close)
	emulator := &process{addr: queue.Emulator}
	if emulator.Process, err = child.Start(osexec.Command(emulatorProgram, "-host", "127.0.0.1", "-port", strconv.Itoa(at[2]), "-openid-issuer", who.URL), syscall.SIGKILL); err != nil {
		return nil, fmt.Errorf("%w (scripts/bench builds it)", err)
	}
	b.later(emulator.KillGroup) // it has nothing to end
	if conn, err := emulator.dial(ctx); err != nil {
		return nil, err
	} else if err := conn.Close(); err != nil {
		return nil, err
	}
	tasks, err := taskqueue.Open(ctx, queue)
	if err != nil {
		return nil, err
	}
	b.later(tasks.Close)
	if err := tasks.EnsureQueues(ctx, queueParallel); err != nil {
		return nil, err
	}
	d := &deployment{platform: p}
	for i, process := range []**process{&d.step, &d.receiver} {
		audience := []string{queue.Audience, queue.ReceiveAudience}[i]
		env := append(p.env(programs[i].name, 4),
			"CODITECT_TASKS_EMULATOR="+queue.Emulator, "CODITECT_TASKS_QUEUE="+queue.Queue, "CODITECT_TASKS_SERVICE_ACCOUNT="+queueAccount,
			"CODITECT_STEP_URL="+queue.URL, "CODITECT_TASKS_AUDIENCE="+queue.Audience, "CODITECT_RECEIVE_URL="+queue.ReceiveURL, "CODITECT_RECEIVE_AUDIENCE="+queue.ReceiveAudience,
			"CODITECT_IDENTITY_ISSUER="+who.URL, "CODITECT_IDENTITY_AUDIENCE="+audience, "CODITECT_IDENTITY_CALLERS="+queueAccount)
		if *process, err = serveOn(at[i], programs[i].path, nil, append(env, settings...)); err != nil {
			return nil, err
		}
		if err := b.ready(ctx, *process); err != nil {
			return nil, fmt.Errorf("function %s: %w", programs[i].name, err)
		}
	}
	dbs, err := b.open(ctx, p.config("coditect_migrator", 4))
	if err != nil {
		return nil, err
	}
	d.mover = migration.New(dbs, tasks, migration.Config{})
	return d, nil
}

func local(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// sweep sweeps every few seconds until ctx ends, as Cloud Scheduler has it done.
func sweep(ctx context.Context, mover *migration.Mover) (wait func() error) {
	var group sync.WaitGroup
	var failed error
	group.Go(func() {
		for sleep(ctx, sweepEvery) == nil {
			if _, err := mover.Sweep(ctx, sweepEvery); err != nil && ctx.Err() == nil {
				failed = err // the last one tells: the sweep is there to be tried again
			} else {
				failed = nil
			}
		}
	})
	return func() error { group.Wait(); return failed }
}

// move moves tenants and returns when all are green.
func (d *deployment) move(ctx context.Context, ids []tenant.ID) (migration.Status, error) {
	run, report, err := d.mover.Start(ctx, migration.Plan{Source: "platform", Tenants: ids, Actor: "benchmark"})
	if err != nil {
		return migration.Status{}, fmt.Errorf("%w: %+v", err, report.Findings)
	}
	for {
		if err := sleep(ctx, time.Second); err != nil {
			return migration.Status{}, err
		}
		for _, p := range []*process{d.step, d.receiver} {
			select {
			case <-p.Done():
				return migration.Status{}, fmt.Errorf("a function ended while it was needed: %w", p.Err())
			default:
			}
		}
		s, err := d.mover.Inspect(ctx, run.ID)
		if err != nil {
			return s, err
		}
		if s.State != migration.Running {
			if s.Counts[migration.Green] != int64(len(ids)) {
				err = fmt.Errorf("the run is %s with %v of %d tenants: %+v; left out: %+v", s.State, s.Counts, len(ids), s.Failed, report.Findings)
			}
			return s, err
		}
	}
}

// laneClosed returns when blue has no replication slot any more: half a minute after the last tenant has left.
func (d *deployment) laneClosed(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, d.platform.blueDSN("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for end := time.Now().Add(2 * time.Minute); ; {
		var slots int
		if err := conn.QueryRow(ctx, `SELECT count(*) FROM pg_replication_slots`).Scan(&slots); err != nil || slots == 0 {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("blue still has a replication slot 2 minutes after the last move")
		}
		if err := sleep(ctx, 500*time.Millisecond); err != nil {
			return err
		}
	}
}

// memory is the most memory that the processes have had so far, in MiB.
func (d *deployment) memory() (peaks, error) {
	step, err := peakOf(d.step.Pid())
	if err != nil {
		return peaks{}, err
	}
	receiver, err := peakOf(d.receiver.Pid())
	return peaks{Step: step, Receiver: receiver}, err
}

// peaks are the largest resident sets of the mover's processes, in MiB.
type peaks struct {
	Step     float64 `json:"migrationstep_mib"`
	Receiver float64 `json:"replication_mib"`
}

// peakOf reads a process's largest resident set so far, in MiB.
func peakOf(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("peak memory is read from /proc: %w", err)
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), "VmHWM:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			return round(kib/1024, 1), err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no VmHWM", pid)
}
