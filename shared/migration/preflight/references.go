package preflight

import (
	"context"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/migration/convert"
)

// content stands for all rows of a table.
type content struct {
	Rows int64
	Hash string
}

// references compares the public tables that were copied when the source was registered
// with what they are in blue by now: tenants that move would read old rows.
func (c *checker) references(ctx context.Context, l convert.Layout) {
	for _, t := range l.References {
		type facts struct{ There bool }
		f, err := one[facts](ctx, c.in.Green, `SELECT to_regclass($1) IS NOT NULL`, pgx.Identifier{l.PublicSchema, t.Name}.Sanitize())
		if err != nil {
			c.unknown("public table "+t.Name+" on green", "make green reachable for this role", err)
			return
		}
		if !f.There {
			continue // the registration will make and fill it
		}
		blue, err := contentOf(ctx, c.in.Blue, t.Schema, t)
		if err != nil {
			c.unknown("the rows of public table "+t.Name+" on blue", "register the source again, which lets this role read the table", err)
			continue
		}
		green, err := contentOf(ctx, c.in.Green, l.PublicSchema, t)
		if err != nil {
			c.unknown("the rows of public table "+t.Name+" on green", "register the source again, which lets this role read the table", err)
			continue
		}
		if blue != green {
			c.overall("reference_differs", Blocker, t.Name, "register the source again, which brings green's rows in step",
				"public table %s has other rows on blue (%d) than on green (%d)", t.Name, blue.Rows, green.Rows)
		}
	}
}

func contentOf(ctx context.Context, db Database, schema string, t convert.Table) (content, error) {
	var columns []string
	for _, col := range slices.Concat(t.Columns, t.Generated) {
		columns = append(columns, pgx.Identifier{col.Name}.Sanitize())
	}
	var out content
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		b := &pgx.Batch{}
		for _, s := range convert.CanonicalText() {
			b.Queue(s)
		}
		b.Queue(`SELECT count(*), coalesce(sum(hashtextextended(r, 0))::text, '') FROM (SELECT ROW(` + strings.Join(columns, ", ") + `)::text AS r FROM ` +
			pgx.Identifier{schema, t.Name}.Sanitize() + `) x`).QueryRow(func(row pgx.Row) error { return row.Scan(&out.Rows, &out.Hash) })
		return tx.SendBatch(ctx, b).Close()
	})
	return out, err
}
