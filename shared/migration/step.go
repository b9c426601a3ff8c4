package migration

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/convert"
)

// Step does a bounded piece of one batch: group after group, until the batch is done,
// the run is paused, or the budget is used up; in the last case it enqueues the next
// step. It may be called at any time, any number of times, by anyone.
//
// A fault of kind Unavailable, code "batch_busy", says that another step is at work
// on the batch, and "steps_busy" that there is no place for one more: the queue is to deliver
// the task again. Any other error too is one to repeat; what belongs to a tenant undoes that
// tenant's move and is no error here.
func (m *Mover) Step(ctx context.Context, t StepTask) error {
	place, cancel := context.WithTimeout(ctx, stepPatience)
	defer cancel()
	select {
	case m.steps <- struct{}{}:
		defer func() { <-m.steps }()
	case <-place.Done():
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fault.New(fault.Unavailable, "steps_busy", "as many steps are at work in this process as its connections carry")
	}
	run, err := m.runOf(ctx, t)
	if fault.KindOf(err) == fault.NotFound {
		return nil // of a run that is not ours: delivering it again would not help
	}
	if err != nil || run.State == Done || run.State == Cancelled {
		return err
	}
	release, err := m.lease(ctx, t)
	if err != nil {
		return err
	}
	if release == nil {
		return m.advance(ctx, t.Run) // the batch is done, or its wave is yet to open
	}
	defer release()
	deadline := m.now().Add(m.cfg.StepBudget)
	stop := func() bool { return m.now().After(deadline) || ctx.Err() != nil }
	s := &step{m: m, task: t, alone: map[string]bool{}, stop: stop}
	finished, progress, err := s.work(ctx)
	if err != nil {
		return err
	}
	release()
	if finished {
		return m.finishBatch(ctx, t)
	}
	var after time.Time
	if !progress {
		after = m.now().Add(time.Second) // writers hold on: let them finish
	}
	if !s.after.IsZero() {
		after = s.after
	}
	if soon := m.now().Add(followEvery); s.follows && after.After(soon) { // if others rest
		after = soon
	}
	return m.enqueueNext(ctx, t, after)
}

// stepPatience is how long a step waits for a place: what it does then still ends before the queue gives it up.
const stepPatience = 10 * time.Second

func (m *Mover) runOf(ctx context.Context, t StepTask) (Run, error) {
	control, err := m.control(ctx)
	if err != nil {
		return Run{}, err
	}
	return getRun(ctx, control, t.Run)
}

// step is one call of Step.
type step struct {
	m       *Mover
	task    StepTask
	alone   map[string]bool // schemas whose group failed: moved one by one, to find the one to blame
	stop    func() bool
	after   time.Time // the batch rests until then; zero: it need not
	further bool      // a tenant's move got further without coming to its end
	follows bool      // tenants of the batch follow blue: it comes back soon,
	behind  bool      // and at once if there is something to apply
}

// work moves groups until there is nothing left or the budget is used up.
func (s *step) work(ctx context.Context) (finished, progress bool, err error) {
	for first := true; first || !s.stop(); first = false {
		run, err := s.m.runOf(ctx, s.task)
		if err != nil {
			return false, progress, err
		}
		if run.State == Paused {
			return true, progress, s.putBackAll(ctx, run) // resuming enqueues the batch again
		}
		control, err := s.m.control(ctx)
		if err != nil {
			return false, progress, err
		}
		open, err := openMoves(ctx, control, run.ID, s.task.Batch)
		if err != nil || len(open) == 0 {
			return true, progress, err
		}
		if open, err = s.drop(ctx, run, open); err != nil {
			return false, progress, err
		}
		if len(open) == 0 {
			continue
		}
		following := only(open, func(v Move) bool { return v.State == Following })
		if err := s.follow(ctx, run, following); err != nil {
			return false, progress, err
		}
		if open = only(open, func(v Move) bool { return v.State != Following }); len(open) == 0 {
			if s.after = s.m.now(); !s.behind {
				s.after = s.after.Add(followEvery) // what comes meanwhile is applied together
			}
			return false, progress, s.holdBatch(ctx)
		}
		allowed, err := s.allowed(ctx, run, open)
		if err != nil || len(allowed) == 0 {
			return false, progress, err
		}
		before := len(s.alone)
		s.further = false
		if err := s.moveSome(ctx, run, allowed); err != nil {
			return false, progress, err
		}
		left, err := openMoves(ctx, control, run.ID, s.task.Batch)
		if err != nil {
			return false, progress, err
		}
		if left = only(left, func(v Move) bool { return v.State != Following }); len(left) == len(open) && len(s.alone) == before && !s.further {
			return false, progress, nil // nothing moved: not now
		}
		progress = true
	}
	return false, progress, nil
}

