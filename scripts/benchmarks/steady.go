package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/tenant"
)

// steadyLag is how far green was behind blue while the tenant was written at a steady rate.
type steadyLag struct {
	How     string  `json:"how"`
	Seconds float64 `json:"seconds"`
	Asked   float64 `json:"changes_per_second_asked"`
	Reached float64 `json:"changes_per_second"`
	Commits int     `json:"commits"`
	Lag     spread  `json:"lag_ms"`
	Spool   spread  `json:"of_this_until_spooled_ms"`
	Moved   float64 `json:"seconds_until_green"`
}

// steadyLoad writes a tenant at a rate and watches its rows in green. Each writer has a row of its own whose
// title counts the writer's commits: when green shows a count, it shows all commits up to it.
type steadyLoad struct {
	apply   *apply
	p       *platform
	schema  string
	id      tenant.ID
	rate    float64 // changes a second
	markers []uuid.UUID

	commits       [][]commit // by writer
	counts        []seenCount
	spools        []seenSpool
	lags, spooled []float64 // milliseconds
}

// commit is one transaction of a writer.
type commit struct {
	sent time.Time // just before it was committed
	end  int64     // where blue's WAL was afterwards
}

// seenCount is a writer's count that was new in green.
type seenCount struct {
	at            time.Time
	writer, count int
}

// seenSpool is how far the spool was.
type seenSpool struct {
	at  time.Time
	end int64
}

// steadyWriter is a writer: changes as [apply.change] makes them, committed at a pace; what it is late with it makes up
// for. It runs in the server, so that the load takes little more of the machine than the changes themselves. Each writer
// changes rows of its own part of the keys, for two must not wait for each other.
const steadyWriter = `
CREATE UNLOGGED TABLE public.bench_commit (marker uuid, count bigint, sent timestamptz, lsn bigint);
CREATE PROCEDURE public.bench_write(tenant uuid, marker uuid, part int, parts int, every interval, lasting interval, n int) LANGUAGE plpgsql AS $p$
DECLARE
	began timestamptz := clock_timestamp();
	sent timestamptz;
	due interval;
	count bigint := 0;
	k uuid;
	upto uuid := CASE WHEN part + 1 < parts THEN lpad(to_hex(256 * (part + 1) / parts), 2, '0') || repeat('0', 30) ELSE repeat('f', 32) END::uuid;
BEGIN
	LOOP
		due := every * count + every * part / parts;
		EXIT WHEN due >= lasting OR clock_timestamp() - began >= lasting;
		PERFORM pg_sleep(extract(epoch FROM began + due - clock_timestamp())) WHERE began + due > clock_timestamp();
		count := count + 1;
		INSERT INTO %[1]s.task (tenant_id, id, project_id, title, description, status, priority, created_at, updated_at)
			SELECT tenant, gen_random_uuid(), tenant, 'New ' || count, repeat(md5(j::text), 8), 'todo', 0, now(), now() FROM generate_series(1, 2 * n) j;
		k := overlay(gen_random_uuid()::text PLACING lpad(to_hex((256 * (part + random() * 0.95) / parts)::int), 2, '0') FROM 1)::uuid;
		UPDATE %[1]s.task SET title = title || '.', version = version + 1
			WHERE tenant_id = tenant AND id IN (SELECT id FROM %[1]s.task WHERE tenant_id = tenant AND id > k AND id < upto AND priority = 0 ORDER BY id LIMIT 2 * n - 1);
		k := overlay(gen_random_uuid()::text PLACING lpad(to_hex((256 * (part + random() * 0.95) / parts)::int), 2, '0') FROM 1)::uuid;
		DELETE FROM %[1]s.task
			WHERE tenant_id = tenant AND id IN (SELECT id FROM %[1]s.task WHERE tenant_id = tenant AND id > k AND id < upto AND priority = 0 ORDER BY id LIMIT n);
		UPDATE %[1]s.task SET title = count::text WHERE tenant_id = tenant AND id = marker;
		sent := clock_timestamp();
		COMMIT;
		INSERT INTO public.bench_commit VALUES (marker, count, sent, pg_current_wal_insert_lsn() - '0/0');
	END LOOP;
END $p$`

