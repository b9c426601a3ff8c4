package auth

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

// DB is a pool of the database with the control tables, or a transaction.
type DB interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// NewKey says what key to make.
type NewKey struct {
	Name    string    // for people: "continuous integration"
	Kind    Kind      // Operator, TenantKey or User
	Tenant  tenant.ID // of a tenant's key; none for an operator's
	Subject string    // of a user's key; others are named after the key
	Scopes  []string
	Expires time.Time // zero for never
}

// Key is what is known of a key: everything but its secret.
type Key struct {
	ID       uuid.UUID  `json:"id"`
	Name     string     `json:"name"`
	Kind     Kind       `json:"kind"`
	Subject  string     `json:"subject"`
	Tenant   *tenant.ID `json:"tenant,omitempty"`
	Scopes   []string   `json:"scopes"`
	Created  time.Time  `json:"created_at"`
	Expires  *time.Time `json:"expires_at,omitempty"`
	Revoked  *time.Time `json:"revoked_at,omitempty"`
	LastUsed *time.Time `json:"last_used_at,omitempty"`
}

const keyColumns = `id, name, kind, subject, tenant_id, scopes, created_at, expires_at, revoked_at, last_used_at`

func scanKey(row pgx.CollectableRow) (Key, error) {
	var k Key
	err := row.Scan(&k.ID, &k.Name, &k.Kind, &k.Subject, &k.Tenant, &k.Scopes, &k.Created, &k.Expires, &k.Revoked, &k.LastUsed)
	return k, err
}

// CreateKey makes a key and returns it with its text, which is shown this once
// and stored nowhere.
func CreateKey(ctx context.Context, db DB, n NewKey) (string, Key, error) {
	if err := n.check(time.Now()); err != nil {
		return "", Key{}, err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return "", Key{}, fmt.Errorf("auth: make an id: %w", err)
	}
	text, hash := newSecret(id)
	if n.Subject == "" {
		n.Subject = "key:" + id.String()
	}
	rows, err := db.Query(ctx, `INSERT INTO control.api_key (id, name, kind, subject, tenant_id, scopes, secret_hash, expires_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING `+keyColumns,
		id, n.Name, string(n.Kind), n.Subject, orNull(n.Tenant), n.Scopes, hash[:], orNullTime(n.Expires))
	if err != nil {
		return "", Key{}, storeFault(err)
	}
	key, err := pgx.CollectExactlyOneRow(rows, scanKey)
	if err != nil {
		return "", Key{}, storeFault(err)
	}
	return text, key, nil
}

func (n NewKey) check(now time.Time) error {
	if l := utf8.RuneCountInString(n.Name); l < 1 || l > 200 || strings.TrimSpace(n.Name) != n.Name {
		return fault.BadField("name", "must have 1 to 200 characters and neither begin nor end with a space")
	}
	allowed := AllScopes()
	switch n.Kind {
	case Operator:
		if !n.Tenant.IsZero() {
			return fault.BadField("tenant", "must be empty for an operator's key")
		}
	case TenantKey:
		if n.Tenant.IsZero() {
			return fault.BadField("tenant", "must name the tenant that the key is for")
		}
		allowed = []string{TenantsRead, TenantsWrite, ProjectsRead, ProjectsWrite}
	case User:
		if n.Subject == "" {
			return fault.BadField("subject", "must name the user that the key is for")
		}
		allowed = []string{TenantsRead, TenantsWrite, TenantsCreate, ProjectsRead, ProjectsWrite}
	default:
		return fault.BadField("kind", "must be operator, tenant or user")
	}
	if len(n.Subject) > 255 || n.Kind != User && n.Subject != "" {
		return fault.BadField("subject", "must have at most 255 bytes, and be empty unless the key is a user's")
	}
	if len(n.Scopes) == 0 {
		return fault.BadField("scopes", "must be some of %s", strings.Join(allowed, ", "))
	}
	for i, s := range n.Scopes {
		if !slices.Contains(allowed, s) || slices.Contains(n.Scopes[:i], s) {
			return fault.BadField(fmt.Sprintf("scopes[%d]", i), "must be one of %s, and in the list once", strings.Join(allowed, ", "))
		}
	}
	if !n.Expires.IsZero() && !n.Expires.After(now) {
		return fault.BadField("expires", "must be in the future")
	}
	return nil
}

