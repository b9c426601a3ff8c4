-- +goose Up
-- What every database needs that is a home of tenants: green, blue, or a foreign one that tenants are moved from.

CREATE SCHEMA coditect;

-- What this database is. One row, written by the command that applies the schema.
CREATE TABLE coditect.database (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    name     text NOT NULL,
    kind     text NOT NULL CHECK (kind IN ('blue', 'green'))
);

-- The gate: the database's own word on which tenants live here. A route read from the directory may be stale, the gate
-- is not: entering a tenant reads its row in the transaction's first statement.
--   fenced     writes are refused by triggers on the tenant's tables (blue) while the last rows are copied; reads go on
--   closed     the tenant has left: neither reads nor writes
--   suspended  neither reads nor writes, wherever it lives
--   token      the fencing token of whoever fenced, lifted or closed last; a smaller one is a zombie's and is refused
--   shared_schema  where tables that all tenants of a foreign source share are found, after the tenant's own
--   fence_id   grows whenever a fence goes up: rows copied under one fence prove nothing under the next
CREATE TABLE coditect.gate (
    tenant_id   uuid PRIMARY KEY,
    schema_name text NOT NULL,
    shared_schema text,
    epoch       bigint NOT NULL,
    fenced      boolean NOT NULL DEFAULT false,
    closed      boolean NOT NULL DEFAULT false,
    suspended   boolean NOT NULL DEFAULT false,
    token       bigint NOT NULL DEFAULT 0,
    fence_id    bigint NOT NULL DEFAULT 0
);
CREATE INDEX gate_schema ON coditect.gate (schema_name);

-- Which version of the tenant tables each blue schema has: one table for all of them, so that "nothing to do" is one
-- query over ten thousand schemas.
CREATE TABLE coditect.tenant_schema (
    tenant_id   uuid PRIMARY KEY,
    schema_name text NOT NULL UNIQUE,
    version     bigint NOT NULL
);
CREATE INDEX tenant_schema_version ON coditect.tenant_schema (version);

-- The tenant tables' SQL, so that a schema is made inside the database in one round trip.
CREATE TABLE coditect.tenant_version (
    version bigint PRIMARY KEY,
    name    text NOT NULL,
    body    text NOT NULL
);

-- +goose StatementBegin
CREATE FUNCTION coditect.current_tenant() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    -- '' is what the setting reads after a transaction that set it: no tenant, hence no rows.
    AS $$ SELECT nullif(current_setting('app.tenant_id', true), '')::uuid $$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION coditect.is_green() RETURNS boolean LANGUAGE sql STABLE
    AS $$ SELECT coalesce((SELECT kind = 'green' FROM coditect.database), false) $$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION coditect.has_citus() RETURNS boolean LANGUAGE sql STABLE
    AS $$ SELECT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'citus') $$;
-- +goose StatementEnd

