package migration

import (
	"context"
	"errors"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/convert"
	"github.com/coditect/platform/shared/tenant"
)

// Expectation is what blue and green are to have of a tenant. It follows from where its move stands.
type Expectation string

// The expectations.
const (
	GreenEmpty Expectation = "green_empty" // it lives in blue and does not move: green has none of its rows
	Moving     Expectation = "moving"      // its rows are on their way: what is not the same yet is counted, and is no difference
	InStep     Expectation = "in_step"     // one side follows the other: they are the same but for the last moment's writes
	AsMoved    Expectation = "as_moved"    // it lives in green, and blue is as the flip has left it: what differs was written in green since
)

// Bounds of a comparison.
const (
	DefaultDifferences = 100
	MaxDifferences     = 1000
)

// Verification is what a call of Verify has compared.
type Verification struct {
	Tenant      tenant.ID    `json:"tenant"`
	Home        tenant.Home  `json:"home"`
	State       State        `json:"state,omitempty"` // of its move, if it has one
	Expect      Expectation  `json:"expect"`
	Table       string       `json:"table,omitempty"` // that is compared next
	Progress    float64      `json:"progress"`        // 0 to 1
	BlueRows    int64        `json:"blue_rows"`       // compared by this call
	GreenRows   int64        `json:"green_rows"`
	Pending     int64        `json:"pending"` // rows that are on their way
	Differences []Difference `json:"differences"`
	Failed      []Difference `json:"failed,omitempty"` // of a repair: rows that the other side does not take
	Cursor      string       `json:"cursor,omitempty"` // where the next call goes on; none: all is compared
}

// VerifyOptions bound a comparison.
type VerifyOptions struct {
	Cursor string // of the call before
	Limit  int    // differences, at most; 0 is DefaultDifferences
	Values bool   // tell the values of the columns that differ
}

// comparison is a tenant's two sides.
type comparison struct {
	Move   // Schema and Database are blue's
	home   tenant.Home
	source string
	expect Expectation
	blue   *citus.Pool
	layout convert.Layout
}

// Verify compares blue's schema and green's rows of a tenant, wherever its move stands, for about as
// long as a step may take; the cursor of the answer goes on. It changes nothing, but that of a tenant that
// lives in green what is on its way to blue may come there earlier. Its memory does not grow with the tenant.
func (m *Mover) Verify(ctx context.Context, who tenant.ID, o VerifyOptions) (Verification, error) {
	out := Verification{Tenant: who, Differences: []Difference{}}
	if o.Limit == 0 {
		o.Limit = DefaultDifferences
	}
	if o.Limit < 1 || o.Limit > MaxDifferences {
		return out, fault.BadField("limit", "must be between 1 and %d", MaxDifferences)
	}
	c, err := m.comparison(ctx, who)
	if err != nil {
		return out, err
	}
	out.Home, out.State, out.Expect = c.home, c.State, c.expect
	err = m.parts(ctx, c, o.Cursor, &out, func(p part) (next, error) {
		keys := p.keys[:min(len(p.keys), o.Limit-len(out.Differences))]
		found, err := m.describe(ctx, c, p, keys, o.Values)
		out.Differences = append(out.Differences, found...)
		if len(out.Differences) == o.Limit {
			return stop, err
		}
		return goOn, err
	})
	return out, err
}

