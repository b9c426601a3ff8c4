package source

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/coditect/platform/shared/fault"
)

// Querier is a *pgxpool.Pool, a *pgx.Conn or a pgx.Tx.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// Tenants lists the tenants of the source by schema, without the excluded ones.
// Whether each schema exists is the preflight's to say.
func (s *Source) Tenants(ctx context.Context, q Querier) ([]Tenant, error) {
	schema, table, err := splitTable(s.TenantTable)
	if err != nil {
		return nil, fault.BadField("tenant_table", "must be table or schema.table")
	}
	id := "''"
	if s.IDColumn != "" {
		id = "coalesce(" + pgx.Identifier{s.IDColumn}.Sanitize() + "::text, '')"
	}
	column, name := pgx.Identifier{s.SchemaColumn}.Sanitize(), pgx.Identifier{s.NameColumn}.Sanitize()
	rows, err := q.Query(ctx, fmt.Sprintf(`SELECT %s, %s::text, coalesce(nullif(%s::text, ''), %s::text) FROM %s
		WHERE %s::text <> ALL ($1) ORDER BY 2`, id, column, name, column, pgx.Identifier{schema, table}.Sanitize(), column), s.excluded())
	if err != nil {
		return nil, s.explainQuery(err)
	}
	tenants, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Tenant])
	if err != nil {
		return nil, s.explainQuery(err)
	}
	for i := 1; i < len(tenants); i++ {
		if tenants[i].Schema == tenants[i-1].Schema {
			return nil, fault.BadField("tenant_table", "must name each schema once: %s names %q twice", s.TenantTable, tenants[i].Schema)
		}
	}
	return tenants, nil
}

// excluded is never nil: NULL would exclude everything.
func (s *Source) excluded() []string {
	// django-tenants lists the shared schema as a tenant, too.
	return append(slices.Clone(s.Exclude), "public")
}

// explainQuery names the field that does not fit the database.
func (s *Source) explainQuery(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return fmt.Errorf("source %s: list tenants: %w", s.Name, err)
	}
	switch pg.Code {
	case "42P01", "3F000":
		return fault.BadField("tenant_table", "must be a table of the database: there is no %s", s.TenantTable)
	case "42703":
		return fault.BadField("schema_column, name_column, id_column", "must be columns of %s: %s", s.TenantTable, pg.Message)
	case "42501":
		return fault.Wrap(err, fault.Forbidden, "source_forbidden", "the role may not read %s of source %s: GRANT SELECT on it", s.TenantTable, s.Name)
	}
	return fmt.Errorf("source %s: list tenants: %w", s.Name, err)
}
