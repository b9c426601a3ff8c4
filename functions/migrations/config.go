package migrations

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/sethvargo/go-envconfig"

	"github.com/coditect/platform/shared/archive"
	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/edge"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/taskqueue"
)

// Config is the function's configuration, read from the environment. The databases are
// those of the migrator's role.
type Config struct {
	Databases     citus.Config
	Queue         taskqueue.Config
	Migration     migration.Config
	Archive       archive.Config
	Identity      auth.IdentityConfig
	SweepPatience time.Duration `env:"CODITECT_SWEEP_PATIENCE,default=5s"` // a run in which nobody is at work for longer gets its lost tasks back
}

// deadline of a request: a preflight over ten thousand schemas takes its time.
const deadline = 5 * time.Minute

// open makes the function of the environment. It makes no round trip.
func open(ctx context.Context) (http.Handler, error) {
	var cfg Config
	if err := envconfig.Process(ctx, &cfg); err != nil {
		return nil, fmt.Errorf("migrations: configuration: %w", err)
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
	opts, err := archiveOf(cfg.Archive)
	if err != nil {
		return nil, err
	}
	who := auth.KeysOr{Keys: auth.NewKeys(dbs), Other: machines}
	opts = append(opts, migration.CrashPoints()...)
	return New(migration.New(dbs, queue, cfg.Migration, opts...), who, cfg.SweepPatience, edge.Config{Deadline: deadline}), nil
}

// archiveOf lets the mover finalise if there is an archive.
func archiveOf(cfg archive.Config) ([]migration.Option, error) {
	if cfg.URL == "" {
		return nil, nil
	}
	a, err := archive.Open(cfg)
	if err != nil {
		return nil, err
	}
	return []migration.Option{migration.WithArchive(Dumps{a})}, nil
}

// Dumps is an archive as the mover knows it.
type Dumps struct{ *archive.Archive }

// Save implements migration.Archive.
func (d Dumps) Save(ctx context.Context, dsn, schema, name string) (migration.Dump, error) {
	saved, err := d.Archive.Save(ctx, dsn, schema, name)
	return migration.Dump(saved), err
}
