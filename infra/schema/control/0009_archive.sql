-- +goose Up
-- What became of the blue schemas of tenants that live in green. A row is made when a finalisation begins, and names the
-- object that it is going to write: what a crash leaves in the archive, the next one deletes.

CREATE TABLE control.archive (
    run_id        uuid NOT NULL,
    tenant_id     uuid NOT NULL,
    database_name text NOT NULL,           -- where the schema was
    schema_name   text NOT NULL,
    forced_by     text,                    -- the operator who did not wait for the end of the observation time
    object        text NOT NULL,           -- the dump's name in the archive, of the last attempt
    attempts      int NOT NULL DEFAULT 0,
    lease_until   timestamptz,             -- somebody is at work on it; saves work and proves nothing
    retry_at      timestamptz,             -- a sweep leaves it alone until then
    error         text,                    -- of the last attempt
    -- The dump, once it was written and read back. The schema is dropped afterwards.
    url           text,
    bytes         bigint,
    sha256        bytea CHECK (octet_length(sha256) = 32),
    tables        jsonb,                   -- {"name": {"rows": 1, "hash": "…"}}: of a restored schema they are the same
    saved_at      timestamptz,
    dropped_at    timestamptz,
    PRIMARY KEY (run_id, tenant_id),
    FOREIGN KEY (run_id, tenant_id) REFERENCES control.move (run_id, tenant_id),
    CHECK ((saved_at IS NULL) = (url IS NULL) AND (saved_at IS NULL) = (sha256 IS NULL)),
    CHECK (dropped_at IS NULL OR saved_at IS NOT NULL)
);
CREATE INDEX archive_open ON control.archive (run_id, tenant_id) WHERE dropped_at IS NULL;
CREATE INDEX archive_tenant ON control.archive (tenant_id, saved_at);
CREATE INDEX move_observed ON control.move (green_at) WHERE state = 'green';

GRANT SELECT, INSERT, UPDATE, DELETE ON control.archive TO coditect_migrator;
GRANT SELECT ON control.archive TO coditect_readonly;
