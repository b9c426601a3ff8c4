package project_test

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/project"
	"github.com/coditect/platform/shared/tenant"
)

func TestMain(m *testing.M) {
	// Fewer than rapid's own 100, for each of them is many statements in three homes. The command line still decides.
	if err := flag.Set("rapid.checks", "20"); err != nil {
		panic(err)
	}
	citustest.Main(m)
}

// world is one tenant in one kind of home, and what tests of it need.
type world struct {
	*testing.T
	ctx   context.Context
	env   *citustest.Env
	store *project.Store
	id    tenant.ID
	home  tenant.Home
	clock *clock
}

func (w *world) isGreen() bool { return w.home == tenant.Green }

// schema is the blue tenant's own.
func (w *world) schema() string {
	p, err := w.env.Directory.Locate(w.ctx, w.id)
	require.NoError(w, err)
	return p.Schema
}

// clock is real time plus what a test adds.
type clock struct {
	mu    sync.Mutex
	extra time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.extra)
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.extra += d
}

// TestStore runs each case for a fresh tenant in each kind of home: a blue schema,
// green's plain tables, green's tables on Citus.
func TestStore(t *testing.T) {
	citustest.Each(t, func(t *testing.T, env *citustest.Env) {
		homes := []tenant.Home{tenant.Blue, tenant.Green}
		if env.Citus {
			homes = homes[1:]
		}
		for _, home := range homes {
			t.Run(string(home), func(t *testing.T) {
				for _, c := range cases {
					t.Run(c.name, func(t *testing.T) {
						clock := &clock{}
						c.run(&world{T: t, ctx: t.Context(), env: env, store: project.New(env.Door, clock.now), id: env.NewTenant(t, home), home: home, clock: clock})
					})
				}
			})
		}
	})
}

var cases = []struct {
	name string
	run  func(w *world)
}{
	{"projects", testProjects},
	{"deleting a project with tasks must be meant", testDeletingAProjectWithTasksMustBeMeant},
	{"tasks", testTasks},
	{"the tree of tasks", testTheTreeOfTasks},
	{"no circle comes of two changes at once", testNoCircleComesOfTwoChangesAtOnce},
	{"comments", testComments},
	{"labels and the tasks that carry them", testLabelsAndTheTasksThatCarryThem},
	{"no task keeps a label that is gone", testNoTaskKeepsALabelThatIsGone},
	{"the same key makes one row and one answer", testTheSameKeyMakesOneRowAndOneAnswer},
	{"what a key is for", testWhatAKeyIsFor},
	{"old keys are deleted on the way", testOldKeysAreDeletedOnTheWay},
	{"no update is lost", testNoUpdateIsLost},
	{"walking a list while it changes", testWalkingAListWhileItChanges},
	{"a position belongs to one list", testAPositionBelongsToOneList},
}

func (w *world) project(name string) project.Project {
	w.Helper()
	p, _, err := w.store.CreateProject(w.ctx, w.id, "", project.NewProject{Name: name})
	require.NoError(w, err)
	return p
}

func (w *world) task(p project.ID, in project.NewTask) project.Task {
	w.Helper()
	v, _, err := w.store.CreateTask(w.ctx, w.id, p, "", in)
	require.NoError(w, err)
	return v
}

// fails wants a fault of a kind and a code, and of a field if one is named.
func fails(t require.TestingT, err error, kind fault.Kind, code string, field ...string) {
	if h, ok := t.(interface{ Helper() }); ok {
		h.Helper()
	}
	f := fault.As(err)
	require.NotNil(t, f, "%v", err)
	require.Equal(t, kind, f.Kind, "%v", err)
	require.Equal(t, code, f.Code, "%v", err)
	for _, name := range field {
		require.Equal(t, name, f.Fields[0].Name)
	}
}

func ptr[T any](v T) *T { return &v }

func titles(page project.Page[project.Task]) []string {
	out := []string{}
	for _, t := range page.Items {
		out = append(out, t.Title)
	}
	return out
}

func day(t require.TestingT, s string) project.Date {
	d, err := project.ParseDate(s)
	require.NoError(t, err)
	return d
}

