-- +goose Up
-- The change stream: what tenants write in blue while they are copied.

-- A lane is one replication slot of one blue database. Each slot decodes all of the database's WAL, so lanes are few.
-- Positions are byte positions in blue's WAL (pg_lsn as a number).
CREATE TABLE control.lane (
    database_name text   NOT NULL,
    number        int    NOT NULL CHECK (number > 0),
    slot          text   NOT NULL,                  -- of the publication too; another one after the lane was lost
    open          boolean NOT NULL DEFAULT false,   -- slot and publication are there
    spooled       bigint NOT NULL DEFAULT 0,        -- every transaction that ended before is wholly in control.change
    part_lsn      bigint NOT NULL DEFAULT 0,        -- and of the one that commits here, the first part_seq changes
    part_seq      bigint NOT NULL DEFAULT 0,
    wal_end       bigint NOT NULL DEFAULT 0,        -- blue's WAL, when it was last looked at
    retained      bigint NOT NULL DEFAULT 0,        -- bytes of WAL that blue keeps for the slot
    last_commit   timestamptz,                      -- when the last spooled transaction committed in blue
    heard_at      timestamptz,                      -- when the receiver last spooled or found nothing to spool
    run_until     timestamptz,                      -- the receiver at work stops then: no fence goes up shortly before
    wanted_at     timestamptz NOT NULL DEFAULT clock_timestamp(), -- when a move was last at work that needs it
    lost          text,                             -- why the last slot was given up
    step          bigint NOT NULL DEFAULT 0,        -- names the next task
    woken_at      timestamptz,                      -- when somebody found nobody at work and had a receiver called
    PRIMARY KEY (database_name, number)
);

-- Slots that were given up and may still be there in blue.
CREATE TABLE control.slot_due (
    slot          text PRIMARY KEY,
    database_name text NOT NULL
);

-- The tenants whose tables are in a lane's publication. Written before they are, deleted after they have left.
CREATE TABLE control.streamed (
    tenant_id     uuid PRIMARY KEY REFERENCES control.tenant (id),
    run_id        uuid   NOT NULL,
    database_name text   NOT NULL,
    number        int    NOT NULL,
    slot          text   NOT NULL,
    schema_name   text   NOT NULL,
    joined        boolean NOT NULL DEFAULT false,   -- the publication barrier is past
    UNIQUE (database_name, number, schema_name),
    FOREIGN KEY (database_name, number) REFERENCES control.lane
);

-- Columns of a streamed table as blue sent them: a change refers to them by number.
CREATE TABLE control.change_shape (
    id         int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_name text   NOT NULL,
    columns    text[] NOT NULL,
    key        int[]  NOT NULL,                     -- of the columns, from 1
    UNIQUE (table_name, columns, key)
);

-- The spool. It is no distributed table: a transaction that Citus commits in two phases may be seen on one shard before
-- another, and a change that is not seen when its successor is applied would be lost.
CREATE TABLE control.change (
    tenant_id uuid   NOT NULL,
    lsn       bigint NOT NULL,                      -- where its transaction commits
    seq       bigint NOT NULL,                      -- within the transaction, from 1
    xid       bigint NOT NULL,                      -- of the transaction, 64 bits wide
    at        timestamptz NOT NULL,                 -- when it committed in blue
    op        "char" NOT NULL CHECK (op IN ('I', 'U', 'D', 'T', 'F')), -- T: TRUNCATE; F: the fence went up, seq of it in key
    shape     int,
    key       text[],                               -- before the change: update and delete
    row       text[],                               -- after it: insert and update
    unchanged int[],                                -- columns, from 1, whose value was not sent because it stayed
    PRIMARY KEY (tenant_id, lsn, seq)
);

-- What was copied as of which moment: the gate of the changes. Distributed with the tenants' rows where there is Citus, so
-- that a chunk and its rows are committed together on one node.
CREATE TABLE control.chunk (
    tenant_id  uuid   NOT NULL,
    table_name text   NOT NULL,
    number     int    NOT NULL,                     -- from 1, in the order of keys
    after_key  text[],                              -- keys greater than this; null for the first
    upto_key   text[],                              -- up to this one; null for the last
    snapshot   text   NOT NULL,                     -- pg_snapshot: what the copy has seen
    rows       bigint NOT NULL,
    PRIMARY KEY (tenant_id, table_name, number)
);
SELECT coditect.distribute('control.chunk');

-- How far a tenant's changes are applied. Moves on in the transaction that writes the rows.
CREATE TABLE control.applied (
    tenant_id uuid   PRIMARY KEY,
    lsn       bigint NOT NULL,
    seq       bigint NOT NULL,
    changes   bigint NOT NULL DEFAULT 0             -- applied so far, those that the copy had seen not counted
);
SELECT coditect.distribute('control.applied');

ALTER TABLE control.move ADD COLUMN online boolean NOT NULL DEFAULT false; -- it goes the online way

GRANT SELECT, INSERT, UPDATE, DELETE ON control.lane, control.slot_due, control.streamed, control.change_shape, control.change, control.chunk, control.applied TO coditect_migrator;
GRANT SELECT ON control.lane, control.streamed, control.chunk, control.applied TO coditect_readonly;
