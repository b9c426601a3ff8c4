package projects

import (
	"context"

	"github.com/sethvargo/go-envconfig"

	"github.com/coditect/platform/shared/citus"
)

// Config is what the function reads from its environment. All that is missing is
// named at once.
type Config struct {
	Databases citus.Config
}

func readConfig(ctx context.Context) (Config, error) {
	var c Config
	err := envconfig.Process(ctx, &c)
	return c, err
}
