-- +goose Up
-- How large a change is, so that a step takes as many as its memory holds.
ALTER TABLE control.change ADD COLUMN bytes int NOT NULL DEFAULT 0; -- of its texts
