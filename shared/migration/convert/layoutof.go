package convert

import (
	"slices"
	"strings"

	"github.com/coditect/platform/shared/migration/catalog"
)

// layout fills in what the copier needs.
func (b *builder) layout() {
	l := &b.out.Layout
	for _, s := range b.scopes() {
		var tables []Table
		for _, t := range s.schema.Tables {
			tables = append(tables, b.layoutTable(s, t))
		}
		if s.reference {
			l.References = byReference(s.schema, tables)
			continue
		}
		l.Tables = byReference(s.schema, tables)
		for _, q := range s.schema.Sequences {
			l.Sequences = append(l.Sequences, layoutSequence(s.schema, q))
		}
		for _, t := range s.schema.Tables {
			b.layoutKeys(s, t)
		}
	}
}

func (b *builder) layoutTable(s *scope, t *catalog.Table) Table {
	out := Table{Name: t.Name, Binary: true, HasTenantColumn: b.o.Own}
	if s.reference {
		out.Schema = s.schema.Name
	}
	for _, c := range t.Columns {
		col := Column{Name: c.Name, BlueType: c.Type, GreenType: c.Type}
		if b.o.Own {
			col.GreenType = catalog.FromSelf(c.Type, s.green)
		} else {
			col.GreenType = b.greenType(s, t, c)
		}
		col.Cast = b.wide[columnKey{s.reference, t.Name, c.Name}]
		col.Text = b.hasOwnType(s, c.TypeOID)
		if c.Generated {
			out.Generated = append(out.Generated, col)
			continue
		}
		out.Columns = append(out.Columns, col)
		out.Binary = out.Binary && b.binarySafe(c.TypeOID)
	}
	if pk := t.PrimaryKey(); pk != nil {
		out.Key = withoutTenant(pk.Columns, b.o.Own)
	}
	return out
}

// hasOwnType reports whether a type, or what a domain is made of, is one of the tenant's schema.
func (b *builder) hasOwnType(s *scope, oid uint32) bool {
	t := b.cat.Types[oid]
	for t != nil && t.Class == catalog.Domain {
		t = b.cat.Types[t.Base]
	}
	return t != nil && !s.reference && t.Schema == s.schema.Name
}

// binarySafe reports whether a value's binary form means the same in every database.
// An array's names its element type by number, which differs for types that are
// not built in; so does a composite's.
func (b *builder) binarySafe(oid uint32) bool {
	t := b.cat.Types[oid]
	if t == nil {
		return false
	}
	builtIn := t.Schema == "pg_catalog"
	switch t.Class {
	case catalog.Enum:
		return true
	case catalog.Domain:
		return b.binarySafe(t.Base)
	case catalog.BaseType:
		return builtIn && !IsObjectReference(t.Name)
	case catalog.ArrayType, catalog.RangeType, catalog.MultirangeType:
		return builtIn && b.binarySafe(t.Elem)
	}
	return false
}

// IsObjectReference reports whether a built-in type holds the number of a database
// object, which means nothing in another database.
func IsObjectReference(typeName string) bool {
	return typeName == "oid" || strings.HasPrefix(typeName, "reg") || typeName == "xid" || typeName == "cid" || typeName == "tid"
}

func layoutSequence(s *catalog.Schema, q *catalog.Sequence) Sequence {
	out := Sequence{Blue: q.Name, Green: q.Name, Increment: q.Increment}
	for _, t := range s.Tables {
		for _, c := range t.Columns {
			if c.Sequence == q.Name && out.Table == "" {
				out.Table, out.Column = t.Name, c.Name
			}
		}
	}
	return out
}

func (b *builder) layoutKeys(s *scope, t *catalog.Table) {
	for _, k := range t.Constraints {
		if k.Type != catalog.ForeignKey {
			continue
		}
		ref := b.target(s, k)
		if ref == nil {
			continue
		}
		b.out.Layout.ForeignKeys = append(b.out.Layout.ForeignKeys, ForeignKey{
			Name: k.Name, Table: t.Name, Columns: withoutTenant(k.Columns, b.o.Own), RefTable: k.RefTable,
			RefColumns: withoutTenant(k.RefColumns, b.o.Own), RefPublic: ref.reference && !s.reference, MatchFull: k.MatchFull,
		})
	}
}

func withoutTenant(columns []string, own bool) []string {
	if !own {
		return columns
	}
	return slices.DeleteFunc(slices.Clone(columns), func(c string) bool { return c == tenantColumn })
}

// byReference orders tables so that a table comes after those it refers to, where
// keys do not go in a circle; otherwise by name.
func byReference(s *catalog.Schema, tables []Table) []Table {
	byName := map[string]Table{}
	for _, t := range tables {
		byName[t.Name] = t
	}
	var out []Table
	visited := map[string]bool{}
	var visit func(name string)
	visit = func(name string) {
		if _, ok := byName[name]; !ok || visited[name] {
			return
		}
		visited[name] = true
		for _, k := range s.Table(name).Constraints {
			if k.Type == catalog.ForeignKey && k.RefSchema == catalog.Self {
				visit(k.RefTable)
			}
		}
		out = append(out, byName[name])
	}
	for _, t := range tables {
		visit(t.Name)
	}
	return out
}