// putBackAll lets the tenants of a paused run write again.
func (s *step) putBackAll(ctx context.Context, run Run) error {
	control, err := s.m.control(ctx)
	if err != nil {
		return err
	}
	open, err := openMoves(ctx, control, run.ID, s.task.Batch)
	if err != nil {
		return err
	}
	for _, v := range open {
		if v.FenceUp {
			if err := ignoreOutdated(s.m.putBack(ctx, v)); err != nil {
				return err
			}
		}
	}
	return nil
}

// drop undoes the moves that are not to go on.
func (s *step) drop(ctx context.Context, run Run, open []Move) ([]Move, error) {
	var keep []Move
	for _, v := range open {
		var why string
		switch {
		case run.State == Cancelling:
			why = "the run was cancelled"
		case v.FencedAt != nil && s.m.now().Sub(*v.FencedAt) > pauseLimit(run):
			why = fmt.Sprintf("the tenant was fenced for longer than %v: writes go on in blue", pauseLimit(run))
		case v.State != Fenced && !v.Hold && v.Attempts >= s.m.cfg.MaxAttempts: // a fenced one is bounded by its pause; for one that is held nobody waits
			why = fmt.Sprintf("given up after %d attempts", v.Attempts)
			if v.Error != nil {
				why += ": " + *v.Error
			}
		default:
			keep = append(keep, v)
			continue
		}
		if err := s.m.undo(ctx, v, "mover", why); err != nil && !errors.Is(err, errOutdated) {
			return nil, err
		}
	}
	return keep, nil
}

// moveSome picks a group and moves it.
func (s *step) moveSome(ctx context.Context, run Run, open []Move) error {
	m := s.m
	group := s.pick(open)
	blue, err := m.dbs.Pool(ctx, group[0].Database)
	if err != nil {
		return err
	}
	if m.cfg.together(group[0]) { // the others ask between their chunks
		p, err := m.pressure(ctx, blue)
		if err != nil {
			return err
		}
		if why := m.cfg.Limits.over(p); why != "" {
			s.after = m.now().Add(time.Second)
			return m.setErrors(ctx, group, why)
		}
		began := time.Now()
		defer func() {
			if left, err := rest(ctx, m.cfg.Limits.rest(p, time.Since(began)), s.stop); err == nil {
				s.restUntil(left)
			}
		}()
	}
	l, shape, same, err := s.prepare(ctx, run, blue, group)
	if err != nil {
		// Counted as an attempt: what never gets further must end, too.
		claimed, claimErr := m.claim(ctx, same)
		if claimErr != nil || len(claimed) == 0 {
			return errors.Join(err, claimErr)
		}
		return s.blame(ctx, claimed, err)
	}
	claimed, err := m.claim(ctx, same)
	if err != nil || len(claimed) == 0 {
		return err
	}
	m.crash("claimed")
	for _, v := range claimed { // the others, if any, wait for the next turn
		if !m.cfg.together(v) {
			return s.blame(ctx, []Move{v}, s.moveAlone(ctx, run, blue, l, shape, v))
		}
	}
	return s.blame(ctx, claimed, m.moveAhead(ctx, run, blue, l, shape, claimed))
}

// restUntil has the batch go on when blue has been left alone for long enough.
func (s *step) restUntil(left time.Duration) {
	if left > 0 {
		s.after = s.m.now().Add(left)
	}
}

