package migration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/catalog"
	"github.com/coditect/platform/shared/migration/convert"
	"github.com/coditect/platform/shared/migration/source"
	ownschema "github.com/coditect/platform/shared/schema"
)

// platformSource is the source of our own blue schemas.
const platformSource = "platform"

// layouts remembers, for each source and shape of a schema, what goes where. A
// shape is a hash of tables and columns (coditect.shape), so that a schema that was
// changed after it was remembered has another one.
type layouts struct {
	mu     sync.Mutex
	byName map[string]convert.Layout
}

func newLayouts() *layouts { return &layouts{byName: map[string]convert.Layout{}} }

// fit says how far blue's tables and green's must agree.
type fit bool

const (
	exactly  fit = false
	expanded fit = true // green may have columns that blue lacks, where a row does without them
)

// layoutFor returns the layout of schemas of a shape, after making sure that green's
// tables have the columns that will be copied. A schema that has drifted
// from green is a fault that names what differs.
func (m *Mover) layoutFor(ctx context.Context, src string, blue *citus.Pool, schema, shape string, as fit) (convert.Layout, error) {
	control, err := m.control(ctx)
	if err != nil {
		return convert.Layout{}, err
	}
	// Green's shape and the source's description are a part of the key: either may change under a process that lives on.
	var now string
	err = control.QueryRow(ctx, `SELECT coditect.shape(green_schema) || md5(descriptor::text) FROM control.source WHERE name = $1`, src).Scan(&now)
	if err != nil {
		return convert.Layout{}, fmt.Errorf("migration: source %s: %w", src, err)
	}
	key := fmt.Sprint(src, "\x00", shape, "\x00", now, as)
	m.layouts.mu.Lock()
	l, ok := m.layouts.byName[key]
	m.layouts.mu.Unlock()
	if ok {
		return l, nil
	}
	opts, err := conversionOptions(ctx, control, src)
	if err != nil {
		return l, err
	}
	cat, err := catalog.Read(ctx, blue, []string{schema, "public"})
	if err != nil {
		return l, fmt.Errorf("migration: read the structure of %s: %w", schema, err)
	}
	if l, err = convert.LayoutOf(cat, schema, opts); err != nil {
		return l, err
	}
	if err := sameColumns(ctx, control, l, schema, as); err != nil {
		return l, err
	}
	m.layouts.mu.Lock()
	defer m.layouts.mu.Unlock()
	m.layouts.byName[key] = l
	return l, nil
}

// conversionOptions says what becomes of a source's tables on green.
func conversionOptions(ctx context.Context, control *citus.Pool, src string) (convert.Options, error) {
	if src == platformSource {
		return convert.Options{GreenSchema: ownschema.GreenSchema, Own: true}, nil
	}
	s, err := descriptionOf(ctx, control, src)
	if err != nil {
		return convert.Options{}, err
	}
	isCitus, err := control.HasCitus(ctx)
	return convert.OptionsOf(s, isCitus), err
}

// descriptionOf reads the description that a foreign source was registered with.
func descriptionOf(ctx context.Context, control *citus.Pool, name string) (*source.Source, error) {
	var s source.Source
	err := control.QueryRow(ctx, `SELECT descriptor FROM control.source WHERE name = $1`, name).Scan(&s)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fault.New(fault.NotFound, "source_not_found", "there is no source %q", name)
	}
	if err != nil {
		return nil, fmt.Errorf("migration: description of source %s: %w", name, err)
	}
	return &s, nil
}

