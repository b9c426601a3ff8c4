package demo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/coditect/platform/scripts/internal/traffic"
	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/directory"
	"github.com/coditect/platform/shared/tenant"
)

const (
	// requestsPerSecond is what the traffic aims at in all: visible, and leaving
	// most of two cores to the platform.
	requestsPerSecond = 200
	warmUp            = 3 * time.Second // of traffic before the first tenant moves
	coolDown          = 2 * time.Second // and after the last
	reportFile        = "report.json"   // in the state folder: the demo has been
)

// Prepare imports the legacy database and makes it known. It needs the
// databases, but no function.
func Prepare(ctx context.Context, e Environment) error {
	if err := importLegacy(ctx, e.Blue); err != nil {
		return err
	}
	return register(ctx, e)
}

// saved is a report with what its file leaves out.
type saved struct {
	Done    bool
	Report  Report
	Details details
}

// Run makes our own tenants, starts the traffic, moves everybody, stops the
// traffic, looks every acknowledged write up and returns the report. When an
// earlier start has done it all, it returns that report.
func Run(ctx context.Context, e Environment) (Report, error) {
	var s saved
	if err := e.State.Load(reportFile, &s); err != nil {
		return Report{}, err
	}
	if s.Done {
		e.Console.Say("The demo has been run on this state; its report was (scripts/dev --fresh runs it again):")
		s.Report.details = s.Details
		return s.Report, nil
	}
	r, err := e.run(ctx)
	if err != nil {
		return Report{}, err
	}
	return r, e.State.Save(reportFile, saved{Done: true, Report: r, Details: r.details})
}

func (e Environment) run(ctx context.Context) (Report, error) {
	ours, err := e.makeTenants(ctx)
	if err != nil {
		return Report{}, err
	}
	theirs, err := e.foreignTenants(ctx)
	if err != nil {
		return Report{}, err
	}
	if err := e.tenantKey(ctx, ours); err != nil {
		return Report{}, err
	}
	cfg := e.Databases
	cfg.MaxConns = 8
	dbs, door, _, err := directory.Open(ctx, cfg)
	if err != nil {
		return Report{}, err
	}
	defer dbs.Close()
	old, err := pgxpool.New(ctx, e.Blue.DSN(LegacyDatabase, legacyApp)+"&pool_max_conns=8")
	if err != nil {
		return Report{}, err
	}
	defer old.Close()
	journal, err := traffic.OpenJournal(e.State.Path("writes.journal"))
	if err != nil {
		return Report{}, err
	}
	writers := e.writers(ours, theirs, door, old)
	e.Console.Say("Traffic: %d writers, two for each of %d tenants. The old application writes straight into blue and knows nothing of the move.", len(writers), len(ours)+len(theirs))
	t := traffic.Start(ctx, journal, writers, max(100*time.Millisecond, time.Duration(len(writers))*time.Second/requestsPerSecond))
	moved, err := e.moveUnderTraffic(ctx, t, ours, theirs)
	t.Stop()
	if err != nil {
		return Report{}, errors.Join(err, journal.Close())
	}
	e.Console.Say("Traffic stopped. Looking up every acknowledged write where its tenant lives now …")
	verdict, err := traffic.Verify(ctx, door, journal)
	if err := errors.Join(err, journal.Close()); err != nil {
		return Report{}, err
	}
	return e.report(ctx, moved, t, verdict)
}

func (e Environment) writers(ours []own, theirs []foreign, door *citus.Door, old *pgxpool.Pool) []traffic.Writer {
	var writers []traffic.Writer
	for i, o := range ours {
		for n := range 2 {
			writers = append(writers, traffic.Writer{
				Name: fmt.Sprintf("own%d-%d", i+1, n), Target: traffic.Key{Tenant: o.ID},
				Client: traffic.Tasks{API: e.operatorFor(o.ID.String()), Project: o.Project},
			})
		}
	}
	for i, f := range theirs {
		writers = append(writers,
			traffic.Writer{Name: fmt.Sprintf("door%d", i), Target: traffic.Key{Tenant: f.ID}, Client: traffic.Follower{Door: door, Tenant: f.ID}},
			traffic.Writer{Name: fmt.Sprintf("old%d", i), Target: traffic.Key{Tenant: f.ID}, Client: traffic.OldApplication{Pool: old, Schema: f.Schema}, MayBeFenced: true})
	}
	return writers
}

