package preflight

import (
	"context"
	"slices"
	"strings"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/catalog"
	"github.com/coditect/platform/shared/migration/convert"
)

// tableCodes are notes that structure has told already, tenant by tenant.
var tableCodes = map[string]bool{
	"no_primary_key": true, "deferrable_primary_key": true, "foreign_table": true, "partitioned_table": true,
	"inherited_table": true, "invalid_index": true,
}

// conversion checks whether green can have the template's tables.
func (c *checker) conversion(ctx context.Context) {
	cat := &catalog.Catalog{Schemas: map[string]*catalog.Schema{c.report.Template: c.template}, Types: c.blue.Types}
	if c.public != nil {
		cat.Schemas["public"] = c.public
	}
	if c.in.Source == nil {
		l, err := convert.LayoutOf(cat, c.report.Template, convert.Options{GreenSchema: c.in.GreenSchema, Own: true})
		if err != nil {
			c.unknown("the layout", "report this", err)
			return
		}
		c.report.Layout = l
		return
	}
	type facts struct{ Citus bool }
	citus := facts{true} // the stricter of the two, when it cannot be asked
	if c.in.Green != nil {
		if f, err := one[facts](ctx, c.in.Green, `SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')`); err != nil {
			c.unknown("whether green has Citus", "make it reachable for this role", err)
		} else {
			citus = f
		}
	}
	conv, err := convert.Convert(cat, c.report.Template, convert.OptionsOf(c.in.Source, citus.Citus))
	if err != nil {
		c.overall("cannot_convert", Blocker, "", "correct the source's file", "%s", message(err))
		return
	}
	c.report.Conversion, c.report.Layout = conv, conv.Layout
	for _, n := range conv.Notes {
		switch {
		case tableCodes[n.Code]:
		case n.Refused:
			c.overall(n.Code, Blocker, n.Table, n.Action, "%s", n.Message)
		default:
			c.overall(n.Code, Warning, n.Table, n.Action, "%s", n.Message)
		}
	}
	c.widened(conv.Layout)
}

func message(err error) string {
	if f := fault.As(err); f != nil {
		return f.Message
	}
	return err.Error()
}

func (c *checker) widened(l convert.Layout) {
	var names []string
	for _, t := range slices.Concat(l.References, l.Tables) {
		for _, col := range t.Columns {
			if col.Cast {
				names = append(names, t.Name+"."+col.Name)
			}
		}
	}
	if names != nil {
		c.overall("keys_widened", Warning, "", "nothing, unless the application stores these ids in 4 bytes somewhere else",
			"%d integer columns become bigint on green, because ids made there need 8 bytes: %s", len(names), strings.Join(names, ", "))
	}
}

// green checks what is on green against what will be needed.
func (c *checker) green(ctx context.Context) {
	if c.in.Green == nil {
		return // told already
	}
	if c.report.Conversion != nil {
		c.needs(ctx, c.report.Conversion)
		if err := convert.Check(ctx, c.in.Green, c.report.Conversion); fault.CodeOf(err) == "conversion_differs" {
			c.overall("conversion_differs", Blocker, "", "bring blue or green back in step, or use another green_schema", "%s", message(err))
		} else if err != nil {
			c.unknown("what was converted before", "coditectl schema apply", err)
		} else {
			c.references(ctx, c.report.Layout)
		}
	}
	c.greenTables(ctx)
}

// needs checks that green has what the tables use and the conversion does not make.
func (c *checker) needs(ctx context.Context, conv *convert.Conversion) {
	var schemas, names, extensions []string
	for _, n := range conv.Needs {
		if n.Extension != "" {
			extensions = append(extensions, n.Extension)
			continue
		}
		schemas, names = append(schemas, n.Schema), append(names, n.Name)
	}
	type have struct{ Schema, Name string }
	rows, err := many[have](ctx, c.in.Green, `
		SELECT w.schema, w.name FROM unnest($1::text[], $2::text[]) w(schema, name) JOIN pg_namespace n ON n.nspname = w.schema
		WHERE EXISTS (SELECT FROM pg_type x WHERE x.typnamespace = n.oid AND x.typname = w.name)
		   OR EXISTS (SELECT FROM pg_proc x WHERE x.pronamespace = n.oid AND x.proname = w.name)
		   OR EXISTS (SELECT FROM pg_opclass x WHERE x.opcnamespace = n.oid AND x.opcname = w.name)
		   OR EXISTS (SELECT FROM pg_collation x WHERE x.collnamespace = n.oid AND x.collname = w.name)
		   OR EXISTS (SELECT FROM pg_operator x WHERE x.oprnamespace = n.oid AND x.oprname = w.name)
		   OR EXISTS (SELECT FROM pg_ts_config x WHERE x.cfgnamespace = n.oid AND x.cfgname = w.name)
		UNION ALL SELECT '', extname::text FROM pg_extension WHERE extname = ANY ($3)`, schemas, names, extensions)
	if err != nil {
		c.unknown("types, functions and extensions on green", "make green reachable for this role", err)
		return
	}
	there := map[have]bool{}
	for _, r := range rows {
		there[r] = true
	}
	for _, n := range conv.Needs {
		if n.Extension != "" && !there[have{"", n.Extension}] {
			c.overall("extension_missing", Blocker, n.Table, "CREATE EXTENSION "+catalog.Quote(n.Extension)+" on green", "table %s needs extension %s, which green does not have", n.Table, n.Extension)
		}
		if n.Extension == "" && !there[have{n.Schema, n.Name}] {
			c.overall("missing_on_green", Blocker, n.Table, "create it on green (for an extension's: CREATE EXTENSION … SCHEMA "+catalog.Quote(n.Schema)+")",
				"table %s uses %s, which green does not have", n.Table, n)
		}
	}
}

// greenTables compares tables that are on green already with what the copier will write.
func (c *checker) greenTables(ctx context.Context) {
	cat, err := catalog.Read(ctx, c.in.Green, []string{c.in.GreenSchema})
	if err != nil {
		c.unknown("green's tables", "make green reachable for this role", err)
		return
	}
	green := cat.Schemas[c.in.GreenSchema]
	own := c.in.Source == nil
	if green == nil {
		if own {
			c.overall("green_missing", Blocker, "", "coditectl schema apply", "green has no schema %s", c.in.GreenSchema)
		}
		return
	}
	quoted := func(s string) string { return catalog.Rewrite(s, func(schema, _ string) string { return schema }) }
	for _, t := range c.report.Layout.Tables {
		g := green.Table(t.Name)
		if g == nil {
			if own {
				c.overall("green_differs", Blocker, t.Name, "coditectl schema apply", "green has no table %s", t.Name)
			}
			continue
		}
		for _, col := range slices.Concat(t.Columns, t.Generated) {
			switch have := g.Column(col.Name); {
			case have == nil:
				c.overall("green_differs", Blocker, t.Name, "bring green in step with blue", "table %s on green has no column %s", t.Name, col.Name)
			case quoted(have.Type) != quoted(catalog.ToSelf(col.GreenType, c.in.GreenSchema)):
				c.overall("green_differs", Blocker, t.Name, "bring green in step with blue", "table %s: column %s is %s on green, it should be %s", t.Name, col.Name, have.Type, col.GreenType)
			}
		}
	}
}
