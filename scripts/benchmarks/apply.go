package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/tenant"
)

// apply measures the change stream against PostgreSQL's own logical replication.
type apply struct {
	rows, changes, perCommit, writers int
	share                             float64
	steadyFor                         time.Duration
}

func applyFlags(set *flag.FlagSet) func(context.Context, *bench) (figures, error) {
	o := &apply{}
	set.IntVar(&o.rows, "rows", 100_000, "rows of the tenant before the changes")
	set.IntVar(&o.changes, "changes", 200_000, "rows changed: 40 % inserted, 40 % updated, 20 % deleted")
	set.IntVar(&o.perCommit, "per-commit", 20, "changes of a transaction")
	set.DurationVar(&o.steadyFor, "steady", 30*time.Second, "how long the lag is measured under a steady load; 0: not at all")
	set.Float64Var(&o.share, "share", 0.5, "steady load, of the changes a second that were found before")
	set.IntVar(&o.writers, "writers", 4, "sessions that make the steady load")
	return o.run
}

// held is a task queue for one tenant whose receivers wait until they are let go.
type held struct {
	*inProcess
	mu      sync.Mutex
	waiting []func()
	open    bool
}

// EnqueueReceive implements migration.Queue.
func (h *held) EnqueueReceive(ctx context.Context, name string, body []byte, after time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open {
		return h.inProcess.EnqueueReceive(ctx, name, body, after)
	}
	h.waiting = append(h.waiting, func() { _ = h.inProcess.EnqueueReceive(ctx, name, body, time.Time{}) })
	return nil
}

func (h *held) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open = true
	for _, f := range h.waiting {
		f()
	}
}

