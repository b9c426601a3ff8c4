package migration

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/convert"
	"github.com/coditect/platform/shared/tenant"
)

// refreshReferences brings green's reference tables in step with blue, all in one
// transaction: readers on green see the old rows or the new ones. Tables that are in
// step are left alone.
func refreshReferences(ctx context.Context, blue, green *pgx.Conn, l convert.Layout) error {
	if len(l.References) == 0 {
		return nil
	}
	return pgx.BeginTxFunc(ctx, blue, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(from pgx.Tx) error {
		if err := execAll(ctx, from, canonical); err != nil {
			return err
		}
		return pgx.BeginFunc(ctx, green, func(to pgx.Tx) error {
			if err := openReferences(ctx, to, l); err != nil {
				return err
			}
			var renewed []string
			for _, t := range l.References {
				did, err := renewReference(ctx, from, to, l, t)
				if err != nil {
					return err
				}
				if did {
					renewed = append(renewed, t.Name)
				}
			}
			return checkReferences(ctx, to, l, renewed)
		})
	})
}

// openReferences prepares a transaction that writes reference tables. One registration
// of a green schema does so at a time.
func openReferences(ctx context.Context, to pgx.Tx, l convert.Layout) error {
	var isCitus bool
	if err := to.QueryRow(ctx, `SELECT coditect.has_citus() FROM pg_advisory_xact_lock(hashtextextended('coditect references ' || $1, 0))`, l.PublicSchema).Scan(&isCitus); err != nil {
		return err
	}
	settings := []string{`SET LOCAL lock_timeout = '10s'`}
	if isCitus {
		settings = append(settings, `SET LOCAL citus.propagate_set_commands = 'local'`)
	}
	// The keys' triggers would refuse to delete a row that comes again with the copy; checkReferences looks after it.
	settings = append(settings, `SET LOCAL session_replication_role = 'replica'`)
	return execAll(ctx, to, append(settings, canonical...))
}

// renewReference replaces green's rows of one table by blue's if they differ.
func renewReference(ctx context.Context, from, to pgx.Tx, l convert.Layout, t convert.Table) (bool, error) {
	want, err := referenceDigest(ctx, from, t.Schema, t)
	if err != nil {
		return false, err
	}
	have, err := referenceDigest(ctx, to, l.PublicSchema, t)
	if err != nil || have == want {
		return false, err
	}
	if _, err := to.Exec(ctx, `DELETE FROM `+quoted(l.PublicSchema, t.Name)); err != nil {
		return false, fmt.Errorf("migration: delete the old rows of %s: %w", t.Name, err)
	}
	t.HasTenantColumn = true // it has none, and none is to be added
	_, err = pipe(ctx, from.Conn(), to.Conn(), convert.Layout{GreenSchema: l.PublicSchema}, t, blueSelect(t, Move{Schema: t.Schema}))
	return true, err
}

func referenceDigest(ctx context.Context, tx pgx.Tx, schema string, t convert.Table) (digest, error) {
	var d digest
	err := tx.QueryRow(ctx, `SELECT count(*), coalesce(sum(hashtextextended(r, 0))::text, '') FROM (SELECT `+rowText(t)+` AS r FROM `+quoted(schema, t.Name)+`) x`).
		Scan(&d.Rows, &d.Hash)
	if err != nil {
		return d, fmt.Errorf("migration: compare public table %s: %w", t.Name, err)
	}
	return d, nil
}

// checkReferences refuses new rows of reference tables when a tenant that lives in green
// has a row that refers to one that is gone.
func checkReferences(ctx context.Context, to pgx.Tx, l convert.Layout, renewed []string) error {
	if len(renewed) == 0 {
		return nil
	}
	rows, err := to.Query(ctx, `SELECT id FROM control.tenant WHERE home = 'green' AND schema_name = $1`, l.GreenSchema)
	if err != nil {
		return err
	}
	living, err := pgx.CollectRows(rows, pgx.RowTo[tenant.ID])
	if err != nil {
		return err
	}
	for _, k := range l.ForeignKeys {
		if !k.RefPublic || !slices.Contains(renewed, k.RefTable) {
			continue
		}
		rows, err := to.Query(ctx, orphans(l, k, `= ANY($1)`), living)
		if err != nil {
			return fmt.Errorf("migration: check key %s: %w", k.Name, err)
		}
		left, err := pgx.CollectRows(rows, pgx.RowTo[tenant.ID])
		if err != nil {
			return fmt.Errorf("migration: check key %s: %w", k.Name, err)
		}
		if len(left) > 0 {
			return fault.New(fault.Conflict, "reference_in_use",
				"a row of public table %s is gone from blue, but tenant %s, which lives in green, refers to it from table %s (%s). Put it back in blue, or change the tenant's row on green, and register again",
				k.RefTable, left[0], k.Table, k.Name)
		}
	}
	return nil
}
