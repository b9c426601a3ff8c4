package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
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

	mu      sync.Mutex
	commits [][]commit // by writer
	lags    []float64  // milliseconds
	spools  []float64
}

// commit is one transaction of a writer.
type commit struct {
	sent time.Time // just before COMMIT was
	end  int64     // where blue's WAL was afterwards
}

// steadyChange does one transaction's changes but for the marker's update, as [apply.change] does.
const steadyChange = `CREATE FUNCTION public.bench_change(tenant uuid, marker uuid, count bigint, n int) RETURNS void LANGUAGE plpgsql AS $f$
DECLARE k uuid;
BEGIN
	INSERT INTO %[1]s.task (tenant_id, id, project_id, title, description, status, priority, created_at, updated_at)
		SELECT tenant, gen_random_uuid(), tenant, 'New ' || count, repeat(md5(j::text), 8), 'todo', 0, now(), now() FROM generate_series(1, 2 * n) j;
	k := gen_random_uuid();
	UPDATE %[1]s.task SET title = title || '.', version = version + 1
		WHERE tenant_id = tenant AND id IN (SELECT id FROM %[1]s.task WHERE tenant_id = tenant AND id > k AND priority = 0 ORDER BY id LIMIT 2 * n - 1 FOR UPDATE SKIP LOCKED);
	k := gen_random_uuid();
	DELETE FROM %[1]s.task
		WHERE tenant_id = tenant AND id IN (SELECT id FROM %[1]s.task WHERE tenant_id = tenant AND id > k AND priority = 0 ORDER BY id LIMIT n FOR UPDATE SKIP LOCKED);
	UPDATE %[1]s.task SET title = count::text WHERE tenant_id = tenant AND id = marker;
END $f$`

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
		How:     "from just before COMMIT was sent to blue until the row was seen in green, of every commit; green was asked every few ms. The run is held. The mover and the receiver are one process here",
		Seconds: o.steadyFor.Seconds(), Asked: round(rate, 0), Reached: round(float64(commits*o.perCommit)/o.steadyFor.Seconds(), 0), Commits: commits,
		Lag: spreadOf(l.lags), Spool: spreadOf(l.spools), Moved: round(time.Since(began).Seconds(), 1),
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

// mark makes the writers' rows and the function that they call.
func (l *steadyLoad) mark(ctx context.Context, blue *pgx.Conn) error {
	for range l.commits {
		m := uuid.New()
		l.markers = append(l.markers, m)
		if _, err := blue.Exec(ctx, `INSERT INTO `+l.schema+`.task (tenant_id, id, project_id, title, status, priority, created_at, updated_at) VALUES ($1, $2, $1, '0', 'todo', 4, now(), now())`, l.id, m); err != nil {
			return err
		}
	}
	_, err := blue.Exec(ctx, fmt.Sprintf(steadyChange, l.schema))
	return err
}

// run writes, watches, and returns when green has shown everything.
func (l *steadyLoad) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	written := make(chan struct{})
	g.Go(func() error {
		defer close(written)
		g, ctx := errgroup.WithContext(ctx)
		for n := range l.markers {
			g.Go(func() error { return l.write(ctx, n) })
		}
		return g.Wait()
	})
	g.Go(func() error { return l.watch(ctx, written) })
	return g.Wait()
}

// write commits at the writer's part of the rate. What it is late with it makes up for.
func (l *steadyLoad) write(ctx context.Context, n int) error {
	conn, err := pgx.Connect(ctx, l.p.blueDSN("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	every := time.Duration(float64(time.Second) * float64(l.apply.perCommit*len(l.markers)) / l.rate)
	began := time.Now().Add(every * time.Duration(n) / time.Duration(len(l.markers)))
	for count := 1; ; count++ {
		due := began.Add(every * time.Duration(count-1))
		if due.Sub(began) >= l.apply.steadyFor || time.Since(began) >= l.apply.steadyFor {
			return nil
		}
		if wait := time.Until(due); wait > 0 {
			if err := sleep(ctx, wait); err != nil {
				return err
			}
		}
		if _, err := conn.Exec(ctx, `BEGIN`); err != nil {
			return err
		}
		if _, err := conn.Exec(ctx, `SELECT public.bench_change($1, $2, $3, $4)`, l.id, l.markers[n], count, l.apply.perCommit/5); err != nil {
			return err
		}
		c := commit{sent: time.Now()}
		b := &pgx.Batch{}
		b.Queue(`COMMIT`)
		b.Queue(`SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint`).QueryRow(func(row pgx.Row) error { return row.Scan(&c.end) })
		l.mu.Lock() // before it is sent: the watcher may see the commit before its answer comes
		l.commits[n] = append(l.commits[n], c)
		l.mu.Unlock()
		if err := conn.SendBatch(ctx, b).Close(); err != nil {
			return err
		}
		l.mu.Lock()
		l.commits[n][count-1].end = c.end
		l.mu.Unlock()
	}
}

const watchEvery = 3 * time.Millisecond

// watch looks which commits green has, and blue's spool, until it has all.
func (l *steadyLoad) watch(ctx context.Context, written <-chan struct{}) error {
	green, err := pgx.Connect(ctx, l.p.greenDSN("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = green.Close(context.WithoutCancel(ctx)) }()
	seen, inSpool := make([]int, len(l.markers)), make([]int, len(l.markers))
	for patience := time.Now().Add(l.apply.steadyFor + time.Minute); ; {
		over := false
		select {
		case <-written:
			over = true
		default:
		}
		if err := l.look(ctx, green, seen, inSpool); err != nil {
			return err
		}
		left := 0
		l.mu.Lock()
		for n := range seen {
			left += len(l.commits[n]) - seen[n]
		}
		l.mu.Unlock()
		if over && left == 0 {
			return nil
		}
		if time.Now().After(patience) {
			return fmt.Errorf("%d commits have not come to green a minute after the last", left)
		}
		if err := sleep(ctx, watchEvery); err != nil {
			return err
		}
	}
}

// look notes the commits that are new in green and in the spool.
func (l *steadyLoad) look(ctx context.Context, green *pgx.Conn, seen, inSpool []int) error {
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
	if err := green.QueryRow(ctx, `SELECT coalesce(max(spooled), 0) FROM control.lane`).Scan(&spooled); err != nil {
		return err
	}
	atSpool := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for n, m := range l.markers {
		count, err := strconv.Atoi(titles[m])
		if err != nil {
			return fmt.Errorf("the marker's title is %q: %w", titles[m], err)
		}
		for ; seen[n] < count; seen[n]++ {
			l.lags = append(l.lags, milliseconds(at.Sub(l.commits[n][seen[n]].sent)))
		}
		for ; inSpool[n] < len(l.commits[n]); inSpool[n]++ {
			c := l.commits[n][inSpool[n]]
			if c.end == 0 || c.end > spooled {
				break
			}
			l.spools = append(l.spools, milliseconds(atSpool.Sub(c.sent)))
		}
	}
	return nil
}
