package auth_test

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

func TestMain(m *testing.M) { citustest.Main(m) }

// clock is a clock that tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func TestKey(t *testing.T) {
	env := citustest.New(t)
	ctx := t.Context()
	home := env.NewTenant(t, tenant.Green)
	c := &clock{t: time.Now()}
	keys := auth.NewKeys(env.Databases, auth.WithClock(c.now))
	db, err := env.Databases.Control(ctx)
	require.NoError(t, err)

	text, key, err := auth.CreateKey(ctx, db, auth.NewKey{Name: "ci", Kind: auth.TenantKey, Tenant: home,
		Scopes: []string{auth.ProjectsRead, auth.TenantsRead}, Expires: c.now().Add(time.Hour)})
	require.NoError(t, err)
	require.Regexp(t, `^ck_[A-Za-z0-9_-]{22}_[A-Za-z0-9_-]{43}$`, text)
	require.Nil(t, key.LastUsed)

	p, err := keys.Authenticate(ctx, text)
	require.NoError(t, err)
	require.Equal(t, auth.Principal{Subject: "key:" + key.ID.String(), Kind: auth.TenantKey, Tenant: home, Scopes: []string{auth.ProjectsRead, auth.TenantsRead}}, p)
	require.True(t, p.Has(auth.ProjectsRead))
	require.False(t, p.Has(auth.ProjectsWrite))

	// The database does not hold the secret.
	var row string
	require.NoError(t, env.Control.QueryRow(ctx, `SELECT k::text FROM control.api_key k WHERE id = $1`, key.ID).Scan(&row))
	require.NotContains(t, row, text[26:])

	listed, err := auth.ListKeys(ctx, db, home, uuid.Nil, 10)
	require.NoError(t, err)
	require.Len(t, listed, 1)
	require.NotNil(t, listed[0].LastUsed)

	// One wrong character of the secret, of the id, of the form.
	for _, bad := range []string{flip(text, 40), flip(text, 10), text[:len(text)-1], text + "A", strings.Replace(text, "ck_", "cx_", 1), "", "ck_", text[:68] + "!"} {
		_, err := keys.Authenticate(ctx, bad)
		require.Equal(t, fault.Unauthenticated, fault.KindOf(err), bad)
	}

	// Revoked, it works until the cache looks again.
	_, err = auth.RevokeKey(ctx, db, key.ID)
	require.NoError(t, err)
	_, err = keys.Authenticate(ctx, text)
	require.NoError(t, err)
	c.move(auth.TTL)
	_, err = keys.Authenticate(ctx, text)
	require.Equal(t, fault.Unauthenticated, fault.KindOf(err))
	_, err = auth.RevokeKey(ctx, db, uuid.New())
	require.Equal(t, fault.NotFound, fault.KindOf(err))
}

// random returns n characters of the key alphabet, the last one without spare bits.
func random(n int) string {
	b := make([]byte, (n*6)/8)
	_, _ = rand.Read(b)
	return base64.RawURLEncoding.EncodeToString(b)
}

// flip changes one character to another of the alphabet.
func flip(s string, i int) string {
	b := []byte(s)
	if b[i] == 'A' {
		b[i] = 'B'
	} else {
		b[i] = 'A'
	}
	return string(b)
}

func TestKeyExpires(t *testing.T) {
	env := citustest.New(t)
	c := &clock{t: time.Now()}
	keys := auth.NewKeys(env.Databases, auth.WithClock(c.now))
	text, _, err := auth.CreateKey(t.Context(), env.Control, auth.NewKey{Name: "short", Kind: auth.Operator, Scopes: auth.AllScopes(), Expires: c.now().Add(time.Second)})
	require.NoError(t, err)
	p, err := keys.Authenticate(t.Context(), text)
	require.NoError(t, err)
	require.True(t, p.IsOperator())
	c.move(time.Second) // within the cache's time: an expiry needs no look at the database
	_, err = keys.Authenticate(t.Context(), text)
	require.Equal(t, fault.Unauthenticated, fault.KindOf(err))
}

func TestGarbageDoesNotReachTheDatabaseForEver(t *testing.T) {
	env := citustest.New(t)
	c := &clock{t: time.Now()}
	keys := auth.NewKeys(env.Databases, auth.WithClock(c.now))
	good, _, err := auth.CreateKey(t.Context(), env.Control, auth.NewKey{Name: "k", Kind: auth.Operator, Scopes: []string{auth.TenantsRead}})
	require.NoError(t, err)
	_, err = keys.Authenticate(t.Context(), good)
	require.NoError(t, err)

	limited := 0
	for range 400 {
		_, err := keys.Authenticate(t.Context(), "ck_"+random(22)+"_"+random(43))
		require.Error(t, err)
		if fault.KindOf(err) == fault.Exhausted {
			limited++
		}
	}
	require.Greater(t, limited, 100)
	// A key this instance knows is not rationed, even when it has to be read again.
	c.move(auth.TTL)
	_, err = keys.Authenticate(t.Context(), good)
	require.NoError(t, err)
}

