package project

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

// Door is what the store needs of citus.Door.
type Door interface {
	InTenant(ctx context.Context, id tenant.ID, fn func(tx *citus.Tx) error) error
	OneTrip(ctx context.Context, id tenant.ID, fn func(b *citus.Batch)) error
	ReadTrip(ctx context.Context, id tenant.ID, fn func(b *citus.Batch)) error
}

// Store reads and writes a tenant's own data. Safe for concurrent use.
type Store struct {
	door  Door
	clock func() time.Time
}

// New returns a store. Clock is time.Now but in tests.
func New(door Door, clock func() time.Time) *Store { return &Store{door: door, clock: clock} }

// now is what the database can hold of the time. It comes from here and not from
// the database: Citus takes only constants in some places.
func (s *Store) now() time.Time { return s.clock().UTC().Truncate(time.Microsecond) }

// newID returns an id and the time in it: a row's created_at is the time in its id,
// so that the order of ids is the order of creation.
func newID() (ID, time.Time) {
	id := ID(uuid.Must(uuid.NewV7()))
	return id, id.time()
}

// entity is what the store's general statements need to know of a table.
type entity[T any] struct {
	noun string // in fault codes and messages
	scan func(pgx.Row, *T) error

	selectAll, selectOne, selectVersion, lock, returning, update, remove string
}

func newEntity[T any](table, columns string, scan func(pgx.Row, *T) error) *entity[T] {
	const one = ` WHERE tenant_id = $1 AND id = $2`
	return &entity[T]{
		noun: table, scan: scan,
		selectAll:     `SELECT ` + columns + ` FROM ` + table,
		selectOne:     `SELECT ` + columns + ` FROM ` + table + one,
		selectVersion: `SELECT version FROM ` + table + one,
		lock:          `SELECT version FROM ` + table + one + ` FOR UPDATE`,
		update:        `UPDATE ` + table + ` SET version = version + 1, updated_at = $3`,
		returning:     one + ` AND ($4::bigint = 0 OR version = $4) RETURNING ` + columns,
		remove:        `DELETE FROM ` + table + one + ` AND ($3::bigint = 0 OR version = $3)`,
	}
}

func (e *entity[T]) notFound() error {
	return fault.New(fault.NotFound, e.noun+"_not_found", "there is no such %s", e.noun)
}

func (e *entity[T]) stale(have int64) error {
	return fault.New(fault.Stale, "version_mismatch", "the %s is at version %d by now: read it again and decide whether the change still fits", e.noun, have)
}

// missing says why a statement with a version check touched no row.
func (e *entity[T]) missing(have int64) error {
	if have == 0 {
		return e.notFound()
	}
	return e.stale(have)
}

// get reads one row.
func get[T any](ctx context.Context, s *Store, e *entity[T], t tenant.ID, id ID) (T, error) {
	var (
		v     T
		found bool
	)
	err := s.door.ReadTrip(ctx, t, func(b *citus.Batch) {
		b.Queue(e.selectOne, t, id).QueryRow(func(row pgx.Row) error { return scanOne(e, row, &v, &found) })
	})
	if err == nil && !found {
		err = e.notFound()
	}
	return v, err
}

// scanOne scans a row that may not be there.
func scanOne[T any](e *entity[T], row pgx.Row, v *T, found *bool) error {
	err := e.scan(row, v)
	*found = err == nil
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	return err
}

// readVersion scans a version that may not be there: 0 then.
func readVersion(have *int64) func(pgx.Row) error {
	return func(row pgx.Row) error {
		*have = 0
		err := row.Scan(have)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		return err
	}
}

// changeSet collects the columns an UPDATE sets.
type changeSet struct {
	sql  strings.Builder
	args []any // $1 tenant, $2 id, $3 now, $4 version
}

func newChangeSet(t tenant.ID, id ID, now time.Time, version int64) *changeSet {
	return &changeSet{args: []any{t, id, now, version}}
}

func (c *changeSet) set(column string, value any) {
	c.args = append(c.args, value)
	c.sql.WriteString(`, ` + column + ` = $` + strconv.Itoa(len(c.args)))
}

// optional sets a column if there is a value, or empties it if that was asked for.
func optional[V any](c *changeSet, clear Fields, column string, value *V, empty any) {
	if value != nil {
		c.set(column, *value)
	} else if clear.Has(column) {
		c.set(column, empty)
	}
}

// queueChange queues the UPDATE and, behind it, the look at what is there: it tells
// "not found" from "another version" without a second trip.
func queueChange[T any](b *citus.Batch, e *entity[T], c *changeSet, v *T, found *bool, have *int64) {
	b.Queue(e.update+c.sql.String()+e.returning, c.args...).QueryRow(func(row pgx.Row) error { return scanOne(e, row, v, found) })
	b.Queue(e.selectVersion, c.args[0], c.args[1]).QueryRow(readVersion(have))
}

// change updates one row in one trip. A change of nothing is a read that still
// checks the version.
func change[T any](ctx context.Context, s *Store, e *entity[T], t tenant.ID, c *changeSet) (T, error) {
	var (
		v     T
		found bool
		have  int64
	)
	if c.sql.Len() == 0 {
		err := s.door.ReadTrip(ctx, t, func(b *citus.Batch) {
			b.Queue(e.selectOne, t, c.args[1]).QueryRow(func(row pgx.Row) error { return scanOne(e, row, &v, &found) })
			b.Queue(e.selectVersion, t, c.args[1]).QueryRow(readVersion(&have))
		})
		if want := c.args[3].(int64); err == nil && (!found || want != 0 && want != have) {
			err = e.missing(have)
		}
		return v, err
	}
	err := s.door.OneTrip(ctx, t, func(b *citus.Batch) { queueChange(b, e, c, &v, &found, &have) })
	if err == nil && !found {
		err = e.missing(have)
	}
	return v, err
}

// read runs a list's statement and cuts the page.
func read[T any](ctx context.Context, s *Store, e *entity[T], t tenant.ID, l *listing, keyOf func(*T) (string, ID)) (Page[T], error) {
	var rows []T
	err := s.door.ReadTrip(ctx, t, func(b *citus.Batch) {
		b.Queue(l.sql.String(), l.args...).Query(func(r pgx.Rows) error {
			rows = make([]T, 0, l.most+1)
			for r.Next() {
				var v T
				if err := e.scan(r, &v); err != nil {
					return err
				}
				rows = append(rows, v)
			}
			return r.Err()
		})
	})
	if err != nil {
		return Page[T]{}, err
	}
	return pageOf(l, rows, keyOf), nil
}
