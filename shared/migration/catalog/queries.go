package catalog

// The queries run with an empty search_path, so that every name outside pg_catalog
// is printed with its schema. $1 is the array of schema names.

const schemaQuery = `
SELECT n.nspname, pg_get_userbyid(n.nspowner)
FROM pg_namespace n WHERE n.nspname = ANY ($1)`

// BytesOfTable is the SQL for the size of the table c of pg_class, heap and TOAST, without maps and indexes.
const BytesOfTable = `coalesce(pg_relation_size(c.oid), 0) + coalesce(pg_relation_size(nullif(c.reltoastrelid, 0)), 0)`

const tableQuery = `
SELECT n.nspname, c.oid, c.relname, c.relkind::text, c.relpersistence::text, c.relreplident::text,
       pg_get_userbyid(c.relowner), ` + BytesOfTable + `, c.reltuples::float8,
       c.relrowsecurity, c.relforcerowsecurity, coalesce(p.policies, 0), coalesce(i.parents, '{}'), c.relispartition
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN (SELECT polrelid, count(*) AS policies FROM pg_policy GROUP BY 1) p ON p.polrelid = c.oid
LEFT JOIN (SELECT inhrelid, array_agg(inhparent::regclass::text ORDER BY inhseqno) AS parents FROM pg_inherits GROUP BY 1) i ON i.inhrelid = c.oid
WHERE n.nspname = ANY ($1) AND c.relkind IN ('r', 'p', 'f')
ORDER BY c.relname`

const columnQuery = `
SELECT a.attrelid, a.attname, a.attnum, format_type(a.atttypid, a.atttypmod), a.atttypid, a.attnotnull,
       coalesce(pg_get_expr(d.adbin, d.adrelid), ''), a.attgenerated = 's', a.attidentity::text,
       CASE WHEN a.attcollation <> 0 AND a.attcollation <> t.typcollation
            THEN (SELECT quote_ident(cn.nspname) || '.' || quote_ident(co.collname)
                  FROM pg_collation co JOIN pg_namespace cn ON cn.oid = co.collnamespace
                  WHERE co.oid = a.attcollation) ELSE '' END
FROM pg_namespace n
JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p', 'f')
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE n.nspname = ANY ($1)
ORDER BY a.attrelid, a.attnum`

// Columns are numbers, which the reader knows; those of a table of another schema, which it may not read, come with their names.
const constraintQuery = `
SELECT k.conrelid, k.conname, k.contype::text, coalesce(k.conkey, '{}'),
       coalesce(pg_get_constraintdef(k.oid), ''), k.condeferrable, k.condeferred, k.convalidated,
       coalesce(fn.nspname, ''), coalesce(fc.relname, ''), k.confrelid, coalesce(k.confkey, '{}'),
       CASE WHEN fc.relnamespace <> c.relnamespace THEN
            ARRAY(SELECT a.attname FROM unnest(k.confkey) WITH ORDINALITY u(num, pos)
                  JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.num ORDER BY u.pos) ELSE '{}' END,
       k.confdeltype::text, k.confupdtype::text, coalesce(k.confdelsetcols, '{}'), k.confmatchtype = 'f'
FROM pg_namespace n
JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p', 'f')
JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype IN ('p', 'u', 'c', 'x', 'f')
LEFT JOIN pg_class fc ON fc.oid = k.confrelid
LEFT JOIN pg_namespace fn ON fn.oid = fc.relnamespace
WHERE n.nspname = ANY ($1)
ORDER BY k.conrelid, k.conname`

const indexQuery = `
SELECT i.indrelid, ic.relname, am.amname, i.indisunique, i.indisvalid AND i.indisready, coalesce(pg_get_indexdef(i.indexrelid), '')
FROM pg_namespace n
JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p')
JOIN pg_index i ON i.indrelid = c.oid
JOIN pg_class ic ON ic.oid = i.indexrelid
JOIN pg_am am ON am.oid = ic.relam
WHERE n.nspname = ANY ($1)
  AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype IN ('p', 'u', 'x'))
ORDER BY i.indrelid, ic.relname`

const sequenceQuery = `
SELECT n.nspname, c.relname, format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle,
       coalesce(t.relname, ''), coalesce(a.attname, '')
FROM pg_namespace n
JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind = 'S'
JOIN pg_sequence s ON s.seqrelid = c.oid
LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass
                     AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
LEFT JOIN pg_class t ON t.oid = d.refobjid
LEFT JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
WHERE n.nspname = ANY ($1)
ORDER BY c.relname`

// A column is fed by the sequence its default depends on or, as an identity column, by the one that depends on it.
const feedQuery = `
SELECT ad.adrelid, ad.adnum, sn.nspname, s.relname
FROM pg_namespace n
JOIN pg_class c ON c.relnamespace = n.oid
JOIN pg_attrdef ad ON ad.adrelid = c.oid
JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = ad.oid AND d.refclassid = 'pg_class'::regclass
JOIN pg_class s ON s.oid = d.refobjid AND s.relkind = 'S'
JOIN pg_namespace sn ON sn.oid = s.relnamespace
WHERE n.nspname = ANY ($1)
UNION
SELECT d.refobjid, d.refobjsubid, sn.nspname, s.relname
FROM pg_namespace sn
JOIN pg_class s ON s.relnamespace = sn.oid AND s.relkind = 'S'
JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = s.oid AND d.refclassid = 'pg_class'::regclass AND d.deptype = 'i'
WHERE sn.nspname = ANY ($1)`

