package project

import (
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

// Status is how far a task is.
type Status string

// The statuses, in the order a task usually takes. The table task has the same CHECK.
const (
	Todo       Status = "todo"
	InProgress Status = "in_progress"
	Blocked    Status = "blocked"
	Done       Status = "done"
	Cancelled  Status = "cancelled"
)

// Statuses lists them all.
var Statuses = []Status{Todo, InProgress, Blocked, Done, Cancelled}

// Date is a day without a time or a zone.
type Date struct{ day time.Time } // midnight UTC

// ParseDate reads 2026-01-31.
func ParseDate(s string) (Date, error) {
	t, err := time.Parse(time.DateOnly, s)
	if err != nil || t.Year() < 1 {
		return Date{}, fmt.Errorf("project: a date such as 2026-01-31")
	}
	return Date{t}, nil
}

// IsZero reports whether d is no day at all.
func (d Date) IsZero() bool { return d.day.IsZero() }

func (d Date) String() string { return d.day.Format(time.DateOnly) }

// MarshalText makes a Date a JSON string.
func (d Date) MarshalText() ([]byte, error) { return d.day.AppendFormat(nil, time.DateOnly), nil }

// UnmarshalText is the inverse of MarshalText.
func (d *Date) UnmarshalText(b []byte) (err error) {
	*d, err = ParseDate(string(b))
	return err
}

// DateValue makes a Date a query argument.
func (d Date) DateValue() (pgtype.Date, error) { return pgtype.Date{Time: d.day, Valid: true}, nil }

// ScanDate reads a date column; NULL is no day at all.
func (d *Date) ScanDate(v pgtype.Date) error {
	if v.InfinityModifier != pgtype.Finite {
		return fmt.Errorf("project: cannot read infinity into a Date")
	}
	d.day = v.Time
	return nil
}

// Task is one piece of work.
type Task struct {
	ID          ID        `json:"id" format:"uuid"`
	ProjectID   ID        `json:"project_id" format:"uuid"`
	ParentID    *ID       `json:"parent_id" format:"uuid" nullable:"true" doc:"The task this is a part of"`
	Title       string    `json:"title"`
	Description string    `json:"description"`
	Status      Status    `json:"status" enum:"todo,in_progress,blocked,done,cancelled"`
	Priority    int       `json:"priority" minimum:"0" maximum:"4" doc:"0 none, 1 low, 2 medium, 3 high, 4 urgent"`
	Assignee    *string   `json:"assignee" nullable:"true" doc:"The subject of whoever works on it"`
	DueDate     *Date     `json:"due_date" format:"date" nullable:"true"`
	Labels      []string  `json:"labels" nullable:"false"`
	Version     int64     `json:"version" doc:"Grows with every change; the ETag is this number"`
	CreatedAt   time.Time `json:"created_at"`
	UpdatedAt   time.Time `json:"updated_at"`
}

// NewTask is what a task is made from.
type NewTask struct {
	ParentID    *ID      `json:"parent_id,omitempty" format:"uuid" nullable:"true" doc:"A task of the same project"`
	Title       string   `json:"title" minLength:"1" maxLength:"200"`
	Description string   `json:"description,omitempty" maxLength:"20000"`
	Status      Status   `json:"status,omitempty" enum:"todo,in_progress,blocked,done,cancelled" default:"todo"`
	Priority    int      `json:"priority,omitempty" minimum:"0" maximum:"4" doc:"0 none, 1 low, 2 medium, 3 high, 4 urgent"`
	Assignee    *string  `json:"assignee,omitempty" minLength:"1" maxLength:"200" nullable:"true" doc:"The subject of whoever works on it"`
	DueDate     *Date    `json:"due_date,omitempty" format:"date" nullable:"true"`
	Labels      []string `json:"labels,omitempty" maxItems:"20" nullable:"false" doc:"Names of labels; a name that is new becomes a label"`
}

// TaskChange is what to change of a task: fields that are nil stay.
type TaskChange struct {
	ProjectID   *ID      `json:"project_id,omitempty" format:"uuid" doc:"Another project; only for a task without parent and subtasks"`
	ParentID    *ID      `json:"parent_id,omitempty" format:"uuid" nullable:"true" doc:"A task of the same project that is not below this one; null for none"`
	Title       *string  `json:"title,omitempty" minLength:"1" maxLength:"200"`
	Description *string  `json:"description,omitempty" maxLength:"20000" nullable:"true" doc:"null empties it"`
	Status      *Status  `json:"status,omitempty" enum:"todo,in_progress,blocked,done,cancelled"`
	Priority    *int     `json:"priority,omitempty" minimum:"0" maximum:"4"`
	Assignee    *string  `json:"assignee,omitempty" minLength:"1" maxLength:"200" nullable:"true" doc:"null for nobody"`
	DueDate     *Date    `json:"due_date,omitempty" format:"date" nullable:"true" doc:"null for none"`
	Labels      []string `json:"labels,omitempty" maxItems:"20" nullable:"true" doc:"Replaces all labels; null for none"`

	Clear Fields `json:"-"` // fields to empty: parent_id, description, assignee, due_date, labels
}

// UnmarshalJSON reads a merge patch (RFC 7396).
func (t *TaskChange) UnmarshalJSON(data []byte) (err error) {
	type plain TaskChange
	t.Clear, err = readMergePatch(data, (*plain)(t))
	return err
}

// check also fills in what was left out.
func (n *NewTask) check() error {
	if n.Status == "" {
		n.Status = Todo
	}
	n.Labels = distinct(n.Labels)
	var c checks
	c.line("title", n.Title, 1, maxTitle)
	c.text("description", n.Description, 0, maxText)
	c.status("status", n.Status)
	c.priority("priority", n.Priority)
	if n.Assignee != nil {
		c.line("assignee", *n.Assignee, 1, maxAssignee)
	}
	c.labels("labels", n.Labels)
	return c.err()
}

func (t *TaskChange) check() error {
	var c checks
	if t.Title != nil {
		c.line("title", *t.Title, 1, maxTitle)
	}
	if t.Description != nil {
		c.text("description", *t.Description, 0, maxText)
	}
	if t.Status != nil {
		c.status("status", *t.Status)
	}
	if t.Priority != nil {
		c.priority("priority", *t.Priority)
	}
	if t.Assignee != nil {
		c.line("assignee", *t.Assignee, 1, maxAssignee)
	}
	if t.Labels != nil {
		t.Labels = distinct(t.Labels)
		c.labels("labels", t.Labels)
	}
	c.clearable(t.Clear, "parent_id", "description", "assignee", "due_date", "labels")
	return c.err()
}

// distinct drops what was named before, keeps the order, and is never nil.
func distinct(labels []string) []string {
	out := make([]string, 0, len(labels))
	for _, l := range labels {
		if !slices.Contains(out, l) {
			out = append(out, l)
		}
	}
	return out
}