func testProjects(w *world) {
	p := w.project("Apollo")
	require.Equal(w, int64(1), p.Version)
	got, err := w.store.GetProject(w.ctx, w.id, p.ID)
	require.NoError(w, err)
	require.Equal(w, p, got, "what is answered is what is stored")

	q, err := w.store.ChangeProject(w.ctx, w.id, p.ID, 1, project.ProjectChange{Archived: ptr(true), Description: ptr("to the moon")})
	require.NoError(w, err)
	require.Equal(w, "Apollo", q.Name)
	require.Equal(w, "to the moon", q.Description)
	require.True(w, q.Archived)
	require.Equal(w, int64(2), q.Version)

	q, err = w.store.ChangeProject(w.ctx, w.id, p.ID, 0, project.ProjectChange{Clear: project.Fields{"description"}})
	require.NoError(w, err)
	require.Empty(w, q.Description)

	_, err = w.store.ChangeProject(w.ctx, w.id, p.ID, 2, project.ProjectChange{Name: ptr("x")})
	fails(w, err, fault.Stale, "version_mismatch")
	_, err = w.store.ChangeProject(w.ctx, w.id, p.ID, 2, project.ProjectChange{})
	fails(w, err, fault.Stale, "version_mismatch")
	same, err := w.store.ChangeProject(w.ctx, w.id, p.ID, 3, project.ProjectChange{})
	require.NoError(w, err)
	require.Equal(w, q, same, "a change of nothing is a read")

	w.project("Gemini")
	page, err := w.store.ListProjects(w.ctx, w.id, project.ProjectFilter{Archived: ptr(false)}, project.ListOptions{Sort: "name"})
	require.NoError(w, err)
	require.Len(w, page.Items, 1)
	require.Equal(w, "Gemini", page.Items[0].Name)

	fails(w, w.store.DeleteProject(w.ctx, w.id, p.ID, 1, false), fault.Stale, "version_mismatch")
	require.NoError(w, w.store.DeleteProject(w.ctx, w.id, p.ID, 3, false))
	fails(w, w.store.DeleteProject(w.ctx, w.id, p.ID, 0, false), fault.NotFound, "project_not_found")
	_, err = w.store.GetProject(w.ctx, w.id, p.ID)
	fails(w, err, fault.NotFound, "project_not_found")
}

func testDeletingAProjectWithTasksMustBeMeant(w *world) {
	p, other := w.project("Apollo"), w.project("Gemini")
	parent := w.task(p.ID, project.NewTask{Title: "parent"})
	child := w.task(p.ID, project.NewTask{Title: "child", ParentID: &parent.ID})
	kept := w.task(other.ID, project.NewTask{Title: "kept"})
	c, _, err := w.store.CreateComment(w.ctx, w.id, child.ID, "", project.NewComment{Body: "hello", Author: "ann"})
	require.NoError(w, err)

	fails(w, w.store.DeleteProject(w.ctx, w.id, p.ID, 0, false), fault.Conflict, "project_not_empty")
	fails(w, w.store.DeleteProject(w.ctx, w.id, p.ID, 7, true), fault.Stale, "version_mismatch")
	_, err = w.store.GetTask(w.ctx, w.id, child.ID)
	require.NoError(w, err)

	require.NoError(w, w.store.DeleteProject(w.ctx, w.id, p.ID, 1, true))
	_, err = w.store.GetTask(w.ctx, w.id, child.ID)
	fails(w, err, fault.NotFound, "task_not_found")
	_, err = w.store.GetComment(w.ctx, w.id, c.ID)
	fails(w, err, fault.NotFound, "comment_not_found")
	_, err = w.store.GetTask(w.ctx, w.id, kept.ID)
	require.NoError(w, err)
}