func (e Environment) moveUnderTraffic(ctx context.Context, t *traffic.Traffic, ours []own, theirs []foreign) (moved, error) {
	if err := pause(ctx, warmUp); err != nil {
		return moved{}, err
	}
	var ids []tenant.ID
	for _, f := range theirs {
		ids = append(ids, f.ID)
	}
	for _, o := range ours {
		ids = append(ids, o.ID)
	}
	m, err := e.move(ctx, ids, t.Figures)
	if err != nil {
		return m, err
	}
	return m, pause(ctx, coolDown)
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func (e Environment) report(ctx context.Context, m moved, t *traffic.Traffic, v traffic.Verdict) (Report, error) {
	f := t.Figures()
	r := Report{
		TenantsMoved: m.green, TenantsFailed: m.total - m.green, WritesFenced: f.Fenced,
		RowsMoved: m.rows, Requests: f.Requests, RequestsFailed: f.Failed,
		AcknowledgedWrites: int64(v.Acknowledged), WritesLost: int64(v.Lost), WritesDuplicated: int64(v.Duplicated),
	}
	r.details.Different, r.details.Slowest = v.Different+int(f.Stale), f.Slowest
	r.details.Sentences = append(append(m.failures, v.Examples...), t.Errors()...)
	r.Verified = m.green == m.total && v.Clean() && f.Stale == 0
	conn, err := pgx.Connect(ctx, e.Green)
	if err != nil {
		return r, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := conn.QueryRow(ctx, `SELECT coalesce(extract(epoch FROM max(coalesce(finished_at, clock_timestamp())) - min(started_at)), 0)::float8
		FROM control.run WHERE id = ANY($1)`, m.runs).Scan(&r.Seconds); err != nil {
		return r, err
	}
	if r.Seconds > 0 {
		r.RowsPerSecond = float64(r.RowsMoved) / r.Seconds
	}
	// Over all runs: percentiles of single runs cannot be added up. A step measures its
	// own fence; when it was killed and another one finished the move, the time from
	// the first fence to the flip is what the tenant's users have waited.
	err = conn.QueryRow(ctx, `SELECT coalesce(percentile_disc(0.5) WITHIN GROUP (ORDER BY ms), 0),
			coalesce(percentile_disc(0.99) WITHIN GROUP (ORDER BY ms), 0), coalesce(max(ms), 0)
		FROM (SELECT greatest(pause_us / 1000.0, extract(epoch FROM green_at - fenced_at) * 1000)::float8 AS ms
			FROM control.move WHERE run_id = ANY($1) AND green_at IS NOT NULL) AS pauses`, m.runs).Scan(&r.PauseMS.P50, &r.PauseMS.P99, &r.PauseMS.Max)
	return r, err
}

// tenantKey makes a key of one tenant to try the API with, if there is none yet.
func (e Environment) tenantKey(ctx context.Context, ours []own) error {
	var k keys
	if err := e.State.Load(keysFile, &k); err != nil || k.Tenant != "" || len(ours) == 0 {
		return err
	}
	conn, err := pgx.Connect(ctx, e.Green)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	k.TenantID = ours[0].ID.String()
	k.Tenant, _, err = auth.CreateKey(ctx, conn, auth.NewKey{
		Name: "to try things", Kind: auth.TenantKey, Tenant: ours[0].ID,
		Scopes: []string{auth.TenantsRead, auth.TenantsWrite, auth.ProjectsRead, auth.ProjectsWrite},
	})
	if err != nil {
		return fmt.Errorf("make a tenant's key: %w", err)
	}
	return e.State.Save(keysFile, k)
}
