package main

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration"
)

// inProcess is a task queue inside this process: workers call Mover.Step as the step
// function would, without HTTP and Cloud Tasks in between.
type inProcess struct {
	tasks   chan migration.StepTask
	receive chan migration.ReceiveTask
	group   sync.WaitGroup // tasks that are not done; receivers do not count: they go on as long as there is a tenant
}

func newQueue() *inProcess {
	return &inProcess{tasks: make(chan migration.StepTask, 100_000), receive: make(chan migration.ReceiveTask, 1000)}
}

// EnqueueStep implements migration.Queue.
func (q *inProcess) EnqueueStep(_ context.Context, _ string, body []byte, after time.Time) error {
	var t migration.StepTask
	if err := json.Unmarshal(body, &t); err != nil {
		return err
	}
	q.group.Add(1)
	if wait := time.Until(after); wait > 0 {
		time.AfterFunc(wait, func() { q.tasks <- t })
		return nil
	}
	q.tasks <- t
	return nil
}

// EnqueueReceive implements migration.Queue.
func (q *inProcess) EnqueueReceive(_ context.Context, _ string, body []byte, after time.Time) error {
	var t migration.ReceiveTask
	if err := json.Unmarshal(body, &t); err != nil {
		return err
	}
	time.AfterFunc(time.Until(after), func() { q.receive <- t })
	return nil
}

// work delivers tasks by so many workers until none is left.
func (q *inProcess) work(ctx context.Context, mover *migration.Mover, workers int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		mu   sync.Mutex
		errs []error
	)
	var receivers sync.WaitGroup
	defer receivers.Wait()
	defer cancel()
	receivers.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case t := <-q.receive:
				receivers.Go(func() {
					if _, err := mover.Receive(ctx, t); err != nil && ctx.Err() == nil {
						mu.Lock()
						errs = append(errs, err)
						mu.Unlock()
					}
				})
			}
		}
	})
	for range workers {
		go func() {
			for {
				select {
				case <-ctx.Done():
					return
				case t := <-q.tasks:
					if err := mover.Step(ctx, t); fault.KindOf(err) == fault.Unavailable && ctx.Err() == nil {
						q.group.Add(1) // to be delivered again
						time.AfterFunc(100*time.Millisecond, func() { q.tasks <- t })
					} else if err != nil {
						mu.Lock()
						errs = append(errs, err)
						mu.Unlock()
						cancel()
					}
					q.group.Done()
				}
			}
		}()
	}
	done := make(chan struct{})
	go func() { q.group.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
	mu.Lock()
	defer mu.Unlock()
	return errors.Join(append(errs, context.Cause(ctx))...)
}
