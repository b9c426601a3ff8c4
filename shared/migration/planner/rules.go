// Package planner decides who moves, in which order, when and how fast: the parts of it that
// are pure functions. What they know comes from the caller, and shared/migration keeps what they
// decide.
package planner

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coditect/platform/shared/tenant"
)

// Rules choose tenants. Every rule that is given must hold; the zero value chooses everybody.
type Rules struct {
	Exclude     []tenant.ID `json:"exclude,omitempty"`      // never these
	NewSince    time.Time   `json:"new_since,omitzero"`     // entered into the directory at this time or later
	Plans       []string    `json:"plans,omitempty"`        // on one of these plans
	Percent     float64     `json:"percent,omitempty"`      // this share by [Position], 0 < Percent <= 100; 0: everybody
	MaxBytes    int64       `json:"max_bytes,omitempty"`    // content of at most this many bytes, as the preflight estimates it; 0: any
	MaxActivity *int64      `json:"max_activity,omitempty"` // at most this many rows changed a day; nil: any
}

// Any reports whether there is a rule.
func (r Rules) Any() bool {
	return len(r.Exclude) > 0 || !r.NewSince.IsZero() || len(r.Plans) > 0 || r.Percent > 0 || r.LookInside()
}

// LookInside reports whether a rule asks for what only the tenants' own database knows.
func (r Rules) LookInside() bool { return r.MaxBytes > 0 || r.MaxActivity != nil }

// Tenant is what the rules look at.
type Tenant struct {
	ID       tenant.ID
	Created  time.Time // when it was entered into the directory
	Plan     string
	Bytes    int64    // of content; looked at by [Rules.Inside] alone
	Activity Activity // the same
}

// Activity is how much a tenant is written, by its database's own statistics.
type Activity struct {
	Changes int64     // rows inserted, updated and deleted
	Since   time.Time // since when they were counted
	Unknown string    // why it cannot be told; "" when it can
}

// observation is how long a tenant must have been observed before "so many changes a day" says
// anything: a day has its busy and its idle hours.
const observation = 24 * time.Hour

// PerDay returns the changes a day, or why they cannot be told.
func (a Activity) PerDay(now time.Time) (perDay float64, unknown string) {
	if a.Unknown != "" {
		return 0, a.Unknown
	}
	observed := now.Sub(a.Since)
	if observed < observation {
		return 0, fmt.Sprintf("its changes have been counted for %v only, a day is needed", observed.Round(time.Minute))
	}
	return float64(a.Changes) / (observed.Hours() / 24), ""
}

// Why a tenant is left out.
const (
	Excluded        = "excluded"
	NotNew          = "not_new"
	OtherPlan       = "other_plan"
	NotInPercentage = "not_in_percentage"
	TooLarge        = "too_large"
	TooActive       = "too_active"
	ActivityUnknown = "activity_unknown" // what cannot be told is not taken for little
)

// Verdict is what the rules say of one tenant.
type Verdict struct {
	LeftOut string // one of the codes above; "" when it is chosen
	Reason  string // for people: which rules hold, or the one that does not
}

// Directory judges by what the directory knows.
func (r Rules) Directory(t Tenant) Verdict {
	var held []string
	hold := func(format string, args ...any) { held = append(held, fmt.Sprintf(format, args...)) }
	if slices.Contains(r.Exclude, t.ID) {
		return Verdict{Excluded, "is on the list of those to exclude"}
	}
	if !r.NewSince.IsZero() {
		if t.Created.Before(r.NewSince) {
			return Verdict{NotNew, "was created " + minute(t.Created) + ", before " + minute(r.NewSince)}
		}
		hold("created %s", minute(t.Created))
	}
	if len(r.Plans) > 0 {
		if !slices.Contains(r.Plans, t.Plan) {
			return Verdict{OtherPlan, fmt.Sprintf("is on plan %q", t.Plan)}
		}
		hold("on plan %q", t.Plan)
	}
	if r.Percent > 0 {
		at := 100 * Position(t.ID)
		if at >= r.Percent {
			return Verdict{NotInPercentage, fmt.Sprintf("is at %.2f %% of all, outside of %g %%", at, r.Percent)}
		}
		hold("at %.2f %% of all", at)
	}
	return Verdict{Reason: strings.Join(held, ", ")}
}

// Inside judges by what the tenant's database knows.
func (r Rules) Inside(t Tenant, now time.Time) Verdict {
	var held []string
	if r.MaxBytes > 0 {
		if t.Bytes > r.MaxBytes {
			return Verdict{TooLarge, fmt.Sprintf("has about %d bytes of content, more than %d", t.Bytes, r.MaxBytes)}
		}
		held = append(held, fmt.Sprintf("about %d bytes", t.Bytes))
	}
	if r.MaxActivity != nil {
		perDay, unknown := t.Activity.PerDay(now)
		switch {
		case unknown != "":
			return Verdict{ActivityUnknown, "how much it is used cannot be told: " + unknown}
		case perDay > float64(*r.MaxActivity):
			return Verdict{TooActive, fmt.Sprintf("changes %.0f rows a day, more than %d", perDay, *r.MaxActivity)}
		}
		held = append(held, fmt.Sprintf("%.0f rows changed a day", perDay))
	}
	return Verdict{Reason: strings.Join(held, ", ")}
}

func minute(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }

// Position places a tenant in [0, 1), evenly and for ever: a percentage chooses those below it,
// so that 10 % are a part of 50 %. It is not the hash by which sign-up chooses a home: the
// tenants that this one has left in blue are all from one side of it.
func Position(id tenant.ID) float64 {
	h := sha256.Sum256(append([]byte("coditect/cohort/"), id[:]...))
	const bits = 53 // that a float64 holds exactly
	return float64(binary.BigEndian.Uint64(h[:])>>(64-bits)) / (1 << bits)
}

// ByPosition orders tenants by [Position]: a sample of everybody comes first, whatever their age.
func ByPosition(a, b tenant.ID) int {
	return cmp.Or(cmp.Compare(Position(a), Position(b)), slices.Compare(a[:], b[:]))
}