// sameColumns compares the layout's columns with green's. A column that green lacks
// could not be copied; one that only green has would be empty and nobody would notice.
func sameColumns(ctx context.Context, control *citus.Pool, l convert.Layout, schema string, as fit) error {
	green, err := greenTables(ctx, control, l.GreenSchema)
	if err != nil {
		return err
	}
	var wrong []string
	for _, t := range l.Tables {
		have, ok := green[t.Name]
		if !ok {
			wrong = append(wrong, fmt.Sprintf("green has no table %s", t.Name))
			continue
		}
		want := []string{"tenant_id"}
		for _, c := range slices.Concat(t.Columns, t.Generated) {
			if c.Name != "tenant_id" {
				want = append(want, c.Name)
			}
		}
		for _, c := range want {
			if !have.has(c) {
				wrong = append(wrong, fmt.Sprintf("table %s: green has no column %s", t.Name, c))
			}
		}
		for i, c := range have.columns {
			if !slices.Contains(want, c) && (as == exactly || have.needed[i]) {
				wrong = append(wrong, fmt.Sprintf("table %s: column %s is missing", t.Name, c))
			}
		}
		delete(green, t.Name)
	}
	for name := range green {
		if as == expanded {
			break
		}
		wrong = append(wrong, fmt.Sprintf("table %s is missing", name))
	}
	if len(wrong) > 0 {
		slices.Sort(wrong)
		return fault.New(fault.Conflict, "schema_drift", "schema %s differs from green's tables: %s", schema, strings.Join(wrong, "; "))
	}
	return nil
}

// greenTable is what green has of a table.
type greenTable struct {
	columns []string
	needed  []bool // whether a row must bring the column
}

func (t greenTable) has(column string) bool { return slices.Contains(t.columns, column) }

// greenTables lists the columns of green's tables.
func greenTables(ctx context.Context, control *citus.Pool, schema string) (map[string]greenTable, error) {
	rows, err := control.Query(ctx, `SELECT c.relname, array_agg(a.attname::text), array_agg(a.attnotnull AND NOT a.atthasdef AND a.attidentity = '') FROM pg_class c
		JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
		WHERE c.relnamespace = to_regnamespace(quote_ident($1)) AND c.relkind IN ('r', 'p') GROUP BY c.relname`, schema)
	if err != nil {
		return nil, err
	}
	green := map[string]greenTable{}
	var (
		name string
		t    greenTable
	)
	_, err = pgx.ForEachRow(rows, []any{&name, &t.columns, &t.needed}, func() error {
		green[name] = greenTable{slices.Clone(t.columns), slices.Clone(t.needed)}
		return nil
	})
	return green, err
}

// quoted joins schema and name.
func quoted(parts ...string) string { return pgx.Identifier(parts).Sanitize() }

// greenColumns lists the columns that COPY fills, quoted.
func greenColumns(t convert.Table) string {
	var out []string
	if !t.HasTenantColumn {
		out = append(out, "tenant_id")
	}
	for _, c := range t.Columns {
		out = append(out, quoted(c.Name))
	}
	return strings.Join(out, ", ")
}

// blueSelect is the query of one tenant's rows of one table, in the order of greenColumns.
func blueSelect(t convert.Table, v Move) string {
	var out []string
	if !t.HasTenantColumn {
		out = append(out, "'"+v.Tenant.String()+"'::uuid")
	}
	for _, c := range t.Columns {
		e := quoted(c.Name)
		switch {
		case c.Cast:
			e += "::" + c.GreenType
		case c.Text:
			e += "::text"
		}
		out = append(out, e)
	}
	return "SELECT " + strings.Join(out, ", ") + " FROM " + quoted(v.Schema, t.Name)
}

// rowText is the canonical text of a row: every column that was copied, in one order on
// both sides. What green generates from these columns is left out: it is made by the same
// expression, and a text search vector costs more to print than the rest of its row.
func rowText(t convert.Table) string {
	var out []string
	for _, c := range t.Columns {
		out = append(out, quoted(c.Name))
	}
	return "ROW(" + strings.Join(out, ", ") + ")::text"
}

// layoutAtMove is what of a schema was moved. Unlike layoutFor it does not ask whether green's
// tables still have the same columns: they have been changed since.
func (m *Mover) layoutAtMove(ctx context.Context, blue *citus.Pool, src, schema string) (convert.Layout, error) {
	control, err := m.control(ctx)
	if err != nil {
		return convert.Layout{}, err
	}
	opts, err := conversionOptions(ctx, control, src)
	if err != nil {
		return convert.Layout{}, err
	}
	cat, err := catalog.Read(ctx, blue, []string{schema, "public"})
	if err != nil {
		return convert.Layout{}, fmt.Errorf("migration: read the structure of %s: %w", schema, err)
	}
	return convert.LayoutOf(cat, schema, opts)
}
