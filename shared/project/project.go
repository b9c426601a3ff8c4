// Package project is a tenant's own data: projects, their tasks and the tasks'
// comments, and the labels of the tenant.
//
// [Store] has one method for each thing that can be done. Each takes the tenant,
// enters it through the door (shared/citus), and passes the tenant with every
// statement (tenant_id = $1): that prunes shards, and row-level security is the
// second lock. Most methods are one round trip, COMMIT included.
//
// Rules that hold everywhere:
//
//   - Everything has a version that grows with each change. A change or a delete may
//     name the version it is meant for; another one is a fault of kind Stale.
//     Version 0 means "whichever is current".
//   - A create may carry a key. The same key with the same input gives the first
//     answer again for [KeyLifetime], also when the tenant has moved in between or
//     the row is gone; with another input it is refused (idempotency.go).
//   - A list is read by pages. A page begins after a [Position], which belongs to one
//     tenant, sort and filter and is refused elsewhere (page.go).
//   - A parent is a task of the same project, and no task is its own ancestor.
//     Deleting a task deletes its comments and makes its subtasks top-level ones.
//   - Deleting a project that has tasks is refused unless the caller says that the
//     tasks go with it.
//   - A task names its labels. A name that is new becomes a label; renaming or
//     deleting a label changes the tasks that carry it.
package project

import (
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"
)

// ID names a project, task, comment or label: a UUID of version 7, whose first
// bits are the time it was made.
type ID uuid.UUID

// ParseID reads the usual 36 character form.
func ParseID(s string) (ID, error) {
	u, err := uuid.Parse(s)
	if err != nil || len(s) != 36 {
		return ID{}, fmt.Errorf("project: a UUID such as 0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69")
	}
	return ID(u), nil
}

// IsZero reports whether id names nothing.
func (id ID) IsZero() bool { return id == ID{} }

func (id ID) String() string { return uuid.UUID(id).String() }

// MarshalText makes an ID a JSON string.
func (id ID) MarshalText() ([]byte, error) { return uuid.UUID(id).MarshalText() }

// UnmarshalText is the inverse of MarshalText.
func (id *ID) UnmarshalText(b []byte) (err error) {
	*id, err = ParseID(string(b))
	return err
}

// UUIDValue makes an ID a query argument, sent in binary form.
func (id ID) UUIDValue() (pgtype.UUID, error) { return pgtype.UUID{Bytes: id, Valid: true}, nil }

// ScanUUID reads a uuid column; NULL is the zero ID.
func (id *ID) ScanUUID(v pgtype.UUID) error {
	*id = v.Bytes
	return nil
}

// time is when the id was made, to the millisecond.
func (id ID) time() time.Time {
	ms := int64(id[0])<<40 | int64(id[1])<<32 | int64(id[2])<<24 | int64(id[3])<<16 | int64(id[4])<<8 | int64(id[5])
	return time.UnixMilli(ms).UTC()
}

// Project is what tasks belong to.
type Project struct {
	ID          ID        `json:"id" format:"uuid"`
	Name        string    `json:"name"`
	Description string    `json:"description"`
	Archived    bool      `json:"archived"`
	Version     int64     `json:"version" doc:"Grows with every change; the ETag is this number"`
	CreatedAt   time.Time `json:"created_at"`
	UpdatedAt   time.Time `json:"updated_at"`
}

// NewProject is what a project is made from.
type NewProject struct {
	Name        string `json:"name" minLength:"1" maxLength:"200"`
	Description string `json:"description,omitempty" maxLength:"20000"`
}

// ProjectChange is what to change of a project: fields that are nil stay.
type ProjectChange struct {
	Name        *string `json:"name,omitempty" minLength:"1" maxLength:"200"`
	Description *string `json:"description,omitempty" maxLength:"20000" nullable:"true" doc:"null empties it"`
	Archived    *bool   `json:"archived,omitempty"`

	Clear Fields `json:"-"` // fields to empty: description
}

