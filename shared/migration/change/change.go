// Package change applies a tenant's row changes to one side's table exactly once, set by set.
//
// A change that is applied twice, left out, or applied to rows that are not what they were when
// it was made, must not pass unseen: every change says what it expects, and [Apply] checks it.
// What many changes did to one row is worked out here first, so that the database does each
// thing once, for all rows together.
package change

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/tenant"
)

// Op is what happened to a row.
type Op byte

// The operations. A TRUNCATE is none of them: it is its caller's business.
const (
	Insert Op = 'I'
	Update Op = 'U'
	Delete Op = 'D'
)

// String names the operation.
func (o Op) String() string {
	switch o {
	case Insert:
		return "insert"
	case Update:
		return "update"
	case Delete:
		return "delete"
	}
	return fmt.Sprintf("operation %q", byte(o))
}

// Cell is one value of a row.
type Cell struct {
	Text      string // the value's text under convert.CanonicalText: what pgoutput sends
	Null      bool
	Unchanged bool // a TOASTed value that was not sent: it stays what it is
}

// Change is one change of one row.
type Change struct {
	Op  Op
	Key []string // of an update or a delete: the texts of the key's columns before it, in the order of Target.Key
	Row []Cell   // of an insert or an update: the row after it, in the order of Target.Columns
}

// Column is one column of a table.
type Column struct {
	Name string
	Type string // as SQL, as the database of the target knows it
	// Always: GENERATED ALWAYS AS IDENTITY. UPDATE may not set it, and does not: neither side
	// of a move lets it change under a row that is not sent whole.
	Always bool
}

// Target is a tenant's table on one side.
type Target struct {
	Schema, Table string
	Columns       []Column // without those that the table generates
	Key           []string // names of the key's columns, without tenant_id
	Tenant        tenant.ID
	// HasTenant: the table has a column tenant_id, which is a part of its key. It may be one of
	// Columns, or not: all rows are the tenant's.
	HasTenant bool
}

// Mismatch is a change that did not find what it was made on.
type Mismatch struct {
	Table string
	Key   []string
	Op    Op
	Found bool // a row has the key, and none should; or the other way round
}

func (e *Mismatch) Error() string {
	what := "there is no row with this key"
	if e.Found {
		what = "there is a row with this key already"
	}
	return fmt.Sprintf("change: table %s: %s of key (%s): %s", e.Table, e.Op, strings.Join(e.Key, ", "), what)
}

// Apply makes tx's rows of one tenant's table what they are after changes, in their order: [Prepare] and
// [Prepared.Apply].
func Apply(ctx context.Context, tx pgx.Tx, t Target, changes []Change) error {
	p, err := Prepare(t, changes)
	if err != nil {
		return err
	}
	return p.Apply(ctx, tx)
}

// Prepared are changes of which is worked out what the database is to do.
type Prepared struct {
	*applier
	plan    *plan
	changes []Change
}

// Prepare works out what changes come to, without asking the database. Those that contradict each other are
// a [*Mismatch].
func Prepare(t Target, changes []Change) (*Prepared, error) {
	a, err := newApplier(t)
	if err != nil {
		return nil, err
	}
	p, err := a.coalesce(changes)
	if err != nil {
		return nil, err
	}
	return &Prepared{a, p, changes}, nil
}

// Apply makes tx's rows what they are after the changes.
// Every change must touch exactly one row: an insert one that was not there, an update and a
// delete one that was. If not, the error is a [*Mismatch], and nothing was changed. A key that
// both is refused by a unique constraint and is not a Mismatch is the database's error.
//
// The caller has begun tx with the canonical text settings and session_replication_role = replica:
// neither foreign keys nor triggers are looked after here. Apply switches off some of
// the planner's choices until tx ends. The table must not be partitioned.
func (p *Prepared) Apply(ctx context.Context, tx pgx.Tx) error {
	if len(p.changes) == 0 {
		return nil
	}
	err := p.bySets(ctx, tx, p.plan)
	if err == nil {
		return nil
	}
	b := &pgx.Batch{}
	b.Queue(`ROLLBACK TO SAVEPOINT coditect_change`)
	for _, set := range ByKeyAlone() { // which that has undone
		b.Queue(set)
	}
	if undone := tx.SendBatch(ctx, b).Close(); undone != nil {
		return fmt.Errorf("change: table %s: %w", p.Table, err)
	}
	found, other := p.diagnose(ctx, tx, p.plan)
	switch {
	case other != nil:
		return fmt.Errorf("change: table %s: %w", p.Table, err)
	case found != nil:
		return found
	case !isConflict(err):
		return fmt.Errorf("change: table %s: %w", p.Table, err)
	}
	return p.oneByOne(ctx, tx, p.changes)
}
