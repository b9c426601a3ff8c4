package convert

import (
	"fmt"
	"math"
	"strings"

	"github.com/coditect/platform/shared/migration/catalog"
)

func (b *builder) schemas() {
	for _, s := range b.scopes() {
		b.schemaOf(s.green)
	}
}

func (b *builder) schemaOf(name string) {
	if b.made["schema "+name] {
		return
	}
	b.made["schema "+name] = true
	q := catalog.Quote(name)
	b.add("schema "+name, "CREATE SCHEMA %s AUTHORIZATION coditect_owner", q)
	b.add("rights on schema "+name, "GRANT USAGE ON SCHEMA %s TO coditect_app, coditect_migrator, coditect_readonly", q)
}

// types makes the template's own types, those first that others are made of.
func (b *builder) types() {
	done := map[string]bool{}
	var make func(t *catalog.Type)
	make = func(t *catalog.Type) {
		if done[t.Name] {
			return
		}
		done[t.Name] = true
		catalog.Rewrite(t.Definition, func(schema, name string) string {
			if schema == catalog.Self {
				for _, other := range b.tenant.schema.Types {
					if other.Name == name {
						make(other)
					}
				}
			}
			return ""
		})
		b.createType(b.tenant, t)
	}
	for _, t := range b.tenant.schema.Types {
		make(t)
	}
}

// publicType makes a type of schema public that a table uses, once, before the table.
func (b *builder) publicType(t *catalog.Type) {
	if t.Class == catalog.ArrayType || t.Class == catalog.MultirangeType {
		t = b.cat.Types[t.Elem]
	}
	if b.made["type "+t.Name] {
		return
	}
	b.made["type "+t.Name] = true
	green := publicGreen(b.o.GreenSchema)
	b.schemaOf(green)
	b.createType(&scope{schema: &catalog.Schema{Name: publicSchema}, green: green, reference: true}, t)
}

func (b *builder) createType(s *scope, t *catalog.Type) {
	object, name := "type "+s.green+"."+t.Name, catalog.Quote(s.green, t.Name)
	switch t.Class {
	case catalog.Enum:
		labels := make([]string, len(t.Labels))
		for i, l := range t.Labels {
			labels[i] = literal(l)
		}
		b.add(object, "CREATE TYPE %s AS ENUM (%s)", name, strings.Join(labels, ", "))
	case catalog.Domain:
		b.add(object, "CREATE DOMAIN %s %s", name, b.onGreen(s, "", t.Definition))
	case catalog.Composite, catalog.RangeType:
		b.add(object, "CREATE TYPE %s %s", name, b.onGreen(s, "", t.Definition))
	default:
		b.note(Note{
			Code: "base_type", Refused: true, Message: fmt.Sprintf("type %s is a base type made by hand", t.Name),
			Action: "make it an extension and create that on green, or change the columns that use it",
		})
	}
}

func (b *builder) sequences(s *scope) {
	for _, q := range s.schema.Sequences {
		name := catalog.Quote(s.green, q.Name)
		b.add("sequence "+s.green+"."+q.Name, "CREATE SEQUENCE %s AS bigint%s", name, sequenceOptions(q))
		b.add("rights on sequence "+s.green+"."+q.Name,
			"GRANT USAGE, SELECT ON SEQUENCE %s TO coditect_app; GRANT USAGE, SELECT, UPDATE ON SEQUENCE %s TO coditect_migrator", name, name)
	}
}

// sequenceOptions prints what is not a sequence's default. The limit of a narrower
// type is a default, too: it is lifted.
func sequenceOptions(q *catalog.Sequence) string {
	var o strings.Builder
	typeMax := map[string]int64{"smallint": math.MaxInt16, "integer": math.MaxInt32, "bigint": math.MaxInt64}[q.DataType]
	defaultMin, defaultMax := int64(1), typeMax
	if q.Increment < 0 {
		defaultMin, defaultMax = -typeMax-1, -1
	}
	if q.Increment != 1 {
		fmt.Fprintf(&o, " INCREMENT BY %d", q.Increment)
	}
	if q.Min != defaultMin {
		fmt.Fprintf(&o, " MINVALUE %d", q.Min)
	}
	if q.Max != defaultMax {
		fmt.Fprintf(&o, " MAXVALUE %d", q.Max)
	}
	if start := map[bool]int64{true: q.Min, false: q.Max}[q.Increment > 0]; q.Start != start {
		fmt.Fprintf(&o, " START WITH %d", q.Start)
	}
	if q.Cache != 1 {
		fmt.Fprintf(&o, " CACHE %d", q.Cache)
	}
	if q.Cycle {
		o.WriteString(" CYCLE")
	}
	return o.String()
}

