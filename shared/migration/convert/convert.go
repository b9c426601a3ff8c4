package convert

import (
	"fmt"
	"slices"
	"strings"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/catalog"
	"github.com/coditect/platform/shared/migration/source"
)

// Options say what to make of a template.
type Options struct {
	GreenSchema string
	// Exclude are tables that stay behind.
	Exclude []string
	// References are the tables of schema public that become reference tables.
	References []string
	// Citus says that green has the extension: it refuses what plain PostgreSQL takes.
	Citus bool
	// Own says that the template is a blue schema of ours: its tables have tenant_id already.
	Own bool
}

// OptionsOf returns the options that a source's file asks for.
func OptionsOf(s *source.Source, citus bool) Options {
	o := Options{GreenSchema: s.GreenSchema, Exclude: s.ExcludeTables, Citus: citus}
	for table, what := range s.PublicTables {
		if what == source.Reference {
			o.References = append(o.References, strings.TrimPrefix(table, "public."))
		}
	}
	slices.Sort(o.References)
	return o
}

// Conversion is a plan of green's tables.
type Conversion struct {
	Layout     Layout
	Statements []Statement
	Notes      []Note
	// Needs are the things outside the schema that the statements use and that must
	// be on green already: functions, operator classes, collations, extension types.
	Needs []Need
}

// Need is one thing that green must have.
type Need struct {
	Extension string // an extension, or
	Schema    string // a named thing in a schema
	Name      string
	Table     string // one of those who need it
}

// String names the need as a person would.
func (n Need) String() string {
	if n.Extension != "" {
		return "extension " + n.Extension
	}
	return n.Schema + "." + n.Name
}

// SQL prints the statements for review.
func (c *Conversion) SQL() string {
	var out strings.Builder
	for _, s := range c.Statements {
		fmt.Fprintf(&out, "-- %s\n%s;\n\n", s.Object, s.SQL)
	}
	return strings.TrimRight(out.String(), "\n") + "\n"
}

// Err returns a fault that names everything the conversion had to refuse, nil when there is nothing.
func (c *Conversion) Err() error {
	var what []string
	for _, n := range c.Notes {
		if n.Refused {
			what = append(what, n.Message+": "+n.Action)
		}
	}
	if what == nil {
		return nil
	}
	return fault.New(fault.Invalid, "cannot_convert", "the structure cannot be converted: %s", strings.Join(what, "; "))
}

const (
	tenantColumn = "tenant_id"
	publicSchema = "public"
)

// Convert derives green's tables from one schema of the catalog, the template. For
// keys to public tables the catalog must hold schema public as well.
func Convert(cat *catalog.Catalog, template string, o Options) (*Conversion, error) {
	b, err := newBuilder(cat, template, o)
	if err != nil {
		return nil, err
	}
	if o.Own {
		return nil, fault.New(fault.Internal, "not_converted", "our own schemas have their SQL in infra/schema")
	}
	b.widen()
	b.schemas()
	b.types()
	for _, s := range b.scopes() {
		b.sequences(s)
	}
	for _, s := range b.scopes() {
		for _, t := range s.schema.Tables {
			b.table(s, t)
		}
	}
	for _, s := range b.scopes() {
		for _, t := range s.schema.Tables {
			b.uniques(s, t)
		}
	}
	for _, s := range b.scopes() {
		for _, t := range s.schema.Tables {
			b.foreignKeys(s, t)
		}
	}
	b.layout()
	return b.out, nil
}

// LayoutOf is the layout alone. For our own schemas (Options.Own) green's tables are
// made by infra/schema, and nothing is widened or renamed.
func LayoutOf(cat *catalog.Catalog, template string, o Options) (Layout, error) {
	if !o.Own {
		c, err := Convert(cat, template, o)
		if err != nil {
			return Layout{}, err
		}
		return c.Layout, c.Err()
	}
	b, err := newBuilder(cat, template, o)
	if err != nil {
		return Layout{}, err
	}
	b.layout()
	return b.out.Layout, nil
}

// builder holds one conversion under way.
type builder struct {
	cat    *catalog.Catalog
	o      Options
	tenant *scope
	public *scope // nil without reference tables
	// byName finds types by their printed, qualified name.
	byName map[[2]string]*catalog.Type
	wide   map[columnKey]bool
	made   map[string]bool // public types that are planned already
	needed map[string]bool
	out    *Conversion
}

// scope is a schema on blue and what becomes of it on green.
type scope struct {
	schema    *catalog.Schema
	green     string
	reference bool // tables are the same for all tenants
}

type columnKey struct {
	reference     bool
	table, column string
}