func TestAMissIsRememberedAndForgotten(t *testing.T) {
	env := citustest.New(t)
	keys := auth.NewKeys(env.Databases)
	text := "ck_" + random(22) + "_" + random(43)
	_, err := keys.Authenticate(t.Context(), text)
	require.Equal(t, fault.Unauthenticated, fault.KindOf(err))
	env.Databases.Close() // whoever asks the database now fails otherwise
	_, err = keys.Authenticate(t.Context(), text)
	require.Equal(t, fault.Unauthenticated, fault.KindOf(err))
}

func TestAnOutageIsNotARefusal(t *testing.T) {
	env := citustest.New(t)
	keys := auth.NewKeys(env.Databases)
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // a caller that left must not fail the others: the question goes on
	_, err := keys.Authenticate(ctx, "ck_"+random(22)+"_"+random(43))
	require.Equal(t, fault.Unauthenticated, fault.KindOf(err))

	_, err = env.Control.Exec(t.Context(), `ALTER TABLE control.api_key RENAME TO hidden`)
	require.NoError(t, err)
	_, err = keys.Authenticate(t.Context(), "ck_"+random(22)+"_"+random(43))
	require.Equal(t, fault.Unavailable, fault.KindOf(err))
	require.Equal(t, time.Second, fault.As(err).RetryAfter)
}

func TestNewKeysAreChecked(t *testing.T) {
	env := citustest.New(t)
	home := env.NewTenant(t, tenant.Blue)
	for name, c := range map[string]struct {
		key   auth.NewKey
		field string
	}{
		"no name":              {auth.NewKey{Kind: auth.Operator, Scopes: auth.AllScopes()}, "name"},
		"spaces":               {auth.NewKey{Name: " a", Kind: auth.Operator, Scopes: auth.AllScopes()}, "name"},
		"no kind":              {auth.NewKey{Name: "a", Scopes: auth.AllScopes()}, "kind"},
		"operator with tenant": {auth.NewKey{Name: "a", Kind: auth.Operator, Tenant: home, Scopes: auth.AllScopes()}, "tenant"},
		"tenant without":       {auth.NewKey{Name: "a", Kind: auth.TenantKey, Scopes: []string{auth.ProjectsRead}}, "tenant"},
		"tenant moves":         {auth.NewKey{Name: "a", Kind: auth.TenantKey, Tenant: home, Scopes: []string{auth.MigrationsWrite}}, "scopes[0]"},
		"tenant signs up":      {auth.NewKey{Name: "a", Kind: auth.TenantKey, Tenant: home, Scopes: []string{auth.ProjectsRead, auth.TenantsCreate}}, "scopes[1]"},
		"scope twice":          {auth.NewKey{Name: "a", Kind: auth.Operator, Scopes: []string{auth.TenantsRead, auth.TenantsRead}}, "scopes[1]"},
		"no scope":             {auth.NewKey{Name: "a", Kind: auth.Operator}, "scopes"},
		"user without subject": {auth.NewKey{Name: "a", Kind: auth.User, Scopes: []string{auth.TenantsRead}}, "subject"},
		"past":                 {auth.NewKey{Name: "a", Kind: auth.Operator, Scopes: auth.AllScopes(), Expires: time.Now().Add(-time.Second)}, "expires"},
	} {
		_, _, err := auth.CreateKey(t.Context(), env.Control, c.key)
		require.Equal(t, fault.Invalid, fault.KindOf(err), name)
		require.Equal(t, c.field, fault.As(err).Fields[0].Name, name)
	}
	_, _, err := auth.CreateKey(t.Context(), env.Control, auth.NewKey{Name: "a", Kind: auth.TenantKey, Tenant: tenant.NewID(), Scopes: []string{auth.ProjectsRead}})
	require.Equal(t, "tenant_not_found", fault.CodeOf(err))
}

func TestTenantFor(t *testing.T) {
	own, other := tenant.NewID(), tenant.NewID()
	key := auth.Principal{Kind: auth.TenantKey, Tenant: own}
	operator := auth.Principal{Kind: auth.Operator}
	for _, c := range []struct {
		p         auth.Principal
		requested string
		want      tenant.ID
		kind      fault.Kind
	}{
		{key, "", own, ""}, {key, own.String(), own, ""}, {key, other.String(), tenant.ID{}, fault.NotFound}, {key, "x", tenant.ID{}, fault.Invalid},
		{operator, "", tenant.ID{}, fault.Invalid}, {operator, other.String(), other, ""}, {operator, tenant.ID{}.String(), tenant.ID{}, fault.Invalid},
	} {
		got, err := c.p.TenantFor(c.requested)
		require.Equal(t, c.kind, fault.KindOf(err), c.requested)
		require.Equal(t, c.want, got)
	}
}

func BenchmarkCachedKey(b *testing.B) {
	env := citustest.New(b)
	keys := auth.NewKeys(env.Databases)
	text, _, err := auth.CreateKey(b.Context(), env.Control, auth.NewKey{Name: "k", Kind: auth.Operator, Scopes: []string{auth.TenantsRead}})
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := keys.Authenticate(b.Context(), text); err != nil {
			b.Fatal(err)
		}
	}
}
