// Package replication is the function that Cloud Tasks calls to receive the changes of one
// lane of a blue database for a bounded time, into the spool of green. It has its next call made
// before it ends. The task carries no state: called twice, late or out of turn it does no
// harm, and one that is lost the sweep of migrations makes up for.
//
// The domain is shared/migration/stream. A 2xx answer ends the task.
package replication

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
	"github.com/coditect/platform/shared/migration/stream"
	"github.com/coditect/platform/shared/taskqueue"
)

func init() { functions.HTTP("Replication", Handler().ServeHTTP) }

// Handler returns the function, which is made at its first request.
func Handler() http.Handler { return edge.Lazy(open) }

// New returns the function around a mover and an authenticator. Deadline is that of the
// queue's delivery.
func New(mover *migration.Mover, who auth.Authenticator, deadline time.Duration, cfg edge.Config) *edge.API {
	cfg.Name, cfg.Version, cfg.Deadline = "replication", "1.0.0", deadline
	cfg.Description = "One bounded run of the change stream; for Cloud Tasks."
	e := edge.New(cfg, who)
	edge.Register(e, edge.Operation{ID: "receive", Method: http.MethodPost, Path: "/receive", Scope: auth.MigrationsWrite, Status: http.StatusOK,
		Summary: "Receive the changes of one lane for a bounded time", Faults: []fault.Kind{fault.Unavailable}},
		func(ctx context.Context, p auth.Principal, in *receiveInput) (*receiveOutput, error) {
			if !p.IsOperator() {
				return nil, fault.New(fault.Forbidden, "operators_only", "only the platform's task queue and operators may do this")
			}
			got, err := mover.Receive(ctx, in.Body)
			return &receiveOutput{got}, citus.Fault(err)
		})
	return e
}

type receiveInput struct{ Body migration.ReceiveTask }

type receiveOutput struct{ Body stream.Received }

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
		return nil, fmt.Errorf("replication: configuration: %w", err)
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
