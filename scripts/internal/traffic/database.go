package traffic

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

// fencedState is the SQLSTATE that the fence in blue refuses writes with.
const fencedState = "CD001"

// The statements on a django tenant's labels. The same text serves the tenant's
// own schema and the shared tables: names are unqualified, and tenant_id has a default
// where there is one. The id comes from the table's sequence.
const (
	insertLabel = `INSERT INTO work_label (name) VALUES ($1) RETURNING id`
	updateLabel = `UPDATE work_label SET name = $2 WHERE id = $1`
	readLabel   = `SELECT name FROM work_label WHERE id = $1`
	pageLabels  = `SELECT id, name FROM work_label ORDER BY id LIMIT 20`
)

// Follower is a client of a foreign tenant that goes through the door, so it
// follows the tenant wherever it moves.
type Follower struct {
	Door   *citus.Door
	Tenant tenant.ID
}

// Kind implements Client.
func (Follower) Kind() string { return "label" }

// Create implements Client.
func (c Follower) Create(ctx context.Context, _, text string) (string, error) {
	var id int64
	err := c.Door.InTenant(ctx, c.Tenant, func(tx *citus.Tx) error {
		return tx.QueryRow(ctx, insertLabel, text).Scan(&id)
	})
	return strconv.FormatInt(id, 10), certain(err)
}

// Update implements Client.
func (c Follower) Update(ctx context.Context, id, text string) error {
	n, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		return err
	}
	return certain(c.Door.InTenant(ctx, c.Tenant, func(tx *citus.Tx) error {
		tag, err := tx.Exec(ctx, updateLabel, n, text)
		return oneRow(tag, err)
	}))
}

// Read implements Client.
func (c Follower) Read(ctx context.Context, id string) (text string, err error) {
	n, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		return "", err
	}
	err = c.Door.ReadTenant(ctx, c.Tenant, func(tx *citus.Tx) error {
		return tx.QueryRow(ctx, readLabel, n).Scan(&text)
	})
	return text, err
}

// Page implements Client.
func (c Follower) Page(ctx context.Context) error {
	return c.Door.ReadTenant(ctx, c.Tenant, func(tx *citus.Tx) error {
		rows, err := tx.Query(ctx, pageLabels)
		if err != nil {
			return err
		}
		rows.Close()
		return rows.Err()
	})
}

// certain says of the door's errors which leave the write undone: all but those
// whose outcome is unknown.
func certain(err error) error {
	if f := fault.As(err); f != nil && f.Kind != fault.Uncertain && f.Kind != fault.Internal {
		return Refusal{err}
	}
	return err
}

// OldApplication is a client of a foreign tenant as it was before: it writes into
// the tenant's schema on blue with its old role and knows nothing of any move.
type OldApplication struct {
	Pool   *pgxpool.Pool
	Schema string
}

// Kind implements Client. Its rows are labels like the Follower's: after the move they
// are looked up in the same place.
func (OldApplication) Kind() string { return "label" }

// inSchema runs fn as django-tenants does: with the tenant's search_path.
func (c OldApplication) inSchema(ctx context.Context, fn func(tx pgx.Tx) error) error {
	committing := false
	err := pgx.BeginFunc(ctx, c.Pool, func(tx pgx.Tx) error {
		committing = false
		if _, err := tx.Exec(ctx, `SELECT set_config('search_path', $1, true)`, pgx.Identifier{c.Schema}.Sanitize()+`, public`); err != nil {
			return err
		}
		if err := fn(tx); err != nil {
			return err
		}
		committing = true
		return nil
	})
	var pg *pgconn.PgError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &pg) && pg.Code == fencedState:
		return fmt.Errorf("%w: %w", ErrFenced, err)
	case errors.As(err, &pg) || !committing:
		return Refusal{err}
	default:
		return err // COMMIT was sent and nothing came back
	}
}

// Create implements Client.
func (c OldApplication) Create(ctx context.Context, _, text string) (string, error) {
	var id int64
	err := c.inSchema(ctx, func(tx pgx.Tx) error { return tx.QueryRow(ctx, insertLabel, text).Scan(&id) })
	return strconv.FormatInt(id, 10), err
}

// Update implements Client.
func (c OldApplication) Update(ctx context.Context, id, text string) error {
	n, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		return err
	}
	return c.inSchema(ctx, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, updateLabel, n, text)
		return oneRow(tag, err)
	})
}

// Read implements Client.
func (c OldApplication) Read(ctx context.Context, id string) (text string, err error) {
	n, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		return "", err
	}
	err = c.inSchema(ctx, func(tx pgx.Tx) error { return tx.QueryRow(ctx, readLabel, n).Scan(&text) })
	return text, err
}

// Page implements Client.
func (c OldApplication) Page(ctx context.Context) error {
	return c.inSchema(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, pageLabels)
		return err
	})
}

// oneRow turns an update that found nothing into an error: the row has been lost.
func oneRow(tag pgconn.CommandTag, err error) error {
	if err == nil && tag.RowsAffected() != 1 {
		return fmt.Errorf("the update changed %d rows instead of one", tag.RowsAffected())
	}
	return err
}

// Where the rows that traffic makes stand, by Kind.
var lookups = map[string]string{
	"task":  `SELECT title FROM task WHERE tenant_id = coditect.current_tenant() AND title LIKE '` + Prefix + `%'`,
	"label": `SELECT name FROM work_label WHERE name LIKE '` + Prefix + `%'`,
}

// LookUp reads all rows of one kind that traffic made for a tenant, from wherever
// the tenant lives now.
func LookUp(ctx context.Context, door *citus.Door, id tenant.ID, kind string, found Found) error {
	var texts []string
	err := door.ReadTenant(ctx, id, func(tx *citus.Tx) error {
		rows, err := tx.Query(ctx, lookups[kind])
		if err != nil {
			return err
		}
		texts, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	if err != nil {
		return fmt.Errorf("look up the %ss of tenant %s: %w", kind, id, err)
	}
	for _, text := range texts {
		if token, version, ok := Parse(text); ok {
			k := Key{Tenant: id, Kind: kind, Token: token}
			found[k] = append(found[k], version)
		}
	}
	return nil
}

// Verify looks up everything that the journal knows.
func Verify(ctx context.Context, door *citus.Door, journal *Journal) (Verdict, error) {
	found := Found{}
	for target := range journal.targets() {
		if err := LookUp(ctx, door, target.Tenant, target.Kind, found); err != nil {
			return Verdict{}, err
		}
	}
	return journal.Check(found), nil
}
