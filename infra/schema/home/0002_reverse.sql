-- +goose Up
-- The way back from green. Triggers on green's tables ask a gate of the tenant, which lies beside its rows (on Citus: on
-- the same worker), and write down what is changed for as long as the tenant may go back to blue.

-- One row for each tenant that can go back; a tenant without one is written freely and can not.
--   closed      writes are refused: the tenant is on its way back
--   capture     every change is written to coditect.captured
--   token       the fencing token of whoever opened or closed last
--   node, generation  on Citus, the worker that wrote last, and how often that has changed: ids are drawn on the worker,
--                     so they are in order only within one generation
--   era         grows when a closed gate is drained; it is a part of a key, see below
-- Writers hold the row FOR KEY SHARE until they end. It is closed in two steps: first closed = true, which waits for nobody
-- and refuses whoever comes after it; then era grows, which as the change of a key waits for those who hold the row.
-- A transaction whose snapshot is older than both still reads an open gate, and fails at the lock for the key's sake.
CREATE TABLE coditect.write_gate (
    tenant_id  uuid PRIMARY KEY,
    closed     boolean NOT NULL DEFAULT false,
    capture    boolean NOT NULL DEFAULT false,
    token      bigint NOT NULL,
    node       int NOT NULL DEFAULT 0,
    generation bigint NOT NULL DEFAULT 0,
    era        bigint NOT NULL DEFAULT 0,
    UNIQUE (tenant_id, era)
);

-- Changes that blue does not have yet. Consumed by deleting, never by "greater than the last one seen": a transaction
-- that commits later may have drawn a smaller id. Of one key's changes a later one always has the greater (generation,
-- id): it was made under the row's lock, after the earlier one had committed.
CREATE SEQUENCE coditect.captured_id;
CREATE TABLE coditect.captured (
    tenant_id  uuid NOT NULL,
    generation bigint NOT NULL,
    id         bigint NOT NULL DEFAULT nextval('coditect.captured_id'),
    table_name text NOT NULL,
    op         "char" NOT NULL CHECK (op IN ('I', 'U', 'D')),
    old        text, -- the whole row before, as text: of a delete, and of an update that has changed the key
    new        text, -- the whole row after: of an insert and an update
    PRIMARY KEY (tenant_id, generation, id)
);

-- In blue: which of green's changes were applied last, in the transaction that applied them. A row is replaced with
-- every set of changes; version keeps a reader of an older set from applying it again.
CREATE TABLE coditect.reversed (
    tenant_id   uuid PRIMARY KEY,
    version     bigint NOT NULL DEFAULT 0,
    generations bigint[] NOT NULL DEFAULT '{}',
    ids         bigint[] NOT NULL DEFAULT '{}'
);

-- A row as text that does not depend on the writer's settings: the output side of convert.CanonicalText.
-- +goose StatementBegin
CREATE FUNCTION coditect.canonical(p_row anyelement) RETURNS text LANGUAGE plpgsql
    SET timezone = 'UTC' SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres' SET extra_float_digits = 1 SET bytea_output = 'hex'
    AS $$ BEGIN RETURN p_row::text; END $$;
-- +goose StatementEnd

-- The trigger. Arguments: the table's name (TG_TABLE_NAME is a shard's), whether an update has changed the key, and
-- whether green is a Citus cluster. SECURITY DEFINER: the application has no rights on what it reads and writes here.
-- Every name is qualified instead of pinning search_path, which would cost each written row half as much again.
-- +goose StatementBegin
CREATE FUNCTION coditect.guard_row() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    who  pg_catalog.uuid;
    gate coditect.write_gate;
    here pg_catalog.int4 := 0;
BEGIN
    IF TG_OP OPERATOR(pg_catalog.=) 'DELETE' THEN who := OLD.tenant_id; ELSE who := NEW.tenant_id; END IF;
    SELECT * INTO gate FROM coditect.write_gate g WHERE g.tenant_id OPERATOR(pg_catalog.=) who FOR KEY SHARE;
    IF gate.tenant_id IS NULL THEN RETURN NULL; END IF;
    IF gate.closed THEN
        RAISE EXCEPTION USING ERRCODE = 'CD001', MESSAGE = pg_catalog.format('tenant %s is fenced: it is moving', who),
            HINT = 'Ask the directory where the tenant lives and try again.';
    END IF;
    IF NOT gate.capture THEN RETURN NULL; END IF;
    IF TG_ARGV[2] OPERATOR(pg_catalog.=) 'citus' THEN
        SELECT groupid INTO here FROM pg_catalog.pg_dist_local_group;
        IF here OPERATOR(pg_catalog.<>) gate.node THEN
            UPDATE coditect.write_gate g SET node = here, generation = g.generation OPERATOR(pg_catalog.+) 1 WHERE g.tenant_id OPERATOR(pg_catalog.=) who AND g.node OPERATOR(pg_catalog.<>) here
                RETURNING g.generation INTO gate.generation;
            IF NOT FOUND THEN -- somebody else was first
                SELECT g.generation INTO gate.generation FROM coditect.write_gate g WHERE g.tenant_id OPERATOR(pg_catalog.=) who;
            END IF;
        END IF;
    END IF;
    INSERT INTO coditect.captured (tenant_id, generation, table_name, op, old, new)
        VALUES (who, gate.generation, TG_ARGV[0], pg_catalog.left(TG_OP, 1)::pg_catalog."char",
            CASE WHEN TG_OP OPERATOR(pg_catalog.=) 'DELETE' OR TG_ARGV[1] OPERATOR(pg_catalog.=) 'moved' THEN coditect.canonical(OLD) END,
            CASE WHEN TG_OP OPERATOR(pg_catalog.<>) 'DELETE' THEN coditect.canonical(NEW) END);
    RETURN NULL;
