package project

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/tenant"
)

const commentColumns = `id, task_id, author, body, version, created_at, updated_at`

func scanComment(row pgx.Row, c *Comment) error {
	err := row.Scan(&c.ID, &c.TaskID, &c.Author, &c.Body, &c.Version, &c.CreatedAt, &c.UpdatedAt)
	c.CreatedAt, c.UpdatedAt = c.CreatedAt.UTC(), c.UpdatedAt.UTC()
	return err
}

var comments = newEntity("comment", commentColumns, scanComment)

// CreateComment adds a comment to a task. Replayed: the key was used before, and
// this is the first answer.
func (s *Store) CreateComment(ctx context.Context, t tenant.ID, task ID, key string, in NewComment) (c Comment, replayed bool, err error) {
	if err := in.check(); err != nil {
		return c, false, err
	}
	id, now := newID()
	c = Comment{ID: id, TaskID: task, Author: in.Author, Body: in.Body, Version: 1, CreatedAt: now, UpdatedAt: now}
	replayed, err = create(ctx, s, t, key, "comment "+task.String()+" "+in.Author, in, &c, func(b *citus.Batch) {
		b.Queue(`INSERT INTO comment (tenant_id, id, task_id, author, body, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $6)`,
			t, id, task, in.Author, in.Body, now)
	})
	if citus.ConstraintName(err) == "comment_of_task" {
		err = tasks.notFound()
	}
	return c, replayed, err
}

// GetComment reads one comment.
func (s *Store) GetComment(ctx context.Context, t tenant.ID, id ID) (Comment, error) {
	return get(ctx, s, comments, t, id)
}

// CommentSorts are the words comments can be sorted by.
var CommentSorts = []Sort{"created"}

// ListComments reads a page of a task's comments. A task that is not there is not a
// task without comments.
func (s *Store) ListComments(ctx context.Context, t tenant.ID, task ID, opt ListOptions) (Page[Comment], error) {
	l, err := newListing(t, opt, orders{"created": {}}, CommentSorts, comments.selectAll)
	if err != nil {
		return Page[Comment]{}, err
	}
	l.where(`task_id = ?`, task, task.String())
	if err := l.finish(opt.After); err != nil {
		return Page[Comment]{}, err
	}
	page, err := read(ctx, s, comments, t, l, func(c *Comment) (string, ID) { return "", c.ID })
	if err == nil && len(page.Items) == 0 {
		_, err = s.GetTask(ctx, t, task)
	}
	return page, err
}

// ChangeComment changes a comment that is at a version (0: any).
func (s *Store) ChangeComment(ctx context.Context, t tenant.ID, id ID, version int64, in CommentChange) (Comment, error) {
	if err := in.check(); err != nil {
		return Comment{}, err
	}
	c := newChangeSet(t, id, s.now(), version)
	optional(c, in.Clear, "body", in.Body, nil)
	return change(ctx, s, comments, t, c)
}

// DeleteComment deletes a comment that is at a version (0: any).
func (s *Store) DeleteComment(ctx context.Context, t tenant.ID, id ID, version int64) error {
	var (
		have    int64
		deleted bool
	)
	err := s.door.OneTrip(ctx, t, func(b *citus.Batch) {
		b.Queue(comments.lock, t, id).QueryRow(readVersion(&have))
		b.Queue(comments.remove, t, id, version).Exec(didDelete(&deleted))
	})
	if err == nil && !deleted {
		err = comments.missing(have)
	}
	return err
}
