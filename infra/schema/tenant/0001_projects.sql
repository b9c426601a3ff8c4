-- +goose Up
-- A tenant's own data: projects, tasks, comments, labels, and the keys of requests that may be sent twice.
--
-- The same text makes a blue schema, green's shared tables, and green's distributed tables. Hence no name carries a
-- schema, every key begins with tenant_id, and the order is: create, protect, distribute, then add foreign keys (Citus
-- wants both sides colocated first). Few tables and few indexes on purpose: each is made anew for every blue tenant.

CREATE TABLE project (
    tenant_id   uuid NOT NULL DEFAULT coditect.current_tenant(),
    id          uuid NOT NULL,
    name        text NOT NULL,
    description text NOT NULL DEFAULT '',
    archived    boolean NOT NULL DEFAULT false,
    version     bigint NOT NULL DEFAULT 1,
    created_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id)
);

-- labels holds names, not ids: a page of tasks is one index scan and no join. shared/project keeps it in step with the
-- table label. title_key is what "sort by title" sorts by: without regard to case, and by code point, so that a cursor
-- means the same in both homes whatever their collation.
CREATE TABLE task (
    tenant_id   uuid NOT NULL DEFAULT coditect.current_tenant(),
    id          uuid NOT NULL,
    project_id  uuid NOT NULL,
    parent_id   uuid,
    title       text NOT NULL,
    description text NOT NULL DEFAULT '',
    status      text NOT NULL DEFAULT 'todo' CONSTRAINT task_status CHECK (status IN ('todo', 'in_progress', 'blocked', 'done', 'cancelled')),
    priority    smallint NOT NULL DEFAULT 0 CONSTRAINT task_priority CHECK (priority BETWEEN 0 AND 4),
    assignee    text,
    due_date    date,
    labels      text[] NOT NULL DEFAULT '{}',
    version     bigint NOT NULL DEFAULT 1,
    created_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL,
    title_key   text COLLATE "C" GENERATED ALWAYS AS (lower(title)) STORED,
    search      tsvector GENERATED ALWAYS AS (
        setweight(to_tsvector('simple'::regconfig, title), 'A') || setweight(to_tsvector('simple'::regconfig, description), 'B')) STORED,
    PRIMARY KEY (tenant_id, id),
    -- What a parent is referred to by (it must be in the same project), and the order of a project's list.
    CONSTRAINT task_in_project UNIQUE (tenant_id, project_id, id)
);
-- One for each sort; "created" is the order of the UUIDv7 ids, which the primary key has. A task without a due date
-- sorts as if it were due at the end of time, so that one index and one comparison serve the cursor.
CREATE INDEX task_updated ON task (tenant_id, updated_at, id);
CREATE INDEX task_due ON task (tenant_id, (coalesce(due_date, 'infinity'::date)), id);
CREATE INDEX task_by_priority ON task (tenant_id, priority, id);
CREATE INDEX task_title ON task (tenant_id, title_key, id);
-- One for each filter that picks few of many.
CREATE INDEX task_by_status ON task (tenant_id, status, id);
CREATE INDEX task_assignee ON task (tenant_id, assignee, id) WHERE assignee IS NOT NULL;
CREATE INDEX task_children ON task (tenant_id, parent_id, id) WHERE parent_id IS NOT NULL;
-- Row-level security lets an index serve leakproof operators only, and @@ and @> are leakproof only where a superuser
-- declared them so; elsewhere the filter runs over the tenant's rows.
CREATE INDEX task_words ON task USING gin (search, labels);

-- A project is one tenant's: without being told, the planner takes the two for independent in the shared tables, believes
-- that a project has a fraction of its tasks, and sorts them all where it could walk an index.
CREATE STATISTICS task_project_is_tenants (dependencies) ON tenant_id, project_id FROM task;

CREATE TABLE comment (
    tenant_id  uuid NOT NULL DEFAULT coditect.current_tenant(),
    id         uuid NOT NULL,
    task_id    uuid NOT NULL,
    author     text NOT NULL,
    body       text NOT NULL,
    version    bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX comment_task ON comment (tenant_id, task_id, id);

CREATE TABLE label (
    tenant_id  uuid NOT NULL DEFAULT coditect.current_tenant(),
    id         uuid NOT NULL,
    name       text NOT NULL,
    color      text NOT NULL DEFAULT '',
    version    bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id),
    CONSTRAINT label_name UNIQUE (tenant_id, name)
);

-- Written in the transaction of the row that the request made, and in the tenant's own home: it moves with the tenant,
-- so a request sent again after a move finds its first answer. id is a hash of the caller's key.
CREATE TABLE idempotency_key (
    tenant_id  uuid NOT NULL DEFAULT coditect.current_tenant(),
    id         uuid NOT NULL,
    request    bytea NOT NULL, -- hash of what was asked
    answer     bytea NOT NULL, -- the row as it was answered first
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX idempotency_key_age ON idempotency_key (tenant_id, created_at);

SELECT coditect.protect(t) FROM unnest(ARRAY['project', 'task', 'comment', 'label', 'idempotency_key']) t;
SELECT coditect.distribute('project');
SELECT coditect.distribute('task');
SELECT coditect.distribute('comment');
SELECT coditect.distribute('label');
SELECT coditect.distribute('idempotency_key');

-- A project's end is its tasks' end, a task's end its comments'. A parent's end is not its children's: shared/project
-- detaches them first (ON DELETE SET NULL would touch tenant_id, which Citus refuses).
ALTER TABLE task ADD CONSTRAINT task_project FOREIGN KEY (tenant_id, project_id) REFERENCES project (tenant_id, id) ON DELETE CASCADE;
-- Deferrable, so that a copy may bring children before their parents.
ALTER TABLE task ADD CONSTRAINT task_parent FOREIGN KEY (tenant_id, project_id, parent_id) REFERENCES task (tenant_id, project_id, id) DEFERRABLE;
ALTER TABLE comment ADD CONSTRAINT comment_of_task FOREIGN KEY (tenant_id, task_id) REFERENCES task (tenant_id, id) ON DELETE CASCADE;
