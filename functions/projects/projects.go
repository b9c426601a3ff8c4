package projects

import (
	"context"
	"net/http"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/edge"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/project"
)

func (s *service) registerProjects(api *edge.API) {
	edge.Register(api, edge.Operation{ID: "createProject", Method: http.MethodPost, Path: "/projects", Tags: []string{"projects"},
		Summary: "Make a project", Scope: auth.ProjectsWrite, Status: http.StatusCreated}, s.createProject)
	edge.Register(api, edge.Operation{ID: "listProjects", Method: http.MethodGet, Path: "/projects", Tags: []string{"projects"},
		Summary: "List projects", Scope: auth.ProjectsRead}, s.listProjects)
	edge.Register(api, edge.Operation{ID: "getProject", Method: http.MethodGet, Path: "/projects/{id}", Tags: []string{"projects"},
		Summary: "Read a project", Scope: auth.ProjectsRead}, s.getProject)
	edge.Register(api, edge.Operation{ID: "changeProject", Method: http.MethodPatch, Path: "/projects/{id}", Tags: []string{"projects"},
		Summary: "Change a project", Scope: auth.ProjectsWrite, Faults: []fault.Kind{fault.Stale}}, s.changeProject)
	edge.Register(api, edge.Operation{ID: "deleteProject", Method: http.MethodDelete, Path: "/projects/{id}", Tags: []string{"projects"},
		Summary:     "Delete a project",
		Description: "A project that has tasks is deleted only with tasks=delete: its tasks and their comments go with it, for good. Otherwise the answer is 409.",
		Scope:       auth.ProjectsWrite, Status: http.StatusNoContent, Faults: []fault.Kind{fault.Stale, fault.Conflict}}, s.deleteProject)
}

type createProjectInput struct {
	AsTenant
	edge.Idempotency
	Body project.NewProject
}

func (s *service) createProject(ctx context.Context, caller auth.Principal, in *createProjectInput) (*made[project.Project], error) {
	t, err := in.of(ctx, caller)
	if err != nil {
		return nil, err
	}
	p, replayed, err := s.store.CreateProject(ctx, t, in.IdempotencyKey, in.Body)
	return madeOf(p, "projects/"+p.ID.String(), replayed, err)
}

type listProjectsInput struct {
	AsTenant
	Paged
	Archived string `query:"archived" enum:"true,false" doc:"Only archived projects, or only others"`
	Sort     string `query:"sort" enum:"created,-created,updated,-updated,name,-name" default:"-created" doc:"A minus in front is for descending"`
}

func (s *service) listProjects(ctx context.Context, caller auth.Principal, in *listProjectsInput) (*pageOutput[project.Project], error) {
	t, err := in.of(ctx, caller)
	if err != nil {
		return nil, err
	}
	opt, err := in.options(in.Sort)
	if err != nil {
		return nil, err
	}
	var f project.ProjectFilter
	if in.Archived != "" {
		only := in.Archived == "true"
		f.Archived = &only
	}
	return pageOf(s.store.ListProjects(ctx, t, f, opt))
}

func (s *service) getProject(ctx context.Context, caller auth.Principal, in *ByID) (*row[project.Project], error) {
	t, err := in.of(ctx, caller)
	if err != nil {
		return nil, err
	}
	p, err := s.store.GetProject(ctx, t, in.ID)
	return rowOf(p, p.Version, err)
}

type changeProjectInput struct {
	ByID
	edge.IfMatch
	Body project.ProjectChange
}

func (s *service) changeProject(ctx context.Context, caller auth.Principal, in *changeProjectInput) (*row[project.Project], error) {
	t, version, err := in.target(ctx, caller, in.IfMatch)
	if err != nil {
		return nil, err
	}
	p, err := s.store.ChangeProject(ctx, t, in.ID, version, in.Body)
	return rowOf(p, p.Version, err)
}

type deleteProjectInput struct {
	ByID
	edge.IfMatch
	Tasks string `query:"tasks" enum:"delete" doc:"delete: the project's tasks and their comments go with it"`
}

func (s *service) deleteProject(ctx context.Context, caller auth.Principal, in *deleteProjectInput) (*none, error) {
	t, version, err := in.target(ctx, caller, in.IfMatch)
	if err != nil {
		return nil, err
	}
	return &none{}, s.store.DeleteProject(ctx, t, in.ID, version, in.Tasks == "delete")
}
