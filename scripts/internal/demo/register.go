package demo

import (
	"context"
	"fmt"

	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/migration/source"
)

// register makes the imported database a source of tenants, as an operator would:
// from then on the platform serves its tenants where they are, and can move them.
func register(ctx context.Context, e Environment) error {
	s, err := source.Parse(legacyFile)
	if err != nil {
		return fmt.Errorf("legacy.yaml: %w", err)
	}
	r := migration.Registration{Source: s, Blue: e.Blue.DSN(LegacyDatabase, "postgres"), Green: e.Green}
	done, err := r.Apply(ctx)
	if err != nil {
		return fmt.Errorf("register the legacy database: %w", err)
	}
	if done.Applied > 0 {
		e.Console.Say("Imported a django-tenants database: %d tenants, one schema each. Shared tables for them: %d statements, derived from schema %s", done.Tenants, done.Applied, done.Template)
	}
	for _, remark := range done.Remarks {
		e.Console.Say("  %s", remark)
	}
	return nil
}