func (b *builder) table(s *scope, t *catalog.Table) {
	if !b.acceptable(s, t) {
		return
	}
	name, object := catalog.Quote(s.green, t.Name), s.green+"."+t.Name
	var lines []string
	if !s.reference {
		lines = append(lines, catalog.Quote(tenantColumn)+" uuid NOT NULL DEFAULT coditect.current_tenant()")
	}
	for _, c := range t.Columns {
		lines = append(lines, b.column(s, t, c))
	}
	for _, k := range t.Constraints {
		switch k.Type {
		case catalog.PrimaryKey:
			lines = append(lines, b.prefixed(s, t, k))
		case catalog.Check:
			def := strings.TrimSuffix(k.Definition, " NOT VALID")
			lines = append(lines, "CONSTRAINT "+catalog.Quote(k.Name)+" "+b.onGreen(s, t.Name, def))
		case catalog.ForeignKey:
			if l := fullMatch(k); l != "" && !s.reference {
				lines = append(lines, l)
			}
		}
	}
	b.add("table "+object, "CREATE TABLE %s (\n    %s\n)", name, strings.Join(lines, ",\n    "))
	for _, q := range s.schema.Sequences {
		// So that dropping the table drops its sequence, and giving it to another owner takes it along.
		if q.Table == t.Name && q.Column != "" {
			b.add("owner of sequence "+s.green+"."+q.Name, "ALTER SEQUENCE %s OWNED BY %s", catalog.Quote(s.green, q.Name), catalog.Quote(s.green, t.Name, q.Column))
		}
	}
	b.add("owner of table "+object, "ALTER TABLE %s OWNER TO coditect_owner", name)
	if s.reference {
		b.add("reference table "+object, "SELECT coditect.reference(%s)", literal(name))
		return
	}
	b.add("protection of table "+object, "SELECT coditect.protect(%s)", literal(name))
	b.add("distribution of table "+object, "SELECT coditect.distribute(%s)", literal(name))
}

// acceptable reports whether green can have such a table, and notes why not.
func (b *builder) acceptable(s *scope, t *catalog.Table) bool {
	refuse := func(code, action, format string, args ...any) {
		b.note(Note{Code: code, Refused: true, Table: t.Name, Message: "table " + t.Name + " " + fmt.Sprintf(format, args...), Action: action})
	}
	before := len(b.out.Notes)
	exclude := "change it, or leave it out with exclude_tables"
	switch {
	case t.Kind == catalog.Foreign:
		refuse("foreign_table", exclude, "is a foreign table")
	case t.Kind == catalog.Partitioned || t.IsPartition:
		refuse("partitioned_table", exclude, "is partitioned, which this version does not convert")
	case len(t.Parents) > 0:
		refuse("inherited_table", exclude, "inherits from %s", strings.Join(t.Parents, ", "))
	}
	switch pk := t.PrimaryKey(); {
	case pk == nil:
		refuse("no_primary_key", "give it a primary key (ALTER TABLE … ADD PRIMARY KEY), or leave it out with exclude_tables", "has no primary key")
	case pk.Deferrable:
		refuse("deferrable_primary_key", "make the primary key not deferrable", "has a deferrable primary key")
	}
	if !s.reference && t.Column(tenantColumn) != nil {
		refuse("tenant_id_taken", "rename that column, or leave the table out with exclude_tables", "has a column tenant_id of its own")
	}
	for _, c := range t.Columns {
		if c.Sequence == "" && !c.Generated && strings.Contains(c.Default, "nextval(") {
			refuse("foreign_sequence", "give the column a sequence in its own schema", "column %s takes its default from another schema's sequence (%s)", c.Name, c.Default)
		}
		if b.o.Citus && b.isMadeOfOwnRange(c.TypeOID) {
			refuse("range_type", "use a built-in range type, leave the table out with exclude_tables, or move to a green without Citus",
				"column %s has a range type of the application's own, which Citus cannot distribute", c.Name)
		}
		if c.Sequence != "" && b.o.Citus && b.isNarrowDomain(c) {
			refuse("narrow_domain_key", "make the domain's base type bigint, or the column a plain integer",
				"column %s is fed by a sequence and its type is a domain over a type of less than 8 bytes", c.Name)
		}
	}
	return len(b.out.Notes) == before
}

