package migration

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"
)

// round is what one round has done.
type round struct {
	applied  int  // changes
	full     bool // there are more, maybe; if not, all that was in the spool is applied
	compared int  // changes, and rows that were compared before
	left     int  // changes and rows to apply or to compare
}

// round applies a batch, reads the next one and compares what is applied already, all at the same time: each
// keeps another process busy. What is compared had been applied before the round began.
func (o *onlineMove) round(ctx context.Context, at *watermark, b *batch) (done round, err error) {
	together, cancel := context.WithCancel(ctx)
	defer cancel()
	from, now := *at, *b
	var following batch
	var g errgroup.Group
	beside := func() {
		g.Go(func() (err error) { following, err = o.next(together, now.last); return canceled(err, cancel) })
		g.Go(func() (err error) {
			done.compared, done.left, err = o.compareSome(together, from, now)
			return canceled(err, cancel)
		})
	}
	large := now.bytes > 2*changesAtOnce // one row, maybe, that must not be in memory more than once
	if !large {
		beside()
	}
	if err := o.apply(together, from, now); err != nil {
		cancel()
		if other := g.Wait(); other != nil && errors.Is(err, context.Canceled) { // by the others' error
			err = other
		}
		return done, err
	}
	if now.changes > 0 {
		if err := o.progressed(ctx); err != nil {
			return done, errors.Join(err, g.Wait())
		}
	}
	if large {
		now.work, b.work = nil, nil
		beside()
	}
	if err := g.Wait(); err != nil {
		return done, err
	}
	if done.compared > 0 {
		o.m.crash("changes compared")
	}
	if !now.full {
		o.applied.Store(now.spooled)
	}
	done.applied, done.full = now.changes, now.full
	*at, *b = now.last, following
	return done, nil
}

// canceled ends the others when there is an error.
func canceled(err error, cancel func()) error {
	if err != nil {
		cancel()
	}
	return err
}
