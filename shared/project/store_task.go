package project

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

const (
	taskColumns        = `id, project_id, parent_id, title, description, status, priority, assignee, due_date, labels, version, created_at, updated_at`
	selectTasks        = `SELECT ` + taskColumns + ` FROM task`
	selectTasksByTitle = `SELECT ` + taskColumns + `, title_key FROM task`
)

// taskRow is scanned into again and again: the list of destinations is made once
// for a page, not once for each of its rows.
type taskRow struct {
	Task
	parent   ID
	assignee pgtype.Text
	due      Date
	titleKey string
	dest     []any
}

func newTaskRow(withTitleKey bool) *taskRow {
	r := &taskRow{}
	r.dest = []any{&r.ID, &r.ProjectID, &r.parent, &r.Title, &r.Description, (*string)(&r.Status), &r.Priority, &r.assignee, &r.due,
		&r.Labels, &r.Version, &r.CreatedAt, &r.UpdatedAt}
	if withTitleKey {
		r.dest = append(r.dest, &r.titleKey)
	}
	return r
}

func (r *taskRow) scan(row pgx.Row, t *Task) error {
	r.Labels = nil // else all rows would share one array
	if err := row.Scan(r.dest...); err != nil {
		return err
	}
	*t = r.Task
	if !r.parent.IsZero() {
		id := r.parent
		t.ParentID = &id
	}
	if r.assignee.Valid {
		who := r.assignee.String
		t.Assignee = &who
	}
	if !r.due.IsZero() {
		day := r.due
		t.DueDate = &day
	}
	t.CreatedAt, t.UpdatedAt = t.CreatedAt.UTC(), t.UpdatedAt.UTC()
	return nil
}

var tasks = newEntity("task", taskColumns, func(row pgx.Row, t *Task) error { return newTaskRow(false).scan(row, t) })

const insertTask = `INSERT INTO task (tenant_id, id, project_id, parent_id, title, description, status, priority, assignee, due_date, labels, created_at, updated_at)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12)`

// CreateTask makes a task in a project. Replayed: the key was used before, and this
// is the first answer.
func (s *Store) CreateTask(ctx context.Context, t tenant.ID, project ID, key string, in NewTask) (v Task, replayed bool, err error) {
	if err := in.check(); err != nil {
		return v, false, err
	}
	id, now := newID()
	v = Task{ID: id, ProjectID: project, ParentID: in.ParentID, Title: in.Title, Description: in.Description, Status: in.Status,
		Priority: in.Priority, Assignee: in.Assignee, DueDate: in.DueDate, Labels: in.Labels, Version: 1, CreatedAt: now, UpdatedAt: now}
	replayed, err = create(ctx, s, t, key, "task "+project.String(), in, &v, func(b *citus.Batch) {
		queueLabels(b, t, in.Labels, now)
		b.Queue(insertTask, t, id, project, in.ParentID, in.Title, in.Description, string(in.Status), in.Priority, in.Assignee, in.DueDate, in.Labels, now)
	})
	switch citus.ConstraintName(err) {
	case "task_project":
		err = projects.notFound()
	case "task_parent":
		err = errParent
	}
	return v, replayed, err
}

var errParent = fault.BadField("parent_id", "must be a task of the same project")

// GetTask reads one task.
func (s *Store) GetTask(ctx context.Context, t tenant.ID, id ID) (Task, error) {
	return get(ctx, s, tasks, t, id)
}

// ListTasks reads a page of tasks.
func (s *Store) ListTasks(ctx context.Context, t tenant.ID, f TaskFilter, opt ListOptions) (Page[Task], error) {
	l, err := f.listing(t, opt)
	if err != nil {
		return Page[Task]{}, err
	}
	var (
		rows    []Task
		lastKey string // title_key of the page's last row
	)
	err = s.door.ReadTrip(ctx, t, func(b *citus.Batch) {
		b.Queue(l.sql.String(), l.args...).Query(func(r pgx.Rows) error {
			rows = make([]Task, 0, l.most+1)
			row := newTaskRow(l.by.cast == "text")
			for r.Next() {
				rows = rows[:len(rows)+1]
				if err := row.scan(r, &rows[len(rows)-1]); err != nil {
					return err
				}
				if len(rows) == l.most {
					lastKey = row.titleKey
				}
			}
			return r.Err()
		})
	})
	if err != nil {
		return Page[Task]{}, err
	}
	return pageOf(l, rows, func(v *Task) (string, ID) {
		if l.by.expr == "" {
			return "", v.ID
		}
		return v.key(l.by.cast, lastKey), v.ID
	}), nil
}

