package migration

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/migration/convert"
)

// Green has one sequence for all tenants of a source where blue has one for each.
// It must be past the greatest of blue's before the first of these tenants writes
// there: an id given again would collide under (tenant_id, id).
//
// A sequence has no "raise to at least": reading it and setting it are two steps,
// between which others draw from it. So a small gap is closed by drawing from it,
// which never goes back, and a great one by setting it sequenceMargin further than
// needed: going back would take as many draws between the two statements.
const (
	drawAtMost     = 10_000
	sequenceMargin = 1_000_000
)

// moveSequences brings green's sequences past those of the fenced tenants.
func (m *Mover) moveSequences(ctx context.Context, blue *citus.Pool, l convert.Layout, moves []Move) error {
	if len(l.Sequences) == 0 {
		return nil
	}
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	need, err := blueSequences(ctx, blue, l, moves)
	if err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, control, func(tx pgx.Tx) error {
		// Another batch may be at the same sequences: what it sets must not be set back.
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended('coditect sequences ' || $1, 0))`, l.GreenSchema); err != nil {
			return err
		}
		return raise(ctx, tx, l, need)
	})
}

// raise brings green's sequences to what is needed, under the lock.
func raise(ctx context.Context, tx pgx.Tx, l convert.Layout, need []*int64) error {
	b := &pgx.Batch{}
	have := make([]int64, len(l.Sequences))
	for i, s := range l.Sequences {
		b.Queue(`SELECT last_value FROM ` + quoted(l.GreenSchema, s.Green)).QueryRow(func(row pgx.Row) error { return row.Scan(&have[i]) })
	}
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("migration: read green's sequences: %w", err)
	}
	for i, s := range l.Sequences {
		if need[i] == nil {
			continue
		}
		gap := *need[i] - have[i]
		if s.Increment < 0 {
			gap = -gap
		}
		var err error
		switch name := quoted(l.GreenSchema, s.Green); {
		case gap <= 0:
		case gap <= drawAtMost:
			_, err = tx.Exec(ctx, `SELECT max(nextval($1::regclass)) FROM generate_series(1, $2::bigint)`, name, gap/max(abs(s.Increment), 1)+1)
		default:
			// The margin, or as much of it as the sequence has.
			_, err = tx.Exec(ctx, `SELECT setval($1::regclass, CASE WHEN $3::bigint > 0 THEN least(seqmax - $2, $3) ELSE greatest(seqmin - $2, $3) END + $2)
				FROM pg_sequence WHERE seqrelid = $1::regclass`, name, *need[i], int64(sequenceMargin)*s.Increment)
		}
		if err != nil {
			return fmt.Errorf("migration: move sequence %s: %w", s.Green, err)
		}
	}
	return nil
}

func abs(n int64) int64 {
	if n < 0 {
		return -n
	}
	return n
}

// blueSequences reads the furthest value that any of the tenants has drawn from each
// sequence. A sequence that nobody drew from asks for nothing: none of its values is in a row.
func blueSequences(ctx context.Context, blue *citus.Pool, l convert.Layout, moves []Move) ([]*int64, error) {
	schemas := make([]string, len(moves))
	for i, v := range moves {
		schemas[i] = v.Schema
	}
	rows, err := blue.Query(ctx, `SELECT c.relname, CASE WHEN s.seqincrement > 0 THEN max(v) ELSE min(v) END
		FROM unnest($1::text[]) n CROSS JOIN LATERAL coditect.relations(n) c JOIN pg_sequence s ON s.seqrelid = c.oid
		CROSS JOIN LATERAL pg_sequence_last_value(c.oid) v WHERE c.relkind = 'S' AND v IS NOT NULL GROUP BY c.relname, s.seqincrement > 0`, schemas)
	if err != nil {
		return nil, fmt.Errorf("migration: read blue's sequences: %w", err)
	}
	furthest := map[string]int64{}
	var (
		name string
		v    int64
	)
	if _, err := pgx.ForEachRow(rows, []any{&name, &v}, func() error { furthest[name] = v; return nil }); err != nil {
		return nil, fmt.Errorf("migration: read blue's sequences: %w", err)
	}
	need := make([]*int64, len(l.Sequences))
	for i, s := range l.Sequences {
		if v, ok := furthest[s.Blue]; ok {
			need[i] = &v
		}
	}
	return need, nil
}
