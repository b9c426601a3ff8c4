package migration

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
)

// mayDrop refuses a schema that is not the mover's to drop, or whose objects are used from outside.
func mayDrop(ctx context.Context, tx pgx.Tx, schema string) error {
	var owners []string
	if err := tx.QueryRow(ctx, `SELECT array_agg(DISTINCT pg_get_userbyid(o)::text) FILTER (WHERE NOT pg_has_role(o, 'USAGE')) FROM (
			SELECT nspowner AS o FROM pg_namespace WHERE nspname = $1
			UNION ALL SELECT relowner FROM coditect.relations($1)) x`, schema).Scan(&owners); err != nil {
		return err
	}
	if owners != nil {
		return fault.New(fault.Conflict, "schema_not_ours", "schema %s belongs to %s, as whom the mover may not act: GRANT %s TO coditect_migrator", schema, orList(owners), strings.Join(owners, ", "))
	}
	return notUsed(ctx, tx, schema)
}

// notUsed refuses a schema whose objects something outside of it depends on: a view over many
// tenants, another schema's foreign key. Dropping the schema would drop that, too. What depends
// on an object as a part of it (PostgreSQL: internal, automatic) belongs to the schema.
func notUsed(ctx context.Context, tx pgx.Tx, schema string) error {
	var users []string
	err := tx.QueryRow(ctx, `WITH RECURSIVE inside(classid, objid) AS (
			SELECT d.classid, d.objid FROM pg_depend d WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = (SELECT oid FROM pg_namespace WHERE nspname = $1)
			UNION
			SELECT d.classid, d.objid FROM inside i JOIN pg_depend d ON d.refclassid = i.classid AND d.refobjid = i.objid WHERE d.deptype IN ('a', 'i', 'P', 'S'))
		SELECT array_agg(DISTINCT pg_describe_object(d.classid, d.objid, 0))
		FROM inside i JOIN pg_depend d ON d.refclassid = i.classid AND d.refobjid = i.objid
		WHERE d.deptype IN ('n', 'e', 'x') AND NOT EXISTS (SELECT FROM inside o WHERE o.classid = d.classid AND o.objid = d.objid)`, schema).Scan(&users)
	if err != nil {
		return err
	}
	if users != nil {
		return fault.New(fault.Conflict, "schema_in_use", "schema %s cannot be dropped, for others use it: %s", schema, strings.Join(users[:min(len(users), 5)], ", "))
	}
	return nil
}

// tablesAtOnce are dropped in one transaction: each holds its locks until the end, and as many
// rows of the catalogue are in doubt for everybody else.
const tablesAtOnce = 4

// dropBlue drops a schema that was given up, and forgets its tenant in blue.
func (m *Mover) dropBlue(ctx context.Context, blue *citus.Pool, f attempt, actor string) error {
	if f.State != Green { // an earlier attempt's token is in the gate, if the gate is still there
		if _, err := m.takeGate(ctx, blue, f.Move); err != nil {
			return err
		}
	}
	if err := m.endCapture(ctx, f.Tenant); err != nil {
		return err
	}
	for left := true; left; {
		var err error
		if left, err = m.dropSome(ctx, blue, f); err != nil {
			return err
		}
		m.crash("tables dropped")
	}
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, control, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `UPDATE control.archive a SET dropped_at = clock_timestamp() FROM control.move m
			WHERE a.run_id = $1 AND a.tenant_id = $2 AND m.run_id = $1 AND m.tenant_id = $2 AND m.token = $3 AND m.state = 'finalised'`, f.Run, f.Tenant, f.Token)
		if err := oneEach(tag.RowsAffected(), 1, err); err != nil {
			return err
		}
		return note(ctx, tx, f.Run, &f.Tenant, actor, "schema dropped", map[string]any{"database": f.Database, "schema": f.Schema})
	})
}

// dropSome drops a few tables, or when there are none the schema. It reports whether there is more.
// The gate goes with the schema: whoever finds none has nothing to drop, and a schema of this name that
// is made later is nobody's to drop.
func (m *Mover) dropSome(ctx context.Context, blue *citus.Pool, f attempt) (left bool, err error) {
	err = pgx.BeginFunc(ctx, blue, func(tx pgx.Tx) error {
		// A foreign key's other table, which all tenants share, is locked for a moment: nobody is to queue for long.
		if _, err := tx.Exec(ctx, `SELECT set_config('lock_timeout', $1, true), set_config('coditect.mover', 'on', true)`, fmt.Sprint(10*m.cfg.LockTimeout.Milliseconds())); err != nil {
			return err
		}
		var token int64
		err := tx.QueryRow(ctx, `SELECT token FROM coditect.gate WHERE tenant_id = $1 AND schema_name = $2 FOR UPDATE`, f.Tenant, f.Schema).Scan(&token)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		if token != f.Token {
			return errOutdated
		}
		rows, err := tx.Query(ctx, `SELECT relname::text FROM coditect.relations($1) WHERE relkind IN ('r', 'p') AND NOT relispartition ORDER BY 1 LIMIT $2`, f.Schema, tablesAtOnce)
		if err != nil {
			return err
		}
		names, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		left = len(names) > 0
		if !left {
			return dropSchema(ctx, tx, f)
		}
		for i, n := range names {
			names[i] = quoted(f.Schema, n)
		}
		all := strings.Join(names, ", ")
		if _, err := tx.Exec(ctx, `LOCK TABLE `+all+` IN ACCESS EXCLUSIVE MODE`); err != nil {
			return err
		}
		// Under the lock nothing new can come to use them.
		if err := notUsed(ctx, tx, f.Schema); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `DROP TABLE `+all+` CASCADE`)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("migration: drop schema %s: %w", f.Schema, err)
	}
	return left, nil
}

// dropSchema drops what is left of a schema, and blue's knowledge of its tenant.
func dropSchema(ctx context.Context, tx pgx.Tx, f attempt) error {
	if err := notUsed(ctx, tx, f.Schema); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `DROP SCHEMA IF EXISTS `+quoted(f.Schema)+` CASCADE`); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `DELETE FROM coditect.tenant_schema WHERE tenant_id = $1`, f.Tenant); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `DELETE FROM coditect.gate WHERE tenant_id = $1`, f.Tenant)
	return err
}
