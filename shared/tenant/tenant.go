// Package tenant holds the words every other package uses to speak of a
// tenant: its ID, the home its rows live in, and its placement. It imports
// nothing of ours, so that anything may import it.
package tenant

import (
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"
)

// ID names one tenant. It is a UUID; tenants made by the platform carry a
// version 7 ID (RFC 9562), tenants imported from a foreign database a version 5 ID
// derived from the source's name and the schema's name, so that importing
// twice names the same tenant.
//
// The zero ID is "no tenant" and is refused by everything that takes an ID.
type ID uuid.UUID

// NewID returns a fresh version 7 ID.
func NewID() ID { return ID(uuid.Must(uuid.NewV7())) }

// importSpace is the UUIDv5 name space of imported tenants. Changing it
// would give every imported tenant a new ID.
var importSpace = uuid.MustParse("6f1a1c1e-8f0b-5f5e-9c55-1d1d0c0d17ec")

// ImportedID returns the ID of the tenant that lives in schema of the foreign
// database source.
func ImportedID(source, schema string) ID {
	return ID(uuid.NewSHA1(importSpace, []byte(source+"\x00"+schema)))
}

// ParseID reads the usual 36 character form.
func ParseID(s string) (ID, error) {
	u, err := uuid.Parse(s)
	if err != nil || len(s) != 36 {
		return ID{}, fmt.Errorf("tenant: %q is not a UUID such as 0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69", s)
	}
	return ID(u), nil
}

func (id ID) String() string { return uuid.UUID(id).String() }

// IsZero reports whether id is "no tenant".
func (id ID) IsZero() bool { return id == ID{} }

// MarshalText makes an ID a JSON string.
func (id ID) MarshalText() ([]byte, error) { return uuid.UUID(id).MarshalText() }

// UnmarshalText is the inverse of MarshalText.
func (id *ID) UnmarshalText(b []byte) error {
	p, err := ParseID(string(b))
	if err != nil {
		return err
	}
	*id = p
	return nil
}

// UUIDValue makes an ID a query argument, sent in binary form.
func (id ID) UUIDValue() (pgtype.UUID, error) { return pgtype.UUID{Bytes: id, Valid: true}, nil }

// ScanUUID reads a uuid column.
func (id *ID) ScanUUID(v pgtype.UUID) error {
	if !v.Valid {
		return fmt.Errorf("tenant: cannot read NULL into an ID")
	}
	*id = v.Bytes
	return nil
}

// Home is the kind of place a tenant's rows live in.
type Home string

// The two homes.
const (
	Blue  Home = "blue"  // a schema of its own
	Green Home = "green" // shared tables, distributed by tenant_id where Citus is there
)

// Status is what a tenant may do at the moment.
type Status string

// The states of a tenant. The table control.tenant has the same CHECK.
const (
	Provisioning Status = "provisioning" // the home is being made
	Active       Status = "active"
	Suspended    Status = "suspended" // neither reads nor writes through the door
	Deleting     Status = "deleting"  // in its grace time; can be restored
	Deleted      Status = "deleted"   // rows are gone, the name is kept from reuse
)

// Placement says where a tenant lives. A placement is a cached fact and may be
// stale: the gate in the database it names decides.
type Placement struct {
	Tenant   ID
	Home     Home
	Database string // name of the database the rows are in: "green", "blue" or a source's name
	Schema   string // the tenant's own schema in a blue home, the shared tables' schema in green
	Epoch    int64  // grows by one with every change of home
	Status   Status
	Read     time.Time // when it was read from the directory
}
