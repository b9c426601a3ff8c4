package migration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/catalog"
	"github.com/coditect/platform/shared/migration/change"
	"github.com/coditect/platform/shared/migration/convert"
	"github.com/coditect/platform/shared/tenant"
)

// What is written in green comes back to blue's fenced schema as long as the tenant may go
// back: triggers write each change down beside the row (coditect.captured), and a pass applies
// some of them in blue and deletes them.
//
// Two databases are written, one after the other: which changes a pass has applied stands in
// blue, in the transaction that applied them. Whoever comes after a crash finds them in both
// and deletes them in green.

// wayBack is a green tenant's move, with what is needed to bring changes to the schema that
// it came from. Schema and Database of the move are blue's.
type wayBack struct {
	Move
	asked      *string // who asked for the rollback that is under way
	tries      int
	finalising bool // somebody is at work on its end
	blue       *citus.Pool
	layout     convert.Layout
	tables     map[string]convert.Table
	targets    map[string]change.Target
	columns    map[string][]string // green's, by table, in the order of a row's text
	clean      int64               // green has none of what blue had applied at this version

	shape    string                    // of the schema
	until    time.Time                 // then a step of the rollback begins nothing new
	compared map[comparedSide][]string // up to which key; nil: all
}

// Bounds of one pass, so that it needs little memory whatever the rows.
const (
	passChanges = 2000
	passBytes   = 8 << 20
)

// Reverse brings what was written in green to the blue schema of one tenant that can go back,
// for about as long as a step may take, and reports whether it had no time for all of it. It does
// not run after writers who go on: what is written after its last look is the next call's. Anyone
// may call it, at any time, as often as they like.
func (m *Mover) Reverse(ctx context.Context, id uuid.UUID, who tenant.ID) (left bool, err error) {
	return m.reverseUntil(ctx, id, who, m.now().Add(m.cfg.StepBudget))
}

// reverseUntil is [Mover.Reverse] that begins no pass after until, but the first.
func (m *Mover) reverseUntil(ctx context.Context, id uuid.UUID, who tenant.ID, until time.Time) (left bool, err error) {
	w, err := m.wayBack(ctx, id, who)
	if err != nil {
		return false, err
	}
	if w.State != Green {
		return false, notGreen(w.State)
	}
	if w.asked != nil {
		return true, nil // the rollback does so itself, and must know which rows it has touched
	}
	if w.finalising {
		return true, nil // so does it, and what it dumps must stay as it is
	}
	for {
		_, all, err := m.pass(ctx, w, nil)
		if err != nil || all {
			return false, ignoreOutdated(err)
		}
		if m.now().After(until) {
			return true, nil
		}
	}
}

func notGreen(s State) error {
	return fault.New(fault.Conflict, "not_green", "the tenant's move is %s; only a tenant whose move is green can go back", s)
}

// wayBack reads a move that is green, or on its way back, and prepares its tables.
func (m *Mover) wayBack(ctx context.Context, id uuid.UUID, who tenant.ID) (*wayBack, error) {
	v, err := m.move(ctx, id, who)
	if err != nil {
		return nil, err
	}
	w := &wayBack{Move: v}
	if v.State != Green && v.State != FencedBack {
		return w, nil
	}
	control, err := m.control(ctx)
	if err != nil {
		return nil, err
	}
	var (
		src              string
		database, schema *string
	)
	err = control.QueryRow(ctx, `SELECT r.source, m.blue_database, m.blue_schema, m.back_by, m.back_attempts,
			EXISTS (SELECT FROM control.archive a WHERE a.run_id = m.run_id AND a.tenant_id = m.tenant_id AND a.lease_until > clock_timestamp())
		FROM control.move m JOIN control.run r ON r.id = m.run_id WHERE m.run_id = $1 AND m.tenant_id = $2`, id, who).Scan(&src, &database, &schema, &w.asked, &w.tries, &w.finalising)
	if err != nil {
		return nil, err
	}
	if database == nil || schema == nil {
		return nil, fault.New(fault.Conflict, "no_way_back", "tenant %s was moved before its changes were captured: it cannot go back", who)
	}
	w.Database, w.Schema = *database, *schema
	if w.blue, err = m.dbs.Pool(ctx, w.Database); err != nil {
		return nil, err
	}
	shapes, err := m.shapesOf(ctx, w.blue, []Move{w.Move})
	if err != nil {
		return nil, err
	}
	w.shape = shapes[w.Schema]
	if w.layout, err = m.layoutFor(ctx, src, w.blue, w.Schema, shapes[w.Schema], exactly); err != nil {
		return nil, err
	}
	return w, w.prepare(ctx, control)
}

