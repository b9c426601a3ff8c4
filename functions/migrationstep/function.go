// Package migrationstep is the function that Cloud Tasks calls to do a bounded piece of
// one batch of a run. The task is a wake-up call and carries no state: called twice, late or
// out of turn it does no harm.
//
// A 2xx answer ends the task; anything else makes the queue deliver it again.
package migrationstep

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/GoogleCloudPlatform/functions-framework-go/functions"
	"github.com/sethvargo/go-envconfig"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/edge"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/taskqueue"
)

func init() { functions.HTTP("MigrationStep", Handler().ServeHTTP) }

// Handler returns the function, which is made at its first request.
func Handler() http.Handler { return edge.Lazy(open) }

// New returns the function around a mover and an authenticator. Deadline is that of the
// queue's delivery.
func New(mover *migration.Mover, who auth.Authenticator, deadline time.Duration, cfg edge.Config) *edge.API {
	cfg.Name, cfg.Version, cfg.Deadline = "migrationstep", "1.0.0", deadline
	cfg.Description = "One bounded step of one batch of a run; for Cloud Tasks."
	e := edge.New(cfg, who)
	edge.Register(e, edge.Operation{ID: "step", Method: http.MethodPost, Path: "/step", Scope: auth.MigrationsWrite, Status: http.StatusNoContent,
		Summary: "Do a bounded piece of one batch", Faults: []fault.Kind{fault.Unavailable}},
		func(ctx context.Context, p auth.Principal, in *stepInput) (*struct{}, error) {
			if !p.IsOperator() {
				return nil, fault.New(fault.Forbidden, "operators_only", "only the platform's task queue and operators may do this")
			}
			return nil, citus.Fault(mover.Step(ctx, in.Body))
		})
	return e
}

type stepInput struct{ Body migration.StepTask }

// config is the function's configuration, read from the environment. The databases are
// those of the migrator's role.
type config struct {
	Databases citus.Config
	Queue     taskqueue.Config
	Migration migration.Config
	Identity  auth.IdentityConfig
}

// open makes the function of the environment. It makes no round trip.
func open(ctx context.Context) (http.Handler, error) {
	var cfg config
	if err := envconfig.Process(ctx, &cfg); err != nil {
		return nil, fmt.Errorf("migrationstep: configuration: %w", err)
	}
	dbs, err := citus.Open(ctx, cfg.Databases)
	if err != nil {
		return nil, err
	}
	queue, err := taskqueue.Open(ctx, cfg.Queue)
	if err != nil {
		return nil, err
	}
	machines, err := auth.NewIdentity(cfg.Identity, auth.MigrationsWrite)
	if err != nil {
		return nil, err
	}
	who := auth.KeysOr{Keys: auth.NewKeys(dbs), Other: machines}
	return New(migration.New(dbs, queue, cfg.Migration, migration.CrashPoints()...), who, cfg.Queue.StepDeadline, edge.Config{}), nil
}
