package migration

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/convert"
	"github.com/coditect/platform/shared/tenant"
)

// digest sums up one tenant's rows of one table. The sum is of a 64-bit hash of each
// row's canonical text and does not depend on the order of rows; unlike an exclusive or, it
// sees a row that is there twice. A second hash would cost as much again as making the text.
type digest struct {
	Rows int64
	Hash string // decimal: the sum is wider than its parts
}

// digests are those of a group: by table, then tenant. A tenant without rows is absent.
type digests map[string]map[tenant.ID]digest

func (d digests) add(table string, id tenant.ID, v digest) {
	if v.Rows == 0 {
		return
	}
	if d[table] == nil {
		d[table] = map[tenant.ID]digest{}
	}
	d[table][id] = v
}

// rows counts a tenant's rows over all tables.
func (d digests) rows(id tenant.ID) (n int64) {
	for _, byTenant := range d {
		n += byTenant[id].Rows
	}
	return n
}

const sums = `sum(hashtextextended(r, 0))::text`

// of is one tenant's rows by table.
func (d digests) of(id tenant.ID) map[string]int64 {
	out := map[string]int64{}
	for table, byTenant := range d {
		out[table] = byTenant[id].Rows
	}
	return out
}

// blueDigests computes the digests of tenants as a transaction sees them, one statement a
// table for all of them, all statements in one round trip. They hold the tenants' schemas in
// their text and will not come again, so they are not prepared.
func blueDigests(ctx context.Context, tx pgx.Tx, l convert.Layout, moves []Move, out digests) error {
	statements := make([]string, len(l.Tables))
	for i, t := range l.Tables {
		selects := make([]string, len(moves))
		for j, v := range moves {
			selects[j] = fmt.Sprintf(`SELECT %d AS i, %s AS r FROM %s`, j, rowText(t), quoted(v.Schema, t.Name))
		}
		statements[i] = `SELECT i, count(*), ` + sums + ` FROM (` + strings.Join(selects, " UNION ALL ") + `) x GROUP BY i`
	}
	results, err := tx.Conn().PgConn().Exec(ctx, strings.Join(statements, ";\n")).ReadAll()
	if err != nil {
		return fmt.Errorf("migration: hash blue: %w", err)
	}
	for i, r := range results {
		for _, row := range r.Rows {
			n, err := integers(row[:2])
			if err != nil {
				return err
			}
			out.add(l.Tables[i].Name, moves[n[0]].Tenant, digest{Rows: n[1], Hash: string(row[2])})
		}
	}
	return nil
}

// greenDigests computes the same over committed rows of green, and where the tables fit
// each other, proves the foreign keys.
func (m *Mover) greenDigests(ctx context.Context, l convert.Layout, moves []Move, fit bool) (digests, error) {
	out := digests{}
	err := m.readGreen(ctx, func(tx pgx.Tx) error {
		b := &pgx.Batch{}
		for _, t := range l.Tables {
			b.Queue(fmt.Sprintf(`SELECT tenant_id, count(*), %s FROM (SELECT tenant_id, %s AS r FROM %s WHERE tenant_id = ANY($1)) x GROUP BY tenant_id`,
				sums, rowText(t), quoted(l.GreenSchema, t.Name)), tenantsOf(moves)).Query(func(rows pgx.Rows) error {
				var (
					id tenant.ID
					d  digest
				)
				_, err := pgx.ForEachRow(rows, []any{&id, &d.Rows, &d.Hash}, func() error { out.add(t.Name, id, d); return nil })
				return err
			})
		}
		if fit {
			queueOrphans(b, l, l.ForeignKeys, moves)
		}
		return tx.SendBatch(ctx, b).Close()
	})
	if err != nil {
		return nil, fmt.Errorf("migration: verify green: %w", err)
	}
	return out, nil
}

// proveKeys proves foreign keys over committed rows of green.
func (m *Mover) proveKeys(ctx context.Context, l convert.Layout, keys []convert.ForeignKey, moves []Move) error {
	if len(keys) == 0 {
		return nil
	}
	return m.readGreen(ctx, func(tx pgx.Tx) error {
		b := &pgx.Batch{}
		queueOrphans(b, l, keys, moves)
		return tx.SendBatch(ctx, b).Close()
	})
}

// queueOrphans adds the proof of foreign keys; a row without its partner is a mismatch.
func queueOrphans(b *pgx.Batch, l convert.Layout, keys []convert.ForeignKey, moves []Move) {
	for _, k := range keys {
		b.Queue(orphans(l, k, `= ANY($1)`), tenantsOf(moves)).Query(func(rows pgx.Rows) error {
			var id tenant.ID
			_, err := pgx.ForEachRow(rows, []any{&id}, func() error { return orphaned(id, k) })
			return err
		})
	}
}

func orphaned(id tenant.ID, k convert.ForeignKey) error {
	return &mismatch{id, fault.New(fault.Conflict, "orphaned_rows", "tenant %s, table %s: a row refers by %s to a row of %s that does not exist", id, k.Table, k.Name, k.RefTable)}
}

// orphans is the anti-join that proves one foreign key, of the tenants for which a condition holds: rows were copied
// with the keys' triggers off.
func orphans(l convert.Layout, k convert.ForeignKey, tenants string) string {
	on := []string{}
	if !k.RefPublic {
		on = append(on, "p.tenant_id = c.tenant_id")
	}
	set := make([]string, len(k.Columns))
	for i, c := range k.Columns {
		on = append(on, fmt.Sprintf("p.%s = c.%s", quoted(k.RefColumns[i]), quoted(c)))
		set[i] = "c." + quoted(c) + " IS NOT NULL"
	}
	ref := quoted(l.GreenSchema, k.RefTable)
	if k.RefPublic {
		ref = quoted(l.PublicSchema, k.RefTable)
	}
	return fmt.Sprintf(`SELECT c.tenant_id FROM %s c LEFT JOIN %s p ON %s WHERE c.tenant_id %s AND %s AND p.%s IS NULL LIMIT 1`,
		quoted(l.GreenSchema, k.Table), ref, strings.Join(on, " AND "), tenants, strings.Join(set, " AND "), quoted(k.RefColumns[0]))
}

// mismatch is a difference between blue and green: this tenant must not be flipped.
type mismatch struct {
	tenant tenant.ID
	error
}

func (e *mismatch) Unwrap() error { return e.error }

// compare returns what differs, by tenant; a tenant that is not in it is identical.
func compare(l convert.Layout, moves []Move, blue, green digests) map[tenant.ID]string {
	out := map[tenant.ID]string{}
	for _, t := range l.Tables {
		for _, v := range moves {
			b, g := blue[t.Name][v.Tenant], green[t.Name][v.Tenant]
			switch {
			case b == g:
			case b.Rows != g.Rows:
				out[v.Tenant] = fmt.Sprintf("table %s has %d rows in blue and %d in green", t.Name, b.Rows, g.Rows)
			default:
				out[v.Tenant] = fmt.Sprintf("table %s has %d rows on both sides, but their contents differ", t.Name, b.Rows)
			}
		}
	}
	return out
}
