// Package command is coditectl's commands. [Run] is the way in; each file holds one
// group of commands.
//
// Results go to standard output, everything else to standard error, so that
// `coditectl … --json | jq` and `KEY=$(coditectl keys create …)` work.
package command

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/coditect/platform/scripts/coditectl/internal/client"
	"github.com/coditect/platform/scripts/internal/terminal"
	"github.com/coditect/platform/shared/citus"
)

// World is what a command sees of its surroundings.
type World struct {
	Out, Err io.Writer
	Console  *terminal.Console // progress, on Err
	Getenv   func(name string) string
	Now      func() time.Time
	// Wait returns after d, or with an error when ctx ends before.
	Wait func(ctx context.Context, d time.Duration) error
}

// Terminal is the surroundings of a real program.
func Terminal() World {
	return World{
		Out: os.Stdout, Err: os.Stderr, Console: terminal.New(os.Stderr), Getenv: os.Getenv, Now: time.Now,
		Wait: func(ctx context.Context, d time.Duration) error {
			t := time.NewTimer(d)
			defer t.Stop()
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-t.C:
				return nil
			}
		},
	}
}

// Variables of the environment that the commands read.
const (
	urlVariable   = "CODITECT_URL"
	keyVariable   = "CODITECT_KEY"
	greenVariable = "CODITECT_GREEN_DSN"
	blueVariable  = "CODITECT_BLUE_DSN"
)

const defaultURL = "http://localhost:8080"

// program is one call of coditectl.
type program struct {
	World
	json     bool
	url, key string
}

const about = `Operate the platform: prepare databases, keys and foreign sources, and move
tenants from a schema of their own (blue) into the shared tables (green).

Two kinds of commands:

  preflight, migrate, tenants,
  verify, repair                ask the functions over HTTP, as ` + urlVariable + `
                                (` + defaultURL + ` by default) and ` + keyVariable + ` say
  schema, keys, source, archive work on the databases of ` + greenVariable + ` and
                                ` + blueVariable + `, which must name an administrator

Results are written to standard output, with --json as JSON and nothing else;
progress and errors to standard error.

Exit codes:
  0    done
  1    failed
  2    the command line, a variable or a file is wrong
  3    refused by the preflight
  4    some tenants were not moved
  5    the server or the database cannot be reached
  6    blue and green differ
  130  interrupted; what runs on the server goes on there`

// Run runs one command and returns its exit code.
func Run(ctx context.Context, args []string, w World) int {
	p := &program{World: w}
	root := &cobra.Command{
		Use: "coditectl", Short: "Operate the platform", Long: about,
		SilenceUsage: true, SilenceErrors: true,
		Args: cobra.ArbitraryArgs, RunE: group,
	}
	root.SetOut(w.Out)
	root.SetErr(w.Err)
	root.SetArgs(args)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err.Error()} })
	root.CompletionOptions.HiddenDefaultCmd = true
	f := root.PersistentFlags()
	f.BoolVar(&p.json, "json", false, "print the result as JSON")
	f.StringVar(&p.url, "url", "", "address of the functions; "+urlVariable+" when absent, else "+defaultURL)
	f.StringVar(&p.key, "key", "", "API key; better in "+keyVariable+", because others on this machine can read command lines")
	root.AddCommand(p.preflight(), p.migrate(), p.tenants(), p.schema(), p.keys(), p.source(), p.archive(), p.verify(), p.repair())
	return p.report(root.ExecuteContext(ctx))
}

// group is the action of a command that has only subcommands.
func group(c *cobra.Command, args []string) error {
	var names []string
	for _, s := range c.Commands() {
		if s.IsAvailableCommand() {
			names = append(names, s.Name())
		}
	}
	if len(args) == 0 {
		return usage("%s needs a command: %s", c.CommandPath(), orList(names))
	}
	return usage("%s has no command %q; it must be %s", c.CommandPath(), args[0], orList(names))
}

// args says how many arguments a command takes and what they are called.
func args(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, got []string) error {
		switch {
		case len(got) < len(names):
			return usage("%s needs %s", c.CommandPath(), names[len(got)])
		case len(got) > len(names):
			return usage("%s takes no argument %q", c.CommandPath(), got[len(names)])
		}
		return nil
	}
}

// client returns the way to the functions.
func (p *program) client() (*client.Client, error) {
	base, name := p.url, "--url"
	if base == "" {
		base, name = p.Getenv(urlVariable), urlVariable
	}
	if base == "" {
		base = defaultURL
	}
	key := p.key
	if key == "" {
		key = p.Getenv(keyVariable)
	}
	if key == "" {
		return nil, usage("%s must be set to an operator's API key; `coditectl keys create --operator` makes one", keyVariable)
	}
	c, err := client.New(base, key)
	if err != nil {
		return nil, usage("%s %v", name, err)
	}
	return c, nil
}

// dsn returns the connection string that a variable holds.
func (p *program) dsn(variable string) (string, error) {
	v := p.Getenv(variable)
	if v == "" {
		return "", usage("%s must be set to the connection string of an administrator, such as postgres://admin@host:5432/coditect", variable)
	}
	return v, nil
}

// control opens the database that holds the control tables.
func (p *program) control(ctx context.Context) (pool *citus.Pool, closer func(), err error) {
	green, err := p.dsn(greenVariable)
	if err != nil {
		return nil, nil, err
	}
	dbs, err := citus.Open(ctx, citus.Config{Green: green})
	if err != nil {
		return nil, nil, usage("%s must be a connection string such as postgres://admin@host:5432/coditect: %v", greenVariable, err)
	}
	if pool, err = dbs.Control(ctx); err != nil {
		dbs.Close()
		return nil, nil, err
	}
	return pool, dbs.Close, nil
}