func testTasks(w *world) {
	p := w.project("Apollo")
	due := day(w, "2031-02-03")
	v := w.task(p.ID, project.NewTask{Title: "Land ☾", Description: "softly", Status: project.Blocked, Priority: 4, Assignee: ptr("ann"),
		DueDate: &due, Labels: []string{"moon", "urgent", "moon"}})
	require.Equal(w, []string{"moon", "urgent"}, v.Labels, "a label counts once")
	got, err := w.store.GetTask(w.ctx, w.id, v.ID)
	require.NoError(w, err)
	require.Equal(w, v, got, "what is answered is what is stored")

	plain := w.task(p.ID, project.NewTask{Title: "Launch"})
	require.Equal(w, project.Todo, plain.Status)
	got, err = w.store.GetTask(w.ctx, w.id, plain.ID)
	require.NoError(w, err)
	require.Equal(w, plain, got)

	w.clock.add(time.Second)
	u, err := w.store.ChangeTask(w.ctx, w.id, v.ID, 1, project.TaskChange{Status: ptr(project.Done), Clear: project.Fields{"assignee", "due_date", "labels", "description"}})
	require.NoError(w, err)
	require.Equal(w, project.Done, u.Status)
	require.Equal(w, "Land ☾", u.Title)
	require.Nil(w, u.Assignee)
	require.Nil(w, u.DueDate)
	require.Equal(w, []string{}, u.Labels)
	require.Empty(w, u.Description)
	require.Equal(w, v.CreatedAt, u.CreatedAt)
	require.True(w, u.UpdatedAt.After(v.UpdatedAt))

	u, err = w.store.ChangeTask(w.ctx, w.id, v.ID, 2, project.TaskChange{Labels: []string{"new one"}, Priority: ptr(0), DueDate: &due, Assignee: ptr("bob"), Title: ptr("Fly")})
	require.NoError(w, err)
	require.Equal(w, []string{"new one"}, u.Labels)
	require.Equal(w, "bob", *u.Assignee)

	_, err = w.store.ChangeTask(w.ctx, w.id, v.ID, 2, project.TaskChange{Labels: []string{"never made"}})
	fails(w, err, fault.Stale, "version_mismatch")
	page, err := w.store.ListLabels(w.ctx, w.id, project.ListOptions{Sort: "name"})
	require.NoError(w, err)
	var names []string
	for _, l := range page.Items {
		names = append(names, l.Name)
	}
	require.Equal(w, []string{"moon", "new one", "urgent"}, names, "a refused change makes no label")

	fails(w, w.store.DeleteTask(w.ctx, w.id, v.ID, 1), fault.Stale, "version_mismatch")
	require.NoError(w, w.store.DeleteTask(w.ctx, w.id, v.ID, 3))
	fails(w, w.store.DeleteTask(w.ctx, w.id, v.ID, 0), fault.NotFound, "task_not_found")
	_, err = w.store.ChangeTask(w.ctx, w.id, v.ID, 3, project.TaskChange{Title: ptr("x")})
	fails(w, err, fault.NotFound, "task_not_found")
	_, _, err = w.store.CreateTask(w.ctx, w.id, v.ID, "", project.NewTask{Title: "x"})
	fails(w, err, fault.NotFound, "project_not_found")
}

