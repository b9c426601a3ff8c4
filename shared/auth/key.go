package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"strings"

	"github.com/google/uuid"
)

// A key reads ck_<id>_<secret>: 16 and 32 bytes in base64url. The id finds the
// row, the secret proves the right; only its SHA-256 is stored. A slow hash
// would add nothing: 256 random bits cannot be guessed.
const (
	keyPrefix   = "ck_"
	idLength    = 22
	secretSize  = 32
	secretStart = len(keyPrefix) + idLength + 1
	keyLength   = secretStart + 43
)

// strict refuses the spare bits of the last character, so that a key has one form.
var strict = base64.RawURLEncoding.Strict()

// newSecret returns a key for id and the hash of its secret.
func newSecret(id uuid.UUID) (string, [sha256.Size]byte) {
	var secret [secretSize]byte
	_, _ = rand.Read(secret[:]) // never fails: crypto/rand ends the program instead
	return keyPrefix + strict.EncodeToString(id[:]) + "_" + strict.EncodeToString(secret[:]), sha256.Sum256(secret[:])
}

// parseKey splits a key. It costs no round trip, so most garbage ends here.
func parseKey(key string) (id uuid.UUID, hash [sha256.Size]byte, ok bool) {
	if len(key) != keyLength || !strings.HasPrefix(key, keyPrefix) || key[secretStart-1] != '_' {
		return id, hash, false
	}
	var secret [secretSize]byte
	// The lengths are right, so only a foreign character can fail.
	if _, err := strict.Decode(id[:], []byte(key[len(keyPrefix):secretStart-1])); err != nil {
		return id, hash, false
	}
	if _, err := strict.Decode(secret[:], []byte(key[secretStart:])); err != nil {
		return id, hash, false
	}
	return id, sha256.Sum256(secret[:]), true
}