// steady lets a tenant follow blue for a while under a steady load and measures the lag. Its run is held, so no
// fence goes up before the load has ended; then it is let go.
func (o *apply) steady(ctx context.Context, b *bench, p *platform, admin *citus.Databases, blue *pgx.Conn, rate float64) (out steadyLag, err error) {
	id, err := newTenant(ctx, admin, tenant.Blue)
	if err != nil {
		return out, err
	}
	l := &steadyLoad{apply: o, p: p, schema: schemaOf(id), id: id, rate: rate, commits: make([][]commit, o.writers)}
	if err := o.fill(ctx, b, blue, l.schema, id); err != nil {
		return out, err
	}
	if err := l.mark(ctx, blue); err != nil {
		return out, err
	}
	dbs, err := b.open(ctx, p.config("coditect_migrator", 8))
	if err != nil {
		return out, err
	}
	queue := newQueue()
	g, running := errgroup.WithContext(ctx)
	begun := false
	var mover *migration.Mover
	var held migration.Run
	started := make(chan struct{})
	mover = migration.New(dbs, queue, migration.Config{}, migration.WithCrashPoints(func(at string) {
		if at != "following" || begun {
			return
		}
		begun = true
		b.say("%.0f changes a second for %v, while the tenant follows …", rate, o.steadyFor)
		g.Go(func() error {
			if err := l.run(running); err != nil {
				return err
			}
			<-started
			_, err := mover.LetGo(running, held.ID, nil, 0, "benchmark")
			return err
		})
	}))
	// The receiver of the tenant before has ended with its queue. Nobody is woken in its place while it seems to live.
	if err := l.nobodyReceives(ctx); err != nil {
		return out, err
	}
	sweeping, stop := context.WithCancel(ctx)
	swept := sweep(sweeping, mover)
	defer func() { stop(); _ = swept() }()
	began := time.Now()
	run, report, err := mover.Start(ctx, migration.Plan{Source: "platform", Tenants: []tenant.ID{id}, Hold: true, Actor: "benchmark"})
	if err != nil {
		return out, fmt.Errorf("%w: %+v", err, report.Findings)
	}
	held = run
	close(started)
	if err := errors.Join(queue.work(ctx, mover, 1), g.Wait()); err != nil {
		return out, err
	}
	status, err := mover.Inspect(ctx, run.ID)
	if err == nil && status.Counts[migration.Green] != 1 {
		err = fmt.Errorf("%v: %+v", status.Counts, status.Failed)
	}
	if err != nil {
		return out, err
	}
	commits := 0
	for _, c := range l.commits {
		commits += len(c)
	}
	return steadyLag{
		How:     "from just before a transaction was committed in blue until it was seen in green, of every commit; green was asked every few ms. The writers run in the server, each at its pace. The run is held. The mover and the receiver are one process here",
		Seconds: o.steadyFor.Seconds(), Asked: round(rate, 0), Reached: round(float64(commits*o.perCommit)/o.steadyFor.Seconds(), 0), Commits: commits,
		Lag: spreadOf(l.lags), Spool: spreadOf(l.spooled), Moved: round(time.Since(began).Seconds(), 1),
	}, nil
}

