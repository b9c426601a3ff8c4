// Package migrations is the HTTP function with which operators move tenants from blue to
// green: look before the start, start, watch, pause, resume, cancel, undo, roll back, finalise.
//
// The domain is shared/migration; here requests are decoded and answered. The work itself
// is done by functions/migrationstep.
package migrations

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/GoogleCloudPlatform/functions-framework-go/functions"
	"github.com/google/uuid"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/edge"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/migration/planner"
	"github.com/coditect/platform/shared/tenant"
)

func init() { functions.HTTP("Migrations", Handler().ServeHTTP) }

// Handler returns the function, which is made at its first request.
func Handler() http.Handler { return edge.Lazy(open) }

type api struct {
	mover    *migration.Mover
	patience time.Duration
	log      *slog.Logger
}

// New returns the function around a mover and an authenticator. Patience is how
// long nobody may be at work on a run before a sweep enqueues tasks again.
func New(mover *migration.Mover, who auth.Authenticator, patience time.Duration, cfg edge.Config) *edge.API {
	cfg.Name, cfg.Version = "migrations", "1.0.0"
	cfg.Description = "Moving tenants from a schema of their own into the shared tables."
	if cfg.Logger == nil {
		cfg.Logger = edge.Logger()
	}
	e, f := edge.New(cfg, who), api{mover, patience, cfg.Logger}
	register(e, op("checkRun", "POST", "/preflight", auth.MigrationsRead, "Say who would move, when and for how long, and what would make the moves fail; changes nothing", 200), f.check)
	register(e, op("startRun", "POST", "/runs", auth.MigrationsWrite, "Move tenants of one source, in batches", 201, fault.Conflict), f.start)
	register(e, op("listRuns", "GET", "/runs", auth.MigrationsRead, "List the newest runs", 200), f.list)
	register(e, op("readRun", "GET", "/runs/{id}", auth.MigrationsRead, "Read a run and how far it is", 200), f.read)
	register(e, op("listRunEvents", "GET", "/runs/{id}/events", auth.MigrationsRead, "List what was decided and done in a run, by whom and when", 200), f.events)
	register(e, op("readHistory", "GET", "/runs/{id}/history", auth.MigrationsRead, "Read a run's throughput and lag over time, and its write pauses", 200), f.history)
	register(e, op("pauseRun", "POST", "/runs/{id}/pause", auth.MigrationsWrite, "Pause a run after the tenants that are moving at the moment", 200, fault.Conflict), f.pause)
	register(e, op("resumeRun", "POST", "/runs/{id}/resume", auth.MigrationsWrite, "Go on with a paused run; one that has halted over its errors too", 200, fault.Conflict), f.resume)
	register(e, op("cancelRun", "POST", "/runs/{id}/cancel", auth.MigrationsWrite, "End a run: green tenants stay green, the others stay blue", 200, fault.Conflict), f.cancel)
	register(e, op("cutOverRun", "POST", "/runs/{id}/cutover", auth.MigrationsWrite, "Let tenants that a run holds in step with blue cut over", 200, fault.Conflict), f.cutover)
	register(e, op("undoMove", "POST", "/runs/{id}/tenants/{tenant}/undo", auth.MigrationsWrite, "Leave one tenant that is not green yet in blue", 204, fault.Conflict), f.undo)
	register(e, op("rollbackMove", "POST", "/runs/{id}/tenants/{tenant}/rollback", auth.MigrationsWrite, "Bring one green tenant back to blue, with everything it has written since", 204, fault.Conflict), f.rollback)
	register(e, op("finaliseMove", "POST", "/runs/{id}/tenants/{tenant}/finalise", auth.MigrationsWrite, "End a green tenant's way back: archive its blue schema, then drop it", 200, fault.Conflict, fault.Unavailable), f.finalise)
	register(e, op("verifyTenant", "POST", "/tenants/{tenant}/verify", auth.MigrationsRead, "Compare what blue and green have of a tenant, wherever its move stands, for some seconds; the cursor goes on", 200, fault.Conflict), f.verify)
	register(e, op("repairTenant", "POST", "/tenants/{tenant}/repair", auth.MigrationsWrite, "Make the rows that differ those of the tenant's home, for some seconds; the cursor goes on. differences are those that it has repaired, failed those that the other side does not take", 200, fault.Conflict), f.repair)
	register(e, op("sweep", "POST", "/sweep", auth.MigrationsWrite, "Do what a crash has left undone (Cloud Scheduler)", 200), f.sweep)
	return e
}

// register adds an operation; a database that is down is not an error of ours.
func register[I, O any](e *edge.API, o edge.Operation, handle func(context.Context, auth.Principal, *I) (*O, error)) {
	edge.Register(e, o, func(ctx context.Context, p auth.Principal, in *I) (*O, error) {
		out, err := handle(ctx, p, in)
		return out, citus.Fault(err)
	})
}

func op(id, method, path, scope, summary string, status int, faults ...fault.Kind) edge.Operation {
	return edge.Operation{ID: id, Method: method, Path: path, Scope: scope, Summary: summary, Status: status, Faults: faults, Tags: []string{"migrations"}}
}

func (f api) check(ctx context.Context, p auth.Principal, in *planInput) (*preflightOutput, error) {
	plan, err := in.plan(p)
	if err != nil {
		return nil, err
	}
	report, err := f.mover.Check(ctx, plan)
	return &preflightOutput{report}, err
}

func (f api) start(ctx context.Context, p auth.Principal, in *planInput) (*startedOutput, error) {
	plan, err := in.plan(p)
	if err != nil {
		return nil, err
	}
	run, report, err := f.mover.Start(ctx, plan)
	if err != nil {
		return nil, err
	}
	return &startedOutput{Location: "runs/" + run.ID.String(), Body: started{ID: run.ID, Run: run, Preflight: report}}, nil
}