// prepare makes a target of every table, and reads the order of green's columns.
func (w *wayBack) prepare(ctx context.Context, control *citus.Pool) error {
	w.tables, w.targets, w.columns = map[string]convert.Table{}, map[string]change.Target{}, map[string][]string{}
	for _, t := range w.layout.Tables {
		to := change.Target{Schema: w.Schema, Table: t.Name, Key: t.Key, Tenant: w.Tenant, HasTenant: t.HasTenantColumn}
		for _, c := range t.Columns {
			to.Columns = append(to.Columns, change.Column{Name: c.Name, Type: catalog.FromSelf(c.BlueType, w.Schema)})
		}
		w.tables[t.Name], w.targets[t.Name] = t, to
	}
	rows, err := control.Query(ctx, `SELECT c.relname, array_agg(a.attname::text ORDER BY a.attnum) FROM pg_class c
		JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
		WHERE c.relnamespace = to_regnamespace(quote_ident($1)) AND c.relkind IN ('r', 'p') GROUP BY c.relname`, w.layout.GreenSchema)
	if err != nil {
		return err
	}
	var (
		table   string
		columns []string
	)
	_, err = pgx.ForEachRow(rows, []any{&table, &columns}, func() error { w.columns[table] = slices.Clone(columns); return nil })
	return err
}

// pass brings some changes to blue and deletes them in green, and returns how many it found and
// whether that was all there was. The keys of the rows that it changes are added to touched.
func (m *Mover) pass(ctx context.Context, w *wayBack, touched *touchedKeys) (n int, all bool, err error) {
	at, err := positionOf(ctx, w.blue, w.Tenant)
	if err != nil {
		return 0, false, err
	}
	// After the position: what is deleted in between moves the position on, and the pass is refused.
	found, all, err := m.readCaptured(ctx, w.Tenant)
	if err == nil && !all && w.clean != at.version && len(at.applied) > 0 {
		// A crash may have left in green what blue has, and those that were found first are not all of it: a transaction that
		// has committed since may have smaller ids. What a pass does not find it does not note, and the next one would apply again.
		if err = m.deleteCaptured(ctx, w.Tenant, at.applied); err == nil {
			w.clean = at.version
			found, all, err = m.readCaptured(ctx, w.Tenant)
		}
	}
	if err != nil || len(found) == 0 {
		return 0, true, err
	}
	m.crash("changes read")
	applied := map[[2]int64]bool{}
	for _, c := range at.applied {
		applied[c.number()] = true
	}
	var left []captured
	for _, c := range found {
		if !applied[c.number()] {
			left = append(left, c)
		}
	}
	if len(left) > 0 {
		if err := m.applyBack(ctx, w, at, found, left, touched); err != nil {
			return 0, false, err
		}
		m.crash("changes applied in blue")
	}
	if err := m.deleteCaptured(ctx, w.Tenant, found); err != nil {
		return 0, false, err
	}
	if len(left) > 0 {
		w.clean = at.version + 1
	}
	m.crash("changes deleted in green")
	return len(found), all, nil
}

