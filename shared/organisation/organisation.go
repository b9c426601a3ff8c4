// Package organisation is the domain of organisations: the tenants as their
// people and operators see them. It signs them up, renames, suspends and
// deletes them, and keeps their custom domains.
//
// # States
//
//	            sign up              suspend             delete
//	(nothing) ──────────► provisioning    active ⇄ suspended ──────► deleting ──► deleted
//	                          │             ▲        resume   │ ▲                    ▲
//	                          └─────────────┘                 └─┘ restore           sweep,
//	                        home made, by sign-up or sweep   within the grace time   after it
//
// # Crashes
//
// control.tenant is the truth, and every change of state is one transaction on
// it, together with its event. What lies in another database follows: the home
// of a new tenant, the gate of a suspended one, the rows of a deleted one. Each
// of these steps may be repeated, and a row of control.tenant or
// control.gate_due says that it is still to be done, so whatever dies, Sweep
// finishes.
//
// # Moves
//
// A tenant may move to another home at the same time. The flip of the move
// locks the row of control.tenant, and so does whatever here depends on where
// the tenant lives. The order is always: the row in control, then the gate.
package organisation

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/tenant"
)

// Organisation is one tenant.
type Organisation struct {
	ID          tenant.ID     `json:"id" format:"uuid"`
	Name        string        `json:"name"`
	Slug        string        `json:"slug" doc:"Unique short name for addresses; never changes, never used again"`
	Status      tenant.Status `json:"status" enum:"provisioning,active,suspended,deleting,deleted"`
	Home        tenant.Home   `json:"home" enum:"blue,green" doc:"Where the rows live: a schema of their own (blue) or shared tables (green)"`
	Source      string        `json:"source" doc:"platform, or the foreign database the tenant came from"`
	Plan        string        `json:"plan"`
	DeleteAfter *time.Time    `json:"delete_after,omitempty" doc:"When the rows are erased; the tenant can be restored until then"`
	CreatedAt   time.Time     `json:"created_at"`
	UpdatedAt   time.Time     `json:"updated_at"`
	Version     int64         `json:"version" doc:"Grows with every change; the ETag"`

	database  string     // that the home is in
	schema    string     // that the tables are in
	suspended *time.Time // survives a deletion, so that a restore does not lift it
}

// Caller is who asks, as far as this domain cares.
type Caller struct {
	Subject  string
	Operator bool      // sees and may do everything
	Tenant   tenant.ID // of a credential that is bound to one
}

// Event is something that happened to a tenant.
type Event struct {
	Type    string        `json:"type"` // "tenant.created"
	Tenant  tenant.ID     `json:"tenant"`
	Version int64         `json:"version"`
	Status  tenant.Status `json:"status"`
	Actor   string        `json:"actor"`
	At      time.Time     `json:"at"`
	Domain  string        `json:"domain,omitempty"`
}

// Tx is a transaction on the control tables: what those who implement this
// domain's interfaces get to take part in a change.
type Tx = pgx.Tx

// Recorder writes an event in the transaction that makes it true.
type Recorder interface {
	Record(ctx context.Context, tx Tx, e Event) error
}

// Resolver looks DNS TXT records up; *net.Resolver is one.
type Resolver interface {
	LookupTXT(ctx context.Context, name string) ([]string, error)
}

// Config is read from the environment by go-envconfig.
type Config struct {
	NewHome HomePolicy    `env:"CODITECT_NEW_TENANT_HOME,default=green"` // blue, green, or a percentage of green: "25%"
	Grace   time.Duration `env:"CODITECT_DELETE_GRACE,default=720h"`     // between the deletion of a tenant and the end of its rows
}

// Deps is what a Service works with.
type Deps struct {
	Databases *citus.Databases
	// Forget is called for a tenant whose place or status changed here.
	Forget func(tenant.ID)
	// RevokeKeys ends the credentials of an erased tenant, in the transaction.
	RevokeKeys func(ctx context.Context, tx Tx, id tenant.ID, at time.Time) error
	Recorder   Recorder
	Resolver   Resolver
	Now        func() time.Time // time.Now if nil
}

