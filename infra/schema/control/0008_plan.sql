-- +goose Up
-- Who moves when and how fast. The defaults are those of a plan without rules, and of runs that are older than this file:
-- one wave, all batches at once, at all hours.

ALTER TABLE control.run
    ADD COLUMN plan              jsonb NOT NULL DEFAULT '{}',                            -- as it was asked for
    ADD COLUMN wave              int NOT NULL DEFAULT 1 CHECK (wave >= 1),               -- the one that is open
    ADD COLUMN waves             int NOT NULL DEFAULT 1 CHECK (waves >= wave),
    ADD COLUMN soak_ms           bigint NOT NULL DEFAULT 0 CHECK (soak_ms >= 0),         -- between the end of a wave and the next
    ADD COLUMN next_wave_at      timestamptz,                                            -- the open wave is done, the next one soaks
    ADD COLUMN concurrency       int NOT NULL DEFAULT 0 CHECK (concurrency >= 0),        -- batches at work at the same time; 0: no bound
    ADD COLUMN rows_per_second   bigint NOT NULL DEFAULT 0 CHECK (rows_per_second >= 0), -- of all batches together; 0: no bound
    ADD COLUMN credit_rows       float8 NOT NULL DEFAULT 0,                              -- rows it may move at once, below 0 what it owes
    ADD COLUMN credit_at         timestamptz,                                            -- when that was true
    ADD COLUMN hours             text NOT NULL DEFAULT '',                               -- "22:00-06:00@Europe/Berlin"; '': all
    ADD COLUMN waits_until       timestamptz,                                            -- the opening that it waited for last
    ADD COLUMN max_errors        bigint CHECK (max_errors >= 0),
    ADD COLUMN max_error_percent float8 CHECK (max_error_percent BETWEEN 0 AND 100),     -- of the tenants in the waves begun
    ADD COLUMN errors_accepted   bigint NOT NULL DEFAULT 0,                              -- that an operator knew of when resuming the run
    ADD COLUMN halted            text;                                                   -- why it paused by itself

ALTER TABLE control.batch
    ADD COLUMN wave       int NOT NULL DEFAULT 1,
    ADD COLUMN admitted   boolean NOT NULL DEFAULT true, -- may be at work: its wave is open and there was room
    ADD COLUMN not_before timestamptz,                   -- when its next step is due
    ADD COLUMN busy_since timestamptz,                   -- of the step that holds the lease
    ADD COLUMN busy_ms    bigint NOT NULL DEFAULT 0;     -- of all steps before it

ALTER TABLE control.move
    ADD COLUMN planned_ms   bigint NOT NULL DEFAULT 0,   -- work of a step, estimated by the preflight
    ADD COLUMN planned_rows bigint NOT NULL DEFAULT 0;

CREATE TABLE control.wave (
    run_id    uuid NOT NULL REFERENCES control.run (id),
    number    int NOT NULL,
    percent   float8 NOT NULL,    -- of the run's tenants, those of the waves before it included
    tenants   bigint NOT NULL,
    begins_at timestamptz,        -- as it was planned
    ends_at   timestamptz,
    opened_at timestamptz,
    done_at   timestamptz,
    PRIMARY KEY (run_id, number)
);

-- How many tenants a run has failed to move is asked before every group.
CREATE INDEX move_event_error ON control.move_event (run_id, tenant_id) WHERE event = 'undone' AND actor = 'mover';

GRANT SELECT, INSERT, UPDATE, DELETE ON control.wave TO coditect_migrator;
GRANT SELECT ON control.wave TO coditect_readonly;
