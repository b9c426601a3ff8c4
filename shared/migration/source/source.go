// Package source reads the small file that describes a foreign schema-per-tenant
// database, and lists its tenants.
package source

// Source describes a database in which every tenant has a schema of its own.
type Source struct {
	Name            string            `yaml:"name"`
	Database        string            `yaml:"database"`
	TenantTable     string            `yaml:"tenant_table"`
	SchemaColumn    string            `yaml:"schema_column"`
	NameColumn      string            `yaml:"name_column"`
	IDColumn        string            `yaml:"id_column"`
	Exclude         []string          `yaml:"exclude"`
	ExcludeTables   []string          `yaml:"exclude_tables"`
	TemplateSchema  string            `yaml:"template_schema"`
	ApplicationRole string            `yaml:"application_role"`
	PublicTables    map[string]Public `yaml:"public_tables"`
	GreenSchema     string            `yaml:"green_schema"`
}

// Public says what becomes of a shared table of the source.
type Public string

// What can become of a shared table.
const (
	Stay      Public = "stay"      // it stays where it is; keys to it are dropped and reported
	Reference Public = "reference" // it becomes a reference table on green
)

// Tenant is one row of the tenant table.
type Tenant struct {
	ID     string // value of id_column as text; "" without one
	Schema string
	Name   string
}
