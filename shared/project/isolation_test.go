package project_test

import (
	"context"
	"reflect"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/project"
	"github.com/coditect/platform/shared/tenant"
)

// things are one tenant's rows, one of each kind.
type things struct {
	project project.Project
	task    project.Task
	comment project.Comment
	label   project.Label
}

func makeThings(t *testing.T, s *project.Store, id tenant.ID) (v things) {
	t.Helper()
	ctx := t.Context()
	var err error
	v.project, _, err = s.CreateProject(ctx, id, "", project.NewProject{Name: "secret"})
	require.NoError(t, err)
	v.task, _, err = s.CreateTask(ctx, id, v.project.ID, "", project.NewTask{Title: "secret", Labels: []string{"secret"}})
	require.NoError(t, err)
	v.comment, _, err = s.CreateComment(ctx, id, v.task.ID, "", project.NewComment{Body: "secret", Author: "ann"})
	require.NoError(t, err)
	page, err := s.ListLabels(ctx, id, project.ListOptions{})
	require.NoError(t, err)
	v.label = page.Items[0]
	return v
}

// attack calls one store function as tenant a with the ids of b's rows. It returns
// what the function answered.
type attack func(ctx context.Context, s *project.Store, a tenant.ID, mine, theirs things) (answer any, err error)

// want is how an attack must end.
type want struct {
	attack
	code string // of the fault; "" where success shows or touches only a's own rows
}

