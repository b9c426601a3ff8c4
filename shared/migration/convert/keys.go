package convert

import (
	"fmt"
	"strings"

	"github.com/coditect/platform/shared/migration/catalog"
)

// prefixed prints a key's constraint with tenant_id in front of its columns. Its
// definition is "PRIMARY KEY (…", "UNIQUE NULLS NOT DISTINCT (…" or "EXCLUDE USING gist (…".
func (b *builder) prefixed(s *scope, t *catalog.Table, k *catalog.Constraint) string {
	def := b.onGreen(s, t.Name, k.Definition)
	if !s.reference {
		head, rest, _ := strings.Cut(def, "(")
		with := ""
		if k.Type == catalog.Exclusion {
			with = " WITH ="
		}
		def = head + "(" + catalog.Quote(tenantColumn) + with + ", " + rest
	}
	return "CONSTRAINT " + catalog.Quote(k.Name) + " " + def
}

// uniques adds a table's unique and exclusion constraints and its indexes.
func (b *builder) uniques(s *scope, t *catalog.Table) {
	table, object := catalog.Quote(s.green, t.Name), s.green+"."+t.Name
	for _, k := range t.Constraints {
		switch k.Type {
		case catalog.Exclusion:
			if !s.reference && !b.excludable(t, k) {
				continue
			}
			fallthrough
		case catalog.Unique:
			b.add("constraint "+k.Name+" of "+object, "ALTER TABLE %s ADD %s", table, b.prefixed(s, t, k))
		}
	}
	for _, i := range t.Indexes {
		if !i.Valid {
			b.note(Note{
				Code: "invalid_index", Table: t.Name, Message: fmt.Sprintf("table %s: index %s is invalid and does not come along", t.Name, i.Name),
				Action: "REINDEX INDEX CONCURRENTLY, or drop it",
			})
			continue
		}
		unique, prefix := "", ""
		if i.Unique {
			unique = "UNIQUE "
		}
		// Every query of a tenant names the tenant, so a btree without it would be read across all tenants.
		// Other methods (gin, gist, brin, hash) have no use for a leading column.
		if i.Method == "btree" && !s.reference {
			prefix = catalog.Quote(tenantColumn) + ", "
		}
		b.add("index "+i.Name+" of "+object, "CREATE %sINDEX %s ON %s USING %s (%s%s", unique, catalog.Quote(i.Name), table, i.Method, prefix, b.onGreen(s, t.Name, i.Keys))
	}
}

// excludable reports whether tenant_id WITH = can stand in the constraint.
func (b *builder) excludable(t *catalog.Table, k *catalog.Constraint) bool {
	switch {
	case strings.HasPrefix(k.Definition, "EXCLUDE USING gist "):
		b.need(Need{Extension: "btree_gist", Table: t.Name}) // an operator class for uuid
		return true
	case strings.HasPrefix(k.Definition, "EXCLUDE USING btree "):
		return true
	}
	b.note(Note{
		Code: "exclusion_method", Refused: true, Table: t.Name,
		Message: fmt.Sprintf("table %s: constraint %s excludes by a method that cannot hold tenant_id (%s)", t.Name, k.Name, k.Definition),
		Action:  "make it USING gist",
	})
	return false
}

func (b *builder) foreignKeys(s *scope, t *catalog.Table) {
	for _, k := range t.Constraints {
		if k.Type != catalog.ForeignKey {
			continue
		}
		ref := b.target(s, k)
		if ref == nil {
			b.dropped(t, k)
			continue
		}
		columns, refColumns := quoteAll(k.Columns), quoteAll(k.RefColumns)
		if !ref.reference {
			columns, refColumns = catalog.Quote(tenantColumn)+", "+columns, catalog.Quote(tenantColumn)+", "+refColumns
		}
		b.add("foreign key "+k.Name+" of "+s.green+"."+t.Name, "ALTER TABLE %s ADD CONSTRAINT %s FOREIGN KEY (%s) REFERENCES %s (%s)%s",
			catalog.Quote(s.green, t.Name), catalog.Quote(k.Name), columns, catalog.Quote(ref.green, k.RefTable), refColumns, b.actions(t, k, ref))
	}
}

func (b *builder) dropped(t *catalog.Table, k *catalog.Constraint) {
	n := Note{
		Code: "foreign_key_dropped", Table: t.Name,
		Message: fmt.Sprintf("table %s: foreign key %s does not come along, because %s stays where it is", t.Name, k.Name, k.RefTable),
		Action:  "nothing, or let the application check it",
	}
	switch k.RefSchema {
	case catalog.Self: // an excluded table
	case publicSchema:
		n.Action = fmt.Sprintf("name it in public_tables (%s: reference) to keep the key", k.RefTable)
	default:
		n.Code, n.Refused = "foreign_key_elsewhere", true
		n.Message = fmt.Sprintf("table %s: foreign key %s refers to schema %s", t.Name, k.Name, k.RefSchema)
		n.Action = "let it refer to the tenant's own schema or to public"
	}
	b.note(n)
}

// actions prints what happens to a key when the row it refers to goes or changes.
func (b *builder) actions(t *catalog.Table, k *catalog.Constraint, ref *scope) string {
	var out strings.Builder
	composite := !ref.reference // tenant_id is part of the key
	if k.MatchFull && !composite {
		out.WriteString(" MATCH FULL")
	}
	switch k.OnUpdate {
	case "r":
		out.WriteString(" ON UPDATE RESTRICT")
	case "c", "n", "d":
		word := map[string]string{"c": "CASCADE", "n": "SET NULL", "d": "SET DEFAULT"}[k.OnUpdate]
		// SET NULL and SET DEFAULT take no column list here and would change tenant_id; Citus refuses all three.
		if composite && (b.o.Citus || k.OnUpdate != "c") {
			b.note(Note{
				Code: "on_update_dropped", Table: t.Name,
				Message: fmt.Sprintf("table %s: foreign key %s loses ON UPDATE %s: changing a referenced key is refused on green", t.Name, k.Name, word),
				Action:  "nothing, unless the application changes primary keys",
			})
			break
		}
		out.WriteString(" ON UPDATE " + word)
	}
	out.WriteString(b.onDelete(t, k, composite))
	if k.Deferrable {
		out.WriteString(" DEFERRABLE")
	}
	if k.Deferred {
		out.WriteString(" INITIALLY DEFERRED")
	}
	return out.String()
}

func (b *builder) onDelete(t *catalog.Table, k *catalog.Constraint, composite bool) string {
	switch k.OnDelete {
	case "r":
		return " ON DELETE RESTRICT"
	case "c":
		return " ON DELETE CASCADE"
	case "n", "d":
	default:
		return ""
	}
	word := map[string]string{"n": "SET NULL", "d": "SET DEFAULT"}[k.OnDelete]
	// Citus looks at the key's columns only, not at the list of those that are set, and refuses.
	if composite && b.o.Citus {
		b.note(Note{
			Code: "on_delete_dropped", Table: t.Name,
			Message: fmt.Sprintf("table %s: foreign key %s loses ON DELETE %s, which Citus refuses: deleting a row that is still referred to is refused on green", t.Name, k.Name, word),
			Action:  "let the application clear the reference first (Django does), or move to a green without Citus",
		})
		return ""
	}
	columns := k.DeleteColumns
	if len(columns) == 0 && composite {
		columns = k.Columns // so that tenant_id stays
	}
	if len(columns) == 0 {
		return " ON DELETE " + word
	}
	return " ON DELETE " + word + " (" + quoteAll(columns) + ")"
}
