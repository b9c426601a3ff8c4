package tenants

import (
	"context"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/edge"
	"github.com/coditect/platform/shared/organisation"
)

func (f api) addDomain(ctx context.Context, p auth.Principal, in *addDomainInput) (*domainOutput, error) {
	return domainAnswer(ctx, in.ID)(f.orgs.AddDomain(ctx, caller(p), in.ID, in.Body.Name))
}

func (f api) listDomains(ctx context.Context, p auth.Principal, in *TenantInput) (*domainsOutput, error) {
	edge.LogTenant(ctx, in.ID)
	domains, err := f.orgs.Domains(ctx, caller(p), in.ID)
	if err != nil {
		return nil, err
	}
	out := &domainsOutput{}
	out.Body.Items = append([]organisation.Domain{}, domains...)
	return out, nil
}

func (f api) readDomain(ctx context.Context, p auth.Principal, in *domainInput) (*domainOutput, error) {
	return domainAnswer(ctx, in.ID)(f.orgs.ReadDomain(ctx, caller(p), in.ID, in.Domain))
}

func (f api) verifyDomain(ctx context.Context, p auth.Principal, in *domainInput) (*domainOutput, error) {
	return domainAnswer(ctx, in.ID)(f.orgs.VerifyDomain(ctx, caller(p), in.ID, in.Domain))
}

func (f api) deleteDomain(ctx context.Context, p auth.Principal, in *domainInput) (*struct{}, error) {
	edge.LogTenant(ctx, in.ID)
	return nil, f.orgs.DeleteDomain(ctx, caller(p), in.ID, in.Domain)
}