// ChangeTask changes a task that is at a version (0: any).
func (s *Store) ChangeTask(ctx context.Context, t tenant.ID, id ID, version int64, in TaskChange) (Task, error) {
	if err := in.check(); err != nil {
		return Task{}, err
	}
	now := s.now()
	c := newChangeSet(t, id, now, version)
	optional(c, in.Clear, "project_id", in.ProjectID, nil)
	optional(c, in.Clear, "parent_id", in.ParentID, nil)
	optional(c, in.Clear, "title", in.Title, nil)
	optional(c, in.Clear, "description", in.Description, "")
	optional(c, in.Clear, "status", (*string)(in.Status), nil)
	optional(c, in.Clear, "priority", in.Priority, nil)
	optional(c, in.Clear, "assignee", in.Assignee, nil)
	optional(c, in.Clear, "due_date", in.DueDate, nil)
	if in.Labels != nil || in.Clear.Has("labels") {
		c.set("labels", distinct(in.Labels))
	}
	var (
		v   Task
		err error
	)
	if in.ParentID == nil && len(in.Labels) == 0 {
		v, err = change(ctx, s, tasks, t, c)
	} else {
		v, err = s.changeWithCare(ctx, t, id, in, c)
	}
	if fault.CodeOf(err) == "missing_reference" {
		err = referenceFault(err, in)
	}
	return v, err
}

// referenceFault says which of a change's references is wrong.
func referenceFault(err error, in TaskChange) error {
	switch {
	case citus.ConstraintName(err) == "task_project":
		return fault.BadField("project_id", "must be a project of this tenant")
	case in.ProjectID != nil:
		return fault.New(fault.Conflict, "task_in_tree", "a task that has a parent or subtasks stays in its project: detach them first (parent_id: null)")
	default:
		return errParent
	}
}

// changeWithCare is for changes that touch more than the task's own row: new labels,
// which must not be made by a change that is refused, and the tree of tasks.
func (s *Store) changeWithCare(ctx context.Context, t tenant.ID, id ID, in TaskChange, c *changeSet) (v Task, err error) {
	err = s.door.InTenant(ctx, t, func(tx *citus.Tx) error {
		if in.ParentID != nil {
			if err := keepTree(ctx, tx, id, *in.ParentID); err != nil {
				return err
			}
		}
		var (
			found bool
			have  int64
		)
		b := tx.NewBatch()
		if len(in.Labels) > 0 {
			queueLabels(b, t, in.Labels, s.now())
		}
		queueChange(b, tasks, c, &v, &found, &have)
		if err := tx.Send(ctx, b); err != nil {
			return err
		}
		if !found {
			return tasks.missing(have)
		}
		return nil
	})
	return v, err
}

// keepTree refuses a parent that is the task itself or below it. Two changes of
// parents of one tenant go one after the other: each alone may be right, and both
// together a circle. The lock is taken through a row, so that on Citus it is taken
// on the worker that has the tenant, whichever node was asked.
func keepTree(ctx context.Context, tx *citus.Tx, id, parent ID) error {
	t := tx.Tenant()
	var circle bool
	b := tx.NewBatch()
	b.Queue(`SELECT pg_advisory_xact_lock(hashtextextended('task parents ' || tenant_id::text, 0)) FROM task WHERE tenant_id = $1 AND id = $2`, t, id)
	b.Queue(`WITH RECURSIVE above AS (
			SELECT id, parent_id FROM task WHERE tenant_id = $1 AND id = $3
			UNION SELECT up.id, up.parent_id FROM task up JOIN above ON up.id = above.parent_id WHERE up.tenant_id = $1)
		SELECT coalesce(bool_or(id = $2), false) FROM above`, t, id, parent).
		QueryRow(func(row pgx.Row) error { return row.Scan(&circle) })
	if err := tx.Send(ctx, b); err != nil {
		return err
	}
	if circle {
		return fault.BadField("parent_id", "must not be the task itself or a task below it")
	}
	return nil
}

// DeleteTask deletes a task that is at a version (0: any) and its comments. Its
// subtasks stay, without a parent.
func (s *Store) DeleteTask(ctx context.Context, t tenant.ID, id ID, version int64) error {
	var (
		have    int64
		deleted bool
		now     = s.now()
	)
	err := s.door.OneTrip(ctx, t, func(b *citus.Batch) {
		// From here on the version stays what it is, and no subtask or comment can be added.
		b.Queue(tasks.lock, t, id).QueryRow(readVersion(&have))
		b.Queue(`UPDATE task SET parent_id = NULL, version = version + 1, updated_at = $3 WHERE tenant_id = $1 AND parent_id = $2
			AND EXISTS (SELECT FROM task up WHERE up.tenant_id = $1 AND up.id = $2 AND ($4::bigint = 0 OR up.version = $4))`, t, id, now, version)
		b.Queue(tasks.remove, t, id, version).Exec(didDelete(&deleted))
	})
	if err == nil && !deleted {
		err = tasks.missing(have)
	}
	return err
}

func didDelete(done *bool) func(pgconn.CommandTag) error {
	return func(tag pgconn.CommandTag) error {
		*done = tag.RowsAffected() == 1
		return nil
	}
}
