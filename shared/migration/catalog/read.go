package catalog

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
)

// Beginner is a *pgxpool.Pool, a *pgx.Conn or a pgx.Tx.
type Beginner interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// Read reads the structure of the schemas named, in a few round trips however many
// there are; of many, two parts at the same time where db is a pool. Schemas that do not
// exist are missing in the result.
func Read(ctx context.Context, db Beginner, schemas []string) (*Catalog, error) {
	const many = 100
	parts := []*reader{newReader()}
	if _, isPool := db.(interface{ Stat() *pgxpool.Stat }); isPool && len(schemas) >= many {
		parts = append(parts, newReader())
	}
	g, reading := errgroup.WithContext(ctx)
	for i, r := range parts {
		g.Go(func() error {
			return r.read(reading, db, schemas[len(schemas)*i/len(parts):len(schemas)*(i+1)/len(parts)])
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("catalog: read the structure of %d schemas: %w", len(schemas), err)
	}
	whole := parts[0]
	for _, r := range parts[1:] {
		maps.Copy(whole.cat.Schemas, r.cat.Schemas)
	}
	if err := whole.readTypes(ctx, db); err != nil {
		return nil, fmt.Errorf("catalog: read the types: %w", err)
	}
	return whole.cat, nil
}

func newReader() *reader {
	return &reader{
		cat:    &Catalog{Schemas: map[string]*Schema{}, Types: map[uint32]*Type{}},
		tables: map[uint32]*Table{}, home: map[uint32]string{},
	}
}

// read reads everything of the schemas but their types.
func (r *reader) read(ctx context.Context, db Beginner, schemas []string) error {
	batch := &pgx.Batch{}
	for _, q := range []struct {
		sql  string
		scan func(pgx.Rows) error
	}{
		{schemaQuery, r.schema}, {tableQuery, r.table}, {columnQuery, r.column}, {constraintQuery, r.constraint},
		{indexQuery, r.index}, {sequenceQuery, r.sequence}, {feedQuery, r.feed}, {triggerQuery, r.trigger},
		{ruleQuery, r.rule}, {otherQuery, r.other},
	} {
		batch.Queue(q.sql, schemas).Query(each(q.scan))
	}
	return inOrder(ctx, db, batch)
}

// readTypes reads all types, and gives those of the schemas that were read to them.
func (r *reader) readTypes(ctx context.Context, db Beginner) error {
	batch := &pgx.Batch{}
	batch.Queue(typeQuery).Query(each(r.typ))
	return inOrder(ctx, db, batch)
}

// inOrder runs queries that print every name outside pg_catalog with its schema.
func inOrder(ctx context.Context, db Beginner, queries *pgx.Batch) error {
	tx, err := db.Begin(ctx)
	if err != nil {
		return err
	}
	// Never committed: inside a caller's transaction this also gives back its search_path.
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if _, err := tx.Exec(ctx, "SELECT set_config('search_path', '', true), set_config('statement_timeout', '0', true)"); err != nil {
		return err
	}
	return tx.SendBatch(ctx, queries).Close()
}

func each(scan func(pgx.Rows) error) func(pgx.Rows) error {
	return func(rows pgx.Rows) error {
		for rows.Next() {
			if err := scan(rows); err != nil {
				return err
			}
		}
		return rows.Err()
	}
}

// reader puts rows together. Rows of tables that vanished between two queries have
// no table to go to and are dropped.
type reader struct {
	cat    *Catalog
	tables map[uint32]*Table
	home   map[uint32]string // a table's schema
	seen   map[string]string // interned texts: most repeat once per schema
}

// intern keeps one copy of equal texts: a thousand schemas have the same ones.
func (r *reader) intern(s string) string {
	if r.seen == nil {
		r.seen = map[string]string{}
	}
	if have, ok := r.seen[s]; ok {
		return have
	}
	s = strings.Clone(s)
	r.seen[s] = s
	return s
}

func (r *reader) own(sql string, table uint32) string {
	if !strings.Contains(sql, ".") {
		return r.intern(sql)
	}
	return r.intern(ToSelf(sql, r.home[table]))
}

func (r *reader) schema(rows pgx.Rows) error {
	s := &Schema{}
	if err := rows.Scan(&s.Name, &s.Owner); err != nil {
		return err
	}
	r.cat.Schemas[s.Name] = s
	return nil
}

func (r *reader) table(rows pgx.Rows) error {
	t := &Table{}
	var schema string
	var tuples float64
	if err := rows.Scan(&schema, &t.OID, &t.Name, &t.Kind, &t.Persistence, &t.ReplicaIdentity, &t.Owner, &t.Bytes, &tuples,
		&t.RowSecurity, &t.ForceRowSecurity, &t.Policies, &t.Parents, &t.IsPartition); err != nil {
		return err
	}
	t.Rows, t.Name = int64(tuples), r.intern(t.Name)
	s := r.cat.Schemas[schema]
	if s == nil {
		return nil
	}
	s.Tables = append(s.Tables, t)
	r.tables[t.OID], r.home[t.OID] = t, schema
	return nil
}

func (r *reader) column(rows pgx.Rows) error {
	c := &Column{}
	var table uint32
	if err := rows.Scan(&table, &c.Name, &c.Num, &c.Type, &c.TypeOID, &c.NotNull, &c.Default, &c.Generated, &c.Identity, &c.Collation); err != nil {
		return err
	}
	c.Name, c.Type, c.Default = r.intern(c.Name), r.own(c.Type, table), r.own(c.Default, table)
	c.Collation = r.own(c.Collation, table)
	if t := r.tables[table]; t != nil {
		t.Columns = append(t.Columns, c)
	}
	return nil
}

func (r *reader) constraint(rows pgx.Rows) error {
	k := &Constraint{}
	var (
		table, ref             uint32
		columns, refs, deleted []int16
	)
	if err := rows.Scan(&table, &k.Name, &k.Type, &columns, &k.Definition, &k.Deferrable, &k.Deferred, &k.Validated,
		&k.RefSchema, &k.RefTable, &ref, &refs, &k.RefColumns, &k.OnDelete, &k.OnUpdate, &deleted, &k.MatchFull); err != nil {
		return err
	}
	slices.Sort(deleted)
	var known bool
	refKnown := true
	k.Columns, known = r.names(table, columns)
	k.DeleteColumns, _ = r.names(table, deleted)
	if len(k.RefColumns) == 0 {
		k.RefColumns, refKnown = r.names(ref, refs)
	}
	k.Name, k.Definition = r.intern(k.Name), r.own(k.Definition, table)
	if k.Type == ForeignKey && k.RefSchema == r.home[table] {
		k.RefSchema = Self
	}
	// PostgreSQL prints definitions as of now, rows as of the query's start: a dropped one has none.
	if t := r.tables[table]; t != nil && k.Definition != "" && known && refKnown {
		t.Constraints = append(t.Constraints, k)
	}
	return nil
}

// names returns the names of a table's columns, and whether all are known.
func (r *reader) names(table uint32, numbers []int16) (names []string, all bool) {
	t := r.tables[table]
	for _, n := range numbers {
		if n <= 0 {
			continue // a system column, or a whole row that a CHECK looks at
		}
		i := -1
		if t != nil {
			i = slices.IndexFunc(t.Columns, func(c *Column) bool { return c.Num == n })
		}
		if i < 0 {
			return nil, false
		}
		names = append(names, t.Columns[i].Name)
	}
	return names, true
}

func (r *reader) index(rows pgx.Rows) error {
	i := &Index{}
	var table uint32
	var def string
	if err := rows.Scan(&table, &i.Name, &i.Method, &i.Unique, &i.Valid, &def); err != nil {
		return err
	}
	t := r.tables[table]
	if t == nil || def == "" {
		return nil
	}
	// The table's name is quoted by the same rules on both sides of this cut.
	_, keys, ok := strings.Cut(def, " USING "+i.Method+" (")
	if !ok {
		return fmt.Errorf("no keys in %q", def)
	}
	i.Name, i.Method, i.Keys = r.intern(i.Name), r.intern(i.Method), r.own(keys, table)
	t.Indexes = append(t.Indexes, i)
	return nil
}

func (r *reader) sequence(rows pgx.Rows) error {
	q := &Sequence{}
	var schema string
	if err := rows.Scan(&schema, &q.Name, &q.DataType, &q.Start, &q.Increment, &q.Min, &q.Max, &q.Cache, &q.Cycle,
		&q.Table, &q.Column); err != nil {
		return err
	}
	q.Name, q.DataType, q.Table, q.Column = r.intern(q.Name), r.intern(q.DataType), r.intern(q.Table), r.intern(q.Column)
	if s := r.cat.Schemas[schema]; s != nil {
		s.Sequences = append(s.Sequences, q)
	}
	return nil
}

func (r *reader) feed(rows pgx.Rows) error {
	var table uint32
	var num int16
	var schema, name string
	if err := rows.Scan(&table, &num, &schema, &name); err != nil {
		return err
	}
	t := r.tables[table]
	if t == nil || schema != r.home[table] {
		return nil // another schema's sequence stays visible in the default
	}
	for _, c := range t.Columns {
		if c.Num == num {
			c.Sequence = r.intern(name)
		}
	}
	return nil
}

func (r *reader) trigger(rows pgx.Rows) error {
	var table uint32
	var g Trigger
	if err := rows.Scan(&table, &g.Name, &g.Function, &g.Enabled); err != nil {
		return err
	}
	g.Function = r.own(g.Function, table)
	if t := r.tables[table]; t != nil {
		t.Triggers = append(t.Triggers, g)
	}
	return nil
}

func (r *reader) rule(rows pgx.Rows) error {
	var table uint32
	var name string
	if err := rows.Scan(&table, &name); err != nil {
		return err
	}
	if t := r.tables[table]; t != nil {
		t.Rules = append(t.Rules, name)
	}
	return nil
}

func (r *reader) other(rows pgx.Rows) error {
	var schema string
	var o Object
	if err := rows.Scan(&schema, &o.Kind, &o.Name); err != nil {
		return err
	}
	if s := r.cat.Schemas[schema]; s != nil {
		s.Others = append(s.Others, o)
	}
	return nil
}

func (r *reader) typ(rows pgx.Rows) error {
	t := &Type{}
	if err := rows.Scan(&t.OID, &t.Schema, &t.Name, &t.Class, &t.Elem, &t.Base, &t.Extension, &t.Labels, &t.Definition); err != nil {
		return err
	}
	t.Definition = r.intern(ToSelf(t.Definition, t.Schema))
	r.cat.Types[t.OID] = t
	s := r.cat.Schemas[t.Schema]
	if s != nil && (t.Class == Enum || t.Class == Domain || t.Class == Composite || t.Class == RangeType || t.Class == BaseType) {
		s.Types = append(s.Types, t)
	}
	return nil
}
