package organisation

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

// querier is a pool or a transaction.
type querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

const columns = `t.id, t.name, t.slug, t.status, t.home, t.source, t.plan, t.delete_after, t.created_at, t.updated_at, t.version,
	t.database_name, t.schema_name, t.suspended_at`

func (o *Organisation) fields() []any {
	return []any{&o.ID, &o.Name, &o.Slug, &o.Status, &o.Home, &o.Source, &o.Plan, &o.DeleteAfter, &o.CreatedAt, &o.UpdatedAt, &o.Version,
		&o.database, &o.schema, &o.suspended}
}

func scan(row pgx.CollectableRow) (Organisation, error) {
	var o Organisation
	err := row.Scan(o.fields()...)
	return o.utc(), err
}

func (o Organisation) utc() Organisation {
	o.CreatedAt, o.UpdatedAt = o.CreatedAt.UTC(), o.UpdatedAt.UTC()
	if o.DeleteAfter != nil {
		t := o.DeleteAfter.UTC()
		o.DeleteAfter = &t
	}
	return o
}

// purpose is what a tenant is found for.
type purpose int

const (
	toRead  purpose = iota
	toWrite         // locks the row
)

// find returns a tenant if the caller may see it, and for writing also change
// it. What is not the caller's does not exist for them.
func find(ctx context.Context, db querier, caller Caller, id tenant.ID, p purpose) (Organisation, error) {
	sql := `SELECT ` + columns + `, coalesce(m.role, '') FROM control.tenant t
		LEFT JOIN control.membership m ON m.tenant_id = t.id AND m.subject = $2 WHERE t.id = $1`
	if p == toWrite {
		sql += ` FOR UPDATE OF t`
	}
	var o Organisation
	var role string
	err := db.QueryRow(ctx, sql, id, caller.Subject).Scan(append(o.fields(), &role)...)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return o, errNotFound()
	case err != nil:
		return o, err
	case caller.Operator:
	case o.Status == tenant.Deleted, caller.Tenant != id && role == "":
		return o, errNotFound()
	case p == toWrite && caller.Tenant != id && role == "member":
		return o, fault.New(fault.Forbidden, "role_too_low", "only owners and administrators of the organisation may do this")
	}
	return o.utc(), nil
}

func list(ctx context.Context, db querier, caller Caller, f Filter, after tenant.ID, limit int) ([]Organisation, error) {
	rows, err := db.Query(ctx, `SELECT `+columns+` FROM control.tenant t
		WHERE t.id > $1 AND ($2 OR t.id = $3 OR EXISTS (SELECT FROM control.membership m WHERE m.tenant_id = t.id AND m.subject = $4))
		  AND CASE WHEN $5 = '' THEN t.status <> 'deleted' ELSE t.status = $5 AND ($2 OR t.status <> 'deleted') END
		  AND ($6 = '' OR t.home = $6)
		ORDER BY t.id LIMIT $7`,
		after, caller.Operator, caller.Tenant, caller.Subject, string(f.Status), string(f.Home), limit)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scan)
}

// insert adds a tenant that has no home yet, and its owner.
func insert(ctx context.Context, db querier, o Organisation, owner string) error {
	_, err := db.Exec(ctx, `INSERT INTO control.tenant (id, name, slug, home, database_name, schema_name, status, created_at, updated_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)`,
		o.ID, o.Name, o.Slug, string(o.Home), o.database, o.schema, string(o.Status), o.CreatedAt)
	if err != nil || owner == "" {
		return err
	}
	_, err = db.Exec(ctx, `INSERT INTO control.membership (tenant_id, subject, role, created_at) VALUES ($1, $2, 'owner', $3)`, o.ID, owner, o.CreatedAt)
	return err
}

// save writes what can change, and notes that the gate has to follow when the
// status did. The row is locked by find.
func save(ctx context.Context, db querier, o Organisation, statusChanged bool) error {
	_, err := db.Exec(ctx, `UPDATE control.tenant SET name = $2, status = $3, delete_after = $4, suspended_at = $5, version = $6, updated_at = $7 WHERE id = $1`,
		o.ID, o.Name, string(o.Status), o.DeleteAfter, o.suspended, o.Version, o.UpdatedAt)
	if err != nil || !statusChanged {
		return err
	}
	_, err = db.Exec(ctx, `INSERT INTO control.gate_due (tenant_id, since) VALUES ($1, $2) ON CONFLICT (tenant_id) DO UPDATE SET since = excluded.since`, o.ID, o.UpdatedAt)
	return err
}

// signUp is an earlier sign-up with the same Idempotency-Key.
type signUp struct {
	request []byte
	tenant  tenant.ID
}

func findSignUp(ctx context.Context, db querier, id []byte) (signUp, bool, error) {
	var s signUp
	err := db.QueryRow(ctx, `SELECT request, tenant_id FROM control.sign_up WHERE id = $1`, id).Scan(&s.request, &s.tenant)
	if errors.Is(err, pgx.ErrNoRows) {
		return s, false, nil
	}
	return s, err == nil, err
}

// constraintOf names the unique constraint an insert broke, "" for another error.
func constraintOf(err error) string {
	if citus.StateOf(err) != "23505" {
		return ""
	}
	return citus.ConstraintName(err)
}
