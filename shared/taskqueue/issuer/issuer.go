// Package issuer publishes the key with which the Cloud Tasks emulator signs its
// identity tokens, so that a function on a developer's machine checks the queue's
// calls in the same way as Google's.
//
// The emulator can publish it by itself, but not usefully: it names the algorithm
// "RSA256", which is none (it is RS256), so that coreos/go-oidc passes over the key;
// and it listens on every interface. It listens on the port of its
// -openid-issuer URL, and goes on when that is taken: the launcher takes it first.
//
// The emulator's key is in its source for everybody to read. So a token proves
// nothing here; that the check is made, and made right, is what matters.
package issuer

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"
)

// keyID and modulus are those of the public key in oidc.go of
// github.com/aertje/cloud-tasks-emulator v1.2.0; the exponent is 65537.
const (
	keyID   = "cloudtasks-emulator-test"
	modulus = "vhHj4zZSEg7q1-BdSbzSivtmn4EWF_PZIF7gAH-4iqm7v22MN-2wvnmpNLQG_-LeJ5M39kDHWt2ei3HEsxPxbEeeHRzCm23AgXDGTkjuUUXi7GP1nQmWcZnyckD0jr8kZO789pauck61GvnQhtdl4mP3JCCXPI0dJvbkr76ni-hMnjpB7GyChEglIArshTNPwhHm-6M0c4R3uVvzQUpuE7CEcisNH1u8HM0aOnQKXYc42a3P4yllpD70jNt008StXyyIIwN4LFT9-5vM9FrBEpY4k9EAggU2R7FEodnky6e8grPV2b0z2eRLu4jgITPMzyyqYc6LccEPsn99XqkF1w"
)

// Issuer is a running issuer.
type Issuer struct {
	// URL is the issuer's name: what the emulator's -openid-issuer flag and a
	// function's CODITECT_IDENTITY_ISSUER must say.
	URL string
	srv *http.Server
}

// Start serves on the loopback port; 0 is any free one.
func Start(port int) (*Issuer, error) {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return nil, fmt.Errorf("the identity tokens' issuer: %w", err)
	}
	url := "http://" + l.Addr().String()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", document(map[string]any{
		"issuer": url, "jwks_uri": url + "/jwks", "id_token_signing_alg_values_supported": []string{"RS256"},
		"response_types_supported": []string{"id_token"}, "subject_types_supported": []string{"public"},
	}))
	mux.HandleFunc("GET /jwks", document(map[string]any{
		"keys": []any{map[string]string{"kty": "RSA", "alg": "RS256", "use": "sig", "kid": keyID, "n": modulus, "e": "AQAB"}},
	}))
	i := &Issuer{URL: url, srv: &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}}
	go func() { _ = i.srv.Serve(l) }() // ends with Close
	return i, nil
}

// Close stops serving.
func (i *Issuer) Close() error {
	if err := i.srv.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func document(v any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v) // the caller is gone
	}
}
