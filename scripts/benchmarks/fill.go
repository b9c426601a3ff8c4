package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/project"
	"github.com/coditect/platform/shared/tenant"
)

// bytesPerTask is about what a filled task takes in its table, without indexes.
const bytesPerTask = 520

// filled are a tenant's rows.
type filled struct {
	id       tenant.ID
	schema   string
	projects []project.ID
	tasks    []project.ID
}

var words = strings.Fields("the quick brown fox jumps over a lazy dog while nobody looks and every plan of the house is made anew before lunch by those who know where the old maps were kept in the cellar")

// fillTenant gives a tenant projects and tasks by COPY; the databases are a superuser's.
// The tasks are spread evenly over the projects.
func fillTenant(ctx context.Context, dbs *citus.Databases, id tenant.ID, projects, tasks int) (filled, error) {
	f := filled{id: id}
	control, err := dbs.Control(ctx)
	if err != nil {
		return f, err
	}
	var database string
	if err := control.QueryRow(ctx, `SELECT database_name, schema_name FROM control.tenant WHERE id = $1`, id).Scan(&database, &f.schema); err != nil {
		return f, err
	}
	pool, err := dbs.Pool(ctx, database)
	if err != nil {
		return f, err
	}
	newID := func() project.ID { return project.ID(uuid.Must(uuid.NewV7())) }
	for range projects {
		f.projects = append(f.projects, newID())
	}
	for range tasks {
		f.tasks = append(f.tasks, newID())
	}
	now := time.Now().UTC()
	u := func(id project.ID) uuid.UUID { return uuid.UUID(id) }
	_, err = pool.CopyFrom(ctx, pgx.Identifier{f.schema, "project"}, []string{"tenant_id", "id", "name", "created_at", "updated_at"},
		pgx.CopyFromSlice(projects, func(i int) ([]any, error) {
			return []any{uuid.UUID(id), u(f.projects[i]), fmt.Sprint("Project ", i), now, now}, nil
		}))
	if err != nil {
		return f, err
	}
	states := []string{"todo", "in_progress", "blocked", "done"}
	_, err = pool.CopyFrom(ctx, pgx.Identifier{f.schema, "task"}, []string{"tenant_id", "id", "project_id", "title", "description", "status", "priority", "assignee", "labels", "created_at", "updated_at"},
		pgx.CopyFromSlice(tasks, func(i int) ([]any, error) {
			at := now.Add(time.Duration(i) * time.Millisecond)
			return []any{uuid.UUID(id), u(f.tasks[i]), u(f.projects[i%projects]), fmt.Sprintf("Task %d: %s %s", i, words[i%len(words)], words[i*7%len(words)]), text(i), states[i%len(states)],
				i % 5, fmt.Sprintf("user-%d", i%20), []string{words[i%5], words[5+i%7]}, at, at}, nil
		}))
	return f, err
}

// text is a description of some twenty words.
func text(i int) string {
	var out strings.Builder
	for n := range 20 {
		out.WriteString(words[(i*3+n*n+n)%len(words)])
		out.WriteByte(' ')
	}
	return out.String()
}
