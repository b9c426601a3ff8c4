-- +goose Up
-- Which statements made the green tables of a foreign source: applying the same conversion again does nothing, applying
-- another one is refused with what differs.

CREATE TABLE control.conversion (
    green_schema text NOT NULL,
    object       text NOT NULL,         -- "table legacy.work_task"
    number       int NOT NULL,          -- order within the conversion
    statement    text NOT NULL,
    applied_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (green_schema, object)
);

GRANT SELECT, INSERT, UPDATE, DELETE ON control.conversion TO coditect_migrator;
GRANT SELECT ON control.conversion TO coditect_readonly;