func (o *apply) run(ctx context.Context, b *bench) (figures, error) {
	p, err := b.platform(ctx)
	if err != nil {
		return nil, err
	}
	admin, err := b.open(ctx, p.config("postgres", 4))
	if err != nil {
		return nil, err
	}
	id, err := newTenant(ctx, admin, tenant.Blue)
	if err != nil {
		return nil, err
	}
	schema := schemaOf(id)
	blue, err := pgx.Connect(ctx, p.blueDSN("postgres"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = blue.Close(context.WithoutCancel(ctx)) }()
	if err := o.fill(ctx, b, blue, schema, id); err != nil {
		return nil, err
	}
	native, err := o.subscriber(ctx, p, blue, schema)
	if err != nil {
		return nil, err
	}
	ours, err := o.ours(ctx, b, p, id, func() error { return o.change(ctx, b, blue, schema, id) }, native)
	if err != nil {
		return nil, err
	}
	nativeRate, ourRate := float64(o.changes)/native.took.Seconds(), float64(o.changes)/ours.Seconds()
	found := figures{
		"changes": o.changes, "per_commit": o.perCommit, "rows_before": o.rows,
		"native": map[string]any{"seconds": round(native.took.Seconds(), 2), "changes_per_second": round(nativeRate, 0)},
		"ours":   map[string]any{"seconds": round(ours.Seconds(), 2), "changes_per_second": round(ourRate, 0)},
		"ratio":  ratio(ourRate, nativeRate),
		"how": "the same WAL, written before either side begins to read it. native: CREATE SUBSCRIPTION to a table of the same structure and indexes on green's server, until its slot is confirmed. " +
			"ours: from the receiver's first call until the tenant is green: spool, apply, every changed row compared in both databases, fence, flip",
	}
	goals := map[string]goal{"changes per second, of native": atLeast(ratio(ourRate, nativeRate), 1)}
	found["goals"] = goals
	if o.steadyFor == 0 {
		return found, nil
	}
	lag, err := o.steady(ctx, b, p, admin, blue, ourRate*o.share)
	if err != nil {
		return nil, fmt.Errorf("steady load: %w", err)
	}
	found["steady"] = lag
	goals["steady lag p99"] = below(lag.Lag.P99, 1000, " ms")
	goals["steady load that was reached, of what was asked for"] = atLeast(ratio(lag.Reached, lag.Asked), 0.95)
	return found, nil
}

// fill gives a tenant rows with random ids.
func (o *apply) fill(ctx context.Context, b *bench, blue *pgx.Conn, schema string, id tenant.ID) error {
	b.say("filling a tenant with %d rows …", o.rows)
	for _, sql := range []string{
		fmt.Sprintf(`INSERT INTO %s.project (tenant_id, id, name, created_at, updated_at) VALUES ('%s', '%[2]s', 'p', now(), now())`, schema, id),
		fmt.Sprintf(`INSERT INTO %s.task (tenant_id, id, project_id, title, description, status, priority, created_at, updated_at)
			SELECT '%s', gen_random_uuid(), '%[2]s', 'Task ' || i, repeat(md5(i::text), 8), 'todo', 0, now(), now() FROM generate_series(1, %[3]d) i`, schema, id, o.rows),
		`ANALYZE ` + schema + `.task`,
	} {
		if _, err := blue.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// change writes the changes.
func (o *apply) change(ctx context.Context, b *bench, blue *pgx.Conn, schema string, id tenant.ID) error {
	b.say("making %d changes …", o.changes)
	n := o.perCommit / 5
	_, err := blue.Exec(ctx, fmt.Sprintf(`DO $$ DECLARE k uuid; BEGIN FOR i IN 1..%d LOOP
			INSERT INTO %[2]s.task (tenant_id, id, project_id, title, description, status, priority, created_at, updated_at)
				SELECT '%[3]s', gen_random_uuid(), '%[3]s', 'New ' || i, repeat(md5(j::text), 8), 'todo', 0, now(), now() FROM generate_series(1, %[4]d) j;
			k := gen_random_uuid();
			UPDATE %[2]s.task SET title = title || '.', version = version + 1 WHERE tenant_id = '%[3]s' AND id IN (SELECT id FROM %[2]s.task WHERE tenant_id = '%[3]s' AND id > k ORDER BY id LIMIT %[4]d);
			k := gen_random_uuid();
			DELETE FROM %[2]s.task WHERE tenant_id = '%[3]s' AND id IN (SELECT id FROM %[2]s.task WHERE tenant_id = '%[3]s' AND id > k ORDER BY id LIMIT %[5]d);
			COMMIT;
		END LOOP; END $$`, o.changes/o.perCommit, schema, id, 2*n, n))
	return err
}

// subscribed is the native side.
type subscribed struct {
	conn, blue *pgx.Conn
	dsn        string // of blue
	took       time.Duration
}

const nativeSlot = "bench_native"

// subscriber makes a table like the tenant's in a database of its own, with its rows, and a slot
// from which on it would follow.
func (o *apply) subscriber(ctx context.Context, p *platform, blue *pgx.Conn, schema string) (*subscribed, error) {
	if err := exec(ctx, p.greenDSN("postgres"), `CREATE DATABASE native`); err != nil {
		return nil, err
	}
	cfg, err := pgx.ParseConfig(p.greenDSN("postgres"))
	if err != nil {
		return nil, err
	}
	cfg.Database = "native"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	rows, err := blue.Query(ctx, `SELECT format('%I %s%s', a.attname, format_type(a.atttypid, a.atttypmod), CASE WHEN a.attgenerated = 's' THEN ' GENERATED ALWAYS AS (' || pg_get_expr(d.adbin, d.adrelid) || ') STORED' ELSE '' END)
		FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum WHERE a.attrelid = ($1 || '.task')::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum`, schema)
	if err != nil {
		return nil, err
	}
	columns, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	if rows, err = blue.Query(ctx, `SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = ($1 || '.task')::regclass ORDER BY indisprimary DESC`, schema); err != nil {
		return nil, err
	}
	indexes, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	statements := append([]string{`CREATE SCHEMA ` + schema, `CREATE TABLE ` + schema + `.task (` + strings.Join(columns, ", ") + `, PRIMARY KEY (tenant_id, id))`}, indexes[1:]...)
	for _, s := range statements {
		if _, err := conn.Exec(ctx, s); err != nil {
			return nil, fmt.Errorf("%s: %w", s, err)
		}
	}
	if err := pipeTable(ctx, blue, conn, schema+".task"); err != nil {
		return nil, err
	}
	for _, s := range []string{`CREATE PUBLICATION ` + nativeSlot + ` FOR TABLE ` + schema + `.task`, `SELECT pg_create_logical_replication_slot('` + nativeSlot + `', 'pgoutput')`} {
		if _, err := blue.Exec(ctx, s); err != nil {
			return nil, err
		}
	}
	_, err = conn.Exec(ctx, `ANALYZE`)
	return &subscribed{conn: conn, blue: blue, dsn: p.blueDSN("postgres")}, err
}

// follow lets the subscription catch up and takes the time.
func (s *subscribed) follow(ctx context.Context) error {
	var end string
	if err := s.blue.QueryRow(ctx, `SELECT pg_current_wal_flush_lsn()::text`).Scan(&end); err != nil {
		return err
	}
	began := time.Now()
	if _, err := s.conn.Exec(ctx, `CREATE SUBSCRIPTION native CONNECTION '`+s.dsn+`' PUBLICATION `+nativeSlot+` WITH (create_slot = false, slot_name = '`+nativeSlot+`', copy_data = false)`); err != nil {
		return err
	}
	for done := false; !done; {
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return err
		}
		if err := s.blue.QueryRow(ctx, `SELECT confirmed_flush_lsn >= $1::pg_lsn FROM pg_replication_slots WHERE slot_name = '`+nativeSlot+`'`, end).Scan(&done); err != nil {
			return err
		}
	}
	s.took = time.Since(began)
	_, err := s.conn.Exec(ctx, `DROP SUBSCRIPTION native`)
	return err
}

// ours moves the tenant online, lets the changes be made when it is copied, and takes the time from
// the receiver's first call to the flip.
func (o *apply) ours(ctx context.Context, b *bench, p *platform, id tenant.ID, change func() error, native *subscribed) (took time.Duration, err error) {
	dbs, err := b.open(ctx, p.config("coditect_migrator", 8))
	if err != nil {
		return 0, err
	}
	queue := &held{inProcess: newQueue()}
	var began time.Time
	var inBetween error
	mover := migration.New(dbs, queue, migration.Config{AheadMax: -1, StepBudget: time.Minute, Limits: migration.Limits{Busy: -1}}, migration.WithCrashPoints(func(at string) {
		if at != "catching_up" || !began.IsZero() {
			return
		}
		if inBetween = change(); inBetween == nil {
			b.say("PostgreSQL's own subscription catches up …")
			inBetween = native.follow(ctx)
		}
		b.say("the change stream catches up …")
		began = time.Now()
		queue.release()
	}))
	run, report, err := mover.Start(ctx, migration.Plan{Source: "platform", Tenants: []tenant.ID{id}, Actor: "benchmark"})
	if err != nil {
		return 0, fmt.Errorf("%w: %+v", err, report.Findings)
	}
	if err := queue.work(ctx, mover, 1); err != nil {
		return 0, err
	}
	took = time.Since(began)
	if inBetween != nil {
		return 0, inBetween
	}
	status, err := mover.Inspect(ctx, run.ID)
	if err == nil && status.Counts[migration.Green] != 1 {
		err = fmt.Errorf("%v: %+v", status.Counts, status.Failed)
	}
	return took, err
}

// pipeTable copies a table's rows from one database to another.
func pipeTable(ctx context.Context, from, to *pgx.Conn, table string) error {
	var columns string
	if err := from.QueryRow(ctx, `SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''`, table).Scan(&columns); err != nil {
		return err
	}
	r, w := io.Pipe()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		_, err := from.PgConn().CopyTo(ctx, w, `COPY (SELECT `+columns+` FROM `+table+`) TO STDOUT`)
		return w.CloseWithError(err)
	})
	g.Go(func() error {
		_, err := to.PgConn().CopyFrom(ctx, r, `COPY `+table+` (`+columns+`) FROM STDIN`)
		_ = r.CloseWithError(err)
		return err
	})
	return g.Wait()
}
