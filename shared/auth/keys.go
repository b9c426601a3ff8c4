package auth

import (
	"context"
	"crypto/subtle"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/maypok86/otter/v2"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
)

// How Keys bounds staleness, memory and the load of garbage.
const (
	// TTL is how long a key that was found good stays good without a look at the
	// database: a revoked one may work that long.
	TTL = 5 * time.Second
	// missTTL is how long an id that is not there is remembered. It also delays a
	// new key that was tried before it was made, so it is short.
	missTTL  = 10 * time.Second
	maxKeys  = 20_000
	maxMiss  = 20_000
	patience = 3 * time.Second
	// Ids never seen before cost a round trip each. Guessed ids are all new, so
	// these are rationed, per instance; keys known to this instance are not.
	newPerSecond = 50
	newBurst     = 200
)

// Keys authenticates API keys. Safe for concurrent use.
type Keys struct {
	dbs    *citus.Databases
	good   *otter.Cache[uuid.UUID, entry]
	miss   *otter.Cache[uuid.UUID, struct{}]
	flight singleflight.Group
	fresh  *rate.Limiter
	now    func() time.Time
}

var _ Authenticator = (*Keys)(nil)

// entry is a stored key and when it was read. It outlives TTL: that an id was
// there once is what tells it from a guess.
type entry struct {
	stored
	read time.Time
}

// Option changes Keys.
type Option func(*Keys)

// WithClock sets the clock, for tests.
func WithClock(now func() time.Time) Option { return func(k *Keys) { k.now = now } }

// NewKeys returns an Authenticator over the control tables of dbs. It makes no
// round trip.
func NewKeys(dbs *citus.Databases, opts ...Option) *Keys {
	k := &Keys{
		dbs:   dbs,
		good:  otter.Must(&otter.Options[uuid.UUID, entry]{MaximumSize: maxKeys}),
		miss:  otter.Must(&otter.Options[uuid.UUID, struct{}]{MaximumSize: maxMiss, ExpiryCalculator: otter.ExpiryWriting[uuid.UUID, struct{}](missTTL)}),
		fresh: rate.NewLimiter(newPerSecond, newBurst),
		now:   time.Now,
	}
	for _, o := range opts {
		o(k)
	}
	return k
}

// Authenticate implements Authenticator. Why a key is not good is not told: an
// id that is not there, a wrong secret and a revoked key look the same.
func (k *Keys) Authenticate(ctx context.Context, credential string) (Principal, error) {
	id, hash, ok := parseKey(credential)
	if !ok {
		return Principal{}, errBadKey()
	}
	now := k.now()
	e, known := k.good.GetIfPresent(id)
	if !known {
		if _, missed := k.miss.GetIfPresent(id); missed {
			return Principal{}, errBadKey()
		}
		if !k.fresh.AllowN(now, 1) {
			return Principal{}, &fault.Error{Kind: fault.Exhausted, Code: "too_many_unknown_keys", RetryAfter: time.Second,
				Message: "too many keys that were never seen before; try again"}
		}
	}
	if !known || now.Sub(e.read) >= TTL {
		var err error
		if e, err = k.read(ctx, id, hash[:], now); err != nil {
			return Principal{}, err
		}
	}
	if subtle.ConstantTimeCompare(e.hash, hash[:]) != 1 || e.revoked || e.expires != nil && !now.Before(*e.expires) {
		return Principal{}, errBadKey()
	}
	return e.principal, nil
}

// read asks the database; those who ask for one key at the same time share the
// answer.
func (k *Keys) read(ctx context.Context, id uuid.UUID, hash []byte, now time.Time) (entry, error) {
	v, err, _ := k.flight.Do(string(id[:]), func() (any, error) {
		// The first caller's cancellation must not fail the others.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		db, err := k.dbs.Control(ctx)
		if err != nil {
			return entry{}, err
		}
		s, err := findKey(ctx, db, id, hash, now)
		if err != nil {
			return entry{}, err
		}
		return entry{stored: s, read: now}, nil
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		k.good.Invalidate(id)
		k.miss.Set(id, struct{}{})
		return entry{}, errBadKey()
	case err != nil:
		// Closed, not open: a key that was revoked a moment ago must not outlive an outage.
		f := fault.Wrap(err, fault.Unavailable, "keys_unavailable", "it cannot be told at the moment whether this key is good; try again")
		f.RetryAfter = time.Second
		return entry{}, f
	}
	e := v.(entry)
	k.good.Set(id, e)
	return e, nil
}

func errBadKey() error {
	return fault.New(fault.Unauthenticated, "invalid_key", "this API key is unknown, revoked or expired")
}
