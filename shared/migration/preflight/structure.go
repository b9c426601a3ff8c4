package preflight

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/coditect/platform/shared/migration/catalog"
	"github.com/coditect/platform/shared/migration/convert"
)

const exclude = "change it, or leave it out with exclude_tables"

// structure checks every tenant's tables by themselves.
func (c *checker) structure() {
	for name, s := range c.blue.Schemas {
		for _, t := range s.Tables {
			c.table(name, t)
			c.columns(name, t)
			c.rules(name, t)
		}
		left := map[string][]string{}
		for _, o := range s.Others {
			if c.in.Source == nil && o.Kind == "statistics object" {
				continue // our own SQL makes them on green, too
			}
			left[o.Kind] = append(left[o.Kind], o.Name)
		}
		for kind, names := range left {
			c.of(name, "object_left", Warning, "", "make it on green by hand if it is needed there", "%s %s does not come along", kind, strings.Join(slices.Compact(names), ", "))
		}
	}
}

func (c *checker) table(schema string, t *catalog.Table) {
	switch {
	case t.Kind == catalog.Foreign:
		c.of(schema, "foreign_table", Blocker, t.Name, exclude, "table %s is a foreign table", t.Name)
		return
	case t.Kind == catalog.Partitioned || t.IsPartition:
		c.of(schema, "partitioned_table", Blocker, t.Name, exclude, "table %s is partitioned, which this version does not move", t.Name)
		return
	case len(t.Parents) > 0:
		c.of(schema, "inherited_table", Blocker, t.Name, exclude, "table %s inherits from %s", t.Name, strings.Join(t.Parents, ", "))
	}
	if t.Persistence != catalog.Permanent {
		c.of(schema, "unlogged_table", Blocker, t.Name, "ALTER TABLE … SET LOGGED, or leave it out with exclude_tables",
			"table %s is unlogged: a crash of blue would empty it during the move", t.Name)
	}
	switch pk := t.PrimaryKey(); {
	case pk == nil:
		c.of(schema, "no_primary_key", Blocker, t.Name, "give it a primary key (ALTER TABLE … ADD PRIMARY KEY), or leave it out with exclude_tables",
			"table %s has no primary key", t.Name)
	case pk.Deferrable:
		c.of(schema, "deferrable_primary_key", Blocker, t.Name, "make the primary key not deferrable", "table %s has a deferrable primary key", t.Name)
	}
	if c.in.Source == nil {
		if col := t.Column("tenant_id"); col == nil || col.Type != "uuid" || !col.NotNull {
			c.of(schema, "no_tenant_column", Blocker, t.Name, "add it: every table of ours has tenant_id uuid NOT NULL", "table %s has no column tenant_id uuid NOT NULL", t.Name)
		}
	}
}

func (c *checker) columns(schema string, t *catalog.Table) {
	for _, col := range t.Columns {
		switch object := c.objectType(col.TypeOID); object {
		case "":
		case "oid", "lo":
			c.of(schema, "large_object", Blocker, t.Name, "store the bytes in a bytea column, or leave the table out with exclude_tables",
				"table %s: column %s has type %s; large objects are outside the schema and would stay behind", t.Name, col.Name, object)
		default:
			c.of(schema, "object_reference", Blocker, t.Name, "store the name as text, or leave the table out with exclude_tables",
				"table %s: column %s has type %s, whose values name objects of this database only", t.Name, col.Name, object)
		}
	}
}

// objectType returns the name of the type that refers to database objects which a
// column's type is, or is made of; "" when it is none.
func (c *checker) objectType(oid uint32) string {
	t := c.blue.Types[oid]
	for t != nil {
		switch {
		case t.Name == "lo":
			return t.Name
		case t.Class == catalog.Domain:
			t = c.blue.Types[t.Base]
		case t.Class == catalog.ArrayType, t.Class == catalog.RangeType:
			t = c.blue.Types[t.Elem]
		case t.Schema == "pg_catalog" && convert.IsObjectReference(t.Name):
			return t.Name
		default:
			return ""
		}
	}
	return ""
}

func (c *checker) rules(schema string, t *catalog.Table) {
	for _, k := range t.Constraints {
		if !k.Validated {
			c.of(schema, "not_valid", Blocker, t.Name, "ALTER TABLE … VALIDATE CONSTRAINT "+catalog.Quote(k.Name)+", or drop it",
				"table %s: constraint %s is NOT VALID: rows may be there that green would refuse", t.Name, k.Name)
		}
	}
	for _, i := range t.Indexes {
		if !i.Valid {
			c.of(schema, "invalid_index", Warning, t.Name, "REINDEX INDEX CONCURRENTLY, or drop it", "table %s: index %s is invalid and does not come along", t.Name, i.Name)
		}
	}
	for _, g := range t.Triggers {
		if g.Enabled {
			c.of(schema, "trigger_left", Warning, t.Name, "do in the application what the trigger does",
				"table %s: trigger %s (%s) does not come along", t.Name, g.Name, strings.ReplaceAll(g.Function, catalog.Self+".", ""))
		}
	}
	for _, r := range t.Rules {
		c.of(schema, "rule_left", Warning, t.Name, "do in the application what the rule does", "table %s: rule %s does not come along", t.Name, r)
	}
}

