package convert

import (
	"maps"
	"slices"
)

// Layout is what the copier and the verifier need to know: for one template, which
// tables and columns go where. Names are bare: quote them with
// pgx.Identifier{schema, name}.Sanitize().
type Layout struct {
	GreenSchema string
	// PublicSchema is where the public tables of the source live on green, as
	// reference tables; "" when there are none.
	PublicSchema string
	// Tables are the tenant's tables, a referenced table before the ones that refer
	// to it as far as the keys allow.
	Tables []Table
	// References are the public tables that become reference tables. Their rows are
	// copied once per source, by its registration, and not per tenant; their blue schema is Table.Schema.
	References  []Table
	Sequences   []Sequence
	ForeignKeys []ForeignKey
}

// Table is one table to copy.
type Table struct {
	// Schema is the blue schema of a reference table; "" for a tenant's table, whose
	// schema is the tenant's.
	Schema string
	Name   string // the same on both sides
	// Columns are copied, in this order. For a foreign source they are the blue
	// columns, and green has tenant_id in front of them; when HasTenantColumn is
	// set, tenant_id is one of them.
	Columns []Column
	// Generated columns are computed by green and therefore not copied; verify them.
	Generated []Column
	// Key are the primary key's columns without tenant_id.
	Key []string
	// HasTenantColumn is set when the blue table has tenant_id already: our own schemas.
	HasTenantColumn bool
	// Binary says that COPY BINARY gives the same values: every column's type is
	// built in (or an enum, or a domain over such a type) and the same on both sides after its cast.
	Binary bool
}

// Column is one column to copy.
type Column struct {
	Name      string
	BlueType  string // as SQL, with catalog.Self for the tenant's own schema
	GreenType string // as SQL, qualified
	// Cast is set when the types differ: select "name"::GreenType on blue. It is only
	// ever set for built-in types, so that blue knows the name as well.
	Cast bool
	// Text is set when the type is the tenant's own: no statement can take such values of two tenants together but as
	// text. COPY's forms of the two are the same, for an enum the binary one, too.
	Text bool
}

// Sequence is one sequence: Green's must be past Blue's before the tenant opens on green.
type Sequence struct {
	Blue, Green   string // names within the tenant's schema and within GreenSchema
	Table, Column string // the column it feeds; empty for a sequence that stands alone
	Increment     int64
}

// ForeignKey is one foreign key between two tables of the tenant, or from a
// tenant's table to a reference table (RefPublic). The columns are without tenant_id.
type ForeignKey struct {
	Name       string
	Table      string
	Columns    []string
	RefTable   string
	RefColumns []string
	RefPublic  bool
	// MatchFull is set for MATCH FULL keys: all columns are null or none is.
	MatchFull bool
}

// Statement is one step of making the green tables.
type Statement struct {
	// Object names what the statement makes, unique within a plan: "table legacy.work_task".
	Object string
	SQL    string
}

// Note is something the conversion could not bring along or had to change.
type Note struct {
	Code    string // stable, snake_case
	Refused bool   // the conversion cannot be done while this stands
	Table   string
	Message string // what is so
	Action  string // what to do about it
}

// CanonicalText are the settings of a transaction under which a value has one text in both
// databases: what hashes and copies are compared by. Literal SET LOCALs, each to be sent as a
// message of its own on green, reach Citus workers too.
func CanonicalText() []string {
	var out []string
	for name, value := range canonical {
		out = append(out, "SET LOCAL "+name+" = '"+value+"'")
	}
	slices.Sort(out)
	return append(out, `SET LOCAL statement_timeout = 0`)
}

// CanonicalSettings are the same for a whole session, by name.
func CanonicalSettings() map[string]string { return maps.Clone(canonical) }

var canonical = map[string]string{
	"timezone": "UTC", "datestyle": "ISO, YMD", "intervalstyle": "postgres", "extra_float_digits": "1", "bytea_output": "hex", "xmloption": "content",
}
