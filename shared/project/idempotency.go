package project

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

// KeyLifetime is how long a key gives the first answer again. After that it is as new.
const KeyLifetime = 24 * time.Hour

const (
	// One create in purgeEvery that carries a key also deletes up to purgeMost keys that are past their time: it keeps
	// pace with any rate of creating, and no request pays for a day's worth of keys.
	purgeEvery = 16
	purgeMost  = 50
)

// request is a create that carries a key.
type request struct {
	id     ID     // names the key: its hash, so that any text has 16 bytes
	digest []byte // of what is asked
	answer []byte // the row as it is answered
}

// newRequest describes a create. The digest holds the operation too: a key that was
// used for a project is no key for a task.
func newRequest(operation, key string, input, answer any) (*request, error) {
	if len(key) > 255 {
		return nil, fault.BadField("Idempotency-Key", "must have 1 to 255 characters")
	}
	in, err := json.Marshal(input)
	if err != nil {
		return nil, err
	}
	out, err := json.Marshal(answer)
	if err != nil {
		return nil, err
	}
	r := &request{answer: out}
	k := sha256.Sum256([]byte(key))
	copy(r.id[:], k[:])
	d := sha256.Sum256(append([]byte(operation+"\x00"), in...))
	r.digest = d[:]
	return r, nil
}

// create runs the statements that make one row. With a key, the key is written in
// the same transaction: the second of two requests waits at the key's primary key
// until the first has committed, and then reads its answer. value is what is
// answered, known before it is written; it is replaced when there was a first answer.
func create[T any](ctx context.Context, s *Store, t tenant.ID, key, operation string, input any, value *T, queue func(*citus.Batch)) (replayed bool, err error) {
	if key == "" {
		return false, s.door.OneTrip(ctx, t, queue)
	}
	r, err := newRequest(operation, key, input, value)
	if err != nil {
		return false, err
	}
	// Again when the key was there but is past its time, or went away in between.
	for range 3 {
		now := s.now()
		err = s.door.OneTrip(ctx, t, func(b *citus.Batch) {
			b.Queue(insertKey, t, r.id, r.digest, r.answer, now)
			queue(b)
			if r.id[15]%purgeEvery == 0 {
				b.Queue(purgeKeys, t, now.Add(-KeyLifetime), purgeMost)
			}
		})
		uncertain := fault.KindOf(err) == fault.Uncertain
		if !uncertain && citus.ConstraintName(err) != "idempotency_key_pkey" {
			return false, err
		}
		found, again := s.firstAnswer(ctx, t, r, value)
		if again != nil {
			if uncertain {
				return false, err // still not known
			}
			return false, again
		}
		if found {
			return !uncertain, nil
		}
		// After an unknown COMMIT without a trace of it, nothing was committed: once more.
	}
	return false, err
}

const insertKey = `INSERT INTO idempotency_key (tenant_id, id, request, answer, created_at) VALUES ($1, $2, $3, $4, $5)`

// Skips what another purge has locked: two of them must not wait for each other.
const purgeKeys = `DELETE FROM idempotency_key WHERE tenant_id = $1 AND id = ANY (ARRAY(
	SELECT id FROM idempotency_key WHERE tenant_id = $1 AND created_at < $2 ORDER BY created_at LIMIT $3 FOR UPDATE SKIP LOCKED))`

const selectKey = `SELECT request, answer, created_at FROM idempotency_key WHERE tenant_id = $1 AND id = $2`

const deleteKey = `DELETE FROM idempotency_key WHERE tenant_id = $1 AND id = $2 AND created_at < $3`

// firstAnswer reads what a key was answered with. Not found also means: it was past
// its time and is gone now.
func (s *Store) firstAnswer(ctx context.Context, t tenant.ID, r *request, value any) (found bool, err error) {
	var (
		digest, answer []byte
		made           time.Time
	)
	err = s.door.ReadTrip(ctx, t, func(b *citus.Batch) {
		found = false
		b.Queue(selectKey, t, r.id).QueryRow(func(row pgx.Row) error {
			err := row.Scan(&digest, &answer, &made)
			found = err == nil
			if errors.Is(err, pgx.ErrNoRows) {
				return nil
			}
			return err
		})
	})
	if err != nil || !found {
		return false, err
	}
	if past := s.now().Add(-KeyLifetime); made.Before(past) {
		return false, s.door.OneTrip(ctx, t, func(b *citus.Batch) { b.Queue(deleteKey, t, r.id, past) })
	}
	if string(digest) != string(r.digest) {
		f := fault.New(fault.Invalid, "idempotency_key_reused", "this Idempotency-Key was used for another request: a key goes with one request")
		f.Fields = []fault.Field{{Name: "Idempotency-Key", Message: "must be new for a new request"}}
		return false, f
	}
	return true, json.Unmarshal(answer, value)
}