// estimates tells how long each tenant's writes would wait.
func (c *checker) estimates() {
	for name, s := range c.blue.Schemas {
		e := Estimate{Schema: name, Tenant: c.names[name]}
		guessed := false
		for _, t := range s.Tables {
			e.Bytes += t.Bytes
			switch {
			case t.Rows >= 0:
				e.Rows += t.Rows
			case t.Bytes > 0:
				e.Rows += t.Bytes / BytesPerRow
				guessed = true
			}
		}
		e.Pause, e.Work = c.in.Speed.pause(e, len(s.Tables)), c.in.Speed.work(e, len(s.Tables))
		c.report.Estimates = append(c.report.Estimates, e)
		if c.in.MaxPause <= 0 || e.Pause <= c.in.MaxPause {
			continue
		}
		hint := ""
		if guessed {
			hint = " (guessed from the size of the files: ANALYZE makes it exact)"
		}
		c.of(name, "pause_too_long", Blocker, "", fmt.Sprintf("raise --max-pause to %s, or wait for the online way", roundUp(e.Pause)),
			"writes would wait about %s for %d rows and %.1f MB%s, %s are allowed", roundUp(e.Pause), e.Rows, float64(e.Bytes)/1e6, hint, c.in.MaxPause)
	}
}

// BytesPerRow guesses the rows of a table that was never analysed.
const BytesPerRow = 100

func (s Speed) pause(e Estimate, tables int) time.Duration {
	if e.Bytes <= s.AheadMax {
		return s.PerTenant + time.Duration(tables)*s.PerTable + time.Duration(2*float64(e.Rows)/s.CountsPerSecond*float64(time.Second)) // in both databases
	}
	if s.Online {
		return s.PerTenant + time.Duration(tables)*s.PerTable
	}
	return s.work(e, tables)
}

// work is how long a step takes for a tenant: copying, verifying, fence and flip.
func (s Speed) work(e Estimate, tables int) time.Duration {
	seconds := math.Max(float64(e.Bytes)/s.BytesPerSecond, float64(e.Rows)/s.RowsPerSecond)
	return s.PerTenant + time.Duration(tables)*s.PerTable + time.Duration(seconds*float64(time.Second))
}

func roundUp(d time.Duration) time.Duration {
	unit := 10 * time.Millisecond
	if d > time.Second {
		unit = 100 * time.Millisecond
	}
	return (d + unit - 1).Truncate(unit)
}

// chooseTemplate picks the schema that the others are compared with.
func (c *checker) chooseTemplate() bool {
	if len(c.blue.Schemas) == 0 {
		return false
	}
	if s := c.in.Source; s != nil && s.TemplateSchema != "" {
		if c.template == nil {
			c.overall("template_missing", Blocker, "", "register the source again with another template_schema, or without one",
				"there is no schema %s any more, which green's tables were made from", s.TemplateSchema)
			return false
		}
		c.report.Template = s.TemplateSchema
		return true
	}
	c.report.Template = c.blue.MostCommon(nil)
	c.template = c.blue.Schemas[c.report.Template]
	return true
}

// maxDifferences keeps the message about one tenant readable.
const maxDifferences = 10

// drift compares every tenant with the template; equal structures are compared once.
func (c *checker) drift() {
	want := c.template.Fingerprint()
	known := map[string][]catalog.Difference{}
	for name, s := range c.blue.Schemas {
		print := s.Fingerprint()
		if print == want {
			continue
		}
		ds, ok := known[print]
		if !ok {
			ds = catalog.Differences(c.template, s)
			known[print] = ds
		}
		severity, action, table := Warning, "bring the schema in step with the others if the difference matters", ds[0].Table
		var texts []string
		for _, d := range ds {
			if d.Breaks {
				severity, action = Blocker, "bring the schema in step with the others (run the application's migrations for this tenant), then check again"
			}
			if d.Table != table {
				table = ""
			}
			texts = append(texts, d.Text)
		}
		if n := len(texts) - maxDifferences; n > 0 {
			texts = append(texts[:maxDifferences], fmt.Sprintf("and %d more", n))
		}
		c.of(name, "drift", severity, table, action, "the structure differs from %s: %s", c.report.Template, strings.Join(texts, "; "))
	}
}
