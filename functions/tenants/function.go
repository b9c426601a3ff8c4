// Package tenants is the HTTP function of organisations: sign up, read, rename,
// list, custom domains, suspend and resume, delete and restore.
//
// The domain is shared/organisation; here requests are decoded and answered.
package tenants

import (
	"context"
	"net/http"

	"github.com/GoogleCloudPlatform/functions-framework-go/functions"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/edge"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/organisation"
	"github.com/coditect/platform/shared/tenant"
)

func init() { functions.HTTP("Tenants", Handler().ServeHTTP) }

// Handler returns the function, which is made at its first request.
func Handler() http.Handler { return edge.Lazy(open) }

// api is the function's operations.
type api struct {
	orgs  *organisation.Service
	relay func(context.Context) (int, error)
}

// New returns the function around a service and an authenticator. Relay publishes the
// events that wait in the outbox and counts them; a sweep calls it.
func New(orgs *organisation.Service, who auth.Authenticator, relay func(context.Context) (int, error), cfg edge.Config) *edge.API {
	cfg.Name, cfg.Version = "tenants", "1.0.0"
	cfg.Description = "Organisations: sign up, rename, custom domains, suspension and deletion."
	e, f := edge.New(cfg, who), api{orgs, relay}
	edge.Register(e, op("createTenant", "POST", "/tenants", auth.TenantsCreate, "Sign an organisation up", 201, fault.Conflict), f.create)
	edge.Register(e, op("listTenants", "GET", "/tenants", auth.TenantsRead, "List the caller's organisations; operators see all", 200), f.list)
	edge.Register(e, op("readTenant", "GET", "/tenants/{id}", auth.TenantsRead, "Read an organisation", 200), f.read)
	edge.Register(e, op("renameTenant", "PATCH", "/tenants/{id}", auth.TenantsWrite, "Rename an organisation", 200, fault.Conflict, fault.Stale), f.rename)
	edge.Register(e, op("deleteTenant", "DELETE", "/tenants/{id}", auth.TenantsWrite, "Delete an organisation: shut it now, erase it after the grace time", 200, fault.Conflict, fault.Stale), f.delete)
	edge.Register(e, op("restoreTenant", "POST", "/tenants/{id}/restore", auth.TenantsWrite, "Take a deletion back within the grace time", 200, fault.Conflict), f.restore)
	edge.Register(e, op("suspendTenant", "POST", "/tenants/{id}/suspend", auth.TenantsWrite, "Suspend an organisation (operators)", 200, fault.Conflict), f.suspend)
	edge.Register(e, op("resumeTenant", "POST", "/tenants/{id}/resume", auth.TenantsWrite, "End a suspension (operators)", 200, fault.Conflict), f.resume)
	edge.Register(e, op("addDomain", "POST", "/tenants/{id}/domains", auth.TenantsWrite, "Claim a custom domain", 201, fault.Conflict), f.addDomain)
	edge.Register(e, op("listDomains", "GET", "/tenants/{id}/domains", auth.TenantsRead, "List custom domains", 200), f.listDomains)
	edge.Register(e, op("readDomain", "GET", "/tenants/{id}/domains/{domain}", auth.TenantsRead, "Read a custom domain", 200), f.readDomain)
	edge.Register(e, op("verifyDomain", "POST", "/tenants/{id}/domains/{domain}/verify", auth.TenantsWrite, "Look for the domain's DNS record now", 200, fault.Conflict), f.verifyDomain)
	edge.Register(e, op("deleteDomain", "DELETE", "/tenants/{id}/domains/{domain}", auth.TenantsWrite, "Give a custom domain up", 204, fault.Conflict), f.deleteDomain)
	edge.Register(e, op("sweep", "POST", "/sweep", auth.TenantsWrite, "Finish what was left over and erase what is due (operators; Cloud Scheduler)", 200), f.sweep)
	return e
}

func op(id, method, path, scope, summary string, status int, faults ...fault.Kind) edge.Operation {
	return edge.Operation{ID: id, Method: method, Path: path, Scope: scope, Summary: summary, Status: status, Faults: faults}
}

func (f api) create(ctx context.Context, p auth.Principal, in *createInput) (*createdOutput, error) {
	owner, err := ownerOf(p, in.Body.Owner)
	if err != nil {
		return nil, err
	}
	o, err := f.orgs.Create(ctx, caller(p), organisation.SignUp{Name: in.Body.Name, Slug: in.Body.Slug, Owner: owner}, in.IdempotencyKey)
	if err != nil {
		return nil, err
	}
	edge.LogTenant(ctx, o.ID)
	return &createdOutput{ETag: edge.ETag(o.Version), Location: "tenants/" + o.ID.String(), Body: o}, nil
}

func (f api) list(ctx context.Context, p auth.Principal, in *listInput) (*listOutput, error) {
	var at position
	if in.Cursor != "" {
		if err := edge.DecodeCursor(in.Cursor, &at); err != nil {
			return nil, err
		}
	}
	page, more, err := f.orgs.List(ctx, caller(p), organisation.Filter{Status: tenant.Status(in.Status), Home: tenant.Home(in.Home)}, at.After, in.Limit)
	if err != nil {
		return nil, err
	}
	out := &listOutput{}
	out.Body.Items = append([]organisation.Organisation{}, page...)
	if more {
		out.Body.NextCursor, err = edge.EncodeCursor(position{After: page[len(page)-1].ID})
	}
	return out, err
}

func (f api) read(ctx context.Context, p auth.Principal, in *TenantInput) (*tenantOutput, error) {
	return answer(ctx, in.ID)(f.orgs.Read(ctx, caller(p), in.ID))
}

func (f api) rename(ctx context.Context, p auth.Principal, in *renameInput) (*tenantOutput, error) {
	version, err := in.Version()
	if err != nil {
		return nil, err
	}
	return answer(ctx, in.ID)(f.orgs.Rename(ctx, caller(p), in.ID, version, in.Body.Name))
}

func (f api) delete(ctx context.Context, p auth.Principal, in *deleteInput) (*tenantOutput, error) {
	version, err := in.Version()
	if err != nil {
		return nil, err
	}
	return answer(ctx, in.ID)(f.orgs.Delete(ctx, caller(p), in.ID, version))
}

func (f api) restore(ctx context.Context, p auth.Principal, in *TenantInput) (*tenantOutput, error) {
	return answer(ctx, in.ID)(f.orgs.Restore(ctx, caller(p), in.ID))
}

func (f api) suspend(ctx context.Context, p auth.Principal, in *TenantInput) (*tenantOutput, error) {
	return answer(ctx, in.ID)(f.orgs.Suspend(ctx, caller(p), in.ID))
}

func (f api) resume(ctx context.Context, p auth.Principal, in *TenantInput) (*tenantOutput, error) {
	return answer(ctx, in.ID)(f.orgs.Resume(ctx, caller(p), in.ID))
}

func (f api) sweep(ctx context.Context, p auth.Principal, _ *struct{}) (*sweepOutput, error) {
	done, err := f.orgs.Sweep(ctx, caller(p))
	if fault.KindOf(err) == fault.Forbidden {
		return nil, err
	}
	if err != nil {
		// What failed is counted in the answer and tried again; why is for the log.
		edge.Logger().WarnContext(ctx, "sweep", "request_id", edge.RequestID(ctx), "error", err.Error())
	}
	published, err := f.relay(ctx)
	if err != nil {
		edge.Logger().WarnContext(ctx, "relay events", "request_id", edge.RequestID(ctx), "error", err.Error())
	}
	return &sweepOutput{Body: swept{Swept: done, EventsPublished: published}}, nil
}
