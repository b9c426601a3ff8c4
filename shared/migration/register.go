package migration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/catalog"
	"github.com/coditect/platform/shared/migration/convert"
	"github.com/coditect/platform/shared/migration/source"
	"github.com/coditect/platform/shared/schema"
	"github.com/coditect/platform/shared/tenant"
)

// Registration makes a foreign database a source of tenants.
type Registration struct {
	Source *source.Source
	Blue   string // the foreign database, as a role that may make a schema in it and give rights on its tables
	Green  string // the green database, as a superuser: makes schemas, acts as coditect_owner, sets session_replication_role
}

// Registered is what a registration found and did.
type Registered struct {
	Template string         `json:"template"` // the schema whose structure green's tables have
	Tenants  int            `json:"tenants"`
	SQL      string         `json:"sql"` // green's tables, for review
	Notes    []convert.Note `json:"notes"`
	Applied  int            `json:"applied"` // statements run now; 0 when all was there
	Remarks  []string       `json:"remarks"` // what could not be done in the foreign database, and what follows
}

// Review derives green's tables from the source and returns their SQL, changing nothing.
func (r Registration) Review(ctx context.Context) (Registered, error) {
	out, _, _, err := r.derive(ctx)
	return out, err
}

// Apply makes green's tables, installs gate and fence in the foreign database, and
// enters its tenants into the directory: from then on the platform serves them where
// they are, and can move them. It may be applied again, for example to enter new
// tenants; tables and tenants that are there stay as they are.
//
// It is to be applied again after rows of the shared public tables changed in the
// foreign database: green's copies of them are brought in step by nothing else. The
// preflight lets no run start over copies that differ.
func (r Registration) Apply(ctx context.Context) (Registered, error) {
	out, plan, tenants, err := r.derive(ctx)
	if err != nil {
		return out, err
	}
	if err := plan.Err(); err != nil {
		return out, err // before anything is changed, in either database
	}
	blue, green, err := r.connect(ctx)
	if err != nil {
		return out, err
	}
	defer func() { _ = blue.Close(ctx); _ = green.Close(ctx) }()
	if err := keepGreenSchema(ctx, green, r.Source.Name, plan.Layout.GreenSchema); err != nil {
		return out, err
	}
	home, err := schema.ApplyHome(ctx, schema.Database{DSN: r.Blue, Name: r.Source.Name, Kind: tenant.Blue})
	if err != nil {
		return out, err
	}
	out.Remarks = home.Notes
	if out.Applied, err = convert.Apply(ctx, green, plan); err != nil {
		return out, err
	}
	if err := refreshReferences(ctx, blue, green, plan.Layout); err != nil {
		return out, err
	}
	// The file's own choice of template may be left open; the one that was taken is kept.
	described := *r.Source
	described.TemplateSchema = out.Template
	if _, err := green.Exec(ctx, `INSERT INTO control.source (name, green_schema, descriptor) VALUES ($1, $2, $3)
		ON CONFLICT (name) DO UPDATE SET green_schema = excluded.green_schema, descriptor = excluded.descriptor`,
		r.Source.Name, plan.Layout.GreenSchema, described); err != nil {
		return out, fmt.Errorf("migration: record source %s: %w", r.Source.Name, err)
	}
	if err := shareReferences(ctx, blue, plan.Layout); err != nil {
		return out, err
	}
	return out, enterTenants(ctx, blue, green, r.Source, tenants)
}

// keepGreenSchema refuses another green schema while tenants have rows in the one that
// the source is registered with: new tables would be made, and nobody would look for
// their rows in the old ones any more.
func keepGreenSchema(ctx context.Context, green *pgx.Conn, name, wanted string) error {
	var (
		now string
		n   int
	)
	err := green.QueryRow(ctx, `SELECT s.green_schema, (SELECT count(*) FROM control.tenant t
			WHERE t.source = s.name AND t.status <> 'deleted' AND (t.home = 'green' OR EXISTS (SELECT FROM control.move m
				WHERE m.tenant_id = t.id AND (m.state NOT IN ('blue', 'finalised') OR m.purge_due))))
		FROM control.source s WHERE s.name = $1 AND s.green_schema <> $2`, name, wanted).Scan(&now, &n)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return fmt.Errorf("migration: read the registration of source %s: %w", name, err)
	case n > 0:
		return fault.New(fault.Conflict, "green_schema_in_use",
			"green_schema of source %s cannot become %s: %d of its tenants live in schema %s of green or are moving there. Keep green_schema: %s, or cancel the open runs and move the tenants back to blue first",
			name, wanted, n, now, now)
	}
	return nil
}

