-- +goose Up
-- How far a run's change stream was behind, now and then: what has moved and when stands in control.move. The sweep adds a
-- row when the newest is older than a five-hundredth of the run's age, so that there are never many.

CREATE TABLE control.run_sample (
    run_id    uuid NOT NULL REFERENCES control.run (id),
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    lag_bytes bigint NOT NULL,   -- of blue's WAL that is not spooled, in the lane that is furthest behind
    lag_ms    bigint NOT NULL,   -- since its last spooled commit; 0 when nothing is missing
    PRIMARY KEY (run_id, at)
);

GRANT SELECT, INSERT, DELETE ON control.run_sample TO coditect_migrator;
GRANT SELECT ON control.run_sample TO coditect_readonly;