// nobodyReceives waits until the lanes' last receiver counts as gone.
func (l *steadyLoad) nobodyReceives(ctx context.Context) error {
	for {
		var alive bool
		if err := one(ctx, l.p.greenDSN("postgres"), `SELECT coalesce(max(greatest(heard_at, woken_at)) > clock_timestamp() - interval '4 seconds', false) FROM control.lane`, &alive); err != nil || !alive {
			return err
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}

// mark makes the writers' rows and the procedure that they call.
func (l *steadyLoad) mark(ctx context.Context, blue *pgx.Conn) error {
	for range l.commits {
		m := uuid.New()
		l.markers = append(l.markers, m)
		if _, err := blue.Exec(ctx, `INSERT INTO `+l.schema+`.task (tenant_id, id, project_id, title, status, priority, created_at, updated_at) VALUES ($1, $2, $1, '0', 'todo', 4, now(), now())`, l.id, m); err != nil {
			return err
		}
	}
	_, err := blue.Exec(ctx, fmt.Sprintf(steadyWriter, l.schema), pgx.QueryExecModeSimpleProtocol)
	return err
}

// run writes, watches, and returns when green has shown everything.
func (l *steadyLoad) run(ctx context.Context) error {
	g, running := errgroup.WithContext(ctx)
	written := make(chan struct{})
	g.Go(func() error {
		defer close(written)
		g, ctx := errgroup.WithContext(running)
		for n := range l.markers {
			g.Go(func() error { return l.write(ctx, n) })
		}
		return g.Wait()
	})
	g.Go(func() error { return l.watch(running, written) })
	if err := g.Wait(); err != nil {
		return err
	}
	l.evaluate()
	return nil
}

// write is one writer, and reads afterwards what it has committed.
func (l *steadyLoad) write(ctx context.Context, n int) error {
	conn, err := pgx.Connect(ctx, l.p.blueDSN("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, `SET plan_cache_mode = force_generic_plan`); err != nil { // an application's statements are prepared, too
		return err
	}
	every := time.Duration(float64(time.Second) * float64(l.apply.perCommit*len(l.markers)) / l.rate)
	if _, err := conn.Exec(ctx, `CALL public.bench_write($1, $2, $3, $4, $5, $6, $7)`, l.id, l.markers[n], n, len(l.markers), every, l.apply.steadyFor, l.apply.perCommit/5); err != nil {
		return err
	}
	rows, err := conn.Query(ctx, `SELECT sent, lsn FROM public.bench_commit WHERE marker = $1 ORDER BY count`, l.markers[n])
	if err != nil {
		return err
	}
	l.commits[n], err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (c commit, err error) { return c, row.Scan(&c.sent, &c.end) })
	return err
}

const watchEvery = 20 * time.Millisecond

// watch looks which commits green has, and blue's spool, until it has all.
func (l *steadyLoad) watch(ctx context.Context, written <-chan struct{}) error {
	green, err := pgx.Connect(ctx, l.p.greenDSN("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = green.Close(context.WithoutCancel(ctx)) }()
	seen := make([]int, len(l.markers))
	for patience := time.Now().Add(l.apply.steadyFor + time.Minute); ; {
		over := false
		select {
		case <-written:
			over = true
		default:
		}
		if err := l.look(ctx, green, seen); err != nil {
			return err
		}
		if over {
			left := 0
			for n := range seen {
				left += len(l.commits[n]) - seen[n]
			}
			if left == 0 {
				return nil
			}
			if time.Now().After(patience) {
				return fmt.Errorf("%d commits have not come to green a minute after the last", left)
			}
		}
		if err := sleep(ctx, watchEvery); err != nil {
			return err
		}
	}
}

// look notes the commits that are new in green, and how far the spool is.
func (l *steadyLoad) look(ctx context.Context, green *pgx.Conn, seen []int) error {
	titles := map[uuid.UUID]string{}
	rows, err := green.Query(ctx, `SELECT id, title FROM app.task WHERE tenant_id = $1 AND id = ANY($2)`, l.id, l.markers)
	if err != nil {
		return err
	}
	var (
		id      uuid.UUID
		title   string
		spooled int64
	)
	if _, err := pgx.ForEachRow(rows, []any{&id, &title}, func() error { titles[id] = title; return nil }); err != nil {
		return err
	}
	at := time.Now()
	for n, m := range l.markers {
		count, err := strconv.Atoi(titles[m])
		if err != nil {
			return fmt.Errorf("the marker's title is %q: %w", titles[m], err)
		}
		if count > seen[n] {
			l.counts = append(l.counts, seenCount{at, n, count})
			seen[n] = count
		}
	}
	if err := green.QueryRow(ctx, `SELECT coalesce(max(spooled), 0) FROM control.lane`).Scan(&spooled); err != nil {
		return err
	}
	l.spools = append(l.spools, seenSpool{time.Now(), spooled})
	return nil
}

// evaluate works out the lag of every commit.
func (l *steadyLoad) evaluate() {
	done := make([]int, len(l.commits))
	for _, c := range l.counts {
		for ; done[c.writer] < c.count; done[c.writer]++ {
			l.lags = append(l.lags, milliseconds(c.at.Sub(l.commits[c.writer][done[c.writer]].sent)))
		}
	}
	for _, commits := range l.commits {
		i := 0
		for _, c := range commits {
			for i < len(l.spools) && (l.spools[i].end < c.end || l.spools[i].at.Before(c.sent)) {
				i++
			}
			if i == len(l.spools) {
				break // its end is that of somebody's later change
			}
			l.spooled = append(l.spooled, milliseconds(l.spools[i].at.Sub(c.sent)))
		}
	}
}
