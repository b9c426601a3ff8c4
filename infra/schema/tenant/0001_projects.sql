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

-- labels holds names, not ids: a page of tasks is one scan and no join. shared/project keeps it in step with the
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
-- Lists by age, and those of a project, walk the primary key and task_in_project: UUIDv7 ids are in the order of creation.
-- These three serve what else is asked all the time. Every other sort and filter reads the tenant's own rows and nobody
-- else's, 10 ms for 10,000 tasks: an index for it would cost each write, each move and each new blue tenant more than it
-- gives. Words and labels could have none: under row-level security an index serves leakproof operators only, and @@ and
-- @> are not.
CREATE INDEX task_updated ON task (tenant_id, updated_at, id);
CREATE INDEX task_assignee ON task (tenant_id, assignee, id) WHERE assignee IS NOT NULL;
CREATE INDEX task_children ON task (tenant_id, parent_id, id) WHERE parent_id IS NOT NULL;

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