-- Row-level security and rights of one tenant table.
-- +goose StatementBegin
CREATE FUNCTION coditect.protect(p_table text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    t regclass := p_table::regclass;
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', t);
    EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', t);
    IF NOT EXISTS (SELECT FROM pg_policy WHERE polrelid = t AND polname = 'one_tenant') THEN
        -- The setting is read in place, not by current_tenant(): a policy is evaluated on Citus workers too, and a plain
        -- expression needs nothing there.
        EXECUTE format('CREATE POLICY one_tenant ON %s USING (tenant_id = nullif(current_setting(''app.tenant_id'', true), '''')::uuid)', t);
    END IF;
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO coditect_app', t);
    EXECUTE format('GRANT SELECT ON %s TO coditect_readonly', t);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON %s TO coditect_migrator', t);
END $$;
-- +goose StatementEnd

-- Distributes one table by tenant_id where this is green and the server has Citus; elsewhere it stays as it is.
-- +goose StatementBegin
CREATE FUNCTION coditect.distribute(p_table text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    t regclass := p_table::regclass;
    n bigint;
BEGIN
    IF NOT (coditect.is_green() AND coditect.has_citus()) THEN RETURN; END IF;
    EXECUTE 'SELECT count(*) FROM pg_dist_partition WHERE logicalrelid = $1' INTO n USING t;
    IF n > 0 THEN RETURN; END IF;
    -- All tenant tables share one colocation group, whose anchor is coditect.tenant_anchor.
    EXECUTE 'SELECT create_distributed_table($1, ''tenant_id'', colocate_with => ''coditect.tenant_anchor'')' USING t;
END $$;
-- +goose StatementEnd

-- The same for a table that all tenants share.
-- +goose StatementBegin
CREATE FUNCTION coditect.reference(p_table text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    t regclass := p_table::regclass;
    n bigint;
BEGIN
    EXECUTE format('GRANT SELECT ON %s TO coditect_app, coditect_readonly, coditect_migrator', t);
    EXECUTE format('GRANT INSERT, UPDATE, DELETE, TRUNCATE ON %s TO coditect_migrator', t);
    IF NOT (coditect.is_green() AND coditect.has_citus()) THEN RETURN; END IF;
    EXECUTE 'SELECT count(*) FROM pg_dist_partition WHERE logicalrelid = $1' INTO n USING t;
    IF n > 0 THEN RETURN; END IF;
    EXECUTE 'SELECT create_reference_table($1)' USING t;
END $$;
-- +goose StatementEnd

-- Enters a tenant on Citus: only a literal SET LOCAL reaches the workers, so it is put together here. No row: the
-- tenant is not here (any more), and the caller asks the directory again.
-- +goose StatementBegin
CREATE FUNCTION coditect.enter(p_tenant uuid) RETURNS TABLE (path text, epoch bigint) LANGUAGE plpgsql AS $$
BEGIN
    SELECT concat_ws(', ', quote_ident(g.schema_name), quote_ident(g.shared_schema)), g.epoch INTO path, epoch
        FROM coditect.gate g WHERE g.tenant_id = p_tenant AND NOT g.closed AND NOT g.suspended;
    IF NOT FOUND THEN RETURN; END IF;
    EXECUTE format('SET LOCAL app.tenant_id = %L', p_tenant);
    EXECUTE 'SET LOCAL search_path = ' || path;
    RETURN NEXT;
END $$;
-- +goose StatementEnd

-- The fence. Its SQLSTATE is what the data layer turns into "ask the directory again and retry".
-- +goose StatementBegin
CREATE FUNCTION coditect.refuse_write() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'CD001',
        MESSAGE = format('schema %I is fenced: its tenant is moving', TG_TABLE_SCHEMA),
        HINT = 'Ask the directory where the tenant lives and try again.';
END $$;
-- +goose StatementEnd

-- Lists the relations of a schema in a time that does not depend on how many other schemas there are: pg_class has no
-- index that begins with the namespace, pg_depend has.
-- +goose StatementBegin
CREATE FUNCTION coditect.relations(p_schema text) RETURNS SETOF pg_class LANGUAGE sql STABLE AS $$
    SELECT c.* FROM pg_depend d JOIN pg_class c ON c.oid = d.objid
        WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = (SELECT oid FROM pg_namespace WHERE nspname = p_schema)
          AND d.refobjsubid = 0 AND d.classid = 'pg_class'::regclass
$$;
-- +goose StatementEnd

-- What a copy depends on: the tables and columns of a schema, in one short word. Two schemas of one shape are copied by
-- the same statements.
-- +goose StatementBegin
CREATE FUNCTION coditect.shape(p_schema text) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT md5(coalesce(string_agg(format('%s.%s %s %s %s', c.relname, a.attname, y.typname, a.atttypmod, a.attgenerated), E'\n'
                                   ORDER BY c.relname, a.attname), ''))
        FROM coditect.relations(p_schema) c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        JOIN pg_type y ON y.oid = a.atttypid
        WHERE c.relkind IN ('r', 'p', 'f')
$$;
-- +goose StatementEnd

-- Makes the fence of one tenant without raising it, so that raising it is short.
-- +goose StatementBegin
CREATE FUNCTION coditect.arm(p_schema text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    t name;
BEGIN
    PERFORM set_config('coditect.mover', 'on', true);
    FOR t IN SELECT c.relname FROM coditect.relations(p_schema) c
             WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
               AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND tgname = 'coditect_fence')
             ORDER BY 1
    LOOP
        EXECUTE format('CREATE TRIGGER coditect_fence BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %I.%I '
            'FOR EACH STATEMENT EXECUTE FUNCTION coditect.refuse_write()', p_schema, t);
        EXECUTE format('ALTER TABLE %I.%I DISABLE TRIGGER coditect_fence', p_schema, t);
    END LOOP;
END $$;
-- +goose StatementEnd

-- Raises the fence of one tenant, draining its writers, and returns what is fenced. Run it in a transaction of its own:
-- the locks are held until it ends. Every table of the schema is listed here, under the gate's lock, not by the caller:
-- a table made after the plan must not stay unfenced.
-- +goose StatementBegin
CREATE FUNCTION coditect.fence(p_tenant uuid, p_token bigint, p_lock_timeout_ms int)
    RETURNS TABLE (fence_id bigint, shape text) LANGUAGE plpgsql AS $$
DECLARE
    g      coditect.gate;
    t      name;
    rel    text;
    tables name[];
BEGIN
    PERFORM set_config('lock_timeout', p_lock_timeout_ms || 'ms', true);
    PERFORM set_config('coditect.mover', 'on', true);
    SELECT * INTO g FROM coditect.gate WHERE tenant_id = p_tenant FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'CD003', MESSAGE = format('tenant %s is not in this database', p_tenant);
    END IF;
    IF p_token < g.token THEN
        RAISE EXCEPTION USING ERRCODE = 'CD004', MESSAGE = format('token %s is older than %s: a newer step owns tenant %s', p_token, g.token, p_tenant);
    END IF;
    SELECT array_agg(c.relname ORDER BY c.relname) INTO tables
        FROM coditect.relations(g.schema_name) c WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition;
    IF NOT g.fenced AND tables IS NOT NULL THEN
        SELECT string_agg(format('%I.%I', g.schema_name, x), ', ') INTO rel FROM unnest(tables) x;
        -- One statement, fixed order: it waits for open writers of all tables and lets nobody in behind it. Taken before
        -- CREATE TRIGGER, which would take the same locks one by one.
        EXECUTE 'LOCK TABLE ' || rel || ' IN SHARE ROW EXCLUSIVE MODE';
        PERFORM coditect.arm(g.schema_name);
        FOREACH t IN ARRAY tables LOOP
            -- ALWAYS: also for sessions that run as a replica.
            EXECUTE format('ALTER TABLE %I.%I ENABLE ALWAYS TRIGGER coditect_fence', g.schema_name, t);
        END LOOP;
    END IF;
    UPDATE coditect.gate x SET fenced = true, token = p_token,
            fence_id = CASE WHEN x.fenced THEN x.fence_id ELSE x.fence_id + 1 END
        WHERE x.tenant_id = p_tenant RETURNING x.fence_id INTO fence_id;
    PERFORM pg_logical_emit_message(true, 'coditect', format('fence %s %s', p_tenant, fence_id));
    shape := coditect.shape(g.schema_name);
    RETURN NEXT;
END $$;
-- +goose StatementEnd

-- Lifts the fence and reopens the gate: the tenant stays here.
-- +goose StatementBegin
CREATE FUNCTION coditect.unfence(p_tenant uuid, p_token bigint, p_lock_timeout_ms int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    g coditect.gate;
    t name;
BEGIN
    PERFORM set_config('lock_timeout', p_lock_timeout_ms || 'ms', true);
    PERFORM set_config('coditect.mover', 'on', true);
    SELECT * INTO g FROM coditect.gate WHERE tenant_id = p_tenant FOR UPDATE;
    IF NOT FOUND THEN RETURN; END IF;
    IF p_token < g.token THEN
        RAISE EXCEPTION USING ERRCODE = 'CD004', MESSAGE = format('token %s is older than %s: a newer step owns tenant %s', p_token, g.token, p_tenant);
    END IF;
    FOR t IN SELECT c.relname FROM coditect.relations(g.schema_name) c JOIN pg_trigger tg ON tg.tgrelid = c.oid
             WHERE tg.tgname = 'coditect_fence' AND tg.tgenabled <> 'D' AND NOT c.relispartition ORDER BY 1
    LOOP
        EXECUTE format('ALTER TABLE %I.%I DISABLE TRIGGER coditect_fence', g.schema_name, t);
    END LOOP;
    UPDATE coditect.gate SET fenced = false, closed = false, token = p_token WHERE tenant_id = p_tenant;
END $$;
-- +goose StatementEnd

-- Closes the gates of tenants that are about to live elsewhere. It counts those closed: fewer than asked for means that
-- a newer step owns one of them.
-- +goose StatementBegin
CREATE FUNCTION coditect.close_gates(p_tenants uuid[], p_tokens bigint[]) RETURNS bigint LANGUAGE sql AS $$
    WITH closing AS (
        UPDATE coditect.gate g SET closed = true
            FROM unnest(p_tenants, p_tokens) AS x(tenant_id, token)
            WHERE g.tenant_id = x.tenant_id AND g.token = x.token AND g.fenced
            RETURNING 1)
    SELECT count(*) FROM closing
$$;
-- +goose StatementEnd

-- Makes one blue tenant: schema, tables in their newest version, gate. Idempotent. SECURITY DEFINER, so that the
-- application's role needs no right to create anything: an owner could switch the fence off.
-- +goose StatementBegin
CREATE FUNCTION coditect.create_tenant(p_tenant uuid, p_epoch bigint) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s text := 't_' || replace(p_tenant::text, '-', '');
    v record;
    latest bigint := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(s, 0));
    IF EXISTS (SELECT FROM coditect.gate WHERE tenant_id = p_tenant) THEN RETURN s; END IF;
    EXECUTE format('CREATE SCHEMA %I AUTHORIZATION coditect_owner', s);
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO coditect_app, coditect_migrator, coditect_readonly', s);
    PERFORM set_config('search_path', quote_ident(s) || ', pg_temp', true);
    FOR v IN SELECT version, body FROM coditect.tenant_version ORDER BY version LOOP
        EXECUTE v.body;
        latest := v.version;
    END LOOP;
    PERFORM coditect.arm(s);
    INSERT INTO coditect.tenant_schema (tenant_id, schema_name, version) VALUES (p_tenant, s, latest);
    INSERT INTO coditect.gate (tenant_id, schema_name, epoch) VALUES (p_tenant, s, p_epoch);
    RETURN s;
END $$;
-- +goose StatementEnd

-- Brings one blue schema to a version; a no-op when it is there. Refused while the tenant moves.
-- +goose StatementBegin
CREATE FUNCTION coditect.upgrade_tenant(p_tenant uuid, p_version bigint) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    have coditect.tenant_schema;
    g    coditect.gate;
    v    record;
BEGIN
    -- The gate's row lock keeps a fence from going up between this look and our commit.
    SELECT * INTO g FROM coditect.gate WHERE tenant_id = p_tenant FOR SHARE;
    SELECT * INTO have FROM coditect.tenant_schema WHERE tenant_id = p_tenant FOR UPDATE;
    -- One that has moved away stays as it was.
    IF have.tenant_id IS NULL OR have.version >= p_version OR g.closed THEN RETURN false; END IF;
    IF g.fenced THEN
        RAISE EXCEPTION USING ERRCODE = 'CD001', MESSAGE = format('schema %I is fenced: its tenant is moving', have.schema_name),
            HINT = 'Apply the schema again after the move.';
    END IF;
    PERFORM set_config('search_path', quote_ident(have.schema_name) || ', pg_temp', true);
    FOR v IN SELECT version, body FROM coditect.tenant_version WHERE version > have.version AND version <= p_version ORDER BY version LOOP
        EXECUTE v.body;
    END LOOP;
    PERFORM coditect.arm(have.schema_name);
    UPDATE coditect.tenant_schema SET version = p_version WHERE tenant_id = p_tenant;
    RETURN true;
END $$;
-- +goose StatementEnd

-- Removes a blue tenant for good.
-- +goose StatementBegin
CREATE FUNCTION coditect.drop_tenant(p_tenant uuid) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s text := 't_' || replace(p_tenant::text, '-', '');
BEGIN
    PERFORM set_config('coditect.mover', 'on', true);
    EXECUTE format('DROP SCHEMA IF EXISTS %I CASCADE', s);
    DELETE FROM coditect.tenant_schema WHERE tenant_id = p_tenant;
    DELETE FROM coditect.gate WHERE tenant_id = p_tenant AND schema_name = s;
END $$;
-- +goose StatementEnd

-- Stops DDL on a schema whose tenant is fenced. The gate's row is locked until the DDL's transaction ends, so that a
-- fence waits for it: a table that is made in a transaction open across the fence would be neither fenced nor copied.
-- SECURITY DEFINER: whoever changes a schema of this database has no rights on the gate. Event triggers need a superuser:
-- shared/schema makes these where it may, and the preflight says so where it could not.
-- +goose StatementBegin
CREATE FUNCTION coditect.guard_schema(p_schemas text[]) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    g coditect.gate;
BEGIN
    FOR g IN SELECT * FROM coditect.gate WHERE schema_name = ANY (p_schemas) ORDER BY tenant_id FOR SHARE LOOP
        IF g.fenced THEN
            RAISE EXCEPTION USING ERRCODE = 'CD001', MESSAGE = format('schema %I is fenced: its tenant is moving', g.schema_name),
                HINT = 'Change the schema after the move.';
        END IF;
    END LOOP;
END $$;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE FUNCTION coditect.guard_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('coditect.mover', true) = 'on' THEN RETURN; END IF;
    PERFORM coditect.guard_schema(ARRAY(SELECT DISTINCT d.schema_name FROM pg_event_trigger_ddl_commands() d WHERE d.schema_name IS NOT NULL));
END $$;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE FUNCTION coditect.guard_drop() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('coditect.mover', true) = 'on' THEN RETURN; END IF;
    PERFORM coditect.guard_schema(ARRAY(SELECT DISTINCT coalesce(d.schema_name, d.object_name) FROM pg_event_trigger_dropped_objects() d
        WHERE coalesce(d.schema_name, d.object_name) IS NOT NULL));
END $$;
-- +goose StatementEnd

GRANT USAGE ON SCHEMA coditect TO PUBLIC;
GRANT SELECT ON coditect.gate, coditect.database TO coditect_app, coditect_readonly;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA coditect TO coditect_migrator;
GRANT SELECT ON coditect.tenant_schema, coditect.tenant_version TO coditect_app;
-- Sign-up, suspension and erasure are the application's, moving is not.
GRANT INSERT, DELETE ON coditect.gate TO coditect_app;
GRANT UPDATE (suspended) ON coditect.gate TO coditect_app;
REVOKE EXECUTE ON FUNCTION coditect.create_tenant(uuid, bigint), coditect.upgrade_tenant(uuid, bigint), coditect.drop_tenant(uuid),
    coditect.arm(text), coditect.fence(uuid, bigint, int), coditect.unfence(uuid, bigint, int), coditect.close_gates(uuid[], bigint[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION coditect.create_tenant(uuid, bigint), coditect.drop_tenant(uuid) TO coditect_app, coditect_migrator;
GRANT EXECUTE ON FUNCTION coditect.arm(text) TO coditect_owner, coditect_migrator;
GRANT EXECUTE ON FUNCTION coditect.upgrade_tenant(uuid, bigint), coditect.fence(uuid, bigint, int), coditect.unfence(uuid, bigint, int),
    coditect.close_gates(uuid[], bigint[]) TO coditect_migrator;

-- The definer of tenant schemas is the owner's role, not whoever applies this file.
GRANT ALL ON ALL TABLES IN SCHEMA coditect TO coditect_owner;
GRANT USAGE, CREATE ON SCHEMA coditect TO coditect_owner;
-- +goose StatementBegin
DO $$
BEGIN
    EXECUTE format('GRANT CREATE ON DATABASE %I TO coditect_owner', current_database());
END $$;
-- +goose StatementEnd
ALTER FUNCTION coditect.create_tenant(uuid, bigint) OWNER TO coditect_owner;
ALTER FUNCTION coditect.upgrade_tenant(uuid, bigint) OWNER TO coditect_owner;
ALTER FUNCTION coditect.drop_tenant(uuid) OWNER TO coditect_owner;
ALTER FUNCTION coditect.guard_schema(text[]) OWNER TO coditect_owner;
REVOKE CREATE ON SCHEMA coditect FROM coditect_owner;
