package project_test

import (
	"fmt"
	"slices"
	"strings"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/project"
)

// Whatever the sort, filter and size of a page, and however many tasks are made and
// deleted while the list is walked: each task that was there before and still is, is
// met exactly once, and all are met in order.
func testWalkingAListWhileItChanges(w *world) {
	random := rapid.Custom(func(r *rapid.T) project.NewTask {
		in := project.NewTask{
			Title:    rapid.StringMatching(`[a-cA-C ÄäßİЖ😀"\\<]{0,3}x`).Draw(r, "title"),
			Priority: rapid.IntRange(0, 4).Draw(r, "priority"),
			Status:   rapid.SampledFrom(project.Statuses[:2]).Draw(r, "status"),
		}
		if rapid.Bool().Draw(r, "due") {
			d := day(r, fmt.Sprintf("2031-01-%02d", rapid.IntRange(1, 4).Draw(r, "day")))
			in.DueDate = &d
		}
		return in
	})
	var sorts []project.Sort
	for _, s := range project.TaskSorts {
		sorts = append(sorts, s, "-"+s)
	}
	check := func(r *rapid.T) {
		p := w.project("Apollo")
		defer func() { require.NoError(r, w.store.DeleteProject(w.ctx, w.id, p.ID, 0, true)) }()
		for _, in := range rapid.SliceOfN(random, 10, 16).Draw(r, "tasks") {
			w.task(p.ID, in)
		}
		opt := project.ListOptions{Sort: rapid.SampledFrom(sorts).Draw(r, "sort"), Limit: rapid.IntRange(1, 7).Draw(r, "limit")}
		var f project.TaskFilter
		if rapid.Bool().Draw(r, "filtered") {
			f = project.TaskFilter{Project: p.ID, Status: project.Statuses[:1]}
		}
		before := walk(r, w, f, project.ListOptions{Sort: opt.Sort, Limit: 100}, nil)
		deleted := map[project.ID]bool{}
		met := walk(r, w, f, opt, func() {
			if rapid.Bool().Draw(r, "insert") {
				w.task(p.ID, random.Draw(r, "task"))
			}
			if len(before) > 8 && rapid.IntRange(0, 5).Draw(r, "delete") == 0 {
				id := before[rapid.IntRange(0, len(before)-1).Draw(r, "which")].ID
				if !deleted[id] {
					deleted[id] = true
					require.NoError(r, w.store.DeleteTask(w.ctx, w.id, id, 0))
				}
			}
		})
		times := map[project.ID]int{}
		for _, v := range met {
			times[v.ID]++
			require.Equal(r, 1, times[v.ID], "a task is met twice")
		}
		var order, want []project.ID
		for _, v := range before {
			if !deleted[v.ID] {
				require.Equal(r, 1, times[v.ID], "a task is skipped")
				want = append(want, v.ID)
			}
		}
		for _, v := range met {
			if slices.Contains(want, v.ID) {
				order = append(order, v.ID)
			}
		}
		require.Equal(r, want, order)
		requireSorted(r, opt.Sort, met)
	}
	rapid.Check(w.T, check)
}

// walk reads a list to its end, and calls between after each page.
func walk(r *rapid.T, w *world, f project.TaskFilter, opt project.ListOptions, between func()) (all []project.Task) {
	for {
		page, err := w.store.ListTasks(w.ctx, w.id, f, opt)
		require.NoError(r, err)
		require.LessOrEqual(r, len(page.Items), opt.Limit)
		all = append(all, page.Items...)
		if page.Next == nil {
			return all
		}
		opt.After = page.Next
		if between != nil {
			between()
		}
	}
}

// requireSorted checks the order by what tasks say of themselves.
func requireSorted(r *rapid.T, by project.Sort, all []project.Task) {
	word, desc := strings.CutPrefix(string(by), "-")
	compare := func(a, b project.Task) int {
		switch word {
		case "updated":
			return a.UpdatedAt.Compare(b.UpdatedAt)
		case "priority":
			return a.Priority - b.Priority
		case "due":
			return strings.Compare(dueOrEnd(a), dueOrEnd(b))
		case "created":
			return a.CreatedAt.Compare(b.CreatedAt)
		default:
			return 0 // titles are compared by the database's lower()
		}
	}
	for i := range len(all) - 1 {
		c := compare(all[i], all[i+1])
		if desc {
			c = -c
		}
		require.LessOrEqual(r, c, 0, "out of order by %s", by)
	}
}

func dueOrEnd(t project.Task) string {
	if t.DueDate == nil {
		return "infinity" // after all digits
	}
	return t.DueDate.String()
}

func testAPositionBelongsToOneList(w *world) {
	p := w.project("Apollo")
	for i := range 3 {
		w.task(p.ID, project.NewTask{Title: fmt.Sprint("t", i), Assignee: ptr("ann"), Labels: []string{"a"}})
	}
	f := project.TaskFilter{Assignee: "ann"}
	page, err := w.store.ListTasks(w.ctx, w.id, f, project.ListOptions{Sort: "title", Limit: 2})
	require.NoError(w, err)
	require.NotNil(w, page.Next)
	rest, err := w.store.ListTasks(w.ctx, w.id, f, project.ListOptions{Sort: "title", Limit: 50, After: page.Next})
	require.NoError(w, err, "another size of page is the same list")
	require.Equal(w, []string{"t2"}, titles(rest))
	require.Nil(w, rest.Next)

	refused := func(f project.TaskFilter, sort project.Sort, at project.Position) {
		w.Helper()
		_, err := w.store.ListTasks(w.ctx, w.id, f, project.ListOptions{Sort: sort, After: &at})
		fails(w, err, fault.Invalid, "invalid_field", "cursor")
	}
	refused(f, "-title", *page.Next)
	refused(f, "due", *page.Next)
	refused(project.TaskFilter{}, "title", *page.Next)
	refused(project.TaskFilter{Assignee: "bob"}, "title", *page.Next)
	refused(project.TaskFilter{Assignee: "ann", Labels: []string{"a"}}, "title", *page.Next)
	// A key that was made up is refused before the database sees it.
	for sort, keys := range map[project.Sort][]string{"due": {"", "soon", "2031-02-30"}, "updated": {"x", "-1", "9223372036854775807"}, "priority": {"", "99999"}, "title": {"a\x00"}} {
		page, err := w.store.ListTasks(w.ctx, w.id, f, project.ListOptions{Sort: sort, Limit: 1})
		require.NoError(w, err)
		for _, key := range keys {
			refused(f, sort, project.Position{List: page.Next.List, Key: key, ID: page.Next.ID})
		}
	}
}
