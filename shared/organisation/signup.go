package organisation

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/schema"
	"github.com/coditect/platform/shared/tenant"
)

// SignUp is what a new organisation is made of.
type SignUp struct {
	Name  string
	Slug  string // derived from the name when empty
	Owner string // subject of the first member; "" for none
}

// Create signs an organisation up. Key is the caller's Idempotency-Key, ""
// for none: the same request with the same key returns the same organisation,
// and finishes it if it is half-made.
func (s *Service) Create(ctx context.Context, caller Caller, in SignUp, key string) (Organisation, error) {
	if err := checkSignUp(in); err != nil {
		return Organisation{}, err
	}
	o := s.newOrganisation(in)
	var id, request []byte
	if key != "" {
		id, request = hashOf(caller.Subject, key), hashOf(in.Name, in.Slug, in.Owner)
	}
	for n := 1; ; n++ {
		var made Organisation
		err := s.inControl(ctx, func(tx pgx.Tx) error {
			made = o // fn may run again
			return s.begin(ctx, tx, caller, &made, in.Owner, id, request)
		})
		switch broken := constraintOf(err); {
		case broken == "sign_up_pkey" && n < attempts:
			continue // the same request at the same moment: the next look finds it
		case broken == "tenant_slug_key" && in.Slug == "" && n < attempts:
			o.Slug = uniqueSlug(in.Name, o.ID)
			continue
		case broken == "tenant_slug_key":
			return Organisation{}, fault.New(fault.Conflict, "slug_taken", "another organisation has, or had, the slug %q", o.Slug)
		case err != nil:
			return Organisation{}, err
		case made.Status == tenant.Provisioning:
			return s.provision(ctx, caller, made.ID)
		}
		return made, nil
	}
}

func checkSignUp(in SignUp) error {
	if err := checkName(in.Name); err != nil {
		return err
	}
	if in.Slug != "" {
		if err := checkSlug(in.Slug); err != nil {
			return err
		}
	}
	if n := utf8.RuneCountInString(in.Owner); n > 255 {
		return fault.BadField("owner", "must have at most 255 characters")
	}
	return nil
}

func (s *Service) newOrganisation(in SignUp) Organisation {
	id := tenant.NewID()
	o := Organisation{ID: id, Name: in.Name, Slug: in.Slug, Status: tenant.Provisioning, Home: s.cfg.NewHome.Choose(id),
		Source: "platform", Plan: "free", CreatedAt: s.now(), Version: 1, database: citus.GreenDatabase, schema: schema.GreenSchema}
	o.UpdatedAt = o.CreatedAt
	if o.Home == tenant.Blue {
		o.database, o.schema = citus.BlueDatabase, blueSchema(id)
	}
	if o.Slug == "" {
		if o.Slug = slugOf(in.Name); o.Slug == "" || reserved[o.Slug] {
			o.Slug = uniqueSlug(in.Name, id)
		}
	}
	return o
}

// blueSchema is the name that coditect.create_tenant gives the schema.
func blueSchema(id tenant.ID) string { return "t_" + hex.EncodeToString(id[:]) }

// uniqueSlug adds random digits of the id to what the name gives.
func uniqueSlug(name string, id tenant.ID) string {
	base := slugOf(name)
	if base == "" {
		base = "org"
	}
	return base + "-" + hex.EncodeToString(id[12:])
}

// begin writes the new tenant down. A green home is made in the same
// transaction: such a tenant is never half-made. o becomes the earlier
// organisation when this sign-up was done before.
func (s *Service) begin(ctx context.Context, tx pgx.Tx, caller Caller, o *Organisation, owner string, id, request []byte) error {
	if id != nil {
		before, found, err := findSignUp(ctx, tx, id)
		if err != nil {
			return err
		}
		if found {
			if !bytes.Equal(before.request, request) {
				return fault.New(fault.Invalid, "idempotency_key_reused", "this Idempotency-Key was used for another request: a key goes with one request")
			}
			*o, err = find(ctx, tx, Caller{Operator: true}, before.tenant, toRead)
			if err == nil && o.Status == tenant.Deleted {
				err = errNotFound()
			}
			return err
		}
	}
	if err := insert(ctx, tx, *o, owner); err != nil {
		return err
	}
	if id != nil {
		if _, err := tx.Exec(ctx, `INSERT INTO control.sign_up (id, request, tenant_id, created_at) VALUES ($1, $2, $3, $4)`, id, request, o.ID, o.CreatedAt); err != nil {
			return err
		}
	}
	if o.Home == tenant.Green {
		return s.activate(ctx, tx, caller, o)
	}
	return nil
}

// homePatience bounds the making of a home: the tenant's row is locked meanwhile.
const homePatience = 10 * time.Second

// provision makes the home of a tenant that has none, and sets it active. The
// lock on its row keeps a second one, the sweeper's, from doing it too. When
// it fails the row stays, and the sweeper tries again.
func (s *Service) provision(ctx context.Context, caller Caller, id tenant.ID) (Organisation, error) {
	var o Organisation
	err := s.inControl(ctx, func(tx pgx.Tx) error {
		var err error
		if o, err = find(ctx, tx, Caller{Operator: true}, id, toWrite); err != nil || o.Status != tenant.Provisioning {
			return err // the sweeper was faster
		}
		return s.activate(ctx, tx, caller, &o)
	})
	if err != nil && fault.KindOf(err) != fault.Uncertain {
		f := fault.Wrap(err, fault.Unavailable, "tenant_provisioning",
			"the organisation is signed up, but its home could not be made yet; that will be tried again soon, or now if you send the request again with its Idempotency-Key")
		f.RetryAfter = 5 * time.Second
		return o, f
	}
	return o, err
}

// activate makes the home, which may be repeated, and then the event and the
// new status in tx.
func (s *Service) activate(ctx context.Context, tx pgx.Tx, caller Caller, o *Organisation) error {
	ctx, cancel := context.WithTimeout(ctx, homePatience)
	defer cancel()
	if o.Home == tenant.Green {
		if _, err := tx.Exec(ctx, `INSERT INTO coditect.gate (tenant_id, schema_name, epoch) VALUES ($1, $2, 1) ON CONFLICT (tenant_id) DO NOTHING`, o.ID, o.schema); err != nil {
			return err
		}
	} else {
		blue, err := s.d.Databases.Pool(ctx, o.database)
		if err != nil {
			return err
		}
		if o.schema, err = schema.CreateBlueTenant(ctx, blue, o.ID, 1); err != nil {
			return err
		}
	}
	o.Status, o.UpdatedAt = tenant.Active, s.now()
	if _, err := tx.Exec(ctx, `UPDATE control.tenant SET status = $2, schema_name = $3, updated_at = $4 WHERE id = $1 AND status = 'provisioning'`,
		o.ID, string(o.Status), o.schema, o.UpdatedAt); err != nil {
		return err
	}
	s.d.Forget(o.ID)
	return s.record(ctx, tx, "tenant.created", caller, *o, "")
}

// hashOf hashes texts so that no two lists of texts run together.
func hashOf(texts ...string) []byte {
	h := sha256.New()
	for _, t := range texts {
		_, _ = h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(t))))
		_, _ = h.Write([]byte(t))
	}
	return h.Sum(nil)
}
