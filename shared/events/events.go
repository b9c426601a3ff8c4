// Package events publishes what has happened, and is the only code that speaks to
// Pub/Sub.
//
// An event is recorded in the transaction that makes it true ([Record] writes a
// row of control.outbox) and published afterwards ([Relay]). So an event is
// published if and only if its transaction committed, and a Pub/Sub that is down delays
// events and nothing else.
//
// # What is guaranteed, and what is not
//
//   - At least once: a relay that dies between publishing and marking publishes
//     again. The attribute "event_id" is the same each time: receivers forget
//     repetitions by it.
//   - Events with the same ordering key are published in the order they were recorded,
//     if the transactions that recorded them were serialised by something (a lock on
//     the row they are about). One that cannot be published holds back those behind
//     it. Without a key there is no order.
//   - Relay is to be called after a commit that recorded something, for speed, and by
//     the sweeper, for certainty.
package events

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Event is something that has happened.
type Event struct {
	ID          uuid.UUID // made by Record when zero
	Topic       string    // the topic's short name: "tenant-events"
	OrderingKey string    // usually the id of what the event is about; "" for no order
	Payload     any       // becomes JSON
	Attributes  map[string]string
}

// IDAttribute names the attribute that carries Event.ID.
const IDAttribute = "event_id"

// Message is an event as it is published.
type Message struct {
	Topic       string
	OrderingKey string
	Data        []byte // JSON
	Attributes  map[string]string
}

// Publisher sends messages to their topics.
type Publisher interface {
	// Publish sends the messages, those of one topic and ordering key in the order
	// given, and returns one error (or nil) for each. After an error of a key the
	// later messages of that key are not sent.
	Publish(ctx context.Context, messages []Message) []error
}

// Record writes an event into the outbox, in the caller's transaction on the
// control database. It returns the event's ID.
func Record(ctx context.Context, tx pgx.Tx, e Event) (uuid.UUID, error) {
	if e.ID == uuid.Nil {
		id, err := uuid.NewV7()
		if err != nil {
			return uuid.Nil, fmt.Errorf("events: make an id: %w", err)
		}
		e.ID = id
	}
	payload, err := json.Marshal(e.Payload)
	if err != nil {
		return uuid.Nil, fmt.Errorf("events: payload for %s: %w", e.Topic, err)
	}
	attributes := e.Attributes
	if attributes == nil {
		attributes = map[string]string{}
	}
	_, err = tx.Exec(ctx, `INSERT INTO control.outbox (id, topic, ordering_key, payload, attributes) VALUES ($1, $2, $3, $4, $5)`,
		e.ID, e.Topic, e.OrderingKey, json.RawMessage(payload), attributes)
	if err != nil {
		return uuid.Nil, fmt.Errorf("events: record for %s: %w", e.Topic, err)
	}
	return e.ID, nil
}

const (
	batchSize = 100
	// publishPatience bounds one batch: its rows are locked while it is published.
	publishPatience = 10 * time.Second
)

// Relay publishes what is due until nothing is left, and returns how many events it
// published. Several relays may run at once. An event that fails stays due; the
// first failure is returned, after everything else was tried.
func Relay(ctx context.Context, pool *pgxpool.Pool, p Publisher) (int, error) {
	total := 0
	for {
		published, failure, err := relayBatch(ctx, pool, p)
		total += published
		if err != nil {
			return total, err
		}
		if failure != nil {
			return total, fmt.Errorf("events: publish: %w", failure) // the next call tries again
		}
		if published == 0 {
			return total, nil
		}
	}
}

// claimSQL locks events to publish. The advisory lock makes one relay at a time the
// owner of an ordering key: SKIP LOCKED alone would let a second relay overtake
// the first with the key's later events. It is taken for rows only, and held
// until the commit, when the row is either marked or due again.
const claimSQL = `
SELECT id, topic, ordering_key, payload, attributes FROM control.outbox
WHERE published_at IS NULL
  AND (ordering_key = '' OR pg_try_advisory_xact_lock(hashtextextended(topic || ' ' || ordering_key, 7)))
ORDER BY seq LIMIT $1 FOR UPDATE SKIP LOCKED`

func relayBatch(ctx context.Context, pool *pgxpool.Pool, p Publisher) (published int, failure, err error) {
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, claimSQL, batchSize)
		if err != nil {
			return err
		}
		var ids []uuid.UUID
		messages, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Message, error) {
			var id uuid.UUID
			var m Message
			var payload json.RawMessage
			err := row.Scan(&id, &m.Topic, &m.OrderingKey, &payload, &m.Attributes)
			m.Data, m.Attributes = payload, withID(m.Attributes, id)
			ids = append(ids, id)
			return m, err
		})
		if err != nil || len(messages) == 0 {
			return err
		}
		sendCtx, cancel := context.WithTimeout(ctx, publishPatience)
		defer cancel()
		var done, failed []uuid.UUID
		var reasons []string
		for i, sent := range p.Publish(sendCtx, messages) {
			if sent == nil {
				done = append(done, ids[i])
				continue
			}
			failed, reasons = append(failed, ids[i]), append(reasons, sent.Error())
			if failure == nil {
				failure = sent
			}
		}
		published = len(done)
		return mark(ctx, tx, done, failed, reasons)
	})
	if err != nil {
		return 0, nil, fmt.Errorf("events: relay: %w", err)
	}
	return published, failure, nil
}

func mark(ctx context.Context, tx pgx.Tx, done, failed []uuid.UUID, reasons []string) error {
	b := &pgx.Batch{}
	b.Queue(`UPDATE control.outbox SET published_at = now(), attempts = attempts + 1, error = NULL WHERE id = ANY($1)`, done)
	b.Queue(`UPDATE control.outbox o SET attempts = attempts + 1, error = f.reason
		FROM unnest($1::uuid[], $2::text[]) AS f (id, reason) WHERE o.id = f.id`, failed, reasons)
	return tx.SendBatch(ctx, b).Close()
}

func withID(attributes map[string]string, id uuid.UUID) map[string]string {
	out := maps.Clone(attributes)
	if out == nil {
		out = map[string]string{}
	}
	out[IDAttribute] = id.String()
	return out
}

// Prune deletes events published before the given time and returns how many. The
// table would grow for ever without it.
func Prune(ctx context.Context, pool *pgxpool.Pool, before time.Time) (int64, error) {
	tag, err := pool.Exec(ctx, `DELETE FROM control.outbox WHERE published_at < $1`, before)
	if err != nil {
		return 0, fmt.Errorf("events: prune: %w", err)
	}
	return tag.RowsAffected(), nil
}
