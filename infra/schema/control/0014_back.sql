-- +goose Up
-- How far a rollback has compared blue with green, so that a tenant of any size can go back in many short steps.

-- How far a table is compared, in the order of one side's keys.
CREATE TABLE control.back_compared (
    run_id     uuid NOT NULL,
    tenant_id  uuid NOT NULL,
    table_name text NOT NULL,
    side       text NOT NULL CHECK (side IN ('blue', 'green')),
    shape      text NOT NULL,                       -- of the schema then: tables that have changed are compared anew
    after_key  text[],                              -- keys up to this one are compared; null: all
    PRIMARY KEY (run_id, tenant_id, table_name, side)
);

-- Keys of rows that were not the same, or were brought over since: they are proven when green's gate is shut. Written before
-- blue is, deleted when the row was seen to be the same.
CREATE TABLE control.back_touched (
    run_id     uuid  NOT NULL,
    tenant_id  uuid  NOT NULL,
    table_name text  NOT NULL,
    key        bytea NOT NULL,                      -- its columns' texts, joined by NUL
    hash       bytea GENERATED ALWAYS AS (sha256(key)) STORED, -- a key may be longer than an index takes
    PRIMARY KEY (run_id, tenant_id, table_name, hash)
);

ALTER TABLE control.move ADD COLUMN back_paused boolean NOT NULL DEFAULT false; -- a step of the rollback has used up its time: the next one may begin at once

GRANT SELECT, INSERT, UPDATE, DELETE ON control.back_compared, control.back_touched TO coditect_migrator;
GRANT SELECT ON control.back_compared TO coditect_readonly;
