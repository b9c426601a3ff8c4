package tenants

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/sethvargo/go-envconfig"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/directory"
	"github.com/coditect/platform/shared/edge"
	"github.com/coditect/platform/shared/events"
	"github.com/coditect/platform/shared/organisation"
	"github.com/coditect/platform/shared/tenant"
)

// Config is the function's configuration, read from the environment.
type Config struct {
	Databases    citus.Config
	Organisation organisation.Config
	Identity     auth.IdentityConfig // of Cloud Scheduler, which calls /sweep
	PubSub       events.Config
	EventsTopic  string `env:"CODITECT_TENANT_EVENTS_TOPIC,default=tenant-events"`
}

// open makes the function of the environment. It makes no round trip.
func open(ctx context.Context) (http.Handler, error) {
	var cfg Config
	if err := envconfig.Process(ctx, &cfg); err != nil {
		return nil, fmt.Errorf("tenants: configuration: %w", err)
	}
	dbs, _, dir, err := directory.Open(ctx, cfg.Databases)
	if err != nil {
		return nil, err
	}
	machines, err := auth.NewIdentity(cfg.Identity, auth.TenantsWrite)
	if err != nil {
		return nil, err
	}
	who := auth.KeysOr{Keys: auth.NewKeys(dbs), Other: machines}
	service := organisation.New(cfg.Organisation, organisation.Deps{
		Databases: dbs, Forget: dir.Forget, RevokeKeys: revokeKeys, Recorder: recorder{cfg.EventsTopic}, Resolver: net.DefaultResolver,
	})
	// The client is made by the first sweep: most instances never need it.
	publisher := sync.OnceValues(func() (*events.PubSub, error) { return events.Open(context.WithoutCancel(ctx), cfg.PubSub) })
	relay := func(ctx context.Context) (int, error) {
		to, err := publisher()
		if err != nil {
			return 0, err
		}
		control, err := dbs.Control(ctx)
		if err != nil {
			return 0, err
		}
		return events.Relay(ctx, control.Pool, to)
	}
	return New(service, who, relay, edge.Config{}), nil
}

func revokeKeys(ctx context.Context, tx organisation.Tx, id tenant.ID, at time.Time) error {
	return auth.RevokeTenantKeys(ctx, tx, id, at)
}

// recorder writes the domain's events into the outbox. The tenant's id orders
// them: the domain changes a tenant under the lock of its row.
type recorder struct{ topic string }

// Record implements organisation.Recorder.
func (r recorder) Record(ctx context.Context, tx organisation.Tx, e organisation.Event) error {
	_, err := events.Record(ctx, tx, events.Event{
		Topic: r.topic, OrderingKey: e.Tenant.String(), Payload: e, Attributes: map[string]string{"type": e.Type},
	})
	return err
}
