package organisation

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

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

// eraseGreen deletes the tenant's rows from every shared table, each in a
// transaction of its own on another connection: what a deadline cuts short is
// not begun anew. The gate goes with tx.
func (s *Service) eraseGreen(ctx context.Context, tx pgx.Tx, o Organisation) error {
	var schema string
	if err := tx.QueryRow(ctx, `SELECT green_schema FROM control.source WHERE name = $1`, o.Source).Scan(&schema); err != nil {
		return err
	}
	tables, err := tenantTables(ctx, tx, schema)
	if err != nil {
		return err
	}
	green, err := s.d.Databases.Control(ctx)
	if err != nil {
		return err
	}
	isCitus, err := green.HasCitus(ctx)
	if err != nil {
		return err
	}
	for _, table := range tables {
		err := inTx(ctx, green, func(tx pgx.Tx) error {
			b := &pgx.Batch{}
			if isCitus {
				b.Queue(`SET LOCAL citus.propagate_set_commands = 'local'`)
			}
			// Literal, so that it reaches the workers; an ID is nothing but hexadecimal digits.
			b.Queue(`SET LOCAL app.tenant_id = '` + o.ID.String() + `'`)
			b.Queue(`DELETE FROM `+pgx.Identifier{schema, table}.Sanitize()+` WHERE tenant_id = $1`, o.ID)
			return tx.SendBatch(ctx, b).Close()
		})
		if err != nil {
			return fmt.Errorf("organisation: erase %s of %s: %w", table, o.ID, err)
		}
	}
	_, err = tx.Exec(ctx, `DELETE FROM coditect.gate WHERE tenant_id = $1`, o.ID)
	return err
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

// tenantTables lists the tables of a schema that have tenants' rows, those that
// refer to others before those they refer to.
func tenantTables(ctx context.Context, db querier, schema string) ([]string, error) {
	rows, err := db.Query(ctx, `SELECT c.relname::text,
			coalesce(array_agg(r.relname::text) FILTER (WHERE r.oid IS NOT NULL AND r.oid <> c.oid), '{}')
		FROM pg_class c
		JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = $1
		JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped
		LEFT JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype = 'f' AND k.conparentid = 0
		LEFT JOIN pg_class r ON r.oid = k.confrelid
		WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
		GROUP BY c.relname ORDER BY c.relname`, schema)
	if err != nil {
		return nil, err
	}
	refers := map[string][]string{}
	var names []string
	var name string
	var to []string
	if _, err := pgx.ForEachRow(rows, []any{&name, &to}, func() error {
		names = append(names, name)
		refers[name] = slices.Clone(to)
		return nil
	}); err != nil {
		return nil, err
	}
	return referrersFirst(names, refers), nil
}

// referrersFirst orders tables so that each comes before those it refers to.
// Tables that refer to each other in a ring come in the order of their names.
func referrersFirst(names []string, refers map[string][]string) []string {
	var order []string
	seen := map[string]bool{}
	var visit func(string)
	visit = func(n string) {
		if seen[n] {
			return
		}
		seen[n] = true
		for _, to := range refers[n] {
			visit(to)
		}
		order = append(order, n)
	}
	for _, n := range names {
		visit(n)
	}
	slices.Reverse(order)
	// What is referred to but has no tenant_id is shared by all tenants.
	return slices.DeleteFunc(order, func(n string) bool { _, ours := refers[n]; return !ours })
}