var attacks = map[string][]want{
	"CreateProject": {{func(ctx context.Context, s *project.Store, a tenant.ID, _, _ things) (any, error) {
		// b used this key: it is not a's.
		v, replayed, err := s.CreateProject(ctx, a, "key of b", project.NewProject{Name: "mine"})
		return []any{v, replayed}, err
	}, ""}},
	"GetProject": {{func(ctx context.Context, s *project.Store, a tenant.ID, _, theirs things) (any, error) {
		return s.GetProject(ctx, a, theirs.project.ID)
	}, "project_not_found"}},
	"ListProjects": {{func(ctx context.Context, s *project.Store, a tenant.ID, _, _ things) (any, error) {
		return s.ListProjects(ctx, a, project.ProjectFilter{}, project.ListOptions{Sort: "name"})
	}, ""}},
	"ChangeProject": {{func(ctx context.Context, s *project.Store, a tenant.ID, _, theirs things) (any, error) {
		return s.ChangeProject(ctx, a, theirs.project.ID, 0, project.ProjectChange{Name: ptr("taken")})
	}, "project_not_found"}, {func(ctx context.Context, s *project.Store, a tenant.ID, _, theirs things) (any, error) {
		return s.ChangeProject(ctx, a, theirs.project.ID, 7, project.ProjectChange{})
	}, "project_not_found"}},
	"DeleteProject": {{func(ctx context.Context, s *project.Store, a tenant.ID, _, theirs things) (any, error) {
		return nil, s.DeleteProject(ctx, a, theirs.project.ID, 0, true)
	}, "project_not_found"}},
	"CreateTask": {{func(ctx context.Context, s *project.Store, a tenant.ID, _, theirs things) (any, error) {
		v, _, err := s.CreateTask(ctx, a, theirs.project.ID, "", project.NewTask{Title: "in theirs"})
		return v, err
	}, "project_not_found"}, {func(ctx context.Context, s *project.Store, a tenant.ID, mine, theirs things) (any, error) {
		v, _, err := s.CreateTask(ctx, a, mine.project.ID, "", project.NewTask{Title: "below theirs", ParentID: &theirs.task.ID})
		return v, err
	}, "invalid_field"}},
	"GetTask": {{func(ctx context.Context, s *project.Store, a tenant.ID, _, theirs things) (any, error) {
		return s.GetTask(ctx, a, theirs.task.ID)
	}, "task_not_found"}},
	"ListTasks": {{func(ctx context.Context, s *project.Store, a tenant.ID, _, _ things) (any, error) {
		return s.ListTasks(ctx, a, project.TaskFilter{}, project.ListOptions{Sort: "title"})
	}, ""}, {func(ctx context.Context, s *project.Store, a tenant.ID, _, theirs things) (any, error) {
		return s.ListTasks(ctx, a, project.TaskFilter{Project: theirs.project.ID}, project.ListOptions{})
	}, ""}, {func(ctx context.Context, s *project.Store, a tenant.ID, _, _ things) (any, error) {
		return s.ListTasks(ctx, a, project.TaskFilter{Text: "secret", Labels: []string{"secret"}}, project.ListOptions{Sort: "due"})
	}, ""}},
	"ChangeTask": {{func(ctx context.Context, s *project.Store, a tenant.ID, _, theirs things) (any, error) {
		return s.ChangeTask(ctx, a, theirs.task.ID, 0, project.TaskChange{Title: ptr("taken")})
	}, "task_not_found"}, {func(ctx context.Context, s *project.Store, a tenant.ID, mine, theirs things) (any, error) {
		return s.ChangeTask(ctx, a, mine.task.ID, 0, project.TaskChange{ProjectID: &theirs.project.ID})
	}, "invalid_field"}, {func(ctx context.Context, s *project.Store, a tenant.ID, mine, theirs things) (any, error) {
		return s.ChangeTask(ctx, a, mine.task.ID, 0, project.TaskChange{ParentID: &theirs.task.ID})
	}, "invalid_field"}, {func(ctx context.Context, s *project.Store, a tenant.ID, mine, theirs things) (any, error) {
		return s.ChangeTask(ctx, a, theirs.task.ID, 0, project.TaskChange{ParentID: &mine.task.ID, Labels: []string{"x"}})
	}, "task_not_found"}},
	"DeleteTask": {{func(ctx context.Context, s *project.Store, a tenant.ID, _, theirs things) (any, error) {
		return nil, s.DeleteTask(ctx, a, theirs.task.ID, 0)
	}, "task_not_found"}},
	"CreateComment": {{func(ctx context.Context, s *project.Store, a tenant.ID, _, theirs things) (any, error) {
		v, _, err := s.CreateComment(ctx, a, theirs.task.ID, "", project.NewComment{Body: "x", Author: "eve"})
		return v, err
	}, "task_not_found"}},
	"GetComment": {{func(ctx context.Context, s *project.Store, a tenant.ID, _, theirs things) (any, error) {
		return s.GetComment(ctx, a, theirs.comment.ID)
	}, "comment_not_found"}},
	"ListComments": {{func(ctx context.Context, s *project.Store, a tenant.ID, _, theirs things) (any, error) {
		return s.ListComments(ctx, a, theirs.task.ID, project.ListOptions{})
	}, "task_not_found"}},
	"ChangeComment": {{func(ctx context.Context, s *project.Store, a tenant.ID, _, theirs things) (any, error) {
		return s.ChangeComment(ctx, a, theirs.comment.ID, 0, project.CommentChange{Body: ptr("taken")})
	}, "comment_not_found"}},
	"DeleteComment": {{func(ctx context.Context, s *project.Store, a tenant.ID, _, theirs things) (any, error) {
		return nil, s.DeleteComment(ctx, a, theirs.comment.ID, 0)
	}, "comment_not_found"}},
	"CreateLabel": {{func(ctx context.Context, s *project.Store, a tenant.ID, _, _ things) (any, error) {
		// The name is unique in a tenant, not over all of them.
		v, _, err := s.CreateLabel(ctx, a, "", project.NewLabel{Name: "only b has it"})
		return v, err
	}, ""}},
	"GetLabel": {{func(ctx context.Context, s *project.Store, a tenant.ID, _, theirs things) (any, error) {
		return s.GetLabel(ctx, a, theirs.label.ID)
	}, "label_not_found"}},
	"ListLabels": {{func(ctx context.Context, s *project.Store, a tenant.ID, _, _ things) (any, error) {
		return s.ListLabels(ctx, a, project.ListOptions{Sort: "name"})
	}, ""}},
	"ChangeLabel": {{func(ctx context.Context, s *project.Store, a tenant.ID, _, theirs things) (any, error) {
		return s.ChangeLabel(ctx, a, theirs.label.ID, 0, project.LabelChange{Color: ptr("#000000")})
	}, "label_not_found"}, {func(ctx context.Context, s *project.Store, a tenant.ID, _, theirs things) (any, error) {
		return s.ChangeLabel(ctx, a, theirs.label.ID, 0, project.LabelChange{Name: ptr("taken")})
	}, "label_not_found"}, {func(ctx context.Context, s *project.Store, a tenant.ID, mine, _ things) (any, error) {
		// Both have tasks with this label: only a's are to change.
		return s.ChangeLabel(ctx, a, mine.label.ID, 0, project.LabelChange{Name: ptr("renamed")})
	}, ""}},
	"DeleteLabel": {{func(ctx context.Context, s *project.Store, a tenant.ID, _, theirs things) (any, error) {
		return nil, s.DeleteLabel(ctx, a, theirs.label.ID, 0)
	}, "label_not_found"}, {func(ctx context.Context, s *project.Store, a tenant.ID, mine, _ things) (any, error) {
		return nil, s.DeleteLabel(ctx, a, mine.label.ID, 0)
	}, ""}},
}

var ownFilter = regexp.MustCompile(`\b(\w+\.)?tenant_id = \$1`)

// withoutFilter takes the statement's own look at the tenant away. $1 stays in use:
// a parameter without a type is refused.
func withoutFilter(sql string) string {
	return ownFilter.ReplaceAllString(sql, `$$1::uuid IS NOT NULL`)
}