// UnmarshalJSON reads a merge patch (RFC 7396).
func (p *ProjectChange) UnmarshalJSON(data []byte) (err error) {
	type plain ProjectChange
	p.Clear, err = readMergePatch(data, (*plain)(p))
	return err
}

func (n *NewProject) check() error {
	var c checks
	c.line("name", n.Name, 1, maxTitle)
	c.text("description", n.Description, 0, maxText)
	return c.err()
}

func (p *ProjectChange) check() error {
	var c checks
	if p.Name != nil {
		c.line("name", *p.Name, 1, maxTitle)
	}
	if p.Description != nil {
		c.text("description", *p.Description, 0, maxText)
	}
	c.clearable(p.Clear, "description")
	return c.err()
}

// Label is a word that tasks can carry.
type Label struct {
	ID        ID        `json:"id" format:"uuid"`
	Name      string    `json:"name"`
	Color     string    `json:"color" doc:"#rrggbb, or empty"`
	Version   int64     `json:"version" doc:"Grows with every change; the ETag is this number"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

// NewLabel is what a label is made from.
type NewLabel struct {
	Name  string `json:"name" minLength:"1" maxLength:"50" doc:"Unique in the tenant; no comma, and no space at either end"`
	Color string `json:"color,omitempty" pattern:"^(#[0-9a-f]{6})?$" patternDescription:"#rrggbb in lower case, or empty" doc:"#rrggbb"`
}

// LabelChange is what to change of a label: fields that are nil stay.
type LabelChange struct {
	Name  *string `json:"name,omitempty" minLength:"1" maxLength:"50" doc:"Tasks that carry the label carry its new name"`
	Color *string `json:"color,omitempty" pattern:"^(#[0-9a-f]{6})?$" patternDescription:"#rrggbb in lower case, or empty" nullable:"true" doc:"null empties it"`

	Clear Fields `json:"-"` // fields to empty: color
}

// UnmarshalJSON reads a merge patch (RFC 7396).
func (l *LabelChange) UnmarshalJSON(data []byte) (err error) {
	type plain LabelChange
	l.Clear, err = readMergePatch(data, (*plain)(l))
	return err
}

func (n *NewLabel) check() error {
	var c checks
	c.label("name", n.Name)
	c.color("color", n.Color)
	return c.err()
}

func (l *LabelChange) check() error {
	var c checks
	if l.Name != nil {
		c.label("name", *l.Name)
	}
	if l.Color != nil {
		c.color("color", *l.Color)
	}
	c.clearable(l.Clear, "color")
	return c.err()
}

// Comment is what somebody said about a task.
type Comment struct {
	ID        ID        `json:"id" format:"uuid"`
	TaskID    ID        `json:"task_id" format:"uuid"`
	Author    string    `json:"author" doc:"The subject of whoever wrote it"`
	Body      string    `json:"body"`
	Version   int64     `json:"version" doc:"Grows with every change; the ETag is this number"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

// NewComment is what a comment is made from.
type NewComment struct {
	Body   string `json:"body" minLength:"1" maxLength:"20000"`
	Author string `json:"-"` // the caller's subject
}

// CommentChange is what to change of a comment: fields that are nil stay.
type CommentChange struct {
	Body *string `json:"body,omitempty" minLength:"1" maxLength:"20000"`

	Clear Fields `json:"-"` // a comment has nothing that could be empty
}

// UnmarshalJSON reads a merge patch (RFC 7396).
func (n *CommentChange) UnmarshalJSON(data []byte) (err error) {
	type plain CommentChange
	n.Clear, err = readMergePatch(data, (*plain)(n))
	return err
}

func (n *NewComment) check() error {
	var c checks
	c.text("body", n.Body, 1, maxText)
	return c.err()
}

func (n *CommentChange) check() error {
	var c checks
	if n.Body != nil {
		c.text("body", *n.Body, 1, maxText)
	}
	c.clearable(n.Clear)
	return c.err()
}
