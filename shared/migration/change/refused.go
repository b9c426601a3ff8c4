package change

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/coditect/platform/shared/citus"
)

// diagnose looks for the change that did not find what it was made on, after its set was
// refused and rolled back. nil: each would find it.
func (a *applier) diagnose(ctx context.Context, tx pgx.Tx, p *plan) (*Mismatch, error) {
	keys := make([][]string, len(p.keys))
	for i, k := range p.keys {
		keys[i] = k.key
	}
	rows, err := tx.Query(ctx, `SELECT coditect_n FROM `+a.byKeys("1 AS x"), a.keyArgs(keys)...)
	if err != nil {
		return nil, err
	}
	found := make([]bool, len(keys))
	var n int
	if _, err := pgx.ForEachRow(rows, []any{&n}, func() error { found[n-1] = true; return nil }); err != nil {
		return nil, err
	}
	for i, k := range p.keys {
		if found[i] != k.exist {
			return &Mismatch{Table: a.Table, Key: k.key, Op: k.first, Found: found[i]}, nil
		}
	}
	return nil, nil
}

// isConflict: a unique or exclusion constraint refused rows. Citus hides which kind of error a
// COPY has met.
func isConflict(err error) bool {
	switch citus.StateOf(err) {
	case "23505", "23P01", "XX000":
		return true
	}
	return false
}

// oneByOne applies changes in the order in which they were made, each by a statement of its
// own. That is slow, and for the rare set of which a constraint holds at every step, but not
// for rows that change all at once: values or keys that rows with an unchanged TOASTed value
// have handed on to each other.
func (a *applier) oneByOne(ctx context.Context, tx pgx.Tx, changes []Change) error {
	b := &pgx.Batch{}
	for _, c := range changes {
		r := &row{origin: c.Key, cells: c.Row}
		if c.Op != Delete {
			r.key = a.keyOf(c)
		}
		if c.Op == Update && r.partial() {
			sql, args := a.update(a.alike([]*row{r})[0])
			a.queueOne(b, c, sql, args)
			continue
		}
		if c.Op != Insert {
			on := make([]string, len(a.Key))
			args := make([]any, len(a.Key))
			for i, k := range a.Key {
				on[i], args[i] = fmt.Sprintf("t.%s = $%d::text::%s", quoted(k), i+1, a.typeOf(i)), c.Key[i]
			}
			a.queueOne(b, c, `DELETE FROM `+a.table()+` t WHERE `+a.ofTenant()+strings.Join(on, " AND "), args)
		}
		if c.Op != Delete {
			a.queueInsert(b, r)
		}
	}
	b.Queue(`RELEASE SAVEPOINT coditect_change`)
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("change: table %s: %w", a.Table, err)
	}
	return nil
}

// queueOne adds a statement that must touch the row of one change.
func (a *applier) queueOne(b *pgx.Batch, c Change, sql string, args []any) {
	b.Queue(sql, args...).Exec(func(tag pgconn.CommandTag) error {
		if tag.RowsAffected() != 1 {
			return &Mismatch{Table: a.Table, Key: c.Key, Op: c.Op}
		}
		return nil
	})
}

func (a *applier) queueInsert(b *pgx.Batch, r *row) {
	var columns, values []string
	var args []any
	if a.HasTenant && a.tenantAt < 0 {
		columns, values = append(columns, tenantColumn), append(values, "'"+a.Tenant.String()+"'")
	}
	for i, c := range a.Columns {
		args = append(args, r.cells[i].value())
		columns, values = append(columns, quoted(c.Name)), append(values, fmt.Sprintf("$%d::text::%s", len(args), c.Type))
	}
	b.Queue(`INSERT INTO `+a.table()+` (`+strings.Join(columns, ", ")+`) OVERRIDING SYSTEM VALUE VALUES (`+strings.Join(values, ", ")+`)`, args...)
}