// RevokeKey makes a key worthless for good; instances that have it cached
// follow within the cache's time. Revoking it again changes nothing.
func RevokeKey(ctx context.Context, db DB, id uuid.UUID) (Key, error) {
	rows, err := db.Query(ctx, `UPDATE control.api_key SET revoked_at = coalesce(revoked_at, now()) WHERE id = $1 RETURNING `+keyColumns, id)
	if err != nil {
		return Key{}, storeFault(err)
	}
	key, err := pgx.CollectExactlyOneRow(rows, scanKey)
	if errors.Is(err, pgx.ErrNoRows) {
		return Key{}, fault.New(fault.NotFound, "key_not_found", "there is no such key")
	}
	return key, storeFault(err)
}

// RevokeTenantKeys revokes all keys of a tenant, for its erasure.
func RevokeTenantKeys(ctx context.Context, db DB, id tenant.ID, at time.Time) error {
	_, err := db.Exec(ctx, `UPDATE control.api_key SET revoked_at = $2 WHERE tenant_id = $1 AND revoked_at IS NULL`, id, at)
	return storeFault(err)
}

// ListKeys lists what is known of keys, oldest first: those of one tenant, or all
// of them for the zero tenant. At most limit, after the key with the id after.
func ListKeys(ctx context.Context, db DB, of tenant.ID, after uuid.UUID, limit int) ([]Key, error) {
	rows, err := db.Query(ctx, `SELECT `+keyColumns+` FROM control.api_key
		WHERE ($1::uuid IS NULL OR tenant_id = $1) AND id > $2 ORDER BY id LIMIT $3`, orNull(of), after, limit)
	if err != nil {
		return nil, storeFault(err)
	}
	keys, err := pgx.CollectRows(rows, scanKey)
	return keys, storeFault(err)
}

// stored is a key as the cache keeps it.
type stored struct {
	hash      []byte
	principal Principal
	expires   *time.Time
	revoked   bool
}

// coarse is how old last_used_at may be before it is written again.
const coarse = 10 * time.Minute

// findKey reads one key and, when its secret is right and the last note is old,
// notes its use, in one round trip.
func findKey(ctx context.Context, db DB, id uuid.UUID, hash []byte, now time.Time) (stored, error) {
	var s stored
	var of *tenant.ID
	var revoked *time.Time
	err := db.QueryRow(ctx, `WITH used AS (
			UPDATE control.api_key SET last_used_at = $3 WHERE id = $1 AND secret_hash = $2 AND revoked_at IS NULL
				AND (last_used_at IS NULL OR last_used_at < $4))
		SELECT secret_hash, kind, subject, tenant_id, scopes, expires_at, revoked_at FROM control.api_key WHERE id = $1`,
		id, hash, now, now.Add(-coarse)).
		Scan(&s.hash, &s.principal.Kind, &s.principal.Subject, &of, &s.principal.Scopes, &s.expires, &revoked)
	if of != nil {
		s.principal.Tenant = *of
	}
	s.revoked = revoked != nil
	return s, err
}

func orNull(id tenant.ID) any {
	if id.IsZero() {
		return nil
	}
	return id
}

func orNullTime(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t
}

// storeFault gives the errors that a caller can do something about their words.
func storeFault(err error) error {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "23503" {
		return fault.Wrap(err, fault.Invalid, "tenant_not_found", "there is no such tenant")
	}
	if err != nil {
		return fmt.Errorf("auth: %w", err)
	}
	return nil
}