// moveAlone moves a tenant that is too large to be copied together with others: the online way
// where blue lets its changes be read, else under its fence.
func (s *step) moveAlone(ctx context.Context, run Run, blue *citus.Pool, l convert.Layout, shape string, v Move) error {
	online := v.Online
	if !online && v.State != Fenced {
		var err error
		if online, err = s.m.online(ctx, blue); err != nil {
			return err
		}
	}
	if !online && v.Hold {
		return errNoStream()
	}
	if !online {
		return s.m.moveFenced(ctx, run, blue, l, shape, v, s.stop)
	}
	o := &onlineMove{m: s.m, run: run, blue: blue, l: l, shape: shape, v: v, lane: s.m.laneOf(v), stop: s.stop}
	err := o.move(ctx)
	s.further = s.further || o.moved
	s.restUntil(o.tired)
	s.behind = s.behind || o.behind
	return err
}

// prepare does what needs no fence: it reads the group's shape and layout, and makes the
// fences ready. It returns the moves of the first one's shape; with an error, those to blame.
func (s *step) prepare(ctx context.Context, run Run, blue *citus.Pool, group []Move) (convert.Layout, string, []Move, error) {
	m := s.m
	shapes, err := m.shapesOf(ctx, blue, group)
	if err != nil {
		return convert.Layout{}, "", group, err
	}
	shape := shapes[group[0].Schema]
	as := exactly
	if group[0].Hold {
		as = expanded
	}
	l, err := m.layoutFor(ctx, run.Source, blue, group[0].Schema, shape, as)
	if err != nil {
		return l, shape, group[:1], err
	}
	var same []Move
	for _, v := range group {
		if shapes[v.Schema] == shape {
			same = append(same, v)
		}
	}
	if run.Source != platformSource && !m.cfg.together(group[0]) { // ours are made with their fences; small ones get theirs when it is raised
		for i, v := range same {
			if err := m.arm(ctx, blue, v.Schema); err != nil {
				return l, shape, same[i : i+1], err
			}
		}
	}
	return l, shape, same, nil
}

// pick takes the first moves that together are small enough.
func (s *step) pick(open []Move) []Move {
	var (
		group []Move
		bytes int64
	)
	for _, v := range open {
		if len(group) > 0 && (s.suspect(v) || s.suspect(group[0]) || !s.m.cfg.together(v) || !s.m.cfg.together(group[0]) || s.alone[v.Schema] || s.alone[group[0].Schema] || v.Database != group[0].Database ||
			bytes+v.Bytes > s.m.cfg.GroupBytes || len(group) == s.m.cfg.GroupTenants) {
			continue
		}
		group = append(group, v)
		bytes += v.Bytes
	}
	return group
}

// together: it may be moved together with others.
func (c Config) together(v Move) bool { return c.ahead(v) && v.State != Fenced && !v.Hold && !v.Online }

// suspect: it has failed so often that it must not take others with it.
func (s *step) suspect(v Move) bool { return v.Attempts >= suspectAfter }

const suspectAfter = 3

// blame finds whose fault a group's error is. A single tenant's is undone; a group is
// tried again one by one; what is nobody's fault is repeated by the queue.
func (s *step) blame(ctx context.Context, group []Move, err error) error {
	var diff *mismatch
	switch {
	case err == nil, errors.Is(err, errOutdated):
		return nil
	case errors.As(err, &diff):
		for _, v := range group {
			if v.Tenant == diff.tenant {
				return ignoreOutdated(s.m.undo(ctx, v, "mover", "verification failed: "+messageOf(err)))
			}
		}
		return err
	case !isTenantsFault(err):
		return err
	case group[0].Hold && schemasDiffer(err):
		return s.m.setError(ctx, group[0], messageOf(err)+"; the tenant stays in the stream and is copied again when both agree")
	case len(group) == 1:
		return ignoreOutdated(s.m.undo(ctx, group[0], "mover", messageOf(err)))
	}
	for _, v := range group {
		s.alone[v.Schema] = true
	}
	return nil
}

func ignoreOutdated(err error) error {
	if errors.Is(err, errOutdated) {
		return nil
	}
	return err
}

