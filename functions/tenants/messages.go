package tenants

import (
	"context"

	"github.com/google/uuid"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/edge"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/organisation"
	"github.com/coditect/platform/shared/tenant"
)

type createInput struct {
	edge.Idempotency
	Body struct {
		Name  string `json:"name" minLength:"1" maxLength:"200" example:"Example Limited"`
		Slug  string `json:"slug,omitempty" minLength:"3" maxLength:"63" pattern:"^[a-z0-9]+(-[a-z0-9]+)*$" patternDescription:"lower-case letters, digits and single hyphens" doc:"Made from the name when absent"`
		Owner string `json:"owner,omitempty" minLength:"1" maxLength:"255" doc:"Subject of the first member; a user always is it themselves"`
	}
}

type createdOutput struct {
	ETag     string `header:"ETag"`
	Location string `header:"Location" doc:"Relative to this request's path"`
	Body     organisation.Organisation
}

// TenantInput is exported because huma does not look into unexported embedded structs.
type TenantInput struct {
	ID tenant.ID `path:"id" format:"uuid"`
}

type renameInput struct {
	TenantInput
	edge.IfMatch
	Body struct {
		Name string `json:"name" minLength:"1" maxLength:"200"`
	}
}

type deleteInput struct {
	TenantInput
	edge.IfMatch
}

type tenantOutput struct {
	ETag string `header:"ETag"`
	Body organisation.Organisation
}

type listInput struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"100" default:"20"`
	Cursor string `query:"cursor" maxLength:"2048" doc:"The next_cursor of the answer before"`
	Status string `query:"status" enum:"provisioning,active,suspended,deleting,deleted" doc:"All but deleted when absent"`
	Home   string `query:"home" enum:"blue,green"`
}

type listOutput struct {
	Body struct {
		Items      []organisation.Organisation `json:"items" nullable:"false"`
		NextCursor string                      `json:"next_cursor,omitempty" doc:"Absent on the last page"`
	}
}

// position is what a list's cursor holds.
type position struct {
	After tenant.ID `json:"after"`
}

type domainInput struct {
	TenantInput
	Domain uuid.UUID `path:"domain" format:"uuid"`
}

type addDomainInput struct {
	TenantInput
	Body struct {
		Name string `json:"name" minLength:"3" maxLength:"253" example:"app.example.com"`
	}
}

type domainOutput struct {
	Body organisation.Domain
}

type domainsOutput struct {
	Body struct {
		Items []organisation.Domain `json:"items" nullable:"false"`
	}
}

type swept struct {
	organisation.Swept
	EventsPublished int `json:"events_published"`
}

type sweepOutput struct{ Body swept }

// caller is what the domain wants to know of a principal.
// A user's rights come from their memberships alone, whatever tenant the
// credential names.
func caller(p auth.Principal) organisation.Caller {
	c := organisation.Caller{Subject: p.Subject, Operator: p.IsOperator()}
	if p.Kind == auth.TenantKey {
		c.Tenant = p.Tenant
	}
	return c
}

// ownerOf says who a new organisation belongs to: to the user who signs it up;
// only others may name somebody.
func ownerOf(p auth.Principal, named string) (string, error) {
	if p.Kind != auth.User {
		return named, nil
	}
	if named != "" && named != p.Subject {
		return "", fault.BadField("owner", "must be absent, or the caller: users sign up for themselves")
	}
	return p.Subject, nil
}

// answer returns what makes an output of the domain's answer.
func answer(ctx context.Context, id tenant.ID) func(organisation.Organisation, error) (*tenantOutput, error) {
	edge.LogTenant(ctx, id)
	return func(o organisation.Organisation, err error) (*tenantOutput, error) {
		if err != nil {
			return nil, err
		}
		return &tenantOutput{ETag: edge.ETag(o.Version), Body: o}, nil
	}
}

func domainAnswer(ctx context.Context, id tenant.ID) func(organisation.Domain, error) (*domainOutput, error) {
	edge.LogTenant(ctx, id)
	return func(d organisation.Domain, err error) (*domainOutput, error) {
		if err != nil {
			return nil, err
		}
		return &domainOutput{Body: d}, nil
	}
}
