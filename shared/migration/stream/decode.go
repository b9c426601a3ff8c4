package stream

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/coditect/platform/shared/tenant"
)

// change is one change, before its tenant is known.
type change struct {
	schema   string
	fenced   tenant.ID // of a Fence, which names its tenant itself
	fenceID  int64
	shape    *shapeKey
	lsn, seq int64
	xid      int64
	at       time.Time
	op       byte
	before   []byte // TupleData, as it was sent
	after    []byte
	columns  int
}

// size is about what a change takes in memory where it is applied.
func (c *change) size() int { return 64 + len(c.before) + len(c.after) + 24*c.columns }

// shapeKey are a table's columns as blue sends them.
type shapeKey struct {
	table, columns, key string // columns and numbers joined by \x00
}

// relation is what a Relation message told.
type relation struct {
	schema string
	shape  *shapeKey
	width  int // columns
}

// decoder turns pgoutput's messages into changes.
type decoder struct {
	relations map[uint32]*relation
	near      int64 // a 64-bit transaction id not far from those in the stream
	open      bool  // inside a transaction
	lsn, seq  int64
	xid       int64
	at        time.Time
}

func newDecoder(near int64) *decoder { return &decoder{relations: map[uint32]*relation{}, near: near} }

// widen turns a transaction id of the stream, 32 bits wide, into the 64-bit one nearest to
// near: ids that are in use at the same time are less than 2^31 apart.
func widen(id uint32, near int64) int64 {
	return near + int64(int32(id-uint32(near)))
}

// decode reads one message, whose bytes are another's afterwards. Rows are not looked into: that
// is for whoever applies them.
func (d *decoder) decode(data []byte) (event, error) {
	switch pglogrepl.MessageType(data[0]) {
	case pglogrepl.MessageTypeInsert, pglogrepl.MessageTypeUpdate, pglogrepl.MessageTypeDelete:
		return d.row(slices.Clone(data))
	}
	m, err := pglogrepl.Parse(data)
	if err != nil {
		return event{}, fmt.Errorf("stream: decode: %w", err)
	}
	switch m := m.(type) {
	case *pglogrepl.RelationMessage:
		d.relations[m.RelationID] = relationOf(m)
	case *pglogrepl.BeginMessage:
		d.open, d.lsn, d.seq, d.xid, d.at = true, int64(m.FinalLSN), 0, widen(m.Xid, d.near), m.CommitTime
	case *pglogrepl.CommitMessage:
		d.open = false
		return event{commit: int64(m.TransactionEndLSN), when: m.CommitTime}, nil
	case *pglogrepl.TruncateMessage:
		var out []*change
		for _, id := range m.RelationIDs {
			r, err := d.relation(id)
			if err != nil {
				return event{}, err
			}
			out = append(out, d.next(&change{op: Truncate, schema: r.schema, shape: r.shape}))
		}
		return event{changes: out}, nil
	case *pglogrepl.LogicalDecodingMessage:
		return d.message(m)
	}
	return event{}, nil
}

// next numbers a change.
func (d *decoder) next(c *change) *change {
	d.seq++
	c.lsn, c.seq, c.xid, c.at = d.lsn, d.seq, d.xid, d.at
	return c
}

func (d *decoder) relation(id uint32) (*relation, error) {
	r := d.relations[id]
	if r == nil {
		return nil, fmt.Errorf("stream: decode: blue did not describe relation %d", id)
	}
	return r, nil
}

func relationOf(m *pglogrepl.RelationMessage) *relation {
	var names, numbers []string
	for i, c := range m.Columns {
		names = append(names, c.Name)
		if c.Flags&1 != 0 {
			numbers = append(numbers, strconv.Itoa(i+1))
		}
	}
	return &relation{schema: m.Namespace, width: len(m.Columns), shape: &shapeKey{m.RelationName, strings.Join(names, "\x00"), strings.Join(numbers, "\x00")}}
}

// row reads a change of one row: the operation, the relation's number, and one or two rows, each
// behind a letter. The old one is sent only when its key is another one.
func (d *decoder) row(m []byte) (event, error) {
	if len(m) < 6 {
		return event{}, fmt.Errorf("stream: decode: %w", errShort)
	}
	r, err := d.relation(binary.BigEndian.Uint32(m[1:]))
	if err != nil {
		return event{}, err
	}
	c := &change{op: m[0], schema: r.schema, shape: r.shape, columns: r.width}
	rest := m[5:]
	if rest[0] == pglogrepl.UpdateMessageTupleTypeKey || rest[0] == pglogrepl.UpdateMessageTupleTypeOld {
		n, err := tupleSize(rest[1:])
		if err != nil {
			return event{}, err
		}
		c.before, rest = rest[1:1+n], rest[1+n:]
	}
	if len(rest) > 0 {
		if rest[0] != pglogrepl.UpdateMessageTupleTypeNew {
			return event{}, fmt.Errorf("stream: decode: a row of table %s is of kind %q", r.shape.table, rest[0])
		}
		c.after = rest[1:]
	}
	return event{change: d.next(c)}, nil
}

// tupleSize is how long the row is with which data begins.
func tupleSize(data []byte) (int, error) {
	if len(data) < 2 {
		return 0, fmt.Errorf("stream: decode a row: %w", errShort)
	}
	at := 2
	for range binary.BigEndian.Uint16(data) {
		if at >= len(data) {
			return 0, fmt.Errorf("stream: decode a row: %w", errShort)
		}
		kind := data[at]
		at++
		if kind == Null || kind == Unchanged {
			continue
		}
		if at+4 > len(data) {
			return 0, fmt.Errorf("stream: decode a row: %w", errShort)
		}
		at += 4 + int(binary.BigEndian.Uint32(data[at:]))
	}
	if at > len(data) {
		return 0, fmt.Errorf("stream: decode a row: %w", errShort)
	}
	return at, nil
}

// message reads a message of ours: somebody waits for it. The one that coditect.fence sends in its transaction is
// "fence TENANT ID".
func (d *decoder) message(m *pglogrepl.LogicalDecodingMessage) (event, error) {
	if m.Prefix != "coditect" || !m.Transactional {
		return event{}, nil
	}
	words := strings.Fields(string(m.Content))
	if len(words) != 3 || words[0] != "fence" {
		return event{urgent: true}, nil
	}
	id, err := tenant.ParseID(words[1])
	if err != nil {
		return event{}, fmt.Errorf("stream: decode: fence of %q: %w", words[1], err)
	}
	number, err := strconv.ParseInt(words[2], 10, 64)
	if err != nil {
		return event{}, fmt.Errorf("stream: decode: fence %q: %w", words[2], err)
	}
	return event{urgent: true, change: d.next(&change{op: Fence, fenced: id, fenceID: number})}, nil
}