// messageOf is what an operator reads of an error.
func messageOf(err error) string {
	if f := fault.As(err); f != nil {
		return f.Message
	}
	return err.Error()
}

// lease makes others stay away from a batch while this step is at work on it. It
// saves work and proves nothing. A nil release: the batch is done, or not admitted yet.
func (m *Mover) lease(ctx context.Context, t StepTask) (release func(), err error) {
	control, err := m.control(ctx)
	if err != nil {
		return nil, err
	}
	var token int64
	err = control.QueryRow(ctx, `UPDATE control.batch SET lease_token = nextval('control.move_token'), lease_until = clock_timestamp() + $3::interval, busy_since = clock_timestamp()
		WHERE run_id = $1 AND number = $2 AND NOT done AND admitted AND (lease_until IS NULL OR lease_until < clock_timestamp()) RETURNING lease_token`,
		t.Run, t.Batch, m.cfg.Lease).Scan(&token)
	if errors.Is(err, pgx.ErrNoRows) {
		var idle bool
		err := control.QueryRow(ctx, `SELECT done OR NOT admitted FROM control.batch WHERE run_id = $1 AND number = $2`, t.Run, t.Batch).Scan(&idle)
		if idle || errors.Is(err, pgx.ErrNoRows) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		f := fault.New(fault.Unavailable, "batch_busy", "another step is at work on batch %d", t.Batch)
		f.RetryAfter = m.cfg.Lease
		return nil, f
	}
	if err != nil {
		return nil, err
	}
	beat, cancel := context.WithCancel(ctx)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		m.renew(beat, control, t, token)
	}()
	released := false
	return func() {
		if released {
			return
		}
		released = true
		cancel()
		<-stopped
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		_, _ = control.Exec(ctx, `UPDATE control.batch SET lease_until = NULL, busy_since = NULL,
			busy_ms = busy_ms + coalesce(1000 * extract(epoch FROM clock_timestamp() - busy_since), 0) WHERE run_id = $1 AND number = $2 AND lease_token = $3`, t.Run, t.Batch, token)
	}, nil
}

// renew keeps a lease until ctx ends.
func (m *Mover) renew(ctx context.Context, control *citus.Pool, t StepTask, token int64) {
	tick := time.NewTicker(m.cfg.Lease / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_, _ = control.Exec(ctx, `UPDATE control.batch SET lease_until = clock_timestamp() + $4::interval WHERE run_id = $1 AND number = $2 AND lease_token = $3`,
				t.Run, t.Batch, token, m.cfg.Lease)
		}
	}
}

// enqueueNext names the next step and puts it into the queue. A crash in between
// leaves it to the sweeper.
func (m *Mover) enqueueNext(ctx context.Context, t StepTask, after time.Time) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	err = control.QueryRow(ctx, `UPDATE control.batch SET step = step + 1, enqueued_at = clock_timestamp(), not_before = $3,
			lease_until = CASE WHEN lease_until < clock_timestamp() THEN NULL ELSE lease_until END WHERE run_id = $1 AND number = $2 AND NOT done
			AND ($3::timestamptz IS NULL OR not_before IS DISTINCT FROM $3) RETURNING step`, // a rest that is named already needs no second call
		t.Run, t.Batch, pgtype.Timestamptz{Time: after, Valid: !after.IsZero()}).Scan(&t.Step)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	m.crash("step named")
	return m.enqueue(ctx, t, after)
}

// finishBatch marks a batch without open moves as done, and the run with its last batch.
func (m *Mover) finishBatch(ctx context.Context, t StepTask) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	_, err = control.Exec(ctx, `UPDATE control.batch b SET done = true WHERE run_id = $1 AND number = $2
		AND NOT EXISTS (SELECT FROM control.move m WHERE m.run_id = b.run_id AND m.batch = b.number AND m.state IN `+openStates+`)`, t.Run, t.Batch)
	if err != nil {
		return err
	}
	m.crash("batch done")
	if err := m.advance(ctx, t.Run); err != nil {
		return err
	}
	return m.finishRun(ctx, t.Run)
}
