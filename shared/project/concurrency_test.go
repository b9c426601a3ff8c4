package project_test

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/project"
)

func testTheSameKeyMakesOneRowAndOneAnswer(w *world) {
	p := w.project("Apollo")
	const duplicates = 8
	var (
		wg       sync.WaitGroup
		answers  [duplicates]project.Task
		errs     [duplicates]error
		original atomic.Int32
	)
	for i := range duplicates {
		wg.Go(func() {
			var replayed bool
			answers[i], replayed, errs[i] = w.store.CreateTask(w.ctx, w.id, p.ID, "key", project.NewTask{Title: "once", Labels: []string{"a", "b"}})
			if !replayed {
				original.Add(1)
			}
		})
	}
	wg.Wait()
	for i := range duplicates {
		require.NoError(w, errs[i])
		require.Equal(w, answers[0], answers[i])
	}
	require.Equal(w, int32(1), original.Load(), "one of them is the first")
	page, err := w.store.ListTasks(w.ctx, w.id, project.TaskFilter{}, project.ListOptions{})
	require.NoError(w, err)
	require.Equal(w, []project.Task{answers[0]}, page.Items)
}

func testWhatAKeyIsFor(w *world) {
	p, other := w.project("Apollo"), w.project("Gemini")
	in := project.NewTask{Title: "t"}
	first, replayed, err := w.store.CreateTask(w.ctx, w.id, p.ID, "k", in)
	require.NoError(w, err)
	require.False(w, replayed)

	_, _, err = w.store.CreateTask(w.ctx, w.id, p.ID, "k", project.NewTask{Title: "u"})
	fails(w, err, fault.Invalid, "idempotency_key_reused", "Idempotency-Key")
	_, _, err = w.store.CreateTask(w.ctx, w.id, other.ID, "k", in)
	fails(w, err, fault.Invalid, "idempotency_key_reused")
	_, _, err = w.store.CreateComment(w.ctx, w.id, first.ID, "k", project.NewComment{Body: "t"})
	fails(w, err, fault.Invalid, "idempotency_key_reused")

	// The first answer stays the answer, whatever has become of the row.
	require.NoError(w, w.store.DeleteTask(w.ctx, w.id, first.ID, 0))
	again, replayed, err := w.store.CreateTask(w.ctx, w.id, p.ID, "k", in)
	require.NoError(w, err)
	require.True(w, replayed)
	require.Equal(w, first, again)

	// A create that failed leaves no trace: the key is still new.
	_, _, err = w.store.CreateTask(w.ctx, w.id, first.ID, "k2", in)
	fails(w, err, fault.NotFound, "project_not_found")
	_, replayed, err = w.store.CreateTask(w.ctx, w.id, p.ID, "k2", in)
	require.NoError(w, err)
	require.False(w, replayed)

	// After its time a key is as new.
	w.clock.add(project.KeyLifetime + time.Minute)
	later, replayed, err := w.store.CreateTask(w.ctx, w.id, p.ID, "k", project.NewTask{Title: "another"})
	require.NoError(w, err)
	require.False(w, replayed)
	require.NotEqual(w, first.ID, later.ID)
}

func testOldKeysAreDeletedOnTheWay(w *world) {
	label := func(name string) {
		_, _, err := w.store.CreateLabel(w.ctx, w.id, name, project.NewLabel{Name: name})
		require.NoError(w, err)
	}
	for i := range 20 {
		label(fmt.Sprint("old", i))
	}
	w.clock.add(project.KeyLifetime + time.Minute)
	for i := range 80 {
		label(fmt.Sprint("new", i))
	}
	pool := w.env.Control
	table := "app.idempotency_key"
	if !w.isGreen() {
		pool, table = w.env.Blue(w), w.schema()+".idempotency_key"
	}
	var old int
	require.NoError(w, pool.QueryRow(w.ctx, `SELECT count(*) FROM `+table+` WHERE tenant_id = $1 AND created_at < $2`,
		w.id, w.clock.now().Add(-project.KeyLifetime)).Scan(&old))
	require.Zero(w, old, "80 creates have purged 20 old keys")
}

// Many clients read, add one, and write back if nobody else has: no addition is lost.
func testNoUpdateIsLost(w *world) {
	task := w.task(w.project("Apollo").ID, project.NewTask{Title: "0"})
	const clients, each = 6, 5
	var wg sync.WaitGroup
	errs := make([]error, clients)
	for c := range clients {
		wg.Go(func() {
			for done := 0; done < each; {
				v, err := w.store.GetTask(w.ctx, w.id, task.ID)
				if err != nil {
					errs[c] = err
					return
				}
				var n int
				_, err = fmt.Sscan(v.Title, &n)
				if err == nil {
					_, err = w.store.ChangeTask(w.ctx, w.id, task.ID, v.Version, project.TaskChange{Title: ptr(fmt.Sprint(n + 1))})
				}
				switch {
				case err == nil:
					done++
				case fault.KindOf(err) != fault.Stale:
					errs[c] = err
					return
				}
			}
		})
	}
	wg.Wait()
	require.NoError(w, errors.Join(errs...))
	v, err := w.store.GetTask(w.ctx, w.id, task.ID)
	require.NoError(w, err)
	require.Equal(w, fmt.Sprint(clients*each), v.Title)
	require.Equal(w, int64(clients*each+1), v.Version)
}