func testTheTreeOfTasks(w *world) {
	p, other := w.project("Apollo"), w.project("Gemini")
	a := w.task(p.ID, project.NewTask{Title: "a"})
	b := w.task(p.ID, project.NewTask{Title: "b", ParentID: &a.ID})
	c := w.task(p.ID, project.NewTask{Title: "c", ParentID: &b.ID})
	elsewhere := w.task(other.ID, project.NewTask{Title: "elsewhere"})

	_, _, err := w.store.CreateTask(w.ctx, w.id, p.ID, "", project.NewTask{Title: "x", ParentID: &elsewhere.ID})
	fails(w, err, fault.Invalid, "invalid_field", "parent_id")
	for _, circle := range []project.ID{a.ID, b.ID, c.ID} {
		_, err = w.store.ChangeTask(w.ctx, w.id, a.ID, 0, project.TaskChange{ParentID: &circle})
		fails(w, err, fault.Invalid, "invalid_field", "parent_id")
	}
	_, err = w.store.ChangeTask(w.ctx, w.id, c.ID, 0, project.TaskChange{ParentID: &elsewhere.ID})
	fails(w, err, fault.Invalid, "invalid_field", "parent_id")
	missing := project.ID(tenant.NewID())
	_, err = w.store.ChangeTask(w.ctx, w.id, c.ID, 0, project.TaskChange{ParentID: &missing})
	fails(w, err, fault.Invalid, "invalid_field", "parent_id")
	_, err = w.store.ChangeTask(w.ctx, w.id, missing, 0, project.TaskChange{ParentID: &a.ID})
	fails(w, err, fault.NotFound, "task_not_found")

	// A task moves to another project alone.
	_, err = w.store.ChangeTask(w.ctx, w.id, b.ID, 0, project.TaskChange{ProjectID: &other.ID})
	fails(w, err, fault.Conflict, "task_in_tree")
	_, err = w.store.ChangeTask(w.ctx, w.id, a.ID, 0, project.TaskChange{ProjectID: &other.ID})
	fails(w, err, fault.Conflict, "task_in_tree")
	_, err = w.store.ChangeTask(w.ctx, w.id, c.ID, 0, project.TaskChange{ProjectID: &missing, Clear: project.Fields{"parent_id"}})
	fails(w, err, fault.Invalid, "invalid_field", "project_id")
	moved, err := w.store.ChangeTask(w.ctx, w.id, c.ID, 0, project.TaskChange{ProjectID: &other.ID, ParentID: &elsewhere.ID})
	require.NoError(w, err)
	require.Equal(w, other.ID, moved.ProjectID)
	require.Equal(w, elsewhere.ID, *moved.ParentID)

	below, err := w.store.ListTasks(w.ctx, w.id, project.TaskFilter{Parent: a.ID}, project.ListOptions{})
	require.NoError(w, err)
	require.Equal(w, []string{"b"}, titles(below))
	top, err := w.store.ListTasks(w.ctx, w.id, project.TaskFilter{TopLevel: true}, project.ListOptions{Sort: "title"})
	require.NoError(w, err)
	require.Equal(w, []string{"a", "elsewhere"}, titles(top))

	// A refused delete detaches nobody; a delete detaches the subtasks, which get a new version.
	fails(w, w.store.DeleteTask(w.ctx, w.id, a.ID, 9), fault.Stale, "version_mismatch")
	got, err := w.store.GetTask(w.ctx, w.id, b.ID)
	require.NoError(w, err)
	require.Equal(w, b, got)
	require.NoError(w, w.store.DeleteTask(w.ctx, w.id, a.ID, 1))
	got, err = w.store.GetTask(w.ctx, w.id, b.ID)
	require.NoError(w, err)
	require.Nil(w, got.ParentID)
	require.Equal(w, int64(2), got.Version)
}

// Each of two changes alone is right; both together would be a circle.
func testNoCircleComesOfTwoChangesAtOnce(w *world) {
	p := w.project("Apollo")
	for range 10 {
		a, b := w.task(p.ID, project.NewTask{Title: "a"}), w.task(p.ID, project.NewTask{Title: "b"})
		errs := make([]error, 2)
		var wg sync.WaitGroup
		for i, pair := range [][2]project.ID{{a.ID, b.ID}, {b.ID, a.ID}} {
			wg.Go(func() {
				_, errs[i] = w.store.ChangeTask(w.ctx, w.id, pair[0], 0, project.TaskChange{ParentID: &pair[1]})
			})
		}
		wg.Wait()
		if errs[0] == nil {
			errs[0] = errs[1]
		} else {
			require.NoError(w, errs[1])
		}
		fails(w, errs[0], fault.Invalid, "invalid_field", "parent_id")
	}
}

