-- +goose Up
-- Events to be published. A row is written in the transaction that makes the event true, so that an event is
-- published if and only if its transaction committed; shared/events publishes them afterwards, at least once.
CREATE TABLE control.outbox (
    id           uuid PRIMARY KEY,                               -- the event's id: what a receiver forgets repetitions by
    seq          bigint GENERATED ALWAYS AS IDENTITY,            -- order of publishing within an ordering key
    topic        text NOT NULL CHECK (length(topic) BETWEEN 3 AND 255),
    ordering_key text NOT NULL DEFAULT '' CHECK (octet_length(ordering_key) <= 1024),
    payload      jsonb NOT NULL,
    attributes   jsonb NOT NULL DEFAULT '{}',
    created_at   timestamptz NOT NULL DEFAULT now(),
    published_at timestamptz,
    attempts     int NOT NULL DEFAULT 0,
    error        text                                            -- of the last attempt
);
CREATE INDEX outbox_due ON control.outbox (seq) WHERE published_at IS NULL;
CREATE INDEX outbox_published ON control.outbox (published_at) WHERE published_at IS NOT NULL;

-- Who makes events true may record them; the migrator and the application relay them.
GRANT SELECT, INSERT, UPDATE, DELETE ON control.outbox TO coditect_app, coditect_migrator;
GRANT SELECT ON control.outbox TO coditect_readonly;
