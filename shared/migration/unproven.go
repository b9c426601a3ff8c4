package migration

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
)

// noteUnproven remembers rows that are to be compared again. A note that is there is made anew: whoever has compared the
// row before does not take this one away.
func (o *onlineMove) noteUnproven(ctx context.Context, tx pgx.Tx, rows rowsOfTables) error {
	for table, keys := range rows {
		type note struct {
			digest []byte
			key    string
		}
		var notes []note
		for joined, key := range keys {
			text, err := json.Marshal(key)
			if err != nil {
				return err
			}
			digest := sha256.Sum256([]byte(joined))
			notes = append(notes, note{digest[:], string(text)})
		}
		// In one order, so that two steps do not wait for each other.
		slices.SortFunc(notes, func(a, b note) int { return slices.Compare(a.digest, b.digest) })
		digests, texts := make([][]byte, len(notes)), make([]string, len(notes))
		for i, n := range notes {
			digests[i], texts[i] = n.digest, n.key
		}
		if _, err := tx.Exec(ctx, `INSERT INTO control.unproven (tenant_id, table_name, digest, key) SELECT $1, $2, x.digest, x.key FROM unnest($3::bytea[], $4::text[]) WITH ORDINALITY AS x(digest, key, n) ORDER BY n
			ON CONFLICT (tenant_id, table_name, digest) DO UPDATE SET noted = excluded.noted`, o.v.Tenant, table, digests, texts); err != nil {
			return fmt.Errorf("migration: note rows to be compared of table %s: %w", table, err)
		}
	}
	return nil
}

// unproven reads rows that were not the same when they were compared, in the order of their digests, and tells of each by
// which note.
func (o *onlineMove) unproven(ctx context.Context, control querier, from []byte, limit int, note func(table, joined string, digest []byte, noted int64)) (rowsOfTables, error) {
	rows, err := control.Query(ctx, `SELECT table_name, digest, key, noted FROM control.unproven WHERE tenant_id = $1 AND digest >= $2 ORDER BY digest LIMIT $3`, o.v.Tenant, from, limit)
	if err != nil {
		return nil, err
	}
	out := rowsOfTables{}
	var (
		table, text string
		digest      []byte
		noted       int64
	)
	_, err = pgx.ForEachRow(rows, []any{&table, &digest, &text, &noted}, func() error {
		var key []string
		if err := json.Unmarshal([]byte(text), &key); err != nil {
			return err
		}
		out.add(table, key)
		if note != nil {
			joined := allRows
			if key != nil {
				joined = joinKey(key)
			}
			note(table, joined, slices.Clone(digest), noted)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("migration: rows to be compared of %s: %w", o.v.Tenant, err)
	}
	return out, nil
}

// standing is a row that differed when it was looked at.
type standing struct {
	blue, green hashed
	at          int64 // blue's WAL, afterwards
}

// compareUnproven compares some rows again, and forgets those that are the same now. It begins somewhere: rows
// that are changed all the time must not hide the others.
//
// A row that stands still on both sides, and differs after everything is applied that blue had written when it was
// looked at before, has not been changed again: it is wrong, and no fence needs to go up to know that.
func (o *onlineMove) compareUnproven(ctx context.Context, control *citus.Pool) (settled int, err error) {
	type note struct {
		table, joined string
		digest        []byte
		noted         int64
	}
	var notes []note
	read := func(from []byte) (rowsOfTables, error) {
		return o.unproven(ctx, control, from, keysCompared, func(table, joined string, digest []byte, noted int64) {
			notes = append(notes, note{table, joined, digest, noted})
		})
	}
	from := sha256.Sum256([]byte(uuid.NewString()))
	rows, err := read(from[:])
	if err == nil && len(notes) == 0 { // there are few, and all come before
		rows, err = read([]byte{})
	}
	if err != nil {
		return 0, err
	}
	applied := o.applied.Load()
	differ, err := o.differing(ctx, rows)
	if err != nil {
		return 0, err
	}
	if err := o.stand(ctx, differ, applied); err != nil {
		return 0, err
	}
	settledBy := map[string][]note{}
	for _, n := range notes {
		if _, still := differ[n.table][n.joined]; !still {
			settledBy[n.table] = append(settledBy[n.table], n)
			delete(o.stood, rowIDOf(n.table, []string{n.joined}))
		}
	}
	for table, gone := range settledBy {
		digests, noted := make([][]byte, len(gone)), make([]int64, len(gone))
		for i, n := range gone {
			digests[i], noted[i] = n.digest, n.noted
		}
		// A change of the same row that is applied meanwhile is in a pack, and brings it back; or has, by another note.
		if _, err := control.Exec(ctx, `DELETE FROM control.unproven u USING unnest($3::bytea[], $4::bigint[]) AS x(digest, noted)
			WHERE u.tenant_id = $1 AND u.table_name = $2 AND u.digest = x.digest AND u.noted = x.noted`, o.v.Tenant, table, digests, noted); err != nil {
			return 0, fmt.Errorf("migration: forget compared rows: %w", err)
		}
		settled += len(gone)
	}
	return settled, nil
}

// stand remembers how rows differ, and refuses one that has stood still. applied says what was applied when
// they were read: all that blue has written before.
func (o *onlineMove) stand(ctx context.Context, differ differences, applied int64) error {
	if len(differ) == 0 {
		return nil
	}
	var at int64
	if err := o.blue.QueryRow(ctx, `SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint`).Scan(&at); err != nil {
		return err
	}
	if o.stood == nil || len(o.stood) > 10*keysCompared {
		o.stood = map[rowID]standing{}
	}
	for table, all := range differ {
		for joined, d := range all {
			if d.key == nil {
				continue
			}
			id := rowIDOf(table, []string{joined})
			was, known := o.stood[id]
			if !known || was.blue != d.blue || was.green != d.green {
				o.stood[id] = standing{d.blue, d.green, at}
				continue
			}
			if applied >= was.at {
				return o.rowDiffers(table, d.key)
			}
		}
	}
	return nil
}
