package auth

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/coditect/platform/shared/fault"
)

// IdentityConfig says whose signed identity tokens are taken: those of the account
// that Cloud Tasks and Cloud Scheduler call with. The tags are those of
// sethvargo/go-envconfig. Without Callers no token is taken.
type IdentityConfig struct {
	Issuer   string   `env:"CODITECT_IDENTITY_ISSUER,default=https://accounts.google.com"`
	Audience string   `env:"CODITECT_IDENTITY_AUDIENCE"` // the URL that the token was made for; must not be empty where there are callers
	Callers  []string `env:"CODITECT_IDENTITY_CALLERS"`  // exact e-mail addresses of the accounts
}

// Identity takes OpenID Connect identity tokens of a few known machine accounts. Beside
// signature, expiry, issuer and audience it checks the e-mail and that it is
// verified: anybody can get a well-signed token for any audience from Google. Safe for
// concurrent use.
type Identity struct {
	cfg    IdentityConfig
	scopes []string

	mu       sync.Mutex
	verifier *oidc.IDTokenVerifier
}

// NewIdentity returns an Authenticator whose callers are operators with these scopes.
// The issuer is asked for its keys when the first token comes.
func NewIdentity(cfg IdentityConfig, scopes ...string) (*Identity, error) {
	if len(cfg.Callers) > 0 && cfg.Audience == "" {
		return nil, fault.BadField("CODITECT_IDENTITY_AUDIENCE", "must be the function's URL: a token made for another receiver must not be taken")
	}
	return &Identity{cfg: cfg, scopes: scopes}, nil
}

// Authenticate implements Authenticator.
func (i *Identity) Authenticate(ctx context.Context, credential string) (Principal, error) {
	refuse := func(cause error) error {
		return fault.Wrap(cause, fault.Unauthenticated, "invalid_credential", "the credential is not valid")
	}
	if len(i.cfg.Callers) == 0 {
		return Principal{}, refuse(fmt.Errorf("no identity tokens are taken here"))
	}
	verifier, err := i.keys(ctx)
	if err != nil {
		f := fault.Wrap(err, fault.Unavailable, "issuer_unavailable", "the credential cannot be checked at the moment; try again")
		return Principal{}, f
	}
	token, err := verifier.Verify(ctx, credential)
	if err != nil {
		return Principal{}, refuse(err)
	}
	var claims struct {
		Email    string `json:"email"`
		Verified bool   `json:"email_verified"`
	}
	if err := token.Claims(&claims); err != nil {
		return Principal{}, refuse(err)
	}
	for _, c := range i.cfg.Callers {
		if c == claims.Email && claims.Verified {
			return Principal{Subject: "account:" + c, Kind: Operator, Scopes: i.scopes}, nil
		}
	}
	return Principal{}, refuse(fmt.Errorf("%q (verified: %v) may not call here", claims.Email, claims.Verified))
}

func (i *Identity) keys(ctx context.Context) (*oidc.IDTokenVerifier, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.verifier == nil {
		// The provider keeps the context for later key fetches.
		p, err := oidc.NewProvider(context.WithoutCancel(ctx), i.cfg.Issuer)
		if err != nil {
			return nil, err
		}
		i.verifier = p.Verifier(&oidc.Config{ClientID: i.cfg.Audience})
	}
	return i.verifier, nil
}

// KeysOr takes API keys with one Authenticator and every other credential with another.
type KeysOr struct {
	Keys  Authenticator
	Other Authenticator
}

// Authenticate implements Authenticator.
func (k KeysOr) Authenticate(ctx context.Context, credential string) (Principal, error) {
	if strings.HasPrefix(credential, "ck_") {
		return k.Keys.Authenticate(ctx, credential)
	}
	return k.Other.Authenticate(ctx, credential)
}
