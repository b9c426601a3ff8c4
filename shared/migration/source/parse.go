package source

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/coditect/platform/shared/fault"
)

// Load reads and checks a source's file.
func Load(path string) (*Source, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "source_unreadable", "the source file cannot be read: %v", err)
	}
	return Parse(text)
}

// Parse reads and checks the text of a source's file. Fields left out get their
// defaults. Every error names the field and what is allowed.
func Parse(text []byte) (*Source, error) {
	if err := checkForm(text); err != nil {
		return nil, err
	}
	s := &Source{}
	if err := yaml.UnmarshalWithOptions(text, s, yaml.Strict()); err != nil {
		return nil, notYAML(err)
	}
	if s.GreenSchema == "" {
		s.GreenSchema = s.Name
	}
	if err := s.validate(); err != nil {
		return nil, err
	}
	return s, nil
}

func notYAML(err error) error {
	return fault.Wrap(err, fault.Invalid, "source_not_yaml", "the source file is not valid YAML: %s", yaml.FormatError(err, false, false))
}

// checkForm looks at names and forms of the fields before anything is decoded: the
// decoder's own errors name a position, but not the field.
func checkForm(text []byte) error {
	var raw map[string]any
	if err := yaml.Unmarshal(text, &raw); err != nil {
		return notYAML(err)
	}
	known := map[string]reflect.Type{}
	var names []string
	for i := range reflect.TypeFor[Source]().NumField() {
		f := reflect.TypeFor[Source]().Field(i)
		names = append(names, f.Tag.Get("yaml"))
		known[f.Tag.Get("yaml")] = f.Type
	}
	for _, name := range slices.Sorted(maps.Keys(raw)) {
		t, ok := known[name]
		if !ok {
			return fault.BadField(name, "is no field of a source; allowed are %s", strings.Join(names, ", "))
		}
		if word := wrongForm(raw[name], t); word != "" {
			return fault.BadField(name, "must be a %s", word)
		}
	}
	return nil
}

// wrongForm says what a value should be, "" when it is.
func wrongForm(value any, t reflect.Type) string {
	if value == nil {
		return ""
	}
	switch t.Kind() {
	case reflect.Slice:
		list, ok := value.([]any)
		if !ok || slices.ContainsFunc(list, notText) {
			return "list of texts"
		}
	case reflect.Map:
		table, ok := value.(map[string]any)
		if !ok || slices.ContainsFunc(slices.Collect(maps.Values(table)), notText) {
			return "map of table to reference or stay"
		}
	default:
		if notText(value) {
			return "text"
		}
	}
	return ""
}

func notText(v any) bool {
	_, ok := v.(string)
	return !ok
}

var (
	nameForm   = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,39}$`)
	schemaForm = regexp.MustCompile(`^[a-z][a-z0-9_]{0,49}$`)
	envForm    = regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)
	// reserved schemas hold other things on green.
	reserved = []string{"public", "app", "control", "coditect", "citus", "information_schema", "pg_catalog"}
)

func (s *Source) validate() error {
	for _, f := range []struct{ name, value string }{
		{"name", s.Name}, {"database", s.Database}, {"tenant_table", s.TenantTable}, {"schema_column", s.SchemaColumn}, {"name_column", s.NameColumn},
	} {
		if f.value == "" {
			return fault.BadField(f.name, "must be given")
		}
		if strings.ContainsRune(f.value, 0) {
			return fault.BadField(f.name, "must not hold a NUL character")
		}
	}
	if !nameForm.MatchString(s.Name) || s.Name == "platform" {
		return fault.BadField("name", "must be 1 to 40 lower-case letters, digits, _ or -, begin with a letter, and not be platform: it is %q", s.Name)
	}
	if !schemaForm.MatchString(s.GreenSchema) || slices.Contains(reserved, s.GreenSchema) || strings.HasPrefix(s.GreenSchema, "pg_") {
		return fault.BadField("green_schema", "must be 1 to 50 lower-case letters, digits or _, begin with a letter, and be none of %s nor begin with pg_: it is %q",
			strings.Join(reserved, ", "), s.GreenSchema)
	}
	if !s.hasDSN() && !envForm.MatchString(s.Database) {
		return fault.BadField("database", "must be a DSN (postgres://… or key=value pairs) or the name of an environment variable that holds one, such as LEGACY_DSN")
	}
	if _, _, err := splitTable(s.TenantTable); err != nil {
		return fault.BadField("tenant_table", "must be table or schema.table, with double quotes around names that need them: it is %q", s.TenantTable)
	}
	if slices.Contains(s.Exclude, s.TemplateSchema) && s.TemplateSchema != "" {
		return fault.BadField("template_schema", "must not be one of exclude: it is %q", s.TemplateSchema)
	}
	for field, list := range map[string][]string{"exclude": s.Exclude, "exclude_tables": s.ExcludeTables} {
		for i, v := range list {
			if v == "" {
				return fault.BadField(fmt.Sprintf("%s[%d]", field, i), "must not be empty")
			}
		}
	}
	for table, what := range s.PublicTables {
		if what != Reference && what != Stay {
			return fault.BadField("public_tables."+table, "must be reference or stay: it is %q", what)
		}
	}
	return nil
}

func (s *Source) hasDSN() bool {
	return strings.HasPrefix(s.Database, "postgres://") || strings.HasPrefix(s.Database, "postgresql://") || strings.Contains(s.Database, "=")
}

// DSN returns the address of the database. getenv is os.Getenv.
func (s *Source) DSN(getenv func(string) string) (string, error) {
	if s.hasDSN() {
		return s.Database, nil
	}
	if v := getenv(s.Database); v != "" {
		return v, nil
	}
	return "", fault.BadField("database", "names the environment variable %s, which is not set", s.Database)
}

// splitTable reads table or schema.table.
func splitTable(name string) (schema, table string, err error) {
	parts := tablePart.FindStringSubmatch(name)
	if parts == nil {
		return "", "", errors.New("not a table's name")
	}
	unquote := func(p string) string {
		if strings.HasPrefix(p, `"`) {
			return strings.ReplaceAll(p[1:len(p)-1], `""`, `"`)
		}
		return p
	}
	if parts[1] == "" {
		return "public", unquote(parts[2]), nil
	}
	return unquote(parts[1]), unquote(parts[2]), nil
}

var tablePart = regexp.MustCompile(`^(?:("(?:[^"]|"")+"|[^".\s]+)\.)?("(?:[^"]|"")+"|[^".\s]+)$`)