func (f api) list(ctx context.Context, p auth.Principal, in *listInput) (*listOutput, error) {
	if err := operatorsOnly(p); err != nil {
		return nil, err
	}
	runs, err := f.mover.List(ctx, in.Before, in.Limit)
	out := &listOutput{}
	out.Body.Runs = runs
	return out, err
}

func (f api) read(ctx context.Context, p auth.Principal, in *RunInput) (*statusOutput, error) {
	if err := operatorsOnly(p); err != nil {
		return nil, err
	}
	s, err := f.mover.Inspect(ctx, in.ID)
	return &statusOutput{s}, err
}

func (f api) history(ctx context.Context, p auth.Principal, in *RunInput) (*historyOutput, error) {
	if err := operatorsOnly(p); err != nil {
		return nil, err
	}
	h, err := f.mover.History(ctx, in.ID)
	return &historyOutput{h}, err
}

func (f api) pause(ctx context.Context, p auth.Principal, in *RunInput) (*runOutput, error) {
	return changed(ctx, p, in, f.mover.Pause)
}

func (f api) resume(ctx context.Context, p auth.Principal, in *resumeInput) (*runOutput, error) {
	return changed(ctx, p, &in.RunInput, func(ctx context.Context, id uuid.UUID, actor string) (migration.Run, error) {
		var budget planner.Budget
		if in.Body != nil {
			budget = planner.Budget{Errors: in.Body.MaxErrors, Percent: in.Body.MaxErrorPercent}
		}
		return f.mover.ResumeWithin(ctx, id, actor, budget)
	})
}

func (f api) cutover(ctx context.Context, p auth.Principal, in *cutoverInput) (*cutoverOutput, error) {
	if err := operatorsOnly(p); err != nil {
		return nil, err
	}
	var (
		who   []tenant.ID
		limit int
		err   error
	)
	if in.Body != nil {
		limit = in.Body.Limit
		if who, err = tenantIDs("tenants", in.Body.Tenants); err != nil {
			return nil, err
		}
	}
	out := &cutoverOutput{}
	out.Body.Tenants, err = f.mover.LetGo(ctx, in.ID, who, limit, p.Subject)
	return out, err
}

func (f api) events(ctx context.Context, p auth.Principal, in *eventsInput) (*eventsOutput, error) {
	if err := operatorsOnly(p); err != nil {
		return nil, err
	}
	var at eventPosition
	if in.Cursor != "" {
		if err := edge.DecodeCursor(in.Cursor, &at); err != nil {
			return nil, err
		}
	}
	events, err := f.mover.Events(ctx, in.ID, at.After, in.Limit)
	if err != nil {
		return nil, err
	}
	out := &eventsOutput{}
	if out.Body.Events = events; len(events) == in.Limit {
		out.Body.Next, err = edge.EncodeCursor(eventPosition{events[len(events)-1].ID})
	}
	return out, err
}

func (f api) cancel(ctx context.Context, p auth.Principal, in *RunInput) (*runOutput, error) {
	return changed(ctx, p, in, f.mover.Cancel)
}

func (f api) undo(ctx context.Context, p auth.Principal, in *tenantInput) (*struct{}, error) {
	if err := operatorsOnly(p); err != nil {
		return nil, err
	}
	return nil, f.mover.Undo(ctx, in.ID, in.Tenant, p.Subject)
}

func (f api) finalise(ctx context.Context, p auth.Principal, in *finaliseInput) (*finalisedOutput, error) {
	if err := operatorsOnly(p); err != nil {
		return nil, err
	}
	done, err := f.mover.Finalise(ctx, in.ID, in.Tenant, p.Subject, in.Now)
	return &finalisedOutput{done}, err
}

func (f api) verify(ctx context.Context, p auth.Principal, in *verifyInput) (*verifiedOutput, error) {
	if err := operatorsOnly(p); err != nil {
		return nil, err
	}
	if in.Values && !p.Has(auth.MigrationsWrite) {
		return nil, fault.New(fault.Forbidden, "scope_missing", "a tenant's values are shown to those only who may change moves: the scope %s", auth.MigrationsWrite)
	}
	v, err := f.mover.Verify(ctx, in.Tenant, migration.VerifyOptions{Cursor: in.Cursor, Limit: in.Limit, Values: in.Values})
	return &verifiedOutput{v}, err
}

func (f api) repair(ctx context.Context, p auth.Principal, in *repairInput) (*verifiedOutput, error) {
	if err := operatorsOnly(p); err != nil {
		return nil, err
	}
	v, err := f.mover.Repair(ctx, in.Tenant, p.Subject, migration.VerifyOptions{Cursor: in.Cursor})
	return &verifiedOutput{v}, err
}

func (f api) rollback(ctx context.Context, p auth.Principal, in *tenantInput) (*struct{}, error) {
	if err := operatorsOnly(p); err != nil {
		return nil, err
	}
	return nil, f.mover.Rollback(ctx, in.ID, in.Tenant, p.Subject)
}

func (f api) sweep(ctx context.Context, p auth.Principal, in *sweepInput) (*sweptOutput, error) {
	if err := operatorsOnly(p); err != nil {
		return nil, err
	}
	s, err := f.mover.SweepFor(ctx, f.patience, time.Duration(in.Seconds)*time.Second)
	for _, a := range s.Alarms {
		message, level := "lag alarm", slog.LevelError
		if a.Over {
			message, level = "lag alarm over", slog.LevelInfo
		}
		f.log.LogAttrs(ctx, level, message, slog.Any("alarm", a))
	}
	return &sweptOutput{s}, err
}