func testComments(w *world) {
	task := w.task(w.project("Apollo").ID, project.NewTask{Title: "t"})
	c, _, err := w.store.CreateComment(w.ctx, w.id, task.ID, "", project.NewComment{Body: "one", Author: "ann"})
	require.NoError(w, err)
	got, err := w.store.GetComment(w.ctx, w.id, c.ID)
	require.NoError(w, err)
	require.Equal(w, c, got)
	got, err = w.store.ChangeComment(w.ctx, w.id, c.ID, 1, project.CommentChange{Body: ptr("two")})
	require.NoError(w, err)
	require.Equal(w, "two", got.Body)
	require.Equal(w, "ann", got.Author)
	_, err = w.store.ChangeComment(w.ctx, w.id, c.ID, 1, project.CommentChange{Body: ptr("three")})
	fails(w, err, fault.Stale, "version_mismatch")
	page, err := w.store.ListComments(w.ctx, w.id, task.ID, project.ListOptions{})
	require.NoError(w, err)
	require.Equal(w, []project.Comment{got}, page.Items)
	fails(w, w.store.DeleteComment(w.ctx, w.id, c.ID, 1), fault.Stale, "version_mismatch")
	require.NoError(w, w.store.DeleteComment(w.ctx, w.id, c.ID, 2))
	fails(w, w.store.DeleteComment(w.ctx, w.id, c.ID, 0), fault.NotFound, "comment_not_found")

	_, _, err = w.store.CreateComment(w.ctx, w.id, c.ID, "", project.NewComment{Body: "x"})
	fails(w, err, fault.NotFound, "task_not_found")
	_, err = w.store.ListComments(w.ctx, w.id, c.ID, project.ListOptions{})
	fails(w, err, fault.NotFound, "task_not_found")
}

func testLabelsAndTheTasksThatCarryThem(w *world) {
	p := w.project("Apollo")
	l, _, err := w.store.CreateLabel(w.ctx, w.id, "", project.NewLabel{Name: "moon", Color: "#ffee00"})
	require.NoError(w, err)
	_, _, err = w.store.CreateLabel(w.ctx, w.id, "", project.NewLabel{Name: "moon"})
	fails(w, err, fault.Conflict, "label_exists", "name")
	got, err := w.store.GetLabel(w.ctx, w.id, l.ID)
	require.NoError(w, err)
	require.Equal(w, l, got)

	carries := w.task(p.ID, project.NewTask{Title: "a", Labels: []string{"sun", "moon"}})
	not := w.task(p.ID, project.NewTask{Title: "b", Labels: []string{"sun"}})
	_, err = w.store.ChangeLabel(w.ctx, w.id, l.ID, 0, project.LabelChange{Name: ptr("sun")})
	fails(w, err, fault.Conflict, "label_exists", "name")
	_, err = w.store.ChangeLabel(w.ctx, w.id, l.ID, 9, project.LabelChange{Name: ptr("luna")})
	fails(w, err, fault.Stale, "version_mismatch")
	got, err = w.store.ChangeLabel(w.ctx, w.id, l.ID, 1, project.LabelChange{Name: ptr("luna"), Clear: project.Fields{"color"}})
	require.NoError(w, err)
	require.Equal(w, "luna", got.Name)
	require.Empty(w, got.Color)
	task, err := w.store.GetTask(w.ctx, w.id, carries.ID)
	require.NoError(w, err)
	require.Equal(w, []string{"sun", "luna"}, task.Labels)
	require.Equal(w, int64(2), task.Version, "its ETag must change, for what it shows has")

	fails(w, w.store.DeleteLabel(w.ctx, w.id, l.ID, 1), fault.Stale, "version_mismatch")
	require.NoError(w, w.store.DeleteLabel(w.ctx, w.id, l.ID, 2))
	fails(w, w.store.DeleteLabel(w.ctx, w.id, l.ID, 0), fault.NotFound, "label_not_found")
	task, err = w.store.GetTask(w.ctx, w.id, carries.ID)
	require.NoError(w, err)
	require.Equal(w, []string{"sun"}, task.Labels)
	task, err = w.store.GetTask(w.ctx, w.id, not.ID)
	require.NoError(w, err)
	require.Equal(w, not, task)
}