// comparison finds a tenant's two sides, and what they are to have.
func (m *Mover) comparison(ctx context.Context, who tenant.ID) (*comparison, error) {
	control, err := m.control(ctx)
	if err != nil {
		return nil, err
	}
	c := &comparison{Move: Move{Tenant: who}}
	var (
		run      *uuid.UUID
		state    *State
		database string
		name     string
	)
	err = control.QueryRow(ctx, `SELECT t.home, t.source, t.epoch, t.database_name, t.schema_name, m.run_id, m.state FROM control.tenant t
		LEFT JOIN LATERAL (SELECT run_id, state FROM control.move WHERE tenant_id = t.id AND state <> 'blue' ORDER BY state = 'finalised', run_id DESC LIMIT 1) m ON true
		WHERE t.id = $1 AND t.status <> 'deleted'`, who).Scan(&c.home, &c.source, &c.Epoch, &database, &name, &run, &state)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fault.New(fault.NotFound, "tenant_not_found", "there is no tenant %s", who)
	}
	if err != nil {
		return nil, err
	}
	if run != nil && *state != Finalised {
		c.Run, c.State = *run, *state
	}
	c.Schema, c.Database = name, database
	if c.home == tenant.Green {
		c.Database = blueOf(c.source)
		if c.State == "" {
			return nil, fault.New(fault.Conflict, "nothing_to_compare", "the tenant lives in green, and blue has no schema of it: it was made in green, or its schema was archived and dropped")
		}
		schema, err := m.blueSchema(ctx, attempt{Move: c.Move})
		if err != nil {
			return nil, err
		}
		c.Schema = *schema
	}
	if c.blue, err = m.dbs.Pool(ctx, c.Database); err != nil {
		return nil, err
	}
	if c.expect, err = m.expectation(ctx, c); err != nil {
		return nil, err
	}
	return c, m.commonLayout(ctx, control, c)
}

func (m *Mover) expectation(ctx context.Context, c *comparison) (Expectation, error) {
	switch c.State {
	case "", Planned, Blue:
		return GreenEmpty, nil
	case CatchingUp, Following:
		return InStep, nil
	case Green:
		follows, err := m.blueFollows(ctx, c.Tenant)
		if follows {
			return InStep, err
		}
		return AsMoved, err
	}
	return Moving, nil
}

// blueFollows: what is written in green is written down there, and brought to blue.
func (m *Mover) blueFollows(ctx context.Context, who tenant.ID) (follows bool, err error) {
	control, err := m.control(ctx)
	if err != nil {
		return false, err
	}
	err = control.QueryRow(ctx, `SELECT capture FROM coditect.write_gate WHERE tenant_id = $1`, who).Scan(&follows)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	return follows, err
}

// commonLayout is what both sides can have: green may have got columns since the tenant moved.
func (m *Mover) commonLayout(ctx context.Context, control *citus.Pool, c *comparison) error {
	l, err := m.layoutAtMove(ctx, c.blue, c.source, c.Schema)
	if err != nil {
		return err
	}
	green, err := greenTables(ctx, control, l.GreenSchema)
	if err != nil {
		return err
	}
	c.layout = l
	c.layout.Tables = nil
	for _, t := range l.Tables {
		have, ok := green[t.Name]
		if !ok {
			return fault.New(fault.Conflict, "schema_drift", "schema %s differs from green's tables: green has no table %s", c.Schema, t.Name)
		}
		t.Columns = slices.DeleteFunc(slices.Clone(t.Columns), func(column convert.Column) bool { return !have.has(column.Name) })
		for _, k := range t.Key {
			if !have.has(k) {
				return fault.New(fault.Conflict, "schema_drift", "schema %s differs from green's tables: table %s: green has no column %s", c.Schema, t.Name, k)
			}
		}
		c.layout.Tables = append(c.layout.Tables, t)
	}
	return nil
}

// about estimates the rows of a table.
func (m *Mover) about(ctx context.Context, c *comparison, t convert.Table) (n int64, err error) {
	if c.expect == GreenEmpty {
		err = m.readGreen(ctx, func(tx pgx.Tx) error {
			return tx.QueryRow(ctx, `SELECT count(*) FROM `+ofTenant(c.layout, t, c.Move), pgx.QueryExecModeExec).Scan(&n)
		})
		return n, err
	}
	err = c.blue.QueryRow(ctx, `SELECT CASE WHEN reltuples >= 0 THEN reltuples::bigint ELSE pg_relation_size(oid) / 100 END FROM pg_class WHERE oid = to_regclass($1)`, quoted(c.Schema, t.Name)).Scan(&n)
	return n, err
}
