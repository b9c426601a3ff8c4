package main

import (
	"context"
	"flag"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/migration/source"
	"github.com/coditect/platform/shared/tenant"
)

// migrate moves generated tenants of a foreign database.
type migrate struct {
	tenants, sample, pgcopydb, rounds, workers, batch, group, fence, few int
	rows                                                                 float64
	seed                                                                 uint64
	logged                                                               bool

	*bench
	platform *platform
	sizes    []int
}

const (
	legacyName = "legacy"
	rivalName  = "legacy_for_rivals" // the same tenants for pg_dump, which must not see the move's fences
	fewName    = "legacy_few"        // fewer tenants of the same sizes
)

// description is that of the source of a generated database, which has the source's name.
func description(name string) string {
	return `
name: ` + name + `
database: LEGACY_DSN
tenant_table: public.customers_client
schema_column: schema_name
name_column: name
exclude: [public]
application_role: legacy_app
`
}

func migrateFlags(set *flag.FlagSet) func(context.Context, *bench) (figures, error) {
	m := &migrate{}
	set.IntVar(&m.tenants, "tenants", 1000, "generated tenants to move")
	set.IntVar(&m.sample, "sample", 40, "tenants that the pg_dump | psql loop copies; 0: none")
	set.IntVar(&m.pgcopydb, "pgcopydb", 100, "tenants in the database that pgcopydb clones, where it is installed; 0: none")
	set.IntVar(&m.rounds, "rounds", 1, "parts that are moved one after the other; the loop runs before, between and after them")
	set.IntVar(&m.few, "few", 0, "compare with moving so many tenants of a database that has no others, and not with rivals; 0: no")
	set.Float64Var(&m.rows, "rows", 0, "move one tenant of about so many rows, and compare with the raw COPY alone; 0: --tenants of usual sizes")
	set.IntVar(&m.workers, "workers", 3, "steps at a time")
	set.IntVar(&m.batch, "batch", 0, "tenants of a batch; 0: the default")
	set.IntVar(&m.group, "group", 0, "tenants copied together; 0: the default")
	set.IntVar(&m.fence, "fence", 0, "tenants fenced together; 0: the default")
	set.BoolVar(&m.logged, "statements", false, "also report which of the mover's statements took longest; logging them costs time")
	set.Uint64Var(&m.seed, "seed", 1, "of the tenants' sizes")
	return func(ctx context.Context, b *bench) (figures, error) {
		m.bench = b
		return m.run(ctx)
	}
}

// rivals says whether our side is compared with a loop and with pgcopydb.
func (m *migrate) rivals() bool { return m.few == 0 && m.rows == 0 }

func (m *migrate) check() error {
	if m.few > 0 && m.rows > 0 || m.few < 0 || m.rows < 0 || m.few >= m.tenants && m.few > 0 {
		return fmt.Errorf("--few must be less than --tenants (%d), and not be given with --rows", m.tenants)
	}
	if m.rows > 0 {
		m.tenants = 1
	}
	if !m.rivals() {
		m.sample, m.pgcopydb, m.rounds = 0, 0, 1
	}
	if m.sample > m.tenants || m.rounds < 1 || m.sample != 0 && m.sample < m.rounds+1 {
		return fmt.Errorf("--rounds must be 1 or more, and --sample greater than it (%d) and at most --tenants (%d)", m.rounds, m.tenants)
	}
	return nil
}

