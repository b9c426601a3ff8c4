-- +goose Up
-- The control tables live in the green database: the flip of a tenant's home is then one local commit.

CREATE SCHEMA control;

-- Foreign databases that tenants are moved from; 'platform' stands for our own blue schemas.
CREATE TABLE control.source (
    name         text PRIMARY KEY,
    green_schema text NOT NULL,
    descriptor   jsonb NOT NULL DEFAULT '{}',
    created_at   timestamptz NOT NULL DEFAULT now()
);
INSERT INTO control.source (name, green_schema) VALUES ('platform', 'app');

-- The directory: where each tenant lives.
CREATE TABLE control.tenant (
    id            uuid PRIMARY KEY,
    name          text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    slug          text NOT NULL UNIQUE CHECK (length(slug) BETWEEN 1 AND 128),
    source        text NOT NULL DEFAULT 'platform' REFERENCES control.source (name),
    home          text NOT NULL CHECK (home IN ('blue', 'green')),
    database_name text NOT NULL,
    schema_name   text NOT NULL,
    epoch         bigint NOT NULL DEFAULT 1,
    status        text NOT NULL CHECK (status IN ('provisioning', 'active', 'suspended', 'deleting', 'deleted')),
    plan          text NOT NULL DEFAULT 'free',
    delete_after  timestamptz,
    version       bigint NOT NULL DEFAULT 1,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    CHECK ((status = 'deleting') = (delete_after IS NOT NULL))
);
CREATE INDEX tenant_source ON control.tenant (source, home, id);
CREATE INDEX tenant_due ON control.tenant (delete_after) WHERE status = 'deleting';
CREATE INDEX tenant_provisioning ON control.tenant (created_at) WHERE status = 'provisioning';

-- A run moves chosen tenants of one source in batches. One batch is the work of one task at a time.
CREATE TABLE control.run (
    id           uuid PRIMARY KEY,
    source       text NOT NULL REFERENCES control.source (name),
    state        text NOT NULL CHECK (state IN ('running', 'paused', 'cancelling', 'cancelled', 'done')),
    max_pause_ms bigint NOT NULL CHECK (max_pause_ms > 0),
    created_by   text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    started_at   timestamptz,
    finished_at  timestamptz
);
CREATE INDEX run_open ON control.run (id) WHERE state IN ('running', 'cancelling');

CREATE TABLE control.batch (
    run_id      uuid NOT NULL REFERENCES control.run (id),
    number      int  NOT NULL,
    done        boolean NOT NULL DEFAULT false,
    step        bigint NOT NULL DEFAULT 0,          -- names the next task
    enqueued_at timestamptz,
    -- A lease only saves work: two steps of one batch at once are harmless, but pointless.
    lease_token bigint,
    lease_until timestamptz,
    PRIMARY KEY (run_id, number)
);
CREATE INDEX batch_due ON control.batch (run_id) WHERE NOT done;

-- Fencing tokens grow for ever: whoever claims a move last has the greatest, and the gate in blue and the row below
-- refuse all smaller ones.
CREATE SEQUENCE control.move_token;

-- One tenant's move. The states and their transitions stand in shared/migration/state.go; this CHECK is the same list.
CREATE TABLE control.move (
    run_id     uuid NOT NULL REFERENCES control.run (id),
    tenant_id  uuid NOT NULL REFERENCES control.tenant (id),
    batch      int  NOT NULL,
    state      text NOT NULL CHECK (state IN ('planned', 'copying', 'catching_up', 'fenced', 'green', 'fenced_back', 'blue', 'finalised')),
    epoch      bigint NOT NULL,                 -- the tenant's epoch when the run was made
    token      bigint NOT NULL DEFAULT 0,       -- the fencing token of the step that claimed it last
    attempts   int NOT NULL DEFAULT 0,
    fence_up   boolean NOT NULL DEFAULT false,  -- a fence may be up in blue: set before it is raised, cleared after it is lifted
    purge_due  boolean NOT NULL DEFAULT false,  -- undone, but green may still hold rows of it
    bytes      bigint NOT NULL DEFAULT 0,       -- estimated by the preflight
    rows       bigint NOT NULL DEFAULT 0,       -- copied and verified
    fenced_at  timestamptz,
    green_at   timestamptz,
    pause_us   bigint,                          -- from the request for the fence to the flip, measured by the step
    error      text,                            -- why it is not green (yet)
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, tenant_id)
);
CREATE INDEX move_batch ON control.move (run_id, batch, tenant_id);
CREATE INDEX move_fence_left ON control.move (tenant_id) WHERE state = 'blue' AND (fence_up OR purge_due);
-- A tenant takes part in one move at a time.
CREATE UNIQUE INDEX move_active ON control.move (tenant_id) WHERE state NOT IN ('blue', 'finalised');

-- How far the copy of one table of a fenced tenant is: pages of blue that are committed in green. A row is only valid
-- under the fence it names.
CREATE TABLE control.copied (
    tenant_id  uuid NOT NULL,
    table_name text NOT NULL,
    fence_id   bigint NOT NULL,
    next_page  bigint NOT NULL,
    rows       bigint NOT NULL,
    done       boolean NOT NULL,
    PRIMARY KEY (tenant_id, table_name)
);

-- The audit trail of runs and moves.
CREATE TABLE control.move_event (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    run_id    uuid NOT NULL,
    tenant_id uuid,
    actor     text NOT NULL,
    event     text NOT NULL,
    detail    jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX move_event_run ON control.move_event (run_id, id);

GRANT USAGE ON SCHEMA control TO coditect_app, coditect_migrator, coditect_readonly;
GRANT SELECT, INSERT, UPDATE ON control.tenant TO coditect_app;
GRANT SELECT ON control.source TO coditect_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA control TO coditect_migrator;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA control TO coditect_migrator;
GRANT SELECT ON control.tenant, control.source, control.run, control.batch, control.move, control.move_event TO coditect_readonly;
