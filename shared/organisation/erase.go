package organisation

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/tenant"
)

// errBusy: somebody else has the tenant; the next sweep looks again.
var errBusy = errors.New("organisation: the tenant is moving, or another sweep erases it")

// erase ends a tenant whose grace time is over: its blue schema, its rows in
// the shared tables, its keys, members and domains, and then its status. Every
// step may be repeated, and the status comes last. The tenant's row is locked
// all the time: no move can begin and no other sweep does the same.
func (s *Service) erase(ctx context.Context, id tenant.ID) error {
	return s.inControl(ctx, func(tx pgx.Tx) error {
		o, err := s.lockDue(ctx, tx, id)
		if err != nil {
			return err
		}
		if err := s.dropBlue(ctx, o); err != nil {
			return err
		}
		if err := s.eraseGreen(ctx, tx, o); err != nil {
			return err
		}
		return s.end(ctx, tx, o)
	})
}

func (s *Service) lockDue(ctx context.Context, tx pgx.Tx, id tenant.ID) (Organisation, error) {
	// The lock waits, idle, while other connections erase; the role's own limit is too short for a large tenant. It locks
	// out nobody but movers and sweepers of a tenant that is ending.
	if _, err := tx.Exec(ctx, `SET LOCAL idle_in_transaction_session_timeout = '60s'`); err != nil {
		return Organisation{}, err
	}
	rows, err := tx.Query(ctx, `SELECT `+columns+` FROM control.tenant t WHERE t.id = $1 AND t.status = 'deleting' AND t.delete_after <= $2
		FOR UPDATE OF t SKIP LOCKED`, id, s.now())
	if err != nil {
		return Organisation{}, err
	}
	o, err := pgx.CollectExactlyOneRow(rows, scan)
	if errors.Is(err, pgx.ErrNoRows) {
		return o, errBusy
	}
	if err != nil {
		return o, err
	}
	// A mover may be copying rows into green behind us. A new move cannot begin: its row refers to the one that is locked.
	var moving bool
	err = tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM control.move WHERE tenant_id = $1 AND state NOT IN ('green', 'blue', 'finalised'))`, id).Scan(&moving)
	if err == nil && moving {
		err = errBusy
	}
	return o, err
}

// dropBlue removes the schema of our own blue database: the home, or what a
// move left for its way back. A foreign database is not ours to change.
func (s *Service) dropBlue(ctx context.Context, o Organisation) error {
	if o.Source != "platform" || !s.d.Databases.Has(citus.BlueDatabase) {
		return nil
	}
	blue, err := s.d.Databases.Pool(ctx, citus.BlueDatabase)
	if err != nil {
		return err
	}
	if _, err := blue.Exec(ctx, `SELECT coditect.drop_tenant($1)`, o.ID); err != nil {
		return fmt.Errorf("organisation: drop the blue schema of %s: %w", o.ID, err)
	}
	return nil
}

// eraseGreen deletes the tenant's rows from every shared table. The gate goes
// with tx.
func (s *Service) eraseGreen(ctx context.Context, tx pgx.Tx, o Organisation) error {
	schema := o.schema
	// A tenant of blue may have rows in green that an undone move left; its source says where.
	if o.Home != tenant.Green {
		if err := tx.QueryRow(ctx, `SELECT green_schema FROM control.source WHERE name = $1`, o.Source).Scan(&schema); err != nil {
			return err
		}
	}
	tables, err := tenantTables(ctx, tx, schema)
	if err != nil {
		return err
	}
	green, err := s.d.Databases.Control(ctx)
	if err != nil {
		return err
	}
	// First and last: what is deleted in between is not to be written down for the way back, and what was, goes.
	forget := func() error {
		_, err := green.Exec(ctx, `SELECT coditect.forget($1)`, o.ID)
		return err
	}
	if err := forget(); err != nil {
		return err
	}
	for _, t := range tables {
		for _, sql := range t.statements() {
			if err := inChunks(ctx, green, o.ID, sql); err != nil {
				return fmt.Errorf("organisation: erase %s of %s: %w", t.name, o.ID, err)
			}
		}
	}
	if err := forget(); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `DELETE FROM coditect.gate WHERE tenant_id = $1`, o.ID)
	return err
}

// chunk is how many rows go in one transaction.
const chunk = 5_000

// inChunks runs a statement on at most chunk rows until it touches fewer, each
// time in a transaction of its own on another connection than the lock's: a
// deadline that cuts a large tenant's erasure short leaves less to the next
// sweep, and not all of it again.
func inChunks(ctx context.Context, green *citus.Pool, id tenant.ID, sql string) error {
	isCitus, err := green.HasCitus(ctx)
	if err != nil {
		return err
	}
	for touched := int64(chunk); touched >= chunk; {
		err := inTx(ctx, green, func(tx pgx.Tx) error {
			b := &pgx.Batch{}
			if isCitus {
				b.Queue(`SET LOCAL citus.propagate_set_commands = 'local'`)
			}
			// Literal, so that it reaches the workers; an ID is nothing but hexadecimal digits.
			b.Queue(`SET LOCAL app.tenant_id = '` + id.String() + `'`)
			b.Queue(sql, id).Exec(func(tag pgconn.CommandTag) error {
				touched = tag.RowsAffected()
				return nil
			})
			return tx.SendBatch(ctx, b).Close()
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// end revokes and forgets what else is the tenant's. The row stays: its slug
// is not given away again.
func (s *Service) end(ctx context.Context, tx pgx.Tx, o Organisation) error {
	now := s.now()
	b := &pgx.Batch{}
	b.Queue(`DELETE FROM control.membership WHERE tenant_id = $1`, o.ID)
	b.Queue(`DELETE FROM control.domain WHERE tenant_id = $1`, o.ID)
	b.Queue(`DELETE FROM control.sign_up WHERE tenant_id = $1`, o.ID)
	b.Queue(`DELETE FROM control.gate_due WHERE tenant_id = $1`, o.ID)
	b.Queue(`UPDATE control.tenant SET status = 'deleted', delete_after = NULL, version = version + 1, updated_at = $2 WHERE id = $1`, o.ID, now)
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return err
	}
	if s.d.RevokeKeys != nil {
		if err := s.d.RevokeKeys(ctx, tx, o.ID, now); err != nil {
			return err
		}
	}
	s.d.Forget(o.ID)
	o.Status = tenant.Deleted
	o.Version++
	return s.record(ctx, tx, "tenant.deleted", sweeper, o, "")
}

// table is a shared table with tenants' rows.
type table struct {
	schema, name string
	refers       []string // other tables
	self         []string // nullable columns of its references to itself
	whole        bool     // cannot be erased in chunks
}

// statements returns what erases one tenant's rows. Rows that refer to rows of
// the same table are cut loose first: a chunk may hold a parent without its
// children.
func (t table) statements() []string {
	name := pgx.Identifier{t.schema, t.name}.Sanitize()
	if t.whole {
		return []string{`DELETE FROM ` + name + ` WHERE tenant_id = $1`}
	}
	some := func(condition string) string {
		return fmt.Sprintf(` WHERE tenant_id = $1 AND ctid = ANY (ARRAY(SELECT ctid FROM %s WHERE tenant_id = $1%s LIMIT %d))`, name, condition, chunk)
	}
	var out []string
	for _, column := range t.self {
		c := pgx.Identifier{column}.Sanitize()
		out = append(out, `UPDATE `+name+` SET `+c+` = NULL`+some(` AND `+c+` IS NOT NULL`))
	}
	return append(out, `DELETE FROM `+name+some(``))
}

// tenantTables lists the tables of a schema that have tenants' rows, those that
// refer to others before those they refer to.
func tenantTables(ctx context.Context, db querier, schema string) ([]table, error) {
	rows, err := db.Query(ctx, `SELECT c.relname::text,
			ARRAY(SELECT r.relname::text FROM pg_constraint k JOIN pg_class r ON r.oid = k.confrelid
				WHERE k.conrelid = c.oid AND k.contype = 'f' AND k.confrelid <> c.oid),
			ARRAY(SELECT DISTINCT x.attname::text FROM pg_constraint k JOIN pg_attribute x ON x.attrelid = c.oid AND x.attnum = ANY (k.conkey) AND NOT x.attnotnull
				WHERE k.conrelid = c.oid AND k.contype = 'f' AND k.confrelid = c.oid),
			-- A partitioned table's ctid is not unique; a reference to itself that cannot be NULL cannot be cut.
			c.relkind = 'p' OR EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'f' AND k.confrelid = c.oid
				AND NOT EXISTS (SELECT FROM pg_attribute x WHERE x.attrelid = c.oid AND x.attnum = ANY (k.conkey) AND NOT x.attnotnull))
		FROM pg_class c
		JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = $1
		JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped
		WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY c.relname`, schema)
	if err != nil {
		return nil, err
	}
	tables, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (table, error) {
		t := table{schema: schema}
		err := row.Scan(&t.name, &t.refers, &t.self, &t.whole)
		return t, err
	})
	return referrersFirst(tables), err
}

// referrersFirst orders tables so that each comes before those it refers to.
// Tables that refer to each other in a ring come in the order of their names.
func referrersFirst(tables []table) []table {
	byName := map[string]table{}
	for _, t := range tables {
		byName[t.name] = t
	}
	var order []table
	seen := map[string]bool{}
	var visit func(table)
	visit = func(t table) {
		seen[t.name] = true
		for _, to := range t.refers {
			if next, ours := byName[to]; ours && !seen[to] {
				visit(next)
			}
		}
		order = append(order, t)
	}
	for _, t := range tables {
		if !seen[t.name] {
			visit(t)
		}
	}
	slices.Reverse(order)
	return order
}
