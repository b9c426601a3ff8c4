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

// fillBytes gives a blue tenant about so many bytes of rows, made by the server itself, for sizes that take
// too long by fillTenant: a tenth of them tasks, the rest comments, which cost their maker less. It returns
// the number of tasks. The session is a superuser's.
func fillBytes(ctx context.Context, blue *pgx.Conn, schema string, id tenant.ID, bytes float64) (tasks int, err error) {
	const bytesPerComment = 560
	tasks = max(1, int(bytes/10/bytesPerTask))
	if err := fillRows(ctx, blue, schema, id, tasks); err != nil {
		return 0, err
	}
	_, err = blue.Exec(ctx, fmt.Sprintf(`SET session_replication_role = replica;
		INSERT INTO %s.comment (tenant_id, id, task_id, author, body, created_at, updated_at)
			SELECT '%s', (lpad(to_hex(i), 12, '0') || '7000' || '8000' || left(md5(i::text), 12))::uuid, (lpad(to_hex(t), 12, '0') || '7000' || '8000' || left(md5(t::text), 12))::uuid,
				'user-' || i %% 20, repeat(md5(i::text) || ' ', 13), now(), now() FROM generate_series(1, %[3]d) i, LATERAL (SELECT 1 + i %% %[4]d AS t) x;
		RESET session_replication_role; ANALYZE %[1]s.comment`, schema, id, int(bytes*0.9/bytesPerComment), tasks), pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return 0, fmt.Errorf("fill %s: %w", schema, err)
	}
	return tasks, nil
}

// fillRows gives a blue tenant one project, with the tenant's id, and tasks of about bytesPerTask, made by
// the server itself. The session is a superuser's. The ids grow, as those of the application do, and the
// i-th is not smaller than taskFrom of i.
func fillRows(ctx context.Context, blue *pgx.Conn, schema string, id tenant.ID, tasks int) error {
	for _, sql := range []string{
		fmt.Sprintf(`INSERT INTO %s.project (tenant_id, id, name, created_at, updated_at) VALUES ('%s', '%[2]s', 'Project', now(), now())`, schema, id),
		fmt.Sprintf(`INSERT INTO %s.task (tenant_id, id, project_id, title, description, status, priority, assignee, created_at, updated_at)
			SELECT '%s', (lpad(to_hex(i), 12, '0') || '7000' || '8000' || left(md5(i::text), 12))::uuid, '%[2]s', 'Task ' || i, repeat(md5(i::text) || ' ', 8), 'todo', i %% 5, 'user-' || i %% 20, now(), now()
			FROM generate_series(1, %[3]d) i`, schema, id, tasks),
		`ANALYZE ` + schema + `.project, ` + schema + `.task`,
	} {
		if _, err := blue.Exec(ctx, sql); err != nil {
			return fmt.Errorf("fill %s: %w", schema, err)
		}
	}
	return nil
}

// taskFrom is the SQL of the least id that the i-th task of fillRows may have.
func taskFrom(i string) string {
	return `rpad(lpad(to_hex(` + i + `::bigint), 12, '0'), 32, '0')::uuid`
}

// schemaOf is the name of a tenant's schema in blue.
func schemaOf(id tenant.ID) string { return "t_" + strings.ReplaceAll(id.String(), "-", "") }
