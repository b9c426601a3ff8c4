-- +goose Up
-- The way back: where a green tenant came from, and who asked for its return.
ALTER TABLE control.move
    ADD COLUMN blue_database text,                      -- set by the flip: control.tenant no longer says it
    ADD COLUMN blue_schema   text,
    ADD COLUMN back_by       text,                      -- who asked for the rollback that is under way
    ADD COLUMN back_attempts int NOT NULL DEFAULT 0,    -- of it
    ADD COLUMN back_pause_us bigint,                    -- from the closing of green's gate to the opening of blue's
    ADD COLUMN reverse_after timestamptz;               -- after an error: not before this are its changes brought back again
CREATE INDEX move_back ON control.move (tenant_id) WHERE back_by IS NOT NULL AND state IN ('green', 'fenced_back');
