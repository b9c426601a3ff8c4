package organisation

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

// Domain is a custom domain of a tenant.
type Domain struct {
	ID         uuid.UUID  `json:"id" format:"uuid"`
	Name       string     `json:"name" doc:"The host name in ASCII (punycode)"`
	Status     string     `json:"status" enum:"pending,verified"`
	Record     Record     `json:"record" doc:"The DNS record that proves who rules the domain"`
	CreatedAt  time.Time  `json:"created_at"`
	VerifiedAt *time.Time `json:"verified_at,omitempty"`
}

// Record is a DNS record to be set.
type Record struct {
	Type  string `json:"type" enum:"TXT"`
	Name  string `json:"name"`
	Value string `json:"value"`
}

const (
	pending  = "pending"
	verified = "verified"

	challengeLabel  = "_coditect-challenge"
	challengePrefix = "coditect-verification="

	maxDomains  = 20
	dnsPatience = 5 * time.Second
)

const domainColumns = `id, name, token, status, created_at, verified_at`

func scanDomain(row pgx.CollectableRow) (Domain, error) {
	var d Domain
	var token string
	err := row.Scan(&d.ID, &d.Name, &token, &d.Status, &d.CreatedAt, &d.VerifiedAt)
	d.Record = Record{Type: "TXT", Name: challengeLabel + "." + d.Name, Value: challengePrefix + token}
	d.CreatedAt = d.CreatedAt.UTC()
	if d.VerifiedAt != nil {
		t := d.VerifiedAt.UTC()
		d.VerifiedAt = &t
	}
	return d, err
}

func errDomainNotFound() error {
	return fault.New(fault.NotFound, "domain_not_found", "the organisation has no such domain")
}

// AddDomain claims a domain for a tenant. Claiming it again returns the claim.
func (s *Service) AddDomain(ctx context.Context, caller Caller, of tenant.ID, name string) (Domain, error) {
	var d Domain
	ascii, bad := checkDomain(name)
	id, err := newUUID()
	if err != nil {
		return d, err
	}
	err = s.inControl(ctx, func(tx pgx.Tx) error {
		// The lock on the tenant also makes the count below true.
		o, err := find(ctx, tx, caller, of, toWrite)
		if err != nil {
			return err
		}
		if err := mayChange(o, caller); err != nil {
			return err
		}
		if bad != nil {
			return bad
		}
		if d, err = domainBy(ctx, tx, of, `name = $2`, ascii); !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		var count int
		if err := tx.QueryRow(ctx, `SELECT count(*) FROM control.domain WHERE tenant_id = $1`, of).Scan(&count); err != nil {
			return err
		}
		if count >= maxDomains {
			return fault.New(fault.Conflict, "too_many_domains", "an organisation can have %d domains", maxDomains)
		}
		rows, err := tx.Query(ctx, `INSERT INTO control.domain (id, tenant_id, name, token, status, created_at) VALUES ($1, $2, $3, $4, 'pending', $5)
			RETURNING `+domainColumns, id, of, ascii, rand.Text(), s.now())
		if err != nil {
			return err
		}
		d, err = pgx.CollectExactlyOneRow(rows, scanDomain)
		return err
	})
	return d, err
}

func domainBy(ctx context.Context, db querier, of tenant.ID, where string, arg any) (Domain, error) {
	rows, err := db.Query(ctx, `SELECT `+domainColumns+` FROM control.domain WHERE tenant_id = $1 AND `+where, of, arg)
	if err != nil {
		return Domain{}, err
	}
	return pgx.CollectExactlyOneRow(rows, scanDomain)
}

// ReadDomain returns one domain of a tenant.
func (s *Service) ReadDomain(ctx context.Context, caller Caller, of tenant.ID, id uuid.UUID) (Domain, error) {
	db, err := s.d.Databases.Control(ctx)
	if err != nil {
		return Domain{}, err
	}
	if _, err := find(ctx, db, caller, of, toRead); err != nil {
		return Domain{}, faultOf(err)
	}
	d, err := domainBy(ctx, db, of, `id = $2`, id)
	if errors.Is(err, pgx.ErrNoRows) {
		return d, errDomainNotFound()
	}
	return d, faultOf(err)
}

