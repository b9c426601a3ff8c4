// Package auth turns the credential of a request into a Principal: who calls,
// for which tenant, with which scopes. API keys are the only credential so far
// (see Keys); anything that implements Authenticator can stand beside them
// without a handler noticing.
//
// The package knows nothing of HTTP: shared/edge takes the credential out of
// the request and checks the scope an operation needs.
package auth

import (
	"context"
	"slices"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

// The scopes a credential can carry. The table control.api_key has the same CHECK.
const (
	TenantsRead     = "tenants:read"
	TenantsWrite    = "tenants:write"
	TenantsCreate   = "tenants:create"
	ProjectsRead    = "projects:read"
	ProjectsWrite   = "projects:write"
	MigrationsRead  = "migrations:read"
	MigrationsWrite = "migrations:write"
)

// AllScopes lists every scope there is.
func AllScopes() []string {
	return []string{TenantsRead, TenantsWrite, TenantsCreate, ProjectsRead, ProjectsWrite, MigrationsRead, MigrationsWrite}
}

// Kind is the kind of a caller.
type Kind string

// The kinds of callers. The table control.api_key has the same CHECK.
const (
	Operator  Kind = "operator" // runs the platform; belongs to no tenant and may act for any
	TenantKey Kind = "tenant"   // a machine that acts for one tenant
	User      Kind = "user"     // a person; sees the tenants they are a member of
)

// Principal is an authenticated caller. It is passed as a parameter, never in
// a context, so that the compiler finds who forgot it.
type Principal struct {
	Subject string // stable name of the caller: "key:…" or a user's subject
	Kind    Kind
	Tenant  tenant.ID // the tenant the credential is bound to; zero for operators and users without one
	Scopes  []string
}

// Has reports whether the principal carries scope.
func (p Principal) Has(scope string) bool { return slices.Contains(p.Scopes, scope) }

// IsOperator reports whether the principal runs the platform.
func (p Principal) IsOperator() bool { return p.Kind == Operator }

// TenantFor says which tenant a request acts for. Requested is what the caller
// asked for (the X-Tenant-ID header), "" for nothing. A credential bound to a
// tenant acts for that one only; asking for another one looks the same as
// asking for one that does not exist. An operator must say which.
func (p Principal) TenantFor(requested string) (tenant.ID, error) {
	if requested == "" {
		if p.Tenant.IsZero() {
			return tenant.ID{}, fault.BadField("X-Tenant-ID", "must name the tenant: this credential is not bound to one")
		}
		return p.Tenant, nil
	}
	id, err := tenant.ParseID(requested)
	if err != nil || id.IsZero() {
		return tenant.ID{}, fault.BadField("X-Tenant-ID", "must be a tenant's UUID such as 0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69")
	}
	if !p.IsOperator() && id != p.Tenant {
		return tenant.ID{}, fault.New(fault.NotFound, "tenant_not_found", "there is no such tenant")
	}
	return id, nil
}

// Authenticator turns a bearer credential into a Principal. Its faults are
// Unauthenticated for a credential that is not good, and Unavailable when that
// cannot be found out now: access fails closed.
type Authenticator interface {
	Authenticate(ctx context.Context, credential string) (Principal, error)
}