// Service is the domain's door. Safe for concurrent use.
type Service struct {
	cfg Config
	d   Deps
}

// New returns a Service. It makes no round trip.
func New(cfg Config, d Deps) *Service {
	if d.Now == nil {
		d.Now = time.Now
	}
	return &Service{cfg: cfg, d: d}
}

// now is the time of a change, as exact as the database keeps it.
func (s *Service) now() time.Time { return s.d.Now().UTC().Truncate(time.Microsecond) }

// Read returns an organisation that the caller may see.
func (s *Service) Read(ctx context.Context, caller Caller, id tenant.ID) (Organisation, error) {
	db, err := s.d.Databases.Control(ctx)
	if err != nil {
		return Organisation{}, err
	}
	o, err := find(ctx, db, caller, id, toRead)
	return o, faultOf(err)
}

// Filter chooses organisations of a list.
type Filter struct {
	Status tenant.Status // "" for all but deleted
	Home   tenant.Home   // "" for both
}

// List returns up to limit organisations, in the order of their ids, after the
// one with the id after: those the caller belongs to, for operators all. More
// says whether there are others.
func (s *Service) List(ctx context.Context, caller Caller, f Filter, after tenant.ID, limit int) (page []Organisation, more bool, err error) {
	db, err := s.d.Databases.Control(ctx)
	if err != nil {
		return nil, false, err
	}
	page, err = list(ctx, db, caller, f, after, limit+1)
	if err != nil {
		return nil, false, faultOf(err)
	}
	if len(page) > limit {
		return page[:limit], true, nil
	}
	return page, false, nil
}

// Rename changes the name, unconditionally or from a version.
func (s *Service) Rename(ctx context.Context, caller Caller, id tenant.ID, version int64, name string) (Organisation, error) {
	if err := checkName(name); err != nil {
		return Organisation{}, err
	}
	return s.change(ctx, caller, id, version, "tenant.renamed", func(o *Organisation) (bool, error) {
		if err := mayChange(*o, caller); err != nil {
			return false, err
		}
		changed := o.Name != name
		o.Name = name
		return changed, nil
	})
}

// change locks a tenant the caller may write, lets decide change it, and saves
// it with its event. If decide reports that nothing changed, nothing is saved:
// a repeated request is no new version.
func (s *Service) change(ctx context.Context, caller Caller, id tenant.ID, version int64, event string, decide func(*Organisation) (bool, error)) (Organisation, error) {
	var o Organisation
	err := s.inControl(ctx, func(tx pgx.Tx) error {
		var err error
		if o, err = find(ctx, tx, caller, id, toWrite); err != nil {
			return err
		}
		before := o.Status
		changed, err := decide(&o)
		if err != nil || !changed {
			return err
		}
		if version != 0 && version != o.Version {
			return errStale(o.Version)
		}
		o.Version++
		o.UpdatedAt = s.now()
		if err := save(ctx, tx, o, before != o.Status); err != nil {
			return err
		}
		return s.record(ctx, tx, event, caller, o, "")
	})
	return o, err
}

func (s *Service) record(ctx context.Context, tx pgx.Tx, event string, caller Caller, o Organisation, domain string) error {
	e := Event{Type: event, Tenant: o.ID, Version: o.Version, Status: o.Status, Actor: caller.Subject, At: s.now(), Domain: domain}
	if err := s.d.Recorder.Record(ctx, tx, e); err != nil {
		return fmt.Errorf("organisation: record %s of %s: %w", event, o.ID, err)
	}
	return nil
}

func newUUID() (uuid.UUID, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return uuid.Nil, fmt.Errorf("organisation: make an id: %w", err)
	}
	return id, nil
}
