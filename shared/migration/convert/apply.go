package convert

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/coditect/platform/shared/fault"
)

// Database is a *pgxpool.Pool or *pgx.Conn of the green database, as a role that may
// create schemas and act as coditect_owner.
type Database interface {
	Begin(ctx context.Context) (pgx.Tx, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// Apply makes green's tables and returns how many statements it ran: none when all
// was there. Each statement is one transaction together with its record, so a crash
// leaves off at a statement and the next call goes on there; of two calls at
// once each statement is run by one. When the tables on green were made from
// another structure, the error names the differences and nothing is changed.
func Apply(ctx context.Context, db Database, c *Conversion) (int, error) {
	if err := c.Err(); err != nil {
		return 0, err
	}
	if err := Check(ctx, db, c); err != nil {
		return 0, err
	}
	ran := 0
	for i, s := range c.Statements {
		did, err := applyOne(ctx, db, c.Layout.GreenSchema, i, s)
		if err != nil {
			return ran, err
		}
		if did {
			ran++
		}
	}
	return ran, nil
}

// Check compares the plan with what is on green, without changing anything.
func Check(ctx context.Context, db Database, c *Conversion) error {
	rows, err := db.Query(ctx, `SELECT object, statement FROM control.conversion WHERE green_schema = $1 ORDER BY number`, c.Layout.GreenSchema)
	if err != nil {
		return fmt.Errorf("convert: read what is on green: %w", err)
	}
	have, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Statement])
	if err != nil {
		return fmt.Errorf("convert: read what is on green: %w", err)
	}
	if d := differences(have, c.Statements); d != nil {
		return fault.New(fault.Conflict, "conversion_differs",
			"the tables in green schema %s were made from another structure: %s. Bring blue or green back in step, or use another green_schema",
			c.Layout.GreenSchema, strings.Join(d, "; "))
	}
	return nil
}

func applyOne(ctx context.Context, db Database, green string, number int, s Statement) (did bool, err error) {
	tx, err := db.Begin(ctx)
	if err != nil {
		return false, err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // does nothing after Commit
	// The record comes first: whoever else applies the same conversion waits here for our commit.
	tag, err := tx.Exec(ctx, `INSERT INTO control.conversion (green_schema, object, number, statement) VALUES ($1, $2, $3, $4)
		ON CONFLICT (green_schema, object) DO NOTHING`, green, s.Object, number, s.SQL)
	if err != nil {
		return false, fmt.Errorf("convert: record %s: %w", s.Object, err)
	}
	if tag.RowsAffected() == 0 {
		return false, nil
	}
	if _, err := tx.Exec(ctx, s.SQL, pgx.QueryExecModeSimpleProtocol); err != nil {
		return false, refused(s, err)
	}
	return true, tx.Commit(ctx)
}

func refused(s Statement, err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return fmt.Errorf("convert: %s: %w", s.Object, err)
	}
	why := pg.Message
	if pg.Detail != "" {
		why += " (" + pg.Detail + ")"
	}
	return fault.Wrap(err, fault.Conflict, "conversion_refused", "green refused %s: %s", s.Object, why)
}

// differences says how two conversions differ, nil when what is there is a part of what is wanted.
func differences(have, want []Statement) []string {
	wanted := make(map[string]string, len(want))
	for _, s := range want {
		wanted[s.Object] = s.SQL
	}
	var out []string
	had := make(map[string]bool, len(have))
	for _, s := range have {
		had[s.Object] = true
		sql, ok := wanted[s.Object]
		switch {
		case !ok:
			out = append(out, s.Object+" is on green and no longer in the template")
		case sql != s.SQL:
			out = append(out, s.Object+" differs: "+lineDifference(s.SQL, sql))
		}
	}
	// A new object is either new in the template, or was not reached before a crash. In the latter case everything
	// after it is missing, too.
	last := -1
	for i, s := range want {
		if had[s.Object] {
			last = i
		}
	}
	for i, s := range want {
		if i < last && !had[s.Object] {
			out = append(out, s.Object+" is in the template and not on green")
		}
	}
	return out
}

func lineDifference(have, want string) string {
	lines := func(s string) []string {
		out := strings.Split(s, "\n")
		for i := range out {
			out[i] = strings.TrimSuffix(strings.TrimSpace(out[i]), ",")
		}
		return out
	}
	h, w := lines(have), lines(want)
	var parts []string
	for _, l := range h {
		if !slices.Contains(w, l) {
			parts = append(parts, "green has "+l)
		}
	}
	for _, l := range w {
		if !slices.Contains(h, l) {
			parts = append(parts, "the template asks for "+l)
		}
	}
	if parts == nil {
		return "the order of columns"
	}
	return strings.Join(parts, ", ")
}
