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
	tenants, sample, pgcopydb, rounds, workers, batch, group, fence int
	seed                                                            uint64
	logged                                                          bool

	*bench
	platform *platform
	sizes    []int
}

const (
	legacyName = "legacy"
	rivalName  = "legacy_for_rivals" // the same tenants for pg_dump, which must not see the move's fences
)

const description = `
name: ` + legacyName + `
database: LEGACY_DSN
tenant_table: public.customers_client
schema_column: schema_name
name_column: name
exclude: [public]
application_role: legacy_app
`

func migrateFlags(set *flag.FlagSet) func(context.Context, *bench) (figures, error) {
	m := &migrate{}
	set.IntVar(&m.tenants, "tenants", 1000, "generated tenants to move")
	set.IntVar(&m.sample, "sample", 40, "tenants that the pg_dump | psql loop copies")
	set.IntVar(&m.pgcopydb, "pgcopydb", 100, "tenants in the database that pgcopydb clones, where it is installed; 0: none")
	set.IntVar(&m.rounds, "rounds", 1, "parts that are moved one after the other; the loop runs before, between and after them")
	set.IntVar(&m.workers, "workers", 2, "steps at a time")
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

func (m *migrate) run(ctx context.Context) (figures, error) {
	if m.sample > m.tenants || m.rounds < 1 || m.sample < m.rounds+1 {
		return nil, fmt.Errorf("--rounds must be 1 or more, and --sample greater than it (%d) and at most --tenants (%d)", m.rounds, m.tenants)
	}
	var err error
	if m.platform, err = m.bench.platform(ctx); err != nil {
		return nil, err
	}
	m.sizes = tenantSizes(m.tenants, m.seed)
	blue, green := m.platform.blue, m.platform.green
	err = prepared(ctx, blue, func() error {
		if err := generate(ctx, m.bench, blue, legacyName, m.sizes); err != nil {
			return err
		}
		return exec(ctx, blue.DSN("postgres", "postgres"), `CREATE DATABASE `+rivalName+` TEMPLATE `+legacyName+` STRATEGY file_copy`)
	})
	if err != nil {
		return nil, err
	}
	began := time.Now()
	ours, err := m.register(ctx)
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

	var loop time.Duration
	var looped int
	loopGreen := green.DSN("loop", "postgres")
	if err := exec(ctx, green.DSN("postgres", "postgres"), `CREATE DATABASE loop`); err != nil {
		return nil, err
	}
	for round := range m.rounds + 1 {
		// Every so many-th tenant, so that the sample's sizes are those of all.
		for i := round; i < m.sample; i += m.rounds + 1 {
			took, err := dumpAndRestore(ctx, blue.DSN(rivalName, "postgres"), loopGreen, tenantSchema(i*m.tenants/m.sample))
			if err != nil {
				return nil, err
			}
			loop += took
			looped++
		}
		m.say("pg_dump | psql: %.3f s a tenant so far", loop.Seconds()/float64(looped))
		if round == m.rounds {
			break
		}
		var part []tenant.ID
		for i := round; i < m.tenants; i += m.rounds {
			part = append(part, tenant.ImportedID(legacyName, tenantSchema(i)))
		}
		if err := ours.move(ctx, part); err != nil {
			return nil, err
		}
		m.say("moved and verified: %.4f s a tenant so far", ours.took.Seconds()/float64(ours.moved))
	}
	rows, pauses, err := m.outcome(ctx)
	if err != nil {
		return nil, err
	}
	raw, err := m.rawCopy(ctx, rows)
	if err != nil {
		return nil, err
	}
	loopEach, oursEach := loop.Seconds()/float64(looped), ours.took.Seconds()/float64(m.tenants)
	withRegistration := oursEach + registration.Seconds()/float64(m.tenants)
	out := figures{
		"sizes": map[string]any{"tenants": m.tenants, "tables": 16, "rows": rows, "rows_per_tenant": float64(rows) / float64(m.tenants), "bytes": raw.Bytes, "loop_sample": looped, "rounds": m.rounds, "seed": m.seed},
		"ours": map[string]any{
			"how":     fmt.Sprintf("Mover.Start, then Mover.Step by %d workers of an in-process queue; counts and hashes verified", m.workers),
			"seconds": round(ours.took.Seconds(), 3), "of_these_preflight_seconds": round(ours.start.Seconds(), 3), "seconds_per_tenant": round(oursEach, 5),
			"rows_per_second": round(float64(rows)/ours.took.Seconds(), 0), "pause_ms": pauses,
			"registration_seconds": round(registration.Seconds(), 3),
		},
		"loop":     map[string]any{"how": "pg_dump -n SCHEMA | psql, one after the other, nothing verified", "seconds_per_tenant": round(loopEach, 4)},
		"raw_copy": raw,
		"ratios": map[string]any{
			"loop_to_ours": ratio(loopEach, oursEach), "loop_to_ours_with_registration": ratio(loopEach, withRegistration),
			"raw_share_of_ours": ratio(raw.Seconds, ours.took.Seconds()),
		},
		"goals": map[string]goal{"loop_to_ours": atLeast(ratio(loopEach, oursEach), 10)},
	}
	if m.logged {
		if out["statements"], err = m.platform.statements(25); err != nil {
			return nil, err
		}
	}
	if out["pgcopydb"], err = m.clone(ctx); err != nil {
		return nil, err
	}
	return out, nil
}

// mine is our side.
type mine struct {
	migrate     *migrate
	mover       *migration.Mover
	queue       *inProcess
	took, start time.Duration
	moved       int
}

// register makes the foreign database a source.
func (m *migrate) register(ctx context.Context) (*mine, error) {
	s, err := source.Parse([]byte(description))
	if err != nil {
		return nil, err
	}
	blue := m.platform.blue
	r, err := migration.Registration{Source: s, Blue: blue.DSN(legacyName, "postgres"), Green: m.platform.greenDSN("postgres")}.Apply(ctx)
	if err != nil {
		return nil, err
	}
	if r.Tenants != m.tenants {
		return nil, fmt.Errorf("%d tenants were generated, and %d registered", m.tenants, r.Tenants)
	}
	cfg := m.platform.config("coditect_migrator", int32(4*m.workers)) // four a step function, as by default
	cfg.Sources = citus.SourceDSNs{legacyName: blue.DSN(legacyName, "coditect_migrator")}
	dbs, err := m.open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	queue := newQueue()
	return &mine{migrate: m, queue: queue, mover: migration.New(dbs, queue, migration.Config{GroupTenants: m.group, FenceTenants: m.fence})}, nil
}

// move moves some tenants and fails unless all are verified and green.
func (o *mine) move(ctx context.Context, ids []tenant.ID) error {
	began := time.Now()
	run, report, err := o.mover.Start(ctx, migration.Plan{Source: legacyName, Tenants: ids, BatchSize: o.migrate.batch, Actor: "benchmark"})
	if err != nil {
		return fmt.Errorf("%w: %+v", err, report.Findings)
	}
	o.start += time.Since(began)
	if err := o.queue.work(ctx, o.mover, o.migrate.workers); err != nil {
		return err
	}
	o.took += time.Since(began)
	o.moved += len(ids)
	status, err := o.mover.Inspect(ctx, run.ID)
	if err != nil {
		return err
	}
	if status.Counts[migration.Green] != int64(len(ids)) || status.State != migration.Done {
		return fmt.Errorf("the run is %s with %v of %d tenants: %+v; left out: %+v", status.State, status.Counts, len(ids), status.Failed, report.Findings)
	}
	return nil
}

// outcome reads what the moves recorded.
func (m *migrate) outcome(ctx context.Context) (rows int64, pauses spread, err error) {
	pauses, rows, err = recordedPauses(ctx, m.platform.greenDSN("postgres"))
	return rows, pauses, err
}

// recordedPauses reads the pauses that the mover measured, in milliseconds, and the rows it moved.
func recordedPauses(ctx context.Context, green string) (pauses spread, rows int64, err error) {
	conn, err := pgx.Connect(ctx, green)
	if err != nil {
		return pauses, 0, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	found, err := conn.Query(ctx, `SELECT pause_us, rows FROM control.move WHERE state = 'green'`)
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