func newBuilder(cat *catalog.Catalog, template string, o Options) (*builder, error) {
	s := cat.Schemas[template]
	if s == nil {
		return nil, fault.New(fault.NotFound, "template_missing", "there is no schema %q to take the structure from", template)
	}
	b := &builder{
		cat: cat, o: o, tenant: &scope{schema: s.Without(o.Exclude), green: o.GreenSchema},
		byName: map[[2]string]*catalog.Type{}, wide: map[columnKey]bool{}, made: map[string]bool{}, needed: map[string]bool{},
		out: &Conversion{Layout: Layout{GreenSchema: o.GreenSchema}},
	}
	for _, t := range cat.Types {
		b.byName[[2]string{t.Schema, t.Name}] = t
	}
	if len(o.References) == 0 {
		return b, nil
	}
	public := cat.Schemas[publicSchema]
	if public == nil {
		return nil, fault.New(fault.NotFound, "public_missing", "there is no schema public to take reference tables from")
	}
	for _, name := range o.References {
		if public.Table(name) == nil {
			return nil, fault.BadField("public_tables."+name, "must be a table of schema public")
		}
	}
	var rest []string
	for _, t := range public.Tables {
		if !slices.Contains(o.References, t.Name) {
			rest = append(rest, t.Name)
		}
	}
	kept := public.Without(rest)
	kept.Sequences = slices.DeleteFunc(slices.Clone(kept.Sequences), func(q *catalog.Sequence) bool { return !feedsOne(kept, q) })
	kept.Types = nil // made only when a column uses them
	b.public = &scope{schema: kept, green: publicGreen(o.GreenSchema), reference: true}
	b.out.Layout.PublicSchema = b.public.green
	return b, nil
}

// publicGreen is where public things go: apart from the tenants' own tables, because
// django-tenants keeps tables of the same name (auth_user) in both.
func publicGreen(green string) string { return green + "_public" }

func feedsOne(s *catalog.Schema, q *catalog.Sequence) bool {
	for _, t := range s.Tables {
		for _, c := range t.Columns {
			if c.Sequence == q.Name {
				return true
			}
		}
	}
	return false
}

// scopes lists the public tables first: tenants' keys refer to them.
func (b *builder) scopes() []*scope {
	if b.public != nil {
		return []*scope{b.public, b.tenant}
	}
	return []*scope{b.tenant}
}

func (b *builder) add(object, format string, args ...any) {
	b.out.Statements = append(b.out.Statements, Statement{Object: object, SQL: fmt.Sprintf(format, args...)})
}

func (b *builder) note(n Note) { b.out.Notes = append(b.out.Notes, n) }

func (b *builder) need(n Need) {
	if !b.needed[n.String()] {
		b.needed[n.String()] = true
		b.out.Needs = append(b.out.Needs, n)
	}
}

// onGreen rewrites an expression, definition or type name of blue for green, and
// notes what it needs there.
func (b *builder) onGreen(s *scope, table, sql string) string {
	return catalog.Rewrite(sql, func(schema, name string) string {
		own := schema == catalog.Self
		if own && !s.reference {
			if !b.isOwn(s, name) {
				b.need(Need{Schema: s.green, Name: name, Table: table})
			}
			return s.green
		}
		if own || schema == publicSchema {
			if own && s.schema.Sequence(name) != nil {
				return s.green
			}
			if t := b.byName[[2]string{publicSchema, strings.TrimSuffix(name, "[]")}]; t != nil && t.Extension == "" {
				b.publicType(t)
				return publicGreen(b.o.GreenSchema)
			}
			b.need(Need{Schema: publicSchema, Name: name, Table: table})
			return publicSchema
		}
		if schema != "pg_catalog" && schema != "coditect" {
			b.need(Need{Schema: schema, Name: name, Table: table})
		}
		return ""
	})
}

func (b *builder) isOwn(s *scope, name string) bool {
	return s.schema.Sequence(name) != nil || s.schema.Table(name) != nil || b.byName[[2]string{s.schema.Name, name}] != nil
}

// widen finds the integer columns that become bigint: those fed by a sequence,
// because an id that a Citus worker makes needs 8 bytes, and those that refer to one.
func (b *builder) widen() {
	for _, s := range b.scopes() {
		for _, t := range s.schema.Tables {
			for _, c := range t.Columns {
				if c.Sequence != "" && isNarrow(c) {
					b.wide[columnKey{s.reference, t.Name, c.Name}] = true
				}
			}
		}
	}
	for again := true; again; {
		again = false
		for _, s := range b.scopes() {
			for _, t := range s.schema.Tables {
				for _, k := range t.Constraints {
					if k.Type == catalog.ForeignKey && b.widenKey(s, t, k) {
						again = true
					}
				}
			}
		}
	}
}

func (b *builder) widenKey(s *scope, t *catalog.Table, k *catalog.Constraint) (changed bool) {
	ref := b.target(s, k)
	if ref == nil {
		return false
	}
	for i, name := range k.Columns {
		from, to := columnKey{s.reference, t.Name, name}, columnKey{ref.reference, k.RefTable, k.RefColumns[i]}
		if b.wide[to] && !b.wide[from] && isNarrow(t.Column(name)) {
			b.wide[from], changed = true, true
		}
	}
	return changed
}

// target is the scope that a foreign key refers to, nil when its table does not come along.
func (b *builder) target(s *scope, k *catalog.Constraint) *scope {
	if k.RefSchema == catalog.Self {
		if s.schema.Table(k.RefTable) != nil {
			return s
		}
		return nil
	}
	if k.RefSchema == publicSchema && b.public != nil && b.public.schema.Table(k.RefTable) != nil {
		return b.public
	}
	return nil
}

func isNarrow(c *catalog.Column) bool { return c.Type == "integer" || c.Type == "smallint" }
