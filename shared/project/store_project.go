package project

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

const projectColumns = `id, name, description, archived, version, created_at, updated_at`

func scanProject(row pgx.Row, p *Project) error {
	err := row.Scan(&p.ID, &p.Name, &p.Description, &p.Archived, &p.Version, &p.CreatedAt, &p.UpdatedAt)
	p.CreatedAt, p.UpdatedAt = p.CreatedAt.UTC(), p.UpdatedAt.UTC()
	return err
}

var projects = newEntity("project", projectColumns, scanProject)

// CreateProject makes a project. Replayed: the key was used before, and this is the
// first answer.
func (s *Store) CreateProject(ctx context.Context, t tenant.ID, key string, in NewProject) (p Project, replayed bool, err error) {
	if err := in.check(); err != nil {
		return p, false, err
	}
	id, now := newID()
	p = Project{ID: id, Name: in.Name, Description: in.Description, Version: 1, CreatedAt: now, UpdatedAt: now}
	replayed, err = create(ctx, s, t, key, "project", in, &p, func(b *citus.Batch) {
		b.Queue(`INSERT INTO project (tenant_id, id, name, description, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $5)`,
			t, id, in.Name, in.Description, now)
	})
	return p, replayed, err
}

// GetProject reads one project.
func (s *Store) GetProject(ctx context.Context, t tenant.ID, id ID) (Project, error) {
	return get(ctx, s, projects, t, id)
}

// ProjectFilter picks projects.
type ProjectFilter struct {
	Archived *bool // nil for both
}

// ProjectSorts are the words projects can be sorted by.
var ProjectSorts = []Sort{"created", "updated", "name"}

// No index has these but the id's: a tenant has few projects.
var projectOrders = orders{
	"created": {},
	"updated": {"updated_at", "timestamptz"},
	"name":    {`name COLLATE "C"`, "text"},
}

// ListProjects reads a page of projects.
func (s *Store) ListProjects(ctx context.Context, t tenant.ID, f ProjectFilter, opt ListOptions) (Page[Project], error) {
	l, err := newListing(t, opt, projectOrders, ProjectSorts, projects.selectAll)
	if err != nil {
		return Page[Project]{}, err
	}
	if f.Archived != nil {
		text := "no"
		if *f.Archived {
			text = "yes"
		}
		l.where(`archived = ?`, *f.Archived, text)
	}
	if err := l.finish(opt.After); err != nil {
		return Page[Project]{}, err
	}
	return read(ctx, s, projects, t, l, func(p *Project) (string, ID) {
		switch l.by.cast {
		case "timestamptz":
			return microseconds(p.UpdatedAt), p.ID
		case "text":
			return p.Name, p.ID
		}
		return "", p.ID
	})
}

// ChangeProject changes a project that is at a version (0: any).
func (s *Store) ChangeProject(ctx context.Context, t tenant.ID, id ID, version int64, in ProjectChange) (Project, error) {
	if err := in.check(); err != nil {
		return Project{}, err
	}
	c := newChangeSet(t, id, s.now(), version)
	optional(c, in.Clear, "name", in.Name, nil)
	optional(c, in.Clear, "description", in.Description, "")
	optional(c, in.Clear, "archived", in.Archived, nil)
	return change(ctx, s, projects, t, c)
}

// DeleteProject deletes a project that is at a version (0: any). One that has tasks
// is deleted only withTasks; they and their comments go with it.
func (s *Store) DeleteProject(ctx context.Context, t tenant.ID, id ID, version int64, withTasks bool) error {
	var (
		have    int64
		tasks   bool
		deleted bool
	)
	err := s.door.OneTrip(ctx, t, func(b *citus.Batch) {
		// From here on no task can be added: its foreign key waits for this lock. So what is counted next stays true.
		b.Queue(projects.lock, t, id).QueryRow(readVersion(&have))
		b.Queue(`SELECT count(*) > 0 FROM (SELECT id FROM task WHERE tenant_id = $1 AND project_id = $2 LIMIT 1) x`, t, id).
			QueryRow(func(row pgx.Row) error { return row.Scan(&tasks) })
		b.Queue(projects.remove+` AND ($4 OR NOT EXISTS (SELECT FROM task WHERE tenant_id = $1 AND project_id = $2))`, t, id, version, withTasks).
			Exec(didDelete(&deleted))
	})
	switch {
	case err != nil || deleted:
		return err
	case have != 0 && (version == 0 || version == have) && tasks:
		return fault.New(fault.Conflict, "project_not_empty", "the project has tasks: delete them first, or say that they go with it (tasks=delete)")
	default:
		return projects.missing(have)
	}
}
