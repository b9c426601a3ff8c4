-- +goose Up
-- Runs whose tenants are kept in step, in both databases, until somebody lets them cut over.

ALTER TABLE control.move
    ADD COLUMN hold boolean NOT NULL DEFAULT false, -- it follows blue until it is let go
    DROP CONSTRAINT move_state_check,
    ADD CONSTRAINT move_state_check CHECK (state IN ('planned', 'copying', 'catching_up', 'following', 'fenced', 'green', 'fenced_back', 'blue', 'finalised'));

ALTER TABLE control.batch ADD COLUMN held boolean NOT NULL DEFAULT false; -- all of its tenants were following once: it takes no room from others

ALTER TABLE control.streamed
    ADD COLUMN shape text,          -- of the schema, as it was copied
    ADD COLUMN alarmed_at timestamptz; -- the tenant is behind for longer than it may be

ALTER TABLE control.lane ADD COLUMN alarmed_at timestamptz; -- the lane is behind for longer than it may be