END $$;
-- +goose StatementEnd

-- The gate for statements that touch no row: a transaction that entered the tenant before its rows went must get an error,
-- not "0 rows". It holds the gate from its first statement on, whatever that finds.
-- +goose StatementBegin
CREATE FUNCTION coditect.guard_statement() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    who  pg_catalog.uuid := NULLIF(pg_catalog.current_setting('app.tenant_id', true), '')::pg_catalog.uuid;
    shut pg_catalog.bool;
BEGIN
    IF who IS NULL THEN RETURN NULL; END IF; -- no tenant was entered: its rows, if any, are guarded one by one
    IF TG_ARGV[0] OPERATOR(pg_catalog.=) 'citus' THEN
        BEGIN
            SELECT g.closed INTO shut FROM coditect.write_gate g WHERE g.tenant_id OPERATOR(pg_catalog.=) who FOR KEY SHARE;
        EXCEPTION WHEN internal_error THEN
            IF pg_catalog.strpos(SQLERRM, 'query on a shard') OPERATOR(pg_catalog.=) 0 THEN RAISE; END IF;
            -- The tenant's gate is in another shard: the statement is about another tenant's rows, which row-level security refuses.
            RETURN NULL;
        END;
    ELSE
        SELECT g.closed INTO shut FROM coditect.write_gate g WHERE g.tenant_id OPERATOR(pg_catalog.=) who FOR KEY SHARE;
    END IF;
    IF shut THEN
        RAISE EXCEPTION USING ERRCODE = 'CD001', MESSAGE = pg_catalog.format('tenant %s is fenced: it is moving', who),
            HINT = 'Ask the directory where the tenant lives and try again.';
    END IF;
    RETURN NULL;
END $$;
-- +goose StatementEnd

