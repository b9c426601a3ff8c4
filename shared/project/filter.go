package project

import (
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/coditect/platform/shared/tenant"
)

// TaskFilter picks tasks. Zero fields pick all; several pick what all of them pick.
type TaskFilter struct {
	Project   ID
	Parent    ID
	TopLevel  bool     // only tasks without a parent
	Status    []Status // one of these
	Priority  []int    // one of these
	Assignee  string   // this subject
	Labels    []string // all of these
	DueBefore Date     // due on an earlier day
	DueAfter  Date     // due on a later day
	Text      string   // words in title or description, as a web search: "a phrase", or, -not
}

// TaskSorts are the words tasks can be sorted by. Tasks without a due date sort as
// due at the end of time; titles sort without regard to case, by code point.
var TaskSorts = []Sort{"created", "updated", "due", "priority", "title"}

var taskOrders = orders{
	"created":  {},
	"updated":  {"updated_at", "timestamptz"},
	"due":      {`coalesce(due_date, 'infinity'::date)`, "date"},
	"priority": {"priority", "smallint"},
	"title":    {"title_key", "text"},
}

var infinity = pgtype.Date{InfinityModifier: pgtype.Infinity, Valid: true}

func (f *TaskFilter) check() error {
	var c checks
	for _, s := range f.Status {
		c.status("status", s)
	}
	for _, p := range f.Priority {
		c.priority("priority", p)
	}
	c.line("assignee", f.Assignee, 0, maxAssignee)
	c.labels("label", f.Labels)
	c.text("q", f.Text, 0, maxQuery)
	if f.TopLevel && !f.Parent.IsZero() {
		c.bad("parent", "must be a task's id or none, not both")
	}
	return c.err()
}

// listing puts the statement of one page of tasks together. It names what is
// filtered by and nothing else: each combination is planned for what it is.
func (f *TaskFilter) listing(t tenant.ID, opt ListOptions) (*listing, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	columns := selectTasks
	if word, _ := opt.Sort.split(); word == "title" {
		columns = selectTasksByTitle
	}
	l, err := newListing(t, opt, taskOrders, TaskSorts, columns)
	if err != nil {
		return nil, err
	}
	if !f.Project.IsZero() {
		l.where(`project_id = ?`, f.Project, f.Project.String())
	}
	if !f.Parent.IsZero() {
		l.where(`parent_id = ?`, f.Parent, f.Parent.String())
	}
	if f.TopLevel {
		l.where(`(parent_id IS NULL) = ?`, true, "")
	}
	switch len(f.Status) {
	case 0:
	case 1:
		l.where(`status = ?`, string(f.Status[0]), string(f.Status[0]))
	default:
		words := make([]string, len(f.Status))
		for i, s := range f.Status {
			words[i] = string(s)
		}
		l.where(`status = ANY(?)`, words, list(f.Status))
	}
	switch len(f.Priority) {
	case 0:
	case 1:
		l.where(`priority = ?`, f.Priority[0], strconv.Itoa(f.Priority[0]))
	default:
		text := ""
		for _, p := range f.Priority {
			text += strconv.Itoa(p) + ","
		}
		l.where(`priority = ANY(?::smallint[])`, f.Priority, text)
	}
	if f.Assignee != "" {
		l.where(`assignee = ?`, f.Assignee, f.Assignee)
	}
	if len(f.Labels) > 0 {
		l.where(`labels @> ?`, f.Labels, list(f.Labels))
	}
	if !f.DueBefore.IsZero() {
		l.where(`due_date < ?`, f.DueBefore, f.DueBefore.String())
	}
	if !f.DueAfter.IsZero() {
		l.where(`due_date > ?`, f.DueAfter, f.DueAfter.String())
	}
	if f.Text != "" {
		l.where(`search @@ websearch_to_tsquery('simple'::regconfig, ?)`, f.Text, f.Text)
	}
	return l, l.finish(opt.After)
}

// key is what a task is sorted by, as a position remembers it.
func (t *Task) key(cast, titleKey string) string {
	switch cast {
	case "timestamptz":
		return microseconds(t.UpdatedAt)
	case "date":
		if t.DueDate == nil {
			return noDate
		}
		return t.DueDate.String()
	case "smallint":
		return strconv.Itoa(t.Priority)
	default:
		return titleKey
	}
}

func microseconds(t time.Time) string { return strconv.FormatInt(t.UnixMicro(), 10) }