// writeBlue begins a transaction that writes a fenced schema of blue. Blue is no Citus: all
// settings in one message.
func (m *Mover) writeBlue(ctx context.Context, w *wayBack, work func(tx pgx.Tx) error) error {
	begin := `BEGIN; SET LOCAL lock_timeout = '10s'; SET LOCAL session_replication_role = 'replica'; ` + strings.Join(canonical, "; ")
	err := pgx.BeginTxFunc(ctx, w.blue, pgx.TxOptions{BeginQuery: begin}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT coditect.enter_reverse($1, $2)`, w.Tenant, w.Token); err != nil {
			return err
		}
		return work(tx)
	})
	switch citus.StateOf(err) {
	case citus.StateOutdated:
		return errOutdated
	case "22003": // a number of green, where ids are 8 bytes wide
		return fault.Wrap(err, fault.Conflict, "does_not_fit_back", "a value that was written in green does not fit into blue: %v", err)
	}
	return err
}

// enterBlue makes the token known in blue: no older one writes there from now on.
func (m *Mover) enterBlue(ctx context.Context, w *wayBack) error {
	return m.writeBlue(ctx, w, func(pgx.Tx) error { return nil })
}

// applyBack applies changes that blue does not have, and notes all that were found.
func (m *Mover) applyBack(ctx context.Context, w *wayBack, at position, found, left []captured, touched *touchedKeys) error {
	byTable, err := w.changes(left)
	if err != nil {
		return err
	}
	if err := touched.add(ctx, w.targets, byTable); err != nil {
		return err
	}
	err = m.writeBlue(ctx, w, func(tx pgx.Tx) error {
		if err := at.moveOn(ctx, tx, w.Tenant, found); err != nil {
			return err
		}
		for _, t := range w.layout.Tables {
			if err := change.Apply(ctx, tx, w.targets[t.Name], byTable[t.Name]); err != nil {
				return err
			}
		}
		return nil
	})
	var wrong *change.Mismatch
	if errors.As(err, &wrong) {
		return fault.Wrap(err, fault.Conflict, "blue_differs", "the way back found another row in blue than green had: %v", wrong)
	}
	return err
}

// reversePatience is how long a tenant whose changes cannot be brought back is left alone.
const reversePatience = time.Minute

// reverseSome brings back what tenants have written in green, for at most about budget. What
// cannot be brought back is noted with the move, and tried again later.
func (m *Mover) reverseSome(ctx context.Context, budget time.Duration) (n int, err error) {
	control, err := m.control(ctx)
	if err != nil {
		return 0, err
	}
	rows, err := control.Query(ctx, `SELECT tenant_id FROM coditect.captured GROUP BY tenant_id LIMIT 1000`)
	if err != nil {
		return 0, fmt.Errorf("migration: who has written in green: %w", err)
	}
	written, err := pgx.CollectRows(rows, pgx.RowTo[tenant.ID])
	if err != nil || len(written) == 0 {
		return 0, err
	}
	rows, err = control.Query(ctx, `SELECT run_id, tenant_id FROM control.move WHERE tenant_id = ANY($1) AND state = 'green' AND back_by IS NULL
		AND blue_schema IS NOT NULL AND NOT EXISTS (SELECT FROM control.archive a WHERE a.run_id = control.move.run_id AND a.tenant_id = control.move.tenant_id AND a.lease_until > clock_timestamp())
		AND (reverse_after IS NULL OR reverse_after < clock_timestamp()) ORDER BY random()`, written)
	if err != nil {
		return 0, err
	}
	due, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (v Move, err error) { return v, row.Scan(&v.Run, &v.Tenant) })
	if err != nil {
		return 0, err
	}
	deadline := m.now().Add(budget)
	for _, v := range due {
		if m.now().After(deadline) {
			break
		}
		ok, err := m.tryReverse(ctx, control, v, deadline)
		if err != nil {
			return n, err
		}
		if ok {
			n++
		}
	}
	return n, nil
}

// tryReverse is Reverse, where what goes wrong is noted with the move and ends nothing else.
func (m *Mover) tryReverse(ctx context.Context, control *citus.Pool, v Move, until time.Time) (ok bool, err error) {
	if _, err = m.reverseUntil(ctx, v.Run, v.Tenant, until); err != nil {
		_, err = control.Exec(ctx, `UPDATE control.move SET error = $3, reverse_after = clock_timestamp() + $4::interval WHERE run_id = $1 AND tenant_id = $2 AND state = 'green'`,
			v.Run, v.Tenant, "changes do not come back to blue: "+messageOf(err), reversePatience)
		return false, err
	}
	_, err = control.Exec(ctx, `UPDATE control.move SET error = NULL, reverse_after = NULL WHERE run_id = $1 AND tenant_id = $2 AND state = 'green' AND reverse_after IS NOT NULL`, v.Run, v.Tenant)
	return true, err
}