-- Puts the triggers on one of green's tenant tables. Those of rows are AFTER triggers, so they see what was really written; and
-- not ALWAYS, so that neither a mover nor a shard that is moved fires them.
-- +goose StatementBegin
CREATE FUNCTION coditect.guard_table(p_table text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    t     regclass := p_table::regclass;
    named text;
    kind  text := CASE WHEN coditect.has_citus() THEN 'citus' ELSE 'plain' END;
    olds  text;
    news  text;
    plain boolean;
    same  text;
BEGIN
    IF NOT coditect.is_green() OR EXISTS (SELECT FROM pg_trigger WHERE tgrelid = t AND tgname = 'coditect_written') THEN RETURN; END IF;
    SELECT relname INTO named FROM pg_class WHERE oid = t;
    SELECT string_agg(format('OLD.%I', a.attname), ', ' ORDER BY a.attnum), string_agg(format('NEW.%I', a.attname), ', ' ORDER BY a.attnum),
            bool_and(a.atttypid IN ('uuid'::regtype, 'int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'date'::regtype, 'timestamptz'::regtype)) INTO olds, news, plain
        FROM pg_index i JOIN pg_attribute a ON a.attrelid = t AND a.attnum = ANY (i.indkey) WHERE i.indrelid = t AND i.indisprimary;
    IF olds IS NULL THEN RAISE EXCEPTION 'table % has no primary key', t; END IF;
    IF kind = 'citus' THEN SET LOCAL citus.enable_unsafe_triggers = on; END IF;
    EXECUTE format('CREATE TRIGGER coditect_entered BEFORE INSERT OR UPDATE OR DELETE ON %s FOR EACH STATEMENT EXECUTE FUNCTION coditect.guard_statement(%L)', t, kind);
    EXECUTE format('CREATE TRIGGER coditect_written AFTER INSERT OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION coditect.guard_row(%L, %L, %L)', t, named, '', kind);
    -- Of most types, values that are equal are written the same; of the others they are compared by image.
    same := format(CASE WHEN plain THEN '(%s) = (%s)' ELSE 'ROW(%s)::record OPERATOR(pg_catalog.*=) ROW(%s)::record' END, olds, news);
    EXECUTE format('CREATE TRIGGER coditect_updated AFTER UPDATE ON %s FOR EACH ROW WHEN (%s) EXECUTE FUNCTION coditect.guard_row(%L, %L, %L)', t, same, named, '', kind);
    EXECUTE format('CREATE TRIGGER coditect_rekeyed AFTER UPDATE ON %s FOR EACH ROW WHEN (NOT (%s)) EXECUTE FUNCTION coditect.guard_row(%L, %L, %L)',
        t, same, named, 'moved', kind);
END $$;
-- +goose StatementEnd

-- As in 0001, and a table with tenants' own rows is guarded.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION coditect.distribute(p_table text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    t regclass := p_table::regclass;
    n bigint;
BEGIN
    IF NOT coditect.is_green() THEN RETURN; END IF;
    IF coditect.has_citus() THEN
        EXECUTE 'SELECT count(*) FROM pg_dist_partition WHERE logicalrelid = $1' INTO n USING t;
        IF n = 0 THEN
            -- All tenant tables share one colocation group, whose anchor is coditect.tenant_anchor.
            EXECUTE 'SELECT create_distributed_table($1, ''tenant_id'', colocate_with => ''coditect.tenant_anchor'')' USING t;
        END IF;
    END IF;
    IF EXISTS (SELECT FROM pg_policy WHERE polrelid = t AND polname = 'one_tenant') THEN
        PERFORM coditect.guard_table(p_table);
    END IF;
END $$;
-- +goose StatementEnd

-- Lets one transaction of the mover through a tenant's fence in blue, to bring what was written in green. Who else takes
-- the gate's row waits for it; a token that is older than the gate's is refused, and a newer one becomes the gate's.
-- +goose StatementBegin
CREATE FUNCTION coditect.enter_reverse(p_tenant uuid, p_token bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    g coditect.gate;
BEGIN
    SELECT * INTO g FROM coditect.gate WHERE tenant_id = p_tenant FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'CD003', MESSAGE = format('tenant %s is not in this database', p_tenant);
    END IF;
    IF p_token < g.token OR NOT (g.fenced AND g.closed) THEN
        RAISE EXCEPTION USING ERRCODE = 'CD004', MESSAGE = format('token %s is older than %s, or tenant %s lives here again', p_token, g.token, p_tenant);
    END IF;
    UPDATE coditect.gate SET token = p_token WHERE tenant_id = p_tenant AND token < p_token;
    PERFORM set_config('coditect.reverse', format('%s %s', p_tenant, p_token), true);
END $$;
-- +goose StatementEnd

-- The fence, which now knows the way back: a transaction of the mover that has entered by coditect.enter_reverse, and
-- nobody else. The setting alone opens nothing: whoever is no member of coditect_migrator is refused before it is read,
-- and it must name the gate's own token.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION coditect.refuse_write() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nullif(current_setting('coditect.reverse', true), '') IS NOT NULL AND TG_OP <> 'TRUNCATE' AND pg_has_role(current_user, 'coditect_migrator', 'MEMBER') THEN
        IF EXISTS (SELECT FROM coditect.gate g WHERE g.schema_name = TG_TABLE_SCHEMA AND g.fenced AND g.closed
                   AND current_setting('coditect.reverse') = format('%s %s', g.tenant_id, g.token)) THEN
            RETURN NULL;
        END IF;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'CD001',
        MESSAGE = format('schema %I is fenced: its tenant is moving', TG_TABLE_SCHEMA),
        HINT = 'Ask the directory where the tenant lives and try again.';
END $$;
-- +goose StatementEnd

-- Forgets a tenant that is erased: its rows must not stay here. One that is on its way back is none.
-- +goose StatementBegin
CREATE FUNCTION coditect.forget(p_tenant uuid) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM coditect.write_gate WHERE tenant_id = p_tenant AND NOT closed;
    DELETE FROM coditect.captured WHERE tenant_id = p_tenant;
END $$;
-- +goose StatementEnd

GRANT SELECT, INSERT, UPDATE, DELETE ON coditect.write_gate, coditect.captured, coditect.reversed TO coditect_migrator;
GRANT SELECT, INSERT, UPDATE, DELETE ON coditect.write_gate, coditect.captured TO coditect_owner;
GRANT USAGE ON SEQUENCE coditect.captured_id TO coditect_owner;
GRANT SELECT ON coditect.write_gate TO coditect_readonly;
REVOKE EXECUTE ON FUNCTION coditect.guard_row(), coditect.guard_statement(), coditect.guard_table(text), coditect.enter_reverse(uuid, bigint), coditect.forget(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION coditect.forget(uuid) TO coditect_app, coditect_migrator;
GRANT EXECUTE ON FUNCTION coditect.guard_row(), coditect.guard_statement() TO coditect_owner;
GRANT EXECUTE ON FUNCTION coditect.guard_table(text) TO coditect_owner, coditect_migrator;
GRANT EXECUTE ON FUNCTION coditect.enter_reverse(uuid, bigint) TO coditect_migrator;
GRANT CREATE ON SCHEMA coditect TO coditect_owner;
ALTER FUNCTION coditect.guard_row() OWNER TO coditect_owner;
ALTER FUNCTION coditect.guard_statement() OWNER TO coditect_owner;
ALTER FUNCTION coditect.forget(uuid) OWNER TO coditect_owner;
REVOKE CREATE ON SCHEMA coditect FROM coditect_owner;