func (b *builder) isMadeOfOwnRange(oid uint32) bool {
	t := b.cat.Types[oid]
	for t != nil && (t.Class == catalog.ArrayType || t.Class == catalog.Domain) {
		if t.Class == catalog.Domain {
			t = b.cat.Types[t.Base]
		} else {
			t = b.cat.Types[t.Elem]
		}
	}
	return t != nil && (t.Class == catalog.RangeType || t.Class == catalog.MultirangeType) && t.Schema != "pg_catalog"
}

func (b *builder) isNarrowDomain(c *catalog.Column) bool {
	t := b.cat.Types[c.TypeOID]
	domain := t != nil && t.Class == catalog.Domain
	for t != nil && t.Class == catalog.Domain {
		t = b.cat.Types[t.Base]
	}
	return domain && t != nil && (t.Name == "int4" || t.Name == "int2")
}

func (b *builder) column(s *scope, t *catalog.Table, c *catalog.Column) string {
	line := catalog.Quote(c.Name) + " " + b.greenType(s, t, c)
	if c.Collation != "" {
		line += " COLLATE " + b.onGreen(s, t.Name, c.Collation)
		// Built-in ones differ from server to server, too.
		if name, ok := strings.CutPrefix(c.Collation, "pg_catalog."); ok {
			b.need(Need{Schema: "pg_catalog", Name: catalog.Unquote(name), Table: t.Name})
		}
	}
	if c.NotNull {
		line += " NOT NULL"
	}
	switch {
	case c.Generated:
		line += " GENERATED ALWAYS AS (" + b.onGreen(s, t.Name, c.Default) + ") STORED"
	case c.Identity != "" && c.Sequence != "":
		line += " DEFAULT nextval(" + literal(catalog.Quote(s.green, c.Sequence)) + "::regclass)"
	case c.Default != "":
		line += " DEFAULT " + b.onGreen(s, t.Name, c.Default)
	}
	if c.Identity == "a" {
		b.note(Note{
			Code: "identity_always", Table: t.Name,
			Message: fmt.Sprintf("table %s: column %s is GENERATED ALWAYS AS IDENTITY; on green it has a default, so a value given by the application is no longer refused", t.Name, c.Name),
			Action:  "nothing, unless the application relies on the refusal",
		})
	}
	return line
}

func (b *builder) greenType(s *scope, t *catalog.Table, c *catalog.Column) string {
	if b.wide[columnKey{s.reference, t.Name, c.Name}] {
		return "bigint"
	}
	return b.onGreen(s, t.Name, c.Type)
}

// fullMatch stands in for MATCH FULL over several columns: with tenant_id, which is
// never null, in the key, PostgreSQL would refuse every key that is null.
func fullMatch(k *catalog.Constraint) string {
	if !k.MatchFull || len(k.Columns) < 2 {
		return ""
	}
	return fmt.Sprintf("CONSTRAINT %s CHECK (num_nulls(%s) IN (0, %d))", catalog.Quote(cut(k.Name+"_full", 63)), quoteAll(k.Columns), len(k.Columns))
}

func literal(s string) string {
	// A backslash needs the E form only where standard_conforming_strings is off, which PostgreSQL has not been since 9.1.
	return "'" + strings.ReplaceAll(s, "'", "''") + "'"
}

func quoteAll(names []string) string {
	q := make([]string, len(names))
	for i, n := range names {
		q[i] = catalog.Quote(n)
	}
	return strings.Join(q, ", ")
}

// cut shortens a name to PostgreSQL's limit in bytes without splitting a character.
func cut(name string, limit int) string {
	if len(name) <= limit {
		return name
	}
	for limit > 0 && name[limit]&0xC0 == 0x80 {
		limit--
	}
	return name[:limit]
}
