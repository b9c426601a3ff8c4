// Package catalog reads the structure of many schemas of one PostgreSQL database
// at once: tables, columns, constraints, indexes, sequences, types, triggers and
// rules. It costs one round trip and one query per kind of object, never one per
// schema, so that a database of thousands of tenants is read in seconds.
//
// Names of a schema's own objects inside expressions and definitions are stored
// with the placeholder Self in place of the schema's name ("§.mood"), so that two
// tenants of the same structure give the same text. Rewrite turns the placeholder
// into a real schema again.
package catalog

// Self stands for the schema's own name in every expression, definition and type
// name of this package. PostgreSQL prints an identifier with this character only
// in double quotes, so the bare character cannot be anything else.
const Self = "§"

// Catalog is what Read found.
type Catalog struct {
	// Schemas holds the schemas that exist, by name; a schema that was asked for
	// and is missing here does not exist in the database.
	Schemas map[string]*Schema
	// Types holds every type of the database that is not a table's row type.
	Types map[uint32]*Type
}

// Schema is the structure of one schema.
type Schema struct {
	Name      string
	Owner     string
	Tables    []*Table // by name; everything that holds rows, also foreign and partitioned tables
	Sequences []*Sequence
	Types     []*Type  // enums, domains, composites and ranges made in this schema
	Others    []Object // views, materialised views, functions: things a move does not bring along
}

// Table is a relation that holds rows.
type Table struct {
	OID              uint32
	Name             string
	Kind             Kind
	Persistence      Persistence
	ReplicaIdentity  string // d default, n nothing, f full, i index
	Owner            string
	Bytes            int64 // heap and TOAST, without maps and indexes
	Rows             int64 // estimate; -1 when the table was never analysed
	RowSecurity      bool
	ForceRowSecurity bool
	Policies         int
	Parents          []string // tables it inherits from, qualified
	IsPartition      bool
	Columns          []*Column // in their order
	Constraints      []*Constraint
	Indexes          []*Index // without those that a constraint made
	Triggers         []Trigger
	Rules            []string
}

// Kind is a relation's relkind.
type Kind string

// The kinds.
const (
	Ordinary    Kind = "r"
	Partitioned Kind = "p"
	Foreign     Kind = "f"
)

// Persistence is a relation's relpersistence.
type Persistence string

// The persistences.
const (
	Permanent Persistence = "p"
	Unlogged  Persistence = "u"
	Temporary Persistence = "t"
)

// Column is one column.
type Column struct {
	Name      string
	Num       int16
	Type      string // as format_type prints it, own types as §.name
	TypeOID   uint32
	NotNull   bool
	Default   string // expression; for a generated column the generation expression
	Generated bool   // GENERATED ALWAYS AS (…) STORED
	Identity  string // "", "a" (ALWAYS) or "d" (BY DEFAULT)
	Collation string // "" when it is the type's own; else quoted and qualified
	Sequence  string // name of the own sequence that feeds it, by identity or default
}

// Constraint is a primary key, unique, check, exclusion or foreign key constraint.
type Constraint struct {
	Name       string
	Type       ConstraintType
	Columns    []string
	Definition string // pg_get_constraintdef, own names as §.name
	Deferrable bool
	Deferred   bool // INITIALLY DEFERRED
	Validated  bool

	// Foreign keys only.
	RefSchema     string // Self for a table of the same schema
	RefTable      string
	RefColumns    []string
	OnDelete      string // a no action, r restrict, c cascade, n set null, d set default
	OnUpdate      string
	DeleteColumns []string // ON DELETE SET NULL (columns)
	MatchFull     bool
}

// ConstraintType is pg_constraint.contype.
type ConstraintType string

// The constraint types.
const (
	PrimaryKey ConstraintType = "p"
	Unique     ConstraintType = "u"
	Check      ConstraintType = "c"
	Exclusion  ConstraintType = "x"
	ForeignKey ConstraintType = "f"
)

// Index is an index that no constraint made.
type Index struct {
	Name   string
	Method string // btree, gin, …
	Unique bool
	Valid  bool
	// Keys is the text of the definition from the first key on, after the opening
	// parenthesis: `project_id, title) WHERE (status = 'todo'::text)`.
	Keys string
}

// Sequence is a sequence.
type Sequence struct {
	Name      string
	DataType  string // smallint, integer, bigint
	Start     int64
	Increment int64
	Min, Max  int64
	Cache     int64
	Cycle     bool
	Table     string // the column that owns it, if any
	Column    string
}

// Type is a data type. The fields after Extension are filled for the types of the
// schemas that were asked for and for every other type outside pg_catalog.
type Type struct {
	OID       uint32
	Schema    string
	Name      string
	Class     TypeClass
	Elem      uint32 // element type of an array, subtype of a range or multirange
	Base      uint32 // base type of a domain
	Extension string // the extension it belongs to, if any
	Labels    []string
	// Definition is the rest of CREATE DOMAIN/TYPE after the name, for domains,
	// composites and ranges.
	Definition string
}

// TypeClass says what a type is made of.
type TypeClass string

// The classes.
const (
	BaseType       TypeClass = "b"
	ArrayType      TypeClass = "A"
	Composite      TypeClass = "c"
	Domain         TypeClass = "d"
	Enum           TypeClass = "e"
	PseudoType     TypeClass = "p"
	RangeType      TypeClass = "r"
	MultirangeType TypeClass = "m"
)

// Trigger is a trigger of the user.
type Trigger struct {
	Name     string
	Function string // qualified
	Enabled  bool
}

// Object is something a move does not bring along.
type Object struct {
	Kind string // "view", "materialized view", "function", …
	Name string
}

// Table returns the table of that name, or nil.
func (s *Schema) Table(name string) *Table {
	for _, t := range s.Tables {
		if t.Name == name {
			return t
		}
	}
	return nil
}

// Sequence returns the sequence of that name, or nil.
func (s *Schema) Sequence(name string) *Sequence {
	for _, q := range s.Sequences {
		if q.Name == name {
			return q
		}
	}
	return nil
}

// Column returns the column of that name, or nil.
func (t *Table) Column(name string) *Column {
	for _, c := range t.Columns {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// PrimaryKey returns the primary key, or nil.
func (t *Table) PrimaryKey() *Constraint {
	for _, k := range t.Constraints {
		if k.Type == PrimaryKey {
			return k
		}
	}
	return nil
}

// Without returns the schema without the tables named and without the sequences
// that those own. The receiver is not changed.
func (s *Schema) Without(tables []string) *Schema {
	if len(tables) == 0 {
		return s
	}
	gone := make(map[string]bool, len(tables))
	for _, t := range tables {
		gone[t] = true
	}
	out := *s
	out.Tables, out.Sequences = nil, nil
	for _, t := range s.Tables {
		if !gone[t.Name] {
			out.Tables = append(out.Tables, t)
		}
	}
	for _, q := range s.Sequences {
		if !gone[q.Table] {
			out.Sequences = append(out.Sequences, q)
		}
	}
	return &out
}
