-- +goose Up
-- The spool keeps a tenant's changes in packs of some hundreds, as blue has sent them: a row for each change cost more
-- than applying it did.

-- Where the stream was in the middle of something, it begins anew: the next step finds its tenant not joined, and copies
-- it again.
UPDATE control.streamed SET joined = false;
DROP TABLE control.change;

-- A pack holds changes that follow each other in the lane, all of one tenant; shared/migration/stream/pack.go has the
-- format. It stays until it is applied (control.applied is past it) and its rows are found to be the same in both databases,
-- or are noted in control.unproven. It is no distributed table: a transaction that Citus commits in two phases may be seen on
-- one shard before another, and a change that is not seen when its successor is applied would be lost.
CREATE TABLE control.pack (
    tenant_id uuid   NOT NULL,
    lsn       bigint NOT NULL,                      -- of the last change: where its transaction commits,
    seq       bigint NOT NULL,                      -- and its number within the transaction, from 1
    begins    bigint NOT NULL,                      -- where the first change's transaction commits
    at        timestamptz NOT NULL,                 -- when that committed in blue
    changes   int    NOT NULL,
    bytes     int    NOT NULL,                      -- that the changes take in memory, about
    data      bytea  NOT NULL,
    PRIMARY KEY (tenant_id, lsn, seq)
);
-- A pack lives for a moment: compressing it must cost less time than writing it.
-- +goose StatementBegin
DO $$ BEGIN
    ALTER TABLE control.pack ALTER COLUMN data SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN -- a server that was built without
    ALTER TABLE control.pack ALTER COLUMN data SET STORAGE EXTERNAL;
END $$;
-- +goose StatementEnd

-- Rows whose change is applied, and that were not the same in both databases when they were compared: they had been
-- changed again, or are wrong. Under the fence there is no "again".
CREATE SEQUENCE control.unproven_noted;
CREATE TABLE control.unproven (
    tenant_id  uuid   NOT NULL,
    table_name text   NOT NULL,
    digest     bytea  NOT NULL,                     -- SHA-256 of the key, which may be too long for an index
    key        text   NOT NULL,                     -- as a JSON array, in the order of the layout; null: all of the table, for it was emptied
    noted      bigint NOT NULL DEFAULT nextval('control.unproven_noted'), -- grows when it is noted again: only this note is taken away
    PRIMARY KEY (tenant_id, table_name, digest)
);
CREATE INDEX unproven_digest ON control.unproven (tenant_id, digest);

-- Both are queues: what is dead in them must not be in the way of those who read their beginning.
ALTER TABLE control.pack SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 10000);
ALTER TABLE control.unproven SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

GRANT SELECT, INSERT, UPDATE, DELETE ON control.pack, control.unproven TO coditect_migrator;
GRANT USAGE ON SEQUENCE control.unproven_noted TO coditect_migrator;