func (m *migrate) run(ctx context.Context) (figures, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	var err error
	if m.platform, err = m.bench.platform(ctx); err != nil {
		return nil, err
	}
	m.sizes = tenantSizes(m.tenants, m.seed)
	if m.rows > 0 {
		m.sizes = []int{max(1, int(m.rows*tasksPerUnit/rowsPerUnit))}
	}
	blue, green := m.platform.blue, m.platform.green
	if err := prepared(ctx, blue, func() error { return m.generate(ctx) }); err != nil {
		return nil, err
	}
	var few *mine
	if m.few > 0 {
		if few, err = m.register(ctx, fewName, m.few); err != nil {
			return nil, err
		}
	}
	began := time.Now()
	ours, err := m.register(ctx, legacyName, m.tenants)
	if err != nil {
		return nil, err
	}
	registration := time.Since(began)
	if m.logged {
		if err := m.platform.logStatements(ctx); err != nil {
			return nil, err
		}
	}
	if err := settle(ctx, blue.DSN("postgres", "postgres"), green.DSN("postgres", "postgres")); err != nil {
		return nil, err
	}
	if few != nil {
		if err := few.move(ctx, few.part(0, 1)); err != nil {
			return nil, err
		}
		m.say("moved and verified where there are only %d: %.4f s a tenant", m.few, few.each())
		if err := settle(ctx, blue.DSN("postgres", "postgres"), green.DSN("postgres", "postgres")); err != nil {
			return nil, err
		}
	}
	loopEach, err := m.inTurns(ctx, ours)
	if err != nil {
		return nil, err
	}
	pauses, rows, err := recordedPauses(ctx, m.platform.greenDSN("postgres"), legacyName)
	if err != nil {
		return nil, err
	}
	oursEach := ours.each()
	withRegistration := oursEach + registration.Seconds()/float64(m.tenants)
	sizes := map[string]any{"tenants": m.tenants, "tables": 16, "rows": rows, "rows_per_tenant": float64(rows) / float64(m.tenants), "loop_sample": m.sample, "rounds": m.rounds, "seed": m.seed}
	ratios, goals := map[string]float64{}, map[string]goal{}
	out := figures{
		"sizes": sizes,
		"ours": map[string]any{
			"how":     fmt.Sprintf("Mover.Start, then Mover.Step by %d workers of an in-process queue; counts and hashes verified", m.workers),
			"seconds": round(ours.took.Seconds(), 3), "of_these_preflight_seconds": round(ours.start.Seconds(), 3), "seconds_per_tenant": round(oursEach, 5),
			"rows_per_second": round(float64(rows)/ours.took.Seconds(), 0), "pause_ms": pauses,
			"registration_seconds": round(registration.Seconds(), 3), "cpu_seconds": ours.cpu,
		},
		"ratios": ratios, "goals": goals,
	}
	if m.logged {
		if out["statements"], err = m.platform.statements(25); err != nil {
			return nil, err
		}
	}
	if few != nil {
		out["few"] = map[string]any{"tenants": m.few, "seconds": round(few.took.Seconds(), 3), "of_these_preflight_seconds": round(few.start.Seconds(), 3), "seconds_per_tenant": round(few.each(), 5)}
		ratios["per_tenant_to_few"] = ratio(oursEach, few.each())
		goals["time per tenant, of that among few"] = below(ratios["per_tenant_to_few"], 1.5, "")
		return out, nil
	}
	raw, err := m.rawCopy(ctx, rows)
	if err != nil {
		return nil, err
	}
	sizes["bytes"], out["raw_copy"] = raw.Bytes, raw
	ratios["raw_share_of_ours"] = ratio(raw.Seconds, ours.took.Seconds())
	if m.rows > 0 {
		goals["rows per second, of the raw COPY's"] = atLeast(ratios["raw_share_of_ours"], 0.5)
		return out, nil
	}
	if m.sample > 0 {
		out["loop"] = map[string]any{"how": "pg_dump -n SCHEMA | psql, one after the other, nothing verified", "seconds_per_tenant": round(loopEach, 4)}
		ratios["loop_to_ours"], ratios["loop_to_ours_with_registration"] = ratio(loopEach, oursEach), ratio(loopEach, withRegistration)
		goals["loop_to_ours"] = atLeast(ratios["loop_to_ours"], 20)
	}
	cloned, err := m.clone(ctx)
	if err != nil {
		return nil, err
	}
	if out["pgcopydb"] = cloned; cloned.PerTenant > 0 {
		ratios["pgcopydb_to_ours"], ratios["pgcopydb_to_ours_with_registration"] = ratio(cloned.PerTenant, oursEach), ratio(cloned.PerTenant, withRegistration)
		goals["pgcopydb_to_ours"] = atLeast(ratios["pgcopydb_to_ours"], 40)
	}
	return out, nil
}

// generate makes the databases that are moved.
func (m *migrate) generate(ctx context.Context) error {
	if err := generate(ctx, m.bench, m.platform.blue, legacyName, m.sizes); err != nil {
		return err
	}
	if m.few > 0 {
		return generate(ctx, m.bench, m.platform.blue, fewName, tenantSizes(m.few, m.seed))
	}
	if m.sample == 0 {
		return nil
	}
	return exec(ctx, m.platform.blue.DSN("postgres", "postgres"), `CREATE DATABASE `+rivalName+` TEMPLATE `+legacyName+` STRATEGY file_copy`)
}

// inTurns lets the loop copy its sample and us move all tenants, part by part. It returns the loop's
// seconds a tenant, 0 without a loop.
func (m *migrate) inTurns(ctx context.Context, ours *mine) (loopEach float64, err error) {
	var loop time.Duration
	var looped int
	if m.sample > 0 {
		if err := exec(ctx, m.platform.green.DSN("postgres", "postgres"), `CREATE DATABASE loop`); err != nil {
			return 0, err
		}
	}
	for round := range m.rounds + 1 {
		// Every so many-th tenant, so that the sample's sizes are those of all.
		for i := round; i < m.sample; i += m.rounds + 1 {
			took, err := dumpAndRestore(ctx, m.platform.blue.DSN(rivalName, "postgres"), m.platform.green.DSN("loop", "postgres"), tenantSchema(i*m.tenants/m.sample))
			if err != nil {
				return 0, err
			}
			loop += took
			looped++
		}
		if looped > 0 {
			loopEach = loop.Seconds() / float64(looped)
			m.say("pg_dump | psql: %.3f s a tenant so far", loopEach)
		}
		if round == m.rounds {
			break
		}
		if err := ours.move(ctx, ours.part(round, m.rounds)); err != nil {
			return 0, err
		}
		m.say("moved and verified: %.4f s a tenant so far", ours.each())
	}
	return loopEach, nil
}

