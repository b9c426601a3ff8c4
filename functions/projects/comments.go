package projects

import (
	"context"
	"net/http"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/edge"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/project"
)

func (s *service) registerComments(api *edge.API) {
	edge.Register(api, edge.Operation{ID: "createComment", Method: http.MethodPost, Path: "/tasks/{id}/comments", Tags: []string{"comments"},
		Summary: "Comment on a task", Description: "The author is the caller.", Scope: auth.ProjectsWrite, Status: http.StatusCreated}, s.createComment)
	edge.Register(api, edge.Operation{ID: "listComments", Method: http.MethodGet, Path: "/tasks/{id}/comments", Tags: []string{"comments"},
		Summary: "List a task's comments", Scope: auth.ProjectsRead}, s.listComments)
	edge.Register(api, edge.Operation{ID: "getComment", Method: http.MethodGet, Path: "/comments/{id}", Tags: []string{"comments"},
		Summary: "Read a comment", Scope: auth.ProjectsRead}, s.getComment)
	edge.Register(api, edge.Operation{ID: "changeComment", Method: http.MethodPatch, Path: "/comments/{id}", Tags: []string{"comments"},
		Summary: "Change a comment", Scope: auth.ProjectsWrite, Faults: []fault.Kind{fault.Stale}}, s.changeComment)
	edge.Register(api, edge.Operation{ID: "deleteComment", Method: http.MethodDelete, Path: "/comments/{id}", Tags: []string{"comments"},
		Summary: "Delete a comment", Scope: auth.ProjectsWrite, Status: http.StatusNoContent, Faults: []fault.Kind{fault.Stale}}, s.deleteComment)
}

type createCommentInput struct {
	ByID
	edge.Idempotency
	Body project.NewComment
}

func (s *service) createComment(ctx context.Context, caller auth.Principal, in *createCommentInput) (*made[project.Comment], error) {
	t, err := in.of(ctx, caller)
	if err != nil {
		return nil, err
	}
	in.Body.Author = caller.Subject
	c, replayed, err := s.store.CreateComment(ctx, t, in.ID, in.IdempotencyKey, in.Body)
	return madeOf(c, "../../comments/"+c.ID.String(), replayed, err)
}

type listCommentsInput struct {
	ByID
	Paged
	Sort string `query:"sort" enum:"created,-created" default:"-created" doc:"A minus in front is for descending"`
}

func (s *service) listComments(ctx context.Context, caller auth.Principal, in *listCommentsInput) (*pageOutput[project.Comment], error) {
	t, err := in.of(ctx, caller)
	if err != nil {
		return nil, err
	}
	opt, err := in.options(in.Sort)
	if err != nil {
		return nil, err
	}
	return pageOf(s.store.ListComments(ctx, t, in.ID, opt))
}

func (s *service) getComment(ctx context.Context, caller auth.Principal, in *ByID) (*row[project.Comment], error) {
	t, err := in.of(ctx, caller)
	if err != nil {
		return nil, err
	}
	c, err := s.store.GetComment(ctx, t, in.ID)
	return rowOf(c, c.Version, err)
}

type changeCommentInput struct {
	ByID
	edge.IfMatch
	Body project.CommentChange
}

func (s *service) changeComment(ctx context.Context, caller auth.Principal, in *changeCommentInput) (*row[project.Comment], error) {
	t, version, err := in.target(ctx, caller, in.IfMatch)
	if err != nil {
		return nil, err
	}
	c, err := s.store.ChangeComment(ctx, t, in.ID, version, in.Body)
	return rowOf(c, c.Version, err)
}

func (s *service) deleteComment(ctx context.Context, caller auth.Principal, in *deleteInput) (*none, error) {
	t, version, err := in.target(ctx, caller, in.IfMatch)
	if err != nil {
		return nil, err
	}
	return &none{}, s.store.DeleteComment(ctx, t, in.ID, version)
}