// Domains lists the domains of a tenant: there are few.
func (s *Service) Domains(ctx context.Context, caller Caller, of tenant.ID) ([]Domain, error) {
	db, err := s.d.Databases.Control(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := find(ctx, db, caller, of, toRead); err != nil {
		return nil, faultOf(err)
	}
	rows, err := db.Query(ctx, `SELECT `+domainColumns+` FROM control.domain WHERE tenant_id = $1 ORDER BY name`, of)
	if err != nil {
		return nil, faultOf(err)
	}
	domains, err := pgx.CollectRows(rows, scanDomain)
	return domains, faultOf(err)
}

// VerifyDomain looks for the domain's record in DNS. The question is asked
// outside of any transaction: DNS may take seconds.
func (s *Service) VerifyDomain(ctx context.Context, caller Caller, of tenant.ID, id uuid.UUID) (Domain, error) {
	d, err := s.ReadDomain(ctx, caller, of, id)
	if err != nil || d.Status == verified {
		return d, err
	}
	if err := s.checkRecord(ctx, d.Record); err != nil {
		return d, err
	}
	err = s.inControl(ctx, func(tx pgx.Tx) error {
		o, err := find(ctx, tx, caller, of, toWrite)
		if err != nil {
			return err
		}
		if err := mayChange(o, caller); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `UPDATE control.domain SET status = 'verified', verified_at = $3 WHERE tenant_id = $1 AND id = $2 AND status = 'pending'`, of, id, s.now())
		if err != nil {
			return err
		}
		if d, err = domainBy(ctx, tx, of, `id = $2`, id); errors.Is(err, pgx.ErrNoRows) {
			return errDomainNotFound() // deleted while DNS was asked
		}
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}
		return s.record(ctx, tx, "domain.verified", caller, o, d.Name)
	})
	if constraintOf(err) == "domain_verified" {
		return d, fault.New(fault.Conflict, "domain_taken", "the domain belongs to another organisation")
	}
	return d, err
}

func (s *Service) checkRecord(ctx context.Context, r Record) error {
	ctx, cancel := context.WithTimeout(ctx, dnsPatience)
	defer cancel()
	// The final dot keeps search domains out.
	found, err := s.d.Resolver.LookupTXT(ctx, r.Name+".")
	var dns *net.DNSError
	switch {
	case slices.Contains(found, r.Value):
		return nil
	case err == nil, errors.As(err, &dns) && dns.IsNotFound:
		return fault.New(fault.Conflict, "domain_not_verified", "there is no TXT record %s with the value %s (yet): DNS may need time to show a new one", r.Name, r.Value)
	default:
		f := fault.Wrap(err, fault.Unavailable, "dns_unavailable", "the domain's DNS does not answer; try again")
		f.RetryAfter = 10 * time.Second
		return f
	}
}

// DeleteDomain gives a domain up.
func (s *Service) DeleteDomain(ctx context.Context, caller Caller, of tenant.ID, id uuid.UUID) error {
	return s.inControl(ctx, func(tx pgx.Tx) error {
		o, err := find(ctx, tx, caller, of, toWrite)
		if err != nil {
			return err
		}
		if err := mayChange(o, caller); err != nil {
			return err
		}
		var name, status string
		err = tx.QueryRow(ctx, `DELETE FROM control.domain WHERE tenant_id = $1 AND id = $2 RETURNING name, status`, of, id).Scan(&name, &status)
		if errors.Is(err, pgx.ErrNoRows) {
			return errDomainNotFound()
		}
		if err != nil || status == pending {
			return err
		}
		return s.record(ctx, tx, "domain.removed", caller, o, name)
	})
}
