package main

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"time"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/directory"
	"github.com/coditect/platform/shared/project"
	"github.com/coditect/platform/shared/tenant"
)

// door measures statements of shared/project through the door.
type door struct {
	tenants, tasks, projects, clients, rounds, targets int
	seconds                                            int
	cpuprofile, homes, operations                      string

	*bench
	platform *platform
	dbs      *citus.Databases
	through  *citus.Door
	store    *project.Store
	captured *capture
	server   *process
}

func doorFlags(set *flag.FlagSet) func(context.Context, *bench) (figures, error) {
	d := &door{targets: 64}
	set.IntVar(&d.tenants, "tenants", 16, "tenants of each home that the statements are spread over")
	set.IntVar(&d.projects, "projects", 5, "projects of a tenant")
	set.IntVar(&d.tasks, "tasks", 2000, "tasks of a tenant")
	set.IntVar(&d.clients, "clients", 8, "clients, and connections of each side")
	set.IntVar(&d.rounds, "rounds", 2, "rounds of all sides in turns; their median counts")
	set.IntVar(&d.seconds, "seconds", 2, "of each side in a round")
	set.StringVar(&d.homes, "homes", "blue,green", "homes to measure")
	set.StringVar(&d.operations, "operations", "point,page,update,insert", "operations to measure")
	set.StringVar(&d.cpuprofile, "cpuprofile", "", "folder for CPU profiles: of this process for each operation through the door, and of the function")
	return func(ctx context.Context, b *bench) (figures, error) {
		d.bench = b
		return d.run(ctx)
	}
}

// target is one row to work on, and what is needed to reach it.
type target struct {
	tenant  tenant.ID
	schema  string
	project project.ID
	task    project.ID
	secret  string // of a key of the tenant
}

func (d *door) run(ctx context.Context) (figures, error) {
	ops, homes, err := d.chosen()
	if err != nil {
		return nil, err
	}
	if d.platform, err = d.bench.platform(ctx); err != nil {
		return nil, err
	}
	targets := map[tenant.Home][]target{}
	for _, home := range homes {
		if targets[home], err = d.fill(ctx, home); err != nil {
			return nil, err
		}
	}
	for _, dsn := range []string{d.platform.blueDSN("postgres"), d.platform.greenDSN("postgres")} {
		if err := program(ctx, nil, "vacuumdb", "-q", "-z", "-d", dsn); err != nil {
			return nil, err
		}
	}
	if err := d.open(ctx); err != nil {
		return nil, err
	}
	if err := settle(ctx, d.platform.blueDSN("postgres"), d.platform.greenDSN("postgres")); err != nil {
		return nil, err
	}
	found, goals := map[string]any{}, map[string]goal{}
	for _, home := range homes {
		of := map[string]any{}
		for _, op := range ops {
			result, err := d.compare(ctx, home, op, targets[home])
			if err != nil {
				return nil, fmt.Errorf("%s %s: %w", home, op.name, err)
			}
			of[op.name] = result
			name := string(home) + " " + op.name
			goals[name+" InTenant"] = atLeast(result.ToStatement["in_tenant"], 0.5)
			goals[name+" HTTP"] = atLeast(result.ToStatement["http"], 0.2)
			if op.name == "page" {
				goals[name+" HTTP, times Django REST Framework"] = atLeast(result.ToStatement["http"]/djangoShare, 10)
			}
		}
		found[string(home)] = of
	}
	return figures{
		"homes": found, "goals": goals,
		"sizes": map[string]any{"tenants_per_home": d.tenants, "tasks_per_tenant": d.tasks, "projects_per_tenant": d.projects, "clients": d.clients, "rounds": d.rounds, "seconds": d.seconds, "rows_worked_on": d.targets},
		"how": "all sides in turns, medians of the rounds. statement: pgbench -M prepared, the statement that shared/project sends, as a role without row-level security. " +
			"transaction: pgbench -M prepared, begin; enter; statement; commit in one pipeline as the application's role. in_tenant: Door.InTenant, for reads Door.ReadTenant, with one statement, rows read but not decoded. " +
			"one_trip: Door.ReadTrip or OneTrip, the same. store: shared/project. http: the function projects as its own process, keep-alive, a tenant's key. All with as many connections as clients",
	}, nil
}

