package project

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

const labelColumns = `id, name, color, version, created_at, updated_at`

func scanLabel(row pgx.Row, l *Label) error {
	err := row.Scan(&l.ID, &l.Name, &l.Color, &l.Version, &l.CreatedAt, &l.UpdatedAt)
	l.CreatedAt, l.UpdatedAt = l.CreatedAt.UTC(), l.UpdatedAt.UTC()
	return err
}

var labels = newEntity("label", labelColumns, scanLabel)

// queueLabels makes the labels of a task that are not there yet, and holds those
// that are: a label cannot be renamed or deleted between here and the task's commit,
// which would leave the task with a name that is no label.
func queueLabels(b *citus.Batch, t tenant.ID, names []string, now time.Time) {
	if len(names) == 0 {
		return
	}
	// In one order, so that two tasks with the same labels do not wait for each other in a circle.
	names = slices.Sorted(slices.Values(names))
	b.Queue(`SELECT id FROM label WHERE tenant_id = $1 AND name = ANY ($2) ORDER BY name FOR KEY SHARE`, t, names)
	// VALUES and not unnest: on Citus that would be a COPY and a two-phase commit.
	var sql strings.Builder
	sql.WriteString(`INSERT INTO label (tenant_id, id, name, created_at, updated_at) VALUES `)
	args := []any{t, now}
	for i, name := range names {
		if i > 0 {
			sql.WriteString(`, `)
		}
		id, _ := newID()
		args = append(args, id, name)
		n := len(args)
		sql.WriteString(`($1, $` + strconv.Itoa(n-1) + `, $` + strconv.Itoa(n) + `, $2, $2)`)
	}
	sql.WriteString(` ON CONFLICT (tenant_id, name) DO NOTHING`)
	b.Queue(sql.String(), args...)
}

// CreateLabel makes a label. Replayed: the key was used before, and this is the
// first answer.
func (s *Store) CreateLabel(ctx context.Context, t tenant.ID, key string, in NewLabel) (l Label, replayed bool, err error) {
	if err := in.check(); err != nil {
		return l, false, err
	}
	id, now := newID()
	l = Label{ID: id, Name: in.Name, Color: in.Color, Version: 1, CreatedAt: now, UpdatedAt: now}
	replayed, err = create(ctx, s, t, key, "label", in, &l, func(b *citus.Batch) {
		b.Queue(`INSERT INTO label (tenant_id, id, name, color, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $5)`, t, id, in.Name, in.Color, now)
	})
	return l, replayed, labelFault(err)
}

func labelFault(err error) error {
	if citus.ConstraintName(err) == "label_name" {
		f := fault.Wrap(err, fault.Conflict, "label_exists", "there is a label of this name already")
		f.Fields = []fault.Field{{Name: "name", Message: "must be unique among the tenant's labels"}}
		return f
	}
	return err
}

// GetLabel reads one label.
func (s *Store) GetLabel(ctx context.Context, t tenant.ID, id ID) (Label, error) {
	return get(ctx, s, labels, t, id)
}

// LabelSorts are the words labels can be sorted by.
var LabelSorts = []Sort{"created", "name"}

// ListLabels reads a page of labels.
func (s *Store) ListLabels(ctx context.Context, t tenant.ID, opt ListOptions) (Page[Label], error) {
	l, err := newListing(t, opt, orders{"created": {}, "name": {`name COLLATE "C"`, "text"}}, LabelSorts, labels.selectAll)
	if err != nil {
		return Page[Label]{}, err
	}
	if err := l.finish(opt.After); err != nil {
		return Page[Label]{}, err
	}
	return read(ctx, s, labels, t, l, func(v *Label) (string, ID) {
		if l.by.expr == "" {
			return "", v.ID
		}
		return v.Name, v.ID
	})
}

const lockLabel = `SELECT name, version FROM label WHERE tenant_id = $1 AND id = $2 FOR UPDATE`

// holdLabel locks a label that is at a version (0: any) and returns its name. From
// then on no task can get it.
func holdLabel(ctx context.Context, tx *citus.Tx, id ID, version int64) (name string, err error) {
	var have int64
	err = tx.QueryRow(ctx, lockLabel, tx.Tenant(), id).Scan(&name, &have)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return "", labels.notFound()
	case err == nil && version != 0 && version != have:
		return "", labels.stale(have)
	}
	return name, err
}

// ChangeLabel changes a label that is at a version (0: any), and its name in the
// tasks that carry it; each of these gets a new version too.
func (s *Store) ChangeLabel(ctx context.Context, t tenant.ID, id ID, version int64, in LabelChange) (l Label, err error) {
	if err := in.check(); err != nil {
		return l, err
	}
	now := s.now()
	c := newChangeSet(t, id, now, version)
	optional(c, in.Clear, "name", in.Name, nil)
	optional(c, in.Clear, "color", in.Color, "")
	if in.Name == nil {
		return change(ctx, s, labels, t, c)
	}
	err = s.door.InTenant(ctx, t, func(tx *citus.Tx) error {
		old, err := holdLabel(ctx, tx, id, version)
		if err != nil {
			return err
		}
		var (
			found bool
			have  int64
		)
		b := tx.NewBatch()
		queueChange(b, labels, c, &l, &found, &have)
		if *in.Name != old {
			b.Queue(`UPDATE task SET labels = array_replace(labels, $2, $3), version = version + 1, updated_at = $4
				WHERE tenant_id = $1 AND labels @> ARRAY[$2::text]`, t, old, *in.Name, now)
		}
		return tx.Send(ctx, b)
	})
	return l, labelFault(err)
}

// DeleteLabel deletes a label that is at a version (0: any) and takes it off the
// tasks that carry it; each of these gets a new version.
func (s *Store) DeleteLabel(ctx context.Context, t tenant.ID, id ID, version int64) error {
	now := s.now()
	return s.door.InTenant(ctx, t, func(tx *citus.Tx) error {
		name, err := holdLabel(ctx, tx, id, version)
		if err != nil {
			return err
		}
		b := tx.NewBatch()
		b.Queue(`UPDATE task SET labels = array_remove(labels, $2), version = version + 1, updated_at = $3
			WHERE tenant_id = $1 AND labels @> ARRAY[$2::text]`, t, name, now)
		b.Queue(labels.remove, t, id, version)
		return tx.Send(ctx, b)
	})
}