// TestEveryStoreFunctionKeepsTenantsApart runs each store function of tenant a with
// tenant b's ids, and again with the statements' own filters removed: then only
// row-level security is left. A store function without a case fails.
func TestEveryStoreFunctionKeepsTenantsApart(t *testing.T) {
	store := reflect.TypeFor[*project.Store]()
	for i := range store.NumMethod() {
		require.Contains(t, attacks, store.Method(i).Name, "a store function without a case here")
	}
	require.Len(t, attacks, store.NumMethod(), "a case without a store function")
	require.Equal(t, `SELECT x WHERE $1::uuid IS NOT NULL AND $1::uuid IS NOT NULL`, withoutFilter(`SELECT x WHERE tenant_id = $1 AND up.tenant_id = $1`))

	citustest.Each(t, func(t *testing.T, env *citustest.Env) {
		unfiltered := citus.NewDoor(env.Databases, env.Directory, citus.WithRewrite(withoutFilter))
		homes := [][2]tenant.Home{{tenant.Green, tenant.Green}, {tenant.Blue, tenant.Blue}, {tenant.Blue, tenant.Green}, {tenant.Green, tenant.Blue}}
		if env.Citus {
			homes = homes[:1]
		}
		for name, door := range map[string]project.Door{"filtered": env.Door, "row-level security alone": unfiltered} {
			for _, pair := range homes {
				t.Run(name+"/"+string(pair[0])+" against "+string(pair[1]), func(t *testing.T) {
					keepApart(t, env, project.New(env.Door, time.Now), project.New(door, time.Now), pair)
				})
			}
		}
	})
}

// keepApart makes the rows through honest and attacks through s.
func keepApart(t *testing.T, env *citustest.Env, honest, s *project.Store, homes [2]tenant.Home) {
	ctx := t.Context()
	refused := 0
	defer func() {
		if refused > 0 {
			t.Logf("%d attacks without the tenant's filter were refused by Citus before row-level security had a say", refused)
		}
	}()
	for name, cases := range attacks {
		a, b := env.NewTenant(t, homes[0]), env.NewTenant(t, homes[1])
		_, _, err := honest.CreateProject(ctx, b, "key of b", project.NewProject{Name: "b's"})
		require.NoError(t, err)
		_, _, err = honest.CreateLabel(ctx, b, "", project.NewLabel{Name: "only b has it"})
		require.NoError(t, err)
		mine, theirs := makeThings(t, honest, a), makeThings(t, honest, b)
		before := everythingOf(t, honest, b)
		for _, c := range cases {
			answer, err := c.attack(ctx, s, a, mine, theirs)
			switch {
			case env.Citus && citus.StateOf(err) == "0A000":
				// Without the filter the statement would go to many shards. Citus does some of these (FOR UPDATE, recursive
				// queries) for one shard only, and refuses: nothing was shown, and below: nothing changed.
				refused++
			case c.code == "":
				require.NoError(t, err, name)
				seen := idsIn(reflect.ValueOf(answer))
				for id := range idsIn(reflect.ValueOf(before)) {
					require.NotContains(t, seen, id, "%s shows another tenant's row", name)
				}
			default:
				require.Equal(t, c.code, fault.CodeOf(err), "%s: %v", name, err)
			}
			require.Equal(t, before, everythingOf(t, honest, b), "%s has changed another tenant's rows", name)
		}
	}
}

// everythingOf reads all rows of a tenant.
func everythingOf(t *testing.T, s *project.Store, id tenant.ID) (all struct {
	Projects []project.Project
	Tasks    []project.Task
	Comments []project.Comment
	Labels   []project.Label
}) {
	t.Helper()
	ctx := t.Context()
	p, err := s.ListProjects(ctx, id, project.ProjectFilter{}, project.ListOptions{Limit: 100})
	require.NoError(t, err)
	v, err := s.ListTasks(ctx, id, project.TaskFilter{}, project.ListOptions{Limit: 100})
	require.NoError(t, err)
	for _, task := range v.Items {
		c, err := s.ListComments(ctx, id, task.ID, project.ListOptions{Limit: 100})
		require.NoError(t, err)
		all.Comments = append(all.Comments, c.Items...)
	}
	l, err := s.ListLabels(ctx, id, project.ListOptions{Limit: 100})
	require.NoError(t, err)
	all.Projects, all.Tasks, all.Labels = p.Items, v.Items, l.Items
	return all
}

// idsIn finds all ids in an answer, however deep.
func idsIn(v reflect.Value) map[project.ID]bool {
	found := map[project.ID]bool{}
	var walk func(reflect.Value)
	walk = func(v reflect.Value) {
		if !v.IsValid() {
			return
		}
		if id, ok := v.Interface().(project.ID); ok {
			found[id] = true
			return
		}
		switch v.Kind() {
		case reflect.Pointer, reflect.Interface:
			walk(v.Elem())
		case reflect.Struct:
			for i := range v.NumField() {
				if v.Type().Field(i).IsExported() {
					walk(v.Field(i))
				}
			}
		case reflect.Slice:
			for i := range v.Len() {
				walk(v.Index(i))
			}
		}
	}
	walk(v)
	return found
}