// A rename and new tasks with the old name at the same time: no task ends with a
// name that is no label.
func testNoTaskKeepsALabelThatIsGone(w *world) {
	p := w.project("Apollo")
	l, _, err := w.store.CreateLabel(w.ctx, w.id, "", project.NewLabel{Name: "n0"})
	require.NoError(w, err)
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i := range 3 {
		wg.Go(func() {
			for n := range 8 {
				if _, _, err := w.store.CreateTask(w.ctx, w.id, p.ID, "", project.NewTask{Title: "t", Labels: []string{fmt.Sprint("n", n), "z"}}); err != nil {
					errs[i] = err
				}
			}
		})
	}
	wg.Go(func() {
		for n := 1; n <= 8; n++ {
			if _, err := w.store.ChangeLabel(w.ctx, w.id, l.ID, 0, project.LabelChange{Name: ptr(fmt.Sprint("m", n))}); err != nil {
				errs[3] = err
			}
		}
	})
	wg.Wait()
	for _, err := range errs {
		require.NoError(w, err)
	}
	all, err := w.store.ListLabels(w.ctx, w.id, project.ListOptions{Limit: 100})
	require.NoError(w, err)
	names := map[string]bool{}
	for _, l := range all.Items {
		names[l.Name] = true
	}
	page, err := w.store.ListTasks(w.ctx, w.id, project.TaskFilter{}, project.ListOptions{Limit: 100})
	require.NoError(w, err)
	require.Len(w, page.Items, 24)
	for _, task := range page.Items {
		for _, name := range task.Labels {
			require.True(w, names[name], "%s is on a task and is no label", name)
		}
	}
}

func TestBadInputNamesTheField(t *testing.T) {
	env := citustest.New(t)
	id := env.NewTenant(t, tenant.Green)
	s := project.New(env.Door, time.Now)
	ctx := t.Context()
	p, _, err := s.CreateProject(ctx, id, "", project.NewProject{Name: strings.Repeat("é", 200)})
	require.NoError(t, err, "as long as is allowed")
	tooMany := make([]string, 21)
	for i := range tooMany {
		tooMany[i] = fmt.Sprint(i)
	}
	task := func(in project.NewTask) error { _, _, err := s.CreateTask(ctx, id, p.ID, "", in); return err }
	list := func(f project.TaskFilter, o project.ListOptions) error {
		_, err := s.ListTasks(ctx, id, f, o)
		return err
	}
	for _, c := range []struct {
		field string
		err   error
	}{
		{"name", func() error { _, _, err := s.CreateProject(ctx, id, "", project.NewProject{}); return err }()},
		{"name", func() error {
			_, _, err := s.CreateProject(ctx, id, "", project.NewProject{Name: strings.Repeat("x", 201)})
			return err
		}()},
		{"name", func() error {
			_, err := s.ChangeProject(ctx, id, p.ID, 0, project.ProjectChange{Clear: project.Fields{"name"}})
			return err
		}()},
		{"title", task(project.NewTask{Title: " "})},
		{"title", task(project.NewTask{Title: "a\nb"})},
		{"description", task(project.NewTask{Title: "a", Description: strings.Repeat("x", 20001)})},
		{"description", task(project.NewTask{Title: "a", Description: "a\x00b"})},
		{"status", task(project.NewTask{Title: "a", Status: "open"})},
		{"priority", task(project.NewTask{Title: "a", Priority: 5})},
		{"assignee", task(project.NewTask{Title: "a", Assignee: ptr("")})},
		{"labels[1]", task(project.NewTask{Title: "a", Labels: []string{"ok", "a,b"}})},
		{"labels", task(project.NewTask{Title: "a", Labels: tooMany})},
		{"sort", list(project.TaskFilter{}, project.ListOptions{Sort: "colour"})},
		{"limit", list(project.TaskFilter{}, project.ListOptions{Limit: 101})},
		{"limit", list(project.TaskFilter{}, project.ListOptions{Limit: -1})},
		{"status", list(project.TaskFilter{Status: []project.Status{"x"}}, project.ListOptions{})},
		{"cursor", list(project.TaskFilter{}, project.ListOptions{After: &project.Position{}})},
		{"color", func() error {
			_, _, err := s.CreateLabel(ctx, id, "", project.NewLabel{Name: "a", Color: "red"})
			return err
		}()},
		{"body", func() error { _, _, err := s.CreateComment(ctx, id, p.ID, "", project.NewComment{}); return err }()},
	} {
		fails(t, c.err, fault.Invalid, "invalid_field", c.field)
	}
}