// shareReferences lets the platform's roles read the public tables that go along.
func shareReferences(ctx context.Context, blue *pgx.Conn, l convert.Layout) error {
	statements := []string{`GRANT USAGE ON SCHEMA public TO coditect_app, coditect_migrator, coditect_readonly`}
	for _, t := range l.References {
		statements = append(statements, `GRANT SELECT ON `+quoted(t.Schema, t.Name)+` TO coditect_app, coditect_migrator, coditect_readonly`)
	}
	for _, s := range statements {
		if _, err := blue.Exec(ctx, s); err != nil {
			return fmt.Errorf("migration: rights on public tables: %w", err)
		}
	}
	return nil
}

func (r Registration) connect(ctx context.Context) (blue, green *pgx.Conn, err error) {
	if blue, err = pgx.Connect(ctx, r.Blue); err != nil {
		return nil, nil, fmt.Errorf("migration: connect to source %s: %w", r.Source.Name, err)
	}
	if green, err = pgx.Connect(ctx, r.Green); err != nil {
		_ = blue.Close(ctx)
		return nil, nil, fmt.Errorf("migration: connect to green: %w", err)
	}
	return blue, green, nil
}

func (r Registration) derive(ctx context.Context) (Registered, *convert.Conversion, []source.Tenant, error) {
	var out Registered
	blue, green, err := r.connect(ctx)
	if err != nil {
		return out, nil, nil, err
	}
	defer func() { _ = blue.Close(ctx); _ = green.Close(ctx) }()
	tenants, err := r.Source.Tenants(ctx, blue)
	if err != nil {
		return out, nil, nil, err
	}
	out.Tenants = len(tenants)
	if out.Template = r.Source.TemplateSchema; out.Template == "" {
		if out.Template, err = mostCommon(ctx, blue, tenants); err != nil {
			return out, nil, nil, err
		}
	}
	cat, err := catalog.Read(ctx, blue, []string{out.Template, "public"})
	if err != nil {
		return out, nil, nil, err
	}
	var isCitus bool
	if err := green.QueryRow(ctx, `SELECT coditect.has_citus()`).Scan(&isCitus); err != nil {
		return out, nil, nil, err
	}
	plan, err := convert.Convert(cat, out.Template, convert.OptionsOf(r.Source, isCitus))
	if err != nil {
		return out, nil, nil, err
	}
	out.SQL, out.Notes = plan.SQL(), plan.Notes
	return out, plan, tenants, nil
}

// mostCommon picks the structure that most tenants have.
func mostCommon(ctx context.Context, blue *pgx.Conn, tenants []source.Tenant) (string, error) {
	schemas := make([]string, len(tenants))
	for i, t := range tenants {
		schemas[i] = t.Schema
	}
	cat, err := catalog.Read(ctx, blue, schemas)
	if err != nil {
		return "", err
	}
	if best := cat.MostCommon(nil); best != "" {
		return best, nil
	}
	return "", fault.BadField("template_schema", "must be given: none of the tenants' schemas exists")
}

// registerAtOnce is how many schemas get their rights in one transaction.
const registerAtOnce = 100

