package projects

import (
	"context"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/edge"
	"github.com/coditect/platform/shared/project"
	"github.com/coditect/platform/shared/tenant"
)

// AsTenant is embedded in every input. (Exported, as the others: huma does not look
// into an embedded struct that is not.)
type AsTenant struct {
	TenantID string `header:"X-Tenant-ID" maxLength:"36" doc:"The tenant to act for; only operators need it"`
}

// of returns the tenant a request acts for.
func (a AsTenant) of(ctx context.Context, caller auth.Principal) (tenant.ID, error) {
	t, err := caller.TenantFor(a.TenantID)
	edge.LogTenant(ctx, t)
	return t, err
}

// ByID is the input of an operation on one row.
type ByID struct {
	AsTenant
	ID project.ID `path:"id" format:"uuid"`
}

// target returns the tenant and the version a change is meant for.
func (in ByID) target(ctx context.Context, caller auth.Principal, m edge.IfMatch) (tenant.ID, int64, error) {
	t, err := in.of(ctx, caller)
	if err != nil {
		return t, 0, err
	}
	version, err := m.Version()
	return t, version, err
}

// Paged is embedded in the input of every list.
type Paged struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"100" default:"20" doc:"The most rows to answer with"`
	Cursor string `query:"cursor" maxLength:"2048" doc:"The next_cursor of the page before, with the same sort and filters"`
}

func (p Paged) options(sort string) (project.ListOptions, error) {
	o := project.ListOptions{Sort: project.Sort(sort), Limit: p.Limit}
	if p.Cursor == "" {
		return o, nil
	}
	o.After = &project.Position{}
	return o, edge.DecodeCursor(p.Cursor, o.After)
}

// Page is the body of a list's answer.
type Page[T any] struct {
	Items      []T    `json:"items" nullable:"false"`
	NextCursor string `json:"next_cursor,omitempty" doc:"Absent on the last page"`
}

type pageOutput[T any] struct{ Body Page[T] }

func pageOf[T any](p project.Page[T], err error) (*pageOutput[T], error) {
	if err != nil {
		return nil, err
	}
	out := &pageOutput[T]{Page[T]{Items: p.Items}}
	if p.Next != nil {
		out.Body.NextCursor, err = edge.EncodeCursor(p.Next)
	}
	return out, err
}

// row is the answer with one row.
type row[T any] struct {
	ETag string `header:"ETag"`
	Body T
}

func rowOf[T any](v T, version int64, err error) (*row[T], error) {
	if err != nil {
		return nil, err
	}
	return &row[T]{edge.ETag(version), v}, nil
}

// made is the answer to a POST.
type made[T any] struct {
	ETag     string `header:"ETag"`
	Location string `header:"Location" doc:"Where the new row is, relative to this request"`
	Replayed string `header:"Idempotent-Replayed" doc:"true when this is the first answer again"`
	Body     T
}

func madeOf[T any](v T, location string, replayed bool, err error) (*made[T], error) {
	if err != nil {
		return nil, err
	}
	out := &made[T]{ETag: edge.ETag(1), Location: location, Body: v}
	if replayed {
		out.Replayed = "true"
	}
	return out, nil
}

// none is an answer without a body.
type none struct{}
