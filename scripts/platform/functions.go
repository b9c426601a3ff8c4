package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/coditect/platform/scripts/internal/demo"
	"github.com/coditect/platform/scripts/internal/supervisor"
	"github.com/coditect/platform/shared/taskqueue"
	"github.com/coditect/platform/shared/taskqueue/issuer"
)

// function is one function: a program, its port and what it is told.
type function struct {
	name string
	port int
	url  *url.URL
}

// migratorFunctions act as the role that may see and change rows of every tenant;
// all others as the application.
var migratorFunctions = map[string]bool{"migrations": true, "migrationstep": true, "replication": true}

const (
	queueName     = "projects/dev/locations/local/queues/migration"
	queueParallel = 2 // steps at a time: what two cores carry beside the traffic
	pubsubProject = "dev"
	// queueAccount is who the queue's calls come from. The emulator signs its tokens
	// with a key that everybody knows: the check is the real one, its worth is not.
	queueAccount = "tasks@dev.example"
)

// findFunctions lists what scripts/dev built: one program per folder of functions/.
func (p *platform) findFunctions() error {
	dir := filepath.Join(p.bin, "functions")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("the functions are not built (scripts/dev does it): %w", err)
	}
	for _, e := range entries {
		port, err := p.portFor(e.Name())
		if err != nil {
			return err
		}
		p.functions = append(p.functions, &function{
			name: e.Name(), port: port,
			url: &url.URL{Scheme: "http", Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(port))},
		})
	}
	return nil
}

// functionURL is the address of a function itself, "" when there is none.
func (p *platform) functionURL(name string) string {
	for _, f := range p.functions {
		if f.name == name {
			return f.url.String()
		}
	}
	return ""
}

func (p *platform) startFunctions(ctx context.Context) error {
	programs := make([]*supervisor.Program, len(p.functions))
	err := each(len(p.functions), func(i int) (err error) {
		f := p.functions[i]
		programs[i], err = supervisor.Start(ctx, supervisor.Spec{
			Name:  "function " + f.name,
			Path:  filepath.Join(p.bin, "functions", f.name),
			Env:   p.functionEnv(f),
			Log:   p.log(f.name),
			Ready: func(ctx context.Context) error { return answers(ctx, f.url.String()+"/health") },
		}, p.console.Say)
		return err
	})
	// They drain at the same time, also those beside one that did not start.
	p.onStop(func() error {
		return each(len(programs), func(i int) error {
			if programs[i] == nil {
				return nil
			}
			return programs[i].Stop()
		})
	})
	if err != nil {
		return err
	}
	names := make([]string, len(p.functions))
	for i, f := range p.functions {
		names[i] = f.name
	}
	p.console.Say("Functions: %s", strings.Join(names, ", "))
	return nil
}

// functionEnv is the configuration of a function, by environment as in production.
func (p *platform) functionEnv(f *function) []string {
	role := "coditect_app"
	if migratorFunctions[f.name] {
		role = "coditect_migrator"
	}
	d := p.databases.config(role)
	return []string{
		"HOST=127.0.0.1",
		"PORT=" + strconv.Itoa(f.port),
		"K_SERVICE=" + f.name,
		"CODITECT_GREEN_DSN=" + d.Green,
		"CODITECT_BLUE_DSN=" + d.Blue,
		"CODITECT_SOURCES=" + demo.Source + "=" + d.Sources[demo.Source],
		"CODITECT_TASKS_EMULATOR=" + net.JoinHostPort("127.0.0.1", strconv.Itoa(p.remembered.Ports["tasks"])),
		"CODITECT_TASKS_QUEUE=" + queueName,
		"CODITECT_STEP_URL=" + p.functionURL("migrationstep") + "/step",
		"CODITECT_RECEIVE_URL=" + p.functionURL("replication") + "/receive",
		"CODITECT_RECEIVE_AUDIENCE=" + p.functionURL("replication"),
		"CODITECT_TASKS_SERVICE_ACCOUNT=" + queueAccount,
		"CODITECT_TASKS_AUDIENCE=" + p.functionURL("migrationstep"),
		"CODITECT_IDENTITY_ISSUER=" + p.issuer.URL,
		"CODITECT_IDENTITY_AUDIENCE=" + f.url.String(),
		"CODITECT_IDENTITY_CALLERS=" + queueAccount,
		"CODITECT_NEW_TENANT_HOME=blue",
		// A step or a queue that was killed is made up for before the door's patience
		// (10 s) ends: the tenant's users see a pause, no error.
		"CODITECT_SWEEP_PATIENCE=2s",
		"CODITECT_BLUE_BUSY_SESSIONS=-1", // the demonstration's own clients must not hold it up
		"PUBSUB_EMULATOR_HOST=" + p.pubsub.Addr,
		"CODITECT_PUBSUB_PROJECT=" + pubsubProject,
		"CODITECT_TENANT_EVENTS_TOPIC=" + tenantEvents,
	}
}

// answers reports whether a GET of the URL is answered, whatever it says.
func answers(ctx context.Context, target string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// startQueue starts the Cloud Tasks emulator. It forgets its queue when it ends, so
// the queue is made after every start.
func (p *platform) startQueue(ctx context.Context) error {
	port, err := p.portFor("tasks")
	if err != nil {
		return err
	}
	// Before the emulator, which would take its port.
	if p.issuer, err = issuer.Start(0); err != nil {
		return err
	}
	p.onStop(p.issuer.Close)
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	queue, err := taskqueue.Open(ctx, taskqueue.Config{Emulator: addr, Queue: queueName})
	if err != nil {
		return err
	}
	p.onStop(queue.Close)
	program, err := supervisor.Start(ctx, supervisor.Spec{
		Name: "Cloud Tasks emulator",
		Path: filepath.Join(p.bin, "cloud-tasks-emulator"),
		Args: []string{"-host", "127.0.0.1", "-port", strconv.Itoa(port), "-openid-issuer", p.issuer.URL},
		Log:  p.log("cloud-tasks-emulator"),
		Ready: func(ctx context.Context) error {
			var d net.Dialer
			c, err := d.DialContext(ctx, "tcp", addr)
			if err != nil {
				return err
			}
			return c.Close()
		},
		Started: func(ctx context.Context) error { return queue.EnsureQueues(ctx, queueParallel) },
	}, p.console.Say)
	if err != nil {
		return err
	}
	p.onStop(program.Stop)
	return nil
}
