package projects

import (
	"context"
	"net/http"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/edge"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/project"
)

func (s *service) registerTasks(api *edge.API) {
	edge.Register(api, edge.Operation{ID: "createTask", Method: http.MethodPost, Path: "/projects/{id}/tasks", Tags: []string{"tasks"},
		Summary: "Make a task in a project", Scope: auth.ProjectsWrite, Status: http.StatusCreated}, s.createTask)
	edge.Register(api, edge.Operation{ID: "listProjectTasks", Method: http.MethodGet, Path: "/projects/{id}/tasks", Tags: []string{"tasks"},
		Summary: "List a project's tasks", Scope: auth.ProjectsRead}, s.listProjectTasks)
	edge.Register(api, edge.Operation{ID: "listTasks", Method: http.MethodGet, Path: "/tasks", Tags: []string{"tasks"},
		Summary: "List the tasks of all projects", Scope: auth.ProjectsRead}, s.listTasks)
	edge.Register(api, edge.Operation{ID: "getTask", Method: http.MethodGet, Path: "/tasks/{id}", Tags: []string{"tasks"},
		Summary: "Read a task", Scope: auth.ProjectsRead}, s.getTask)
	edge.Register(api, edge.Operation{ID: "changeTask", Method: http.MethodPatch, Path: "/tasks/{id}", Tags: []string{"tasks"},
		Summary: "Change a task", Scope: auth.ProjectsWrite, Faults: []fault.Kind{fault.Stale, fault.Conflict}}, s.changeTask)
	edge.Register(api, edge.Operation{ID: "deleteTask", Method: http.MethodDelete, Path: "/tasks/{id}", Tags: []string{"tasks"},
		Summary: "Delete a task", Description: "Its comments go with it. Its subtasks stay, without a parent.",
		Scope: auth.ProjectsWrite, Status: http.StatusNoContent, Faults: []fault.Kind{fault.Stale}}, s.deleteTask)
}

type createTaskInput struct {
	ByID
	edge.Idempotency
	Body project.NewTask
}

func (s *service) createTask(ctx context.Context, caller auth.Principal, in *createTaskInput) (*made[project.Task], error) {
	t, err := in.of(ctx, caller)
	if err != nil {
		return nil, err
	}
	v, replayed, err := s.store.CreateTask(ctx, t, in.ID, in.IdempotencyKey, in.Body)
	return madeOf(v, "../../tasks/"+v.ID.String(), replayed, err)
}

// TaskFilters are the query parameters of both lists of tasks. A list of values is
// separated by commas.
type TaskFilters struct {
	Paged
	Parent    string           `query:"parent" maxLength:"36" doc:"Subtasks of this task; none for tasks without a parent"`
	Status    []project.Status `query:"status" enum:"todo,in_progress,blocked,done,cancelled" doc:"Any of these"`
	Priority  []int            `query:"priority" minimum:"0" maximum:"4" doc:"Any of these"`
	Assignee  string           `query:"assignee" maxLength:"200" doc:"The subject it is assigned to"`
	Label     []string         `query:"label" maxItems:"20" doc:"All of these"`
	DueBefore project.Date     `query:"due_before" format:"date" doc:"Due on an earlier day"`
	DueAfter  project.Date     `query:"due_after" format:"date" doc:"Due on a later day"`
	Q         string           `query:"q" maxLength:"200" doc:"Words in title or description: all of them; or, -not and \"a phrase\" work as in a web search"`
	Sort      string           `query:"sort" enum:"created,-created,updated,-updated,due,-due,priority,-priority,title,-title" default:"-created" doc:"A minus in front is for descending. Tasks without a due date sort as due at the end of time."`
}

func (f *TaskFilters) filter(of project.ID) (project.TaskFilter, error) {
	out := project.TaskFilter{Project: of, Status: f.Status, Priority: f.Priority, Assignee: f.Assignee, Labels: f.Label,
		DueBefore: f.DueBefore, DueAfter: f.DueAfter, Text: f.Q}
	switch f.Parent {
	case "":
	case "none":
		out.TopLevel = true
	default:
		id, err := project.ParseID(f.Parent)
		if err != nil {
			return out, fault.BadField("parent", "must be a task's id, or none")
		}
		out.Parent = id
	}
	return out, nil
}

func (s *service) list(ctx context.Context, caller auth.Principal, as AsTenant, f *TaskFilters, of project.ID) (project.Page[project.Task], error) {
	var page project.Page[project.Task]
	t, err := as.of(ctx, caller)
	if err != nil {
		return page, err
	}
	filter, err := f.filter(of)
	if err != nil {
		return page, err
	}
	opt, err := f.options(f.Sort)
	if err != nil {
		return page, err
	}
	return s.store.ListTasks(ctx, t, filter, opt)
}

type listTasksInput struct {
	AsTenant
	TaskFilters
	Project project.ID `query:"project" format:"uuid" doc:"Of this project"`
}

func (s *service) listTasks(ctx context.Context, caller auth.Principal, in *listTasksInput) (*pageOutput[project.Task], error) {
	return pageOf(s.list(ctx, caller, in.AsTenant, &in.TaskFilters, in.Project))
}

type listProjectTasksInput struct {
	ByID
	TaskFilters
}

func (s *service) listProjectTasks(ctx context.Context, caller auth.Principal, in *listProjectTasksInput) (*pageOutput[project.Task], error) {
	page, err := s.list(ctx, caller, in.AsTenant, &in.TaskFilters, in.ID)
	if err == nil && len(page.Items) == 0 {
		// No tasks, or no project? Only the latter is a 404, and only here is it worth a look.
		if t, e := in.of(ctx, caller); e == nil {
			_, err = s.store.GetProject(ctx, t, in.ID)
		}
	}
	return pageOf(page, err)
}

func (s *service) getTask(ctx context.Context, caller auth.Principal, in *ByID) (*row[project.Task], error) {
	t, err := in.of(ctx, caller)
	if err != nil {
		return nil, err
	}
	v, err := s.store.GetTask(ctx, t, in.ID)
	return rowOf(v, v.Version, err)
}

type changeTaskInput struct {
	ByID
	edge.IfMatch
	Body project.TaskChange
}

func (s *service) changeTask(ctx context.Context, caller auth.Principal, in *changeTaskInput) (*row[project.Task], error) {
	t, version, err := in.target(ctx, caller, in.IfMatch)
	if err != nil {
		return nil, err
	}
	v, err := s.store.ChangeTask(ctx, t, in.ID, version, in.Body)
	return rowOf(v, v.Version, err)
}

// deleteInput is the input of a DELETE.
type deleteInput struct {
	ByID
	edge.IfMatch
}

func (s *service) deleteTask(ctx context.Context, caller auth.Principal, in *deleteInput) (*none, error) {
	t, version, err := in.target(ctx, caller, in.IfMatch)
	if err != nil {
		return nil, err
	}
	return &none{}, s.store.DeleteTask(ctx, t, in.ID, version)
}