// enterTenants gives the platform's roles their rights on the tenants' schemas, and
// enters the tenants into the gate and the directory. A tenant that is there stays
// where it is: it may have moved. One without a schema is left out: the preflight names it.
func enterTenants(ctx context.Context, blue, green *pgx.Conn, s *source.Source, tenants []source.Tenant) error {
	var (
		ids            []tenant.ID
		schemas, names []string
	)
	for group := range slices.Chunk(tenants, registerAtOnce) {
		there, err := shareSchemas(ctx, blue, group)
		if err != nil {
			return err
		}
		for _, t := range group {
			if there[t.Schema] {
				ids, schemas, names = append(ids, tenant.ImportedID(s.Name, t.Schema)), append(schemas, t.Schema), append(names, t.Name)
			}
		}
	}
	if _, err := blue.Exec(ctx, `INSERT INTO coditect.gate (tenant_id, schema_name, shared_schema, epoch)
		SELECT id, schema, 'public', 1 FROM unnest($1::uuid[], $2::text[]) t(id, schema) ON CONFLICT (tenant_id) DO NOTHING`, ids, schemas); err != nil {
		return fmt.Errorf("migration: enter the tenants of source %s into the gate: %w", s.Name, err)
	}
	if _, err := green.Exec(ctx, `INSERT INTO control.tenant (id, name, slug, source, home, database_name, schema_name, status)
		SELECT id, left(name, 200), left($4::text || '-' || schema, 128), $4, 'blue', $4, schema, 'active'
		FROM unnest($1::uuid[], $2::text[], $3::text[]) t(id, schema, name) ON CONFLICT (id) DO NOTHING`, ids, schemas, names, s.Name); err != nil {
		return fmt.Errorf("migration: enter the tenants of source %s into the directory: %w", s.Name, err)
	}
	return becomeOwners(ctx, blue)
}

// shareSchemas gives the platform's roles their rights on the schemas of some tenants,
// in one transaction, and returns those that exist. The tables are listed by one query:
// GRANT … ON ALL TABLES IN SCHEMA would read all of pg_class several times for each schema.
func shareSchemas(ctx context.Context, blue *pgx.Conn, tenants []source.Tenant) (map[string]bool, error) {
	wanted := make([]string, len(tenants))
	for i, t := range tenants {
		wanted[i] = t.Schema
	}
	rows, err := blue.Query(ctx, `SELECT n.nspname::text,
			array_agg(format('%I.%I', n.nspname, c.relname)) FILTER (WHERE c.relkind <> 'S'),
			array_agg(format('%I.%I', n.nspname, c.relname)) FILTER (WHERE c.relkind = 'S')
		FROM pg_namespace n LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
		WHERE n.nspname = ANY ($1) GROUP BY n.nspname`, wanted)
	if err != nil {
		return nil, fmt.Errorf("migration: list the tenants' tables: %w", err)
	}
	there := map[string]bool{}
	var (
		name                         string
		tables, sequences            []string
		schemas, relations, counters []string
	)
	if _, err := pgx.ForEachRow(rows, []any{&name, &tables, &sequences}, func() error {
		there[name] = true
		schemas, relations, counters = append(schemas, quoted(name)), append(relations, tables...), append(counters, sequences...)
		return nil
	}); err != nil {
		return nil, fmt.Errorf("migration: list the tenants' tables: %w", err)
	}
	sql := ""
	grant := func(rights string, objects []string, roles string) {
		if len(objects) > 0 {
			sql += "GRANT " + rights + " " + strings.Join(objects, ", ") + " TO " + roles + ";\n"
		}
	}
	grant("USAGE ON SCHEMA", schemas, "coditect_app, coditect_migrator, coditect_readonly")
	grant("SELECT, INSERT, UPDATE, DELETE ON TABLE", relations, "coditect_app, coditect_migrator")
	grant("SELECT ON TABLE", relations, "coditect_readonly")
	grant("USAGE, SELECT ON SEQUENCE", counters, "coditect_app, coditect_migrator")
	if _, err := blue.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		return nil, fmt.Errorf("migration: rights on schemas %s to %s: %w", wanted[0], wanted[len(wanted)-1], err)
	}
	return there, nil
}

// becomeOwners makes the migrator a member of the owners of tables and schemas: whoever raises
// the fence, or drops a schema that its tenant has left, must be able to act as them.
func becomeOwners(ctx context.Context, blue *pgx.Conn) error {
	rows, err := blue.Query(ctx, `SELECT DISTINCT r.rolname FROM coditect.gate g JOIN pg_namespace n ON n.nspname = g.schema_name
		LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p') JOIN pg_roles r ON r.oid IN (c.relowner, n.nspowner)
		WHERE NOT r.rolsuper AND NOT pg_has_role('coditect_migrator', r.oid, 'MEMBER')`)
	if err != nil {
		return err
	}
	owners, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, o := range owners {
		if _, err := blue.Exec(ctx, `GRANT `+quoted(o)+` TO coditect_migrator`); err != nil {
			return fmt.Errorf("migration: let the migrator act as %s: %w", o, err)
		}
	}
	return nil
}
