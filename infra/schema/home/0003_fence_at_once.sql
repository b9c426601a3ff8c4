-- +goose Up
-- Thousands of small tenants are fenced one after the other, so what a fence costs counts: its statements are planned once
-- a session (a function in SQL is planned at each call), and a trigger that is not there yet is made raised.

-- What a copy depends on: the tables and columns of a schema, in one short word. Two schemas of one shape are copied by
-- the same statements.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION coditect.shape(p_schema text) RETURNS text LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT md5(coalesce(string_agg(format('%s.%s %s %s %s', c.relname, a.attname, y.typname, a.atttypmod, a.attgenerated), E'\n'
                                           ORDER BY c.relname, a.attname), ''))
        FROM coditect.relations(p_schema) c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        JOIN pg_type y ON y.oid = a.atttypid
        WHERE c.relkind IN ('r', 'p', 'f'));
END $$;
-- +goose StatementEnd

-- Raises the fence of one tenant, draining its writers, and returns what is fenced. Run it in a transaction of its own:
-- the locks are held until it ends. Every table of the schema is listed here, under the gate's lock, not by the caller:
-- a table made after the plan must not stay unfenced.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION coditect.fence(p_tenant uuid, p_token bigint, p_lock_timeout_ms int)
    RETURNS TABLE (fence_id bigint, shape text) LANGUAGE plpgsql AS $$
DECLARE
    g   coditect.gate;
    ids oid[];
    sql text;
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
    IF NOT g.fenced THEN
        -- One statement, fixed order: it waits for open writers of all tables and lets nobody in behind it. Taken before
        -- CREATE TRIGGER, which would take the same locks one by one.
        SELECT array_agg(c.oid), string_agg(format('%I.%I', g.schema_name, c.relname), ', ' ORDER BY c.relname) INTO ids, sql
            FROM coditect.relations(g.schema_name) c WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition;
        IF ids IS NOT NULL THEN
            EXECUTE 'LOCK TABLE ' || sql || ' IN SHARE ROW EXCLUSIVE MODE';
            -- ALWAYS: also for sessions that run as a replica.
            SELECT string_agg(CASE WHEN EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND tgname = 'coditect_fence') THEN ''
                    ELSE format('CREATE TRIGGER coditect_fence BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %I.%I '
                                'FOR EACH STATEMENT EXECUTE FUNCTION coditect.refuse_write(); ', g.schema_name, c.relname) END
                || format('ALTER TABLE %I.%I ENABLE ALWAYS TRIGGER coditect_fence', g.schema_name, c.relname), '; ') INTO sql
                FROM unnest(ids) i JOIN pg_class c ON c.oid = i;
            EXECUTE sql;
        END IF;
    END IF;
    UPDATE coditect.gate x SET fenced = true, token = p_token,
            fence_id = CASE WHEN x.fenced THEN x.fence_id ELSE x.fence_id + 1 END
        WHERE x.tenant_id = p_tenant RETURNING x.fence_id INTO fence_id;
    PERFORM pg_logical_emit_message(true, 'coditect', format('fence %s %s', p_tenant, fence_id));
    shape := coditect.shape(g.schema_name);
    RETURN NEXT;
END $$;
-- +goose StatementEnd
