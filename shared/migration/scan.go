package migration

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math/big"
	"math/bits"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/coditect/platform/shared/migration/convert"
)

// scan reads whole tables of tenants from blue, row by row, each as a line of COPY's text format with its end. COPY of a
// table, unlike that of a query, needs no plan, for which PostgreSQL would open every index of every tenant's tables: that
// takes longer than to read a small table.
type scan struct {
	tx      pgx.Tx
	layout  convert.Layout
	moves   []Move
	parents map[string]bool // tables that others inherit from, quoted: COPY of such a table leaves out what a SELECT finds
}

// whole is one tenant's table.
type whole struct{ table, move int } // in the layout and among the moves

func newScan(ctx context.Context, blue pgx.Tx, l convert.Layout, moves []Move) (*scan, error) {
	s := &scan{blue, l, moves, map[string]bool{}}
	schemas := make([]string, len(moves))
	for i, v := range moves {
		schemas[i] = v.Schema
	}
	rows, err := blue.Query(ctx, `SELECT DISTINCT n.nspname, c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhparent AND c.relkind = 'r' JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = ANY ($1)`, schemas)
	if err != nil {
		return nil, err
	}
	var schema, name string
	_, err = pgx.ForEachRow(rows, []any{&schema, &name}, func() error { s.parents[quoted(schema, name)] = true; return nil })
	return s, err
}

// all lists every table of every tenant.
func (s *scan) all() []whole {
	var out []whole
	for i := range s.layout.Tables {
		out = append(out, s.ofAll(i)...)
	}
	return out
}

// ofAll lists one table of every tenant.
func (s *scan) ofAll(table int) []whole {
	out := make([]whole, len(s.moves))
	for i := range s.moves {
		out[i] = whole{table, i}
	}
	return out
}

// read hands over the tables' lines, in one round trip. A line is valid until each returns.
func (s *scan) read(ctx context.Context, tables []whole, each func(n int, line []byte) error) error {
	var sql strings.Builder
	for _, w := range tables {
		t := s.layout.Tables[w.table]
		columns := make([]string, len(t.Columns))
		for i, c := range t.Columns {
			columns[i] = quoted(c.Name)
		}
		list, from := strings.Join(columns, ", "), quoted(s.moves[w.move].Schema, t.Name)
		if s.parents[from] {
			fmt.Fprintf(&sql, "COPY (SELECT %s FROM %s) TO STDOUT;\n", list, from)
		} else {
			fmt.Fprintf(&sql, "COPY %s (%s) TO STDOUT;\n", from, list)
		}
	}
	conn := s.tx.Conn().PgConn()
	err := copyOut(ctx, conn, sql.String(), each)
	if err != nil && (conn.TxStatus() != 'E' || ctx.Err() != nil) {
		_ = conn.Close(context.WithoutCancel(ctx)) // in the middle of a stream it is good for nothing else
	}
	return err
}

// digests computes those of whole tables.
func (s *scan) digests(ctx context.Context, tables []whole) (digests, error) {
	sums := make([]sum, len(tables))
	var row []byte
	err := s.read(ctx, tables, func(n int, line []byte) error {
		row = appendRow(row[:0], line)
		sums[n].add(row)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("migration: hash blue: %w", err)
	}
	out := digests{}
	for n, w := range tables {
		out.add(s.layout.Tables[w.table].Name, s.moves[w.move].Tenant, sums[n].digest())
	}
	return out, nil
}

// copyOut sends statements of COPY TO STDOUT and hands over the lines of each. pgconn's CopyTo would not tell where one
// ends and the next begins.
func copyOut(ctx context.Context, conn *pgconn.PgConn, sql string, each func(n int, line []byte) error) error {
	// To wait for ctx message by message would cost more than the messages.
	stop := context.AfterFunc(ctx, func() { _ = conn.Conn().SetDeadline(time.Unix(1, 0)) })
	defer stop()
	conn.Frontend().SendQuery(&pgproto3.Query{String: sql})
	if err := conn.Frontend().Flush(); err != nil {
		return err
	}
	n := -1
	var failed error
	for {
		msg, err := conn.ReceiveMessage(context.Background())
		if err != nil {
			return cmp.Or(ctx.Err(), err)
		}
		switch msg := msg.(type) {
		case *pgproto3.CopyOutResponse:
			n++
		case *pgproto3.CopyData:
			if err := each(n, msg.Data); err != nil {
				return err
			}
		case *pgproto3.ErrorResponse:
			failed = pgconn.ErrorResponseToPgError(msg)
		case *pgproto3.ReadyForQuery:
			if !stop() {
				return ctx.Err()
			}
			return failed
		}
	}
}

// sum adds up the hashes of rows, as sum(hashtextextended(…, 0)) does.
type sum struct {
	rows, bytes int64
	high        int64
	low         uint64
}

func (s *sum) add(row []byte) {
	h := hashText(row)
	var carry uint64
	s.low, carry = bits.Add64(s.low, h, 0)
	s.high += int64(carry) + int64(h)>>63 //nolint:gosec // the hash is a signed number there
	s.rows, s.bytes = s.rows+1, s.bytes+int64(len(row))
}

func (s *sum) digest() digest {
	n := new(big.Int).Lsh(big.NewInt(s.high), 64)
	return digest{Rows: s.rows, Hash: n.Add(n, new(big.Int).SetUint64(s.low)).String()}
}

// appendRow makes of a line of COPY what PostgreSQL prints of the same row: ROW(…)::text.
func appendRow(row, line []byte) []byte {
	line = bytes.TrimSuffix(line, []byte{'\n'})
	row = append(row, '(')
	for first, more := true, true; more; first = false {
		var field []byte
		field, line, more = bytes.Cut(line, []byte{'\t'})
		if !first {
			row = append(row, ',')
		}
		row = appendField(row, field)
	}
	return append(row, ')')
}

// appendField is record_out (rowtypes.c) on CopyAttributeOutText (copyto.c): null is nothing, and quotes are around what
// is empty or has a delimiter, a quote, a backslash or white space.
func appendField(row, field []byte) []byte {
	if string(field) == `\N` {
		return row
	}
	plain, quotes := true, len(field) == 0
	for i := 0; i < len(field); i++ {
		switch field[i] {
		case '\\':
			plain = false
			i++
			quotes = quotes || field[i] != 'b'
		case '"':
			plain, quotes = false, true
		case '(', ')', ',', ' ':
			quotes = true
		}
	}
	if quotes {
		row = append(row, '"')
	}
	if plain {
		row = append(row, field...)
	} else {
		for i := 0; i < len(field); i++ {
			c := field[i]
			switch c {
			case '"':
				row = append(row, '"')
			case '\\':
				i++
				if c = unescaped[field[i]]; c == '\\' {
					row = append(row, '\\')
				}
			}
			row = append(row, c)
		}
	}
	if quotes {
		row = append(row, '"')
	}
	return row
}

// unescaped are the characters that COPY writes with a backslash.
var unescaped = [256]byte{'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t', 'v': '\v', '\\': '\\'}
