package projects

import (
	"context"
	"net/http"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/edge"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/project"
)

func (s *service) registerLabels(api *edge.API) {
	edge.Register(api, edge.Operation{ID: "createLabel", Method: http.MethodPost, Path: "/labels", Tags: []string{"labels"},
		Summary: "Make a label", Description: "A label that a task names first is made without asking for it here.",
		Scope: auth.ProjectsWrite, Status: http.StatusCreated, Faults: []fault.Kind{fault.Conflict}}, s.createLabel)
	edge.Register(api, edge.Operation{ID: "listLabels", Method: http.MethodGet, Path: "/labels", Tags: []string{"labels"},
		Summary: "List labels", Scope: auth.ProjectsRead}, s.listLabels)
	edge.Register(api, edge.Operation{ID: "getLabel", Method: http.MethodGet, Path: "/labels/{id}", Tags: []string{"labels"},
		Summary: "Read a label", Scope: auth.ProjectsRead}, s.getLabel)
	edge.Register(api, edge.Operation{ID: "changeLabel", Method: http.MethodPatch, Path: "/labels/{id}", Tags: []string{"labels"},
		Summary: "Change a label", Description: "The tasks that carry it carry its new name, and get a new version.",
		Scope: auth.ProjectsWrite, Faults: []fault.Kind{fault.Stale, fault.Conflict}}, s.changeLabel)
	edge.Register(api, edge.Operation{ID: "deleteLabel", Method: http.MethodDelete, Path: "/labels/{id}", Tags: []string{"labels"},
		Summary: "Delete a label", Description: "It is taken off the tasks that carry it, which get a new version.",
		Scope: auth.ProjectsWrite, Status: http.StatusNoContent, Faults: []fault.Kind{fault.Stale}}, s.deleteLabel)
}

type createLabelInput struct {
	AsTenant
	edge.Idempotency
	Body project.NewLabel
}

func (s *service) createLabel(ctx context.Context, caller auth.Principal, in *createLabelInput) (*made[project.Label], error) {
	t, err := in.of(ctx, caller)
	if err != nil {
		return nil, err
	}
	l, replayed, err := s.store.CreateLabel(ctx, t, in.IdempotencyKey, in.Body)
	return madeOf(l, "labels/"+l.ID.String(), replayed, err)
}

type listLabelsInput struct {
	AsTenant
	Paged
	Sort string `query:"sort" enum:"created,-created,name,-name" default:"name" doc:"A minus in front is for descending"`
}

func (s *service) listLabels(ctx context.Context, caller auth.Principal, in *listLabelsInput) (*pageOutput[project.Label], error) {
	t, err := in.of(ctx, caller)
	if err != nil {
		return nil, err
	}
	opt, err := in.options(in.Sort)
	if err != nil {
		return nil, err
	}
	return pageOf(s.store.ListLabels(ctx, t, opt))
}

func (s *service) getLabel(ctx context.Context, caller auth.Principal, in *ByID) (*row[project.Label], error) {
	t, err := in.of(ctx, caller)
	if err != nil {
		return nil, err
	}
	l, err := s.store.GetLabel(ctx, t, in.ID)
	return rowOf(l, l.Version, err)
}

type changeLabelInput struct {
	ByID
	edge.IfMatch
	Body project.LabelChange
}

func (s *service) changeLabel(ctx context.Context, caller auth.Principal, in *changeLabelInput) (*row[project.Label], error) {
	t, version, err := in.target(ctx, caller, in.IfMatch)
	if err != nil {
		return nil, err
	}
	l, err := s.store.ChangeLabel(ctx, t, in.ID, version, in.Body)
	return rowOf(l, l.Version, err)
}

func (s *service) deleteLabel(ctx context.Context, caller auth.Principal, in *deleteInput) (*none, error) {
	t, version, err := in.target(ctx, caller, in.IfMatch)
	if err != nil {
		return nil, err
	}
	return &none{}, s.store.DeleteLabel(ctx, t, in.ID, version)
}
