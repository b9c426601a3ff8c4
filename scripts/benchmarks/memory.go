package main

import (
	"context"
	"flag"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/directory"
	"github.com/coditect/platform/shared/project"
	"github.com/coditect/platform/shared/tenant"
)

// memory measures what the processes need that move a large tenant while it is written.
type memory struct {
	bytes         float64
	writers, wide int
	pace          time.Duration
	limit         string
}

func memoryFlags(set *flag.FlagSet) func(context.Context, *bench) (figures, error) {
	o := &memory{}
	set.Float64Var(&o.bytes, "bytes", 1e9, "bytes of the tenant's rows, without indexes")
	set.IntVar(&o.writers, "writers", 4, "writers of the tenant")
	set.DurationVar(&o.pace, "pace", 20*time.Millisecond, "between two writes of a writer")
	set.IntVar(&o.wide, "wide", 2000, "bytes of each written row")
	set.StringVar(&o.limit, "gomemlimit", "", "GOMEMLIMIT of the functions, for example 100MiB; empty: none, as they are deployed")
	return o.run
}

func (o *memory) run(ctx context.Context, b *bench) (figures, error) {
	p, err := b.platform(ctx)
	if err != nil {
		return nil, err
	}
	admin, err := b.open(ctx, p.config("postgres", 4))
	if err != nil {
		return nil, err
	}
	t, err := newFilled(ctx, b, p, admin, o.bytes)
	if err != nil {
		return nil, err
	}
	var settings []string
	if o.limit != "" {
		settings = append(settings, "GOMEMLIMIT="+o.limit)
	}
	d, err := b.deploy(ctx, p, settings...)
	if err != nil {
		return nil, err
	}
	app, err := b.open(ctx, p.config("coditect_app", int32(max(o.writers, 1))))
	if err != nil {
		return nil, err
	}
	w := &wideWriters{door: citus.NewDoor(app, directory.New(app, 0)), id: t.id, task: t.task, bytes: o.wide}
	writing, stop := context.WithCancel(ctx)
	swept := sweep(writing, d.mover)
	var group sync.WaitGroup
	for range o.writers {
		group.Go(func() { w.write(writing, o.pace) })
	}
	defer group.Wait()
	defer stop()
	b.say("moving %.0f MB in %d rows while they are written …", o.bytes/1e6, t.rows)
	began := time.Now()
	s, err := d.move(ctx, []tenant.ID{t.id})
	if err != nil {
		return nil, err
	}
	took := time.Since(began)
	stop()
	group.Wait()
	if err := swept(); err != nil {
		return nil, err
	}
	if w.failed != nil {
		return nil, fmt.Errorf("a write failed: %w", w.failed)
	}
	most, err := d.memory()
	if err != nil {
		return nil, err
	}
	limit := o.limit
	if limit == "" {
		limit = "none"
	}
	return figures{
		"sizes": map[string]any{"bytes": o.bytes, "rows": t.rows, "relation_bytes": t.relation, "writers": o.writers, "pace_ms": milliseconds(o.pace), "written_row_bytes": o.wide, "writes": w.done.Load()},
		"peak":  most, "gomemlimit": limit,
		"move": map[string]any{"seconds": round(took.Seconds(), 1), "rows_per_second": round(float64(s.RowsMoved)/took.Seconds(), 0), "pause_ms": s.Pause},
		"how": "VmHWM of the step function and of the receiver, each its own process in its default configuration and called by a Cloud Tasks queue, from their start to the tenant's flip. " +
			"The tenant moves online while rows are inserted into it",
		"goals": map[string]goal{"migrationstep": below(most.Step, 128, " MiB"), "replication": below(most.Receiver, 128, " MiB")},
	}, nil
}

// filledTenant is a blue tenant of fillBytes.
type filledTenant struct {
	id       tenant.ID
	schema   string
	tasks    int
	rows     int64      // about, of all tables
	relation int64      // bytes of all its tables, indexes included
	task     project.ID // one of them
}

// newFilled makes a blue tenant with about so many bytes of rows.
func newFilled(ctx context.Context, b *bench, p *platform, admin *citus.Databases, bytes float64) (t filledTenant, err error) {
	if t.id, err = newTenant(ctx, admin, tenant.Blue); err != nil {
		return t, err
	}
	t.schema = schemaOf(t.id)
	conn, err := pgx.Connect(ctx, p.blueDSN("postgres"))
	if err != nil {
		return t, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, `SET synchronous_commit = off`); err != nil {
		return t, err
	}
	if bytes > 5e7 {
		b.say("filling a tenant with %.0f MB …", bytes/1e6)
	}
	if t.tasks, err = fillBytes(ctx, conn, t.schema, t.id, bytes); err != nil {
		return t, err
	}
	return t, conn.QueryRow(ctx, `SELECT sum(reltuples)::bigint, sum(pg_total_relation_size(oid))::bigint, (SELECT id FROM `+t.schema+`.task LIMIT 1)
		FROM pg_class WHERE relnamespace = to_regnamespace($1) AND relkind = 'r' AND reltuples > 0`, t.schema).Scan(&t.rows, &t.relation, &t.task)
}

// wideWriters insert comments of a given size through the door, wherever the tenant lives.
type wideWriters struct {
	door  *citus.Door
	id    tenant.ID
	task  project.ID
	bytes int
	done  atomic.Int64

	mu     sync.Mutex
	failed error // the first one
}

func (w *wideWriters) write(ctx context.Context, pace time.Duration) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for ctx.Err() == nil {
		err := w.door.InTenant(context.WithoutCancel(ctx), w.id, func(tx *citus.Tx) error {
			_, err := tx.Exec(ctx, `INSERT INTO comment (tenant_id, id, task_id, author, body, created_at, updated_at)
				VALUES ($1, $2, $3, 'benchmark', left(repeat(md5($4), $5 / 32 + 1), $5), now(), now())`, w.id, tenant.NewID(), w.task, strconv.FormatInt(w.done.Load(), 10), w.bytes)
			return err
		})
		if err != nil {
			w.mu.Lock()
			if w.failed == nil && ctx.Err() == nil {
				w.failed = err
			}
			w.mu.Unlock()
			return
		}
		w.done.Add(1)
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}