// mine is our side, for one source.
type mine struct {
	migrate        *migrate
	source         string
	tenants, moved int
	mover          *migration.Mover
	queue          *inProcess
	took, start    time.Duration
	cpu            moveCost
}

// moveCost is the processor time of a move, in seconds.
type moveCost struct {
	Blue  float64 `json:"blue"`
	Green float64 `json:"green"`
	Mover float64 `json:"mover"`
}

// register makes a generated database a source.
func (m *migrate) register(ctx context.Context, name string, tenants int) (*mine, error) {
	s, err := source.Parse([]byte(description(name)))
	if err != nil {
		return nil, err
	}
	blue := m.platform.blue
	r, err := migration.Registration{Source: s, Blue: blue.DSN(name, "postgres"), Green: m.platform.greenDSN("postgres")}.Apply(ctx)
	if err != nil {
		return nil, err
	}
	if r.Tenants != tenants {
		return nil, fmt.Errorf("%d tenants were generated, and %d registered", tenants, r.Tenants)
	}
	cfg := m.platform.config("coditect_migrator", int32(4*m.workers)) // four a step function, as by default
	cfg.Sources = citus.SourceDSNs{name: blue.DSN(name, "coditect_migrator")}
	dbs, err := m.open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	queue := newQueue()
	return &mine{migrate: m, source: name, tenants: tenants, queue: queue, mover: migration.New(dbs, queue, migration.Config{GroupTenants: m.group, FenceTenants: m.fence})}, nil
}

// part lists every so many-th tenant.
func (o *mine) part(first, every int) (ids []tenant.ID) {
	for i := first; i < o.tenants; i += every {
		ids = append(ids, tenant.ImportedID(o.source, tenantSchema(i)))
	}
	return ids
}

// each is the seconds that a tenant took so far.
func (o *mine) each() float64 { return o.took.Seconds() / float64(max(o.moved, 1)) }

// move moves some tenants and fails unless all are verified and green.
func (o *mine) move(ctx context.Context, ids []tenant.ID) error {
	blue, green := newMeter(o.migrate.platform.blue, nil), newMeter(o.migrate.platform.green, nil)
	began := time.Now()
	run, report, err := o.mover.Start(ctx, migration.Plan{Source: o.source, Tenants: ids, BatchSize: o.migrate.batch, Actor: "benchmark"})
	if err != nil {
		return fmt.Errorf("%w: %+v", err, report.Findings)
	}
	o.start += time.Since(began)
	if err := o.queue.work(ctx, o.mover, o.migrate.workers); err != nil {
		return err
	}
	o.took += time.Since(began)
	o.moved += len(ids)
	inBlue, inMover := blue.since()
	inGreen, _ := green.since()
	o.cpu = moveCost{round(o.cpu.Blue+inBlue, 2), round(o.cpu.Green+inGreen, 2), round(o.cpu.Mover+inMover, 2)}
	status, err := o.mover.Inspect(ctx, run.ID)
	if err != nil {
		return err
	}
	if status.Counts[migration.Green] != int64(len(ids)) || status.State != migration.Done {
		return fmt.Errorf("the run is %s with %v of %d tenants: %+v; left out: %+v", status.State, status.Counts, len(ids), status.Failed, report.Findings)
	}
	return nil
}

// recordedPauses reads the pauses that the mover measured, in milliseconds, and the rows it moved of a source.
func recordedPauses(ctx context.Context, green, source string) (pauses spread, rows int64, err error) {
	conn, err := pgx.Connect(ctx, green)
	if err != nil {
		return pauses, 0, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	found, err := conn.Query(ctx, `SELECT m.pause_us, m.rows FROM control.move m JOIN control.run r ON r.id = m.run_id WHERE m.state = 'green' AND r.source = $1`, source)
	if err != nil {
		return pauses, 0, err
	}
	var (
		values  []float64
		us, row int64
	)
	_, err = pgx.ForEachRow(found, []any{&us, &row}, func() error {
		values = append(values, float64(us)/1000)
		rows += row
		return nil
	})
	return spreadOf(values), rows, err
}
