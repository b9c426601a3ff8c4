package migration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/tenant"
)

// Archive keeps dumps of schemas. An adapter over shared/archive is one.
type Archive interface {
	// Save dumps a schema of the database that dsn names, and proves that the dump can be read.
	// An error leaves nothing behind.
	Save(ctx context.Context, dsn, schema, name string) (Dump, error)
	// Remove deletes a dump. One that is not there is fine.
	Remove(ctx context.Context, name string) error
}

// Dump is a schema in the archive.
type Dump struct {
	URL    string
	Bytes  int64
	SHA256 []byte
	Tables []string // whose rows it holds, one entry each
}

// WithArchive lets a mover finalise: without an archive no schema is ever dropped.
func WithArchive(a Archive) Option { return func(m *Mover) { m.archive = a } }

// Finalisation says what became of a tenant's blue schema.
type Finalisation struct {
	Run     uuid.UUID  `json:"run"`
	Tenant  tenant.ID  `json:"tenant"`
	State   State      `json:"state"`
	Source  string     `json:"source"`
	Schema  string     `json:"schema"`
	Archive string     `json:"archive,omitempty"` // the dump's URL
	Bytes   int64      `json:"bytes,omitempty"`
	SHA256  string     `json:"sha256,omitempty"`
	Rows    int64      `json:"rows"`
	Saved   *time.Time `json:"saved_at,omitempty"`
	Dropped *time.Time `json:"dropped_at,omitempty"`
	Error   string     `json:"error,omitempty"`

	Tables map[string]TableDigest `json:"-"` // of the schema when it was dumped
}

// TableDigest sums up all rows of one table, in any order.
type TableDigest struct {
	Rows int64  `json:"rows"`
	Hash string `json:"hash"` // the sum of a 64-bit hash of each row's canonical text, decimal
}

// SchemaDigests sums up every table of a schema: a schema that was restored from its dump has the same.
func SchemaDigests(ctx context.Context, tx pgx.Tx, schema string) (map[string]TableDigest, error) {
	if err := execAll(ctx, tx, canonical); err != nil {
		return nil, err
	}
	rows, err := tx.Query(ctx, `SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relkind = 'r' ORDER BY 1`, schema)
	if err != nil {
		return nil, err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	out := map[string]TableDigest{}
	for _, n := range names {
		var d TableDigest
		if err := tx.QueryRow(ctx, `SELECT count(*), coalesce(sum(hashtextextended(x::text, 0)), 0)::text FROM `+quoted(schema, n)+` x`, pgx.QueryExecModeExec).Scan(&d.Rows, &d.Hash); err != nil {
			return nil, fmt.Errorf("migration: sum up table %s: %w", n, err)
		}
		out[n] = d
	}
	return out, nil
}

// finalised reads what became of one tenant's schema.
func (m *Mover) finalised(ctx context.Context, run uuid.UUID, who tenant.ID) (Finalisation, error) {
	control, err := m.control(ctx)
	if err != nil {
		return Finalisation{}, err
	}
	all, err := readFinalised(ctx, control, `a.run_id = $1 AND a.tenant_id = $2`, run, who)
	if err != nil || len(all) == 0 {
		return Finalisation{}, errors.Join(err, pgx.ErrNoRows)
	}
	return all[0], nil
}

// Archived lists what became of a tenant's blue schemas, newest first; of all tenants, if
// the tenant is the zero ID, at most limit.
func Archived(ctx context.Context, control *citus.Pool, who tenant.ID, limit int) ([]Finalisation, error) {
	return readFinalised(ctx, control, `($1::uuid = '00000000-0000-0000-0000-000000000000' OR a.tenant_id = $1) ORDER BY a.saved_at DESC NULLS FIRST LIMIT $2`, who, limit)
}

func readFinalised(ctx context.Context, control *citus.Pool, where string, args ...any) ([]Finalisation, error) {
	rows, err := control.Query(ctx, `SELECT a.run_id, a.tenant_id, m.state, r.source, a.schema_name, coalesce(a.url, ''), coalesce(a.bytes, 0), coalesce(encode(a.sha256, 'hex'), ''),
			a.tables, a.saved_at, a.dropped_at, coalesce(a.error, '')
		FROM control.archive a JOIN control.move m USING (run_id, tenant_id) JOIN control.run r ON r.id = a.run_id WHERE `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("migration: read the archive: %w", err)
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (f Finalisation, err error) {
		err = row.Scan(&f.Run, &f.Tenant, &f.State, &f.Source, &f.Schema, &f.Archive, &f.Bytes, &f.SHA256, &f.Tables, &f.Saved, &f.Dropped, &f.Error)
		for d := range maps.Values(f.Tables) {
			f.Rows += d.Rows
		}
		return f, err
	})
}