// Row types of tables, and their arrays, are left out: there are as many as tables.
const typeQuery = `
SELECT t.oid, n.nspname, t.typname,
       CASE WHEN t.typsubscript = 'array_subscript_handler'::regproc AND t.typelem <> 0 THEN 'A' ELSE t.typtype::text END,
       CASE WHEN t.typtype = 'r' THEN r.rngsubtype WHEN t.typtype = 'm' THEN m.rngtypid ELSE t.typelem END, t.typbasetype,
       coalesce((SELECT e.extname FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
                 WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'), ''),
       CASE WHEN t.typtype = 'e' THEN ARRAY(SELECT en.enumlabel::text FROM pg_enum en WHERE en.enumtypid = t.oid ORDER BY en.enumsortorder) ELSE '{}' END,
       CASE t.typtype
       WHEN 'd' THEN 'AS ' || format_type(t.typbasetype, t.typtypmod)
            || CASE WHEN t.typcollation <> 0 AND t.typcollation <> bt.typcollation THEN ' COLLATE ' || (
                    SELECT quote_ident(cn.nspname) || '.' || quote_ident(co.collname) FROM pg_collation co
                    JOIN pg_namespace cn ON cn.oid = co.collnamespace WHERE co.oid = t.typcollation) ELSE '' END
            || coalesce(' DEFAULT ' || pg_get_expr(t.typdefaultbin, 0), '')
            || CASE WHEN t.typnotnull THEN ' NOT NULL' ELSE '' END
            || coalesce((SELECT string_agg(' CONSTRAINT ' || quote_ident(k.conname) || ' ' || pg_get_constraintdef(k.oid), '' ORDER BY k.conname)
                         FROM pg_constraint k WHERE k.contypid = t.oid AND k.contype = 'c'), '')
       WHEN 'c' THEN 'AS (' || coalesce((
                    SELECT string_agg(quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum)
                    FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped), '') || ')'
       WHEN 'r' THEN 'AS RANGE (SUBTYPE = ' || format_type(r.rngsubtype, NULL)
            || CASE WHEN r.rngsubdiff <> 0 THEN ', SUBTYPE_DIFF = ' || r.rngsubdiff::regproc::text ELSE '' END
            || ', MULTIRANGE_TYPE_NAME = ' || format_type(r.rngmultitypid, NULL) || ')'
       ELSE '' END
FROM pg_type t
JOIN pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_type bt ON bt.oid = t.typbasetype
LEFT JOIN pg_range r ON r.rngtypid = t.oid
LEFT JOIN pg_range m ON m.rngmultitypid = t.oid AND t.typtype = 'm'
WHERE (t.typrelid = 0 OR EXISTS (SELECT FROM pg_class c WHERE c.oid = t.typrelid AND c.relkind = 'c'))
  AND NOT EXISTS (SELECT FROM pg_type e JOIN pg_class c ON c.oid = e.typrelid WHERE e.oid = t.typelem AND c.relkind <> 'c')
ORDER BY n.nspname, t.typname`

const triggerQuery = `
SELECT g.tgrelid, g.tgname, g.tgfoid::regproc::text, g.tgenabled <> 'D'
FROM pg_namespace n
JOIN pg_class c ON c.relnamespace = n.oid
JOIN pg_trigger g ON g.tgrelid = c.oid AND NOT g.tgisinternal
JOIN pg_proc p ON p.oid = g.tgfoid
JOIN pg_namespace pn ON pn.oid = p.pronamespace
WHERE n.nspname = ANY ($1) AND pn.nspname <> 'coditect'
ORDER BY g.tgrelid, g.tgname`

const ruleQuery = `
SELECT r.ev_class, r.rulename
FROM pg_namespace n
JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p', 'f')
JOIN pg_rewrite r ON r.ev_class = c.oid
WHERE n.nspname = ANY ($1)
ORDER BY r.ev_class, r.rulename`

const otherQuery = `
SELECT n.nspname, CASE c.relkind WHEN 'v' THEN 'view' ELSE 'materialized view' END, c.relname
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = ANY ($1) AND c.relkind IN ('v', 'm')
UNION ALL
SELECT n.nspname, CASE p.prokind WHEN 'p' THEN 'procedure' WHEN 'a' THEN 'aggregate' ELSE 'function' END, p.proname
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname = ANY ($1)
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype IN ('e', 'i'))
UNION ALL
SELECT n.nspname, 'statistics object', s.stxname
FROM pg_statistic_ext s JOIN pg_namespace n ON n.oid = s.stxnamespace
WHERE n.nspname = ANY ($1)
ORDER BY 1, 2, 3`