// fill makes a home's tenants and picks the rows to work on, evenly over them.
func (d *door) fill(ctx context.Context, home tenant.Home) ([]target, error) {
	d.say("filling %d %s tenants with %d tasks each …", d.tenants, home, d.tasks)
	admin, err := d.bench.open(ctx, d.platform.config("postgres", 4))
	if err != nil {
		return nil, err
	}
	control, err := admin.Control(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]target, d.targets)
	for n := range d.tenants {
		id, err := newTenant(ctx, admin, home)
		if err != nil {
			return nil, err
		}
		f, err := fillTenant(ctx, admin, id, d.projects, d.tasks)
		if err != nil {
			return nil, err
		}
		secret, _, err := auth.CreateKey(ctx, control, auth.NewKey{Name: "benchmark", Kind: auth.TenantKey, Tenant: id, Scopes: []string{auth.ProjectsRead, auth.ProjectsWrite}})
		if err != nil {
			return nil, err
		}
		for i := n; i < d.targets; i += d.tenants {
			out[i] = target{tenant: id, schema: f.schema, project: f.projects[i/d.tenants%d.projects], task: f.tasks[i*7919%d.tasks], secret: secret}
		}
	}
	return out, nil
}

// open opens the door and starts the function.
func (d *door) open(ctx context.Context) (err error) {
	if d.dbs, err = d.bench.open(ctx, d.platform.config("coditect_app", int32(d.clients))); err != nil {
		return err
	}
	dir := directory.New(d.dbs, 0)
	d.through = citus.NewDoor(d.dbs, dir)
	d.store = project.New(d.through, time.Now)
	d.captured = newCapture(d.dbs, dir)
	path, args, err := d.program(ctx)
	if err != nil {
		return err
	}
	d.server, err = d.running(ctx, path, args, d.platform.env("projects", d.clients))
	return err
}

// operation is one thing a caller does, in the words of each side.
type operation struct {
	name  string
	reads bool
	// store does it through shared/project.
	store func(ctx context.Context, s *project.Store, t target) error
	// args are those of the store's statement: constants but for the ones named.
	args func(t target) []any
	// request does it over HTTP.
	request func(t target) (request, int)
}

// djangoShare is what Django REST Framework on django-tenants reached of pgbench's pages of 20 on
// one machine of two cores: 705 of 41,000 a second.
const djangoShare = 705.0 / 41000

const newTitle = "A new title"

var operations = []operation{
	{
		name: "point", reads: true,
		store: func(ctx context.Context, s *project.Store, t target) error {
			_, err := s.GetTask(ctx, t.tenant, t.task)
			return err
		},
		args: func(t target) []any { return []any{t.tenant, t.task} },
		request: func(t target) (request, int) {
			return request{method: http.MethodGet, path: "/tasks/" + t.task.String(), secret: t.secret}, http.StatusOK
		},
	},
	{
		name: "page", reads: true,
		store: func(ctx context.Context, s *project.Store, t target) error {
			_, err := s.ListTasks(ctx, t.tenant, project.TaskFilter{Project: t.project}, project.ListOptions{})
			return err
		},
		args: func(t target) []any { return []any{t.tenant, t.project, project.DefaultLimit + 1} },
		request: func(t target) (request, int) {
			return request{method: http.MethodGet, path: "/projects/" + t.project.String() + "/tasks", secret: t.secret}, http.StatusOK
		},
	},
	{
		name: "update",
		store: func(ctx context.Context, s *project.Store, t target) error {
			title := newTitle
			_, err := s.ChangeTask(ctx, t.tenant, t.task, 0, project.TaskChange{Title: &title})
			return err
		},
		args: func(t target) []any { return []any{t.tenant, t.task, time.Now().UTC(), 0, newTitle} },
		request: func(t target) (request, int) {
			return request{method: http.MethodPatch, path: "/tasks/" + t.task.String(), secret: t.secret, body: []byte(`{"title":"` + newTitle + `"}`)}, http.StatusOK
		},
	},
	{
		name: "insert",
		store: func(ctx context.Context, s *project.Store, t target) error {
			_, _, err := s.CreateTask(ctx, t.tenant, t.project, "", project.NewTask{Title: newTitle, Status: project.Todo, Description: text(1)})
			return err
		},
		args: func(t target) []any {
			return []any{t.tenant, project.ID(tenant.NewID()), t.project, nil, newTitle, text(1), "todo", 0, nil, nil, []string{}, time.Now().UTC()}
		},
		request: func(t target) (request, int) {
			return request{method: http.MethodPost, path: "/projects/" + t.project.String() + "/tasks", secret: t.secret, body: []byte(`{"title":"` + newTitle + `","description":"` + text(1) + `"}`)}, http.StatusCreated
		},
	},
}
