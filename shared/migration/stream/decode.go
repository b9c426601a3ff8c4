package stream

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/coditect/platform/shared/tenant"
)

// Ops of a change, as the spool has them.
const (
	Insert   = 'I'
	Update   = 'U'
	Delete   = 'D'
	Truncate = 'T'
	Fence    = 'F' // the fence went up: every change before it is before this one
)

// change is one row of the spool, before its tenant is known.
type change struct {
	schema    string
	fenced    tenant.ID // of a Fence, which names its tenant itself
	shape     shapeKey
	lsn, seq  int64
	xid       int64
	at        time.Time
	op        byte
	key       []*string
	row       []*string
	unchanged []int32
	size      int
}

// shapeKey are a table's columns as blue sends them.
type shapeKey struct {
	table, columns, key string // columns and numbers joined by \x00
}

// relation is what a Relation message told.
type relation struct {
	schema string
	shape  shapeKey
	key    []int // columns of the key, from 0
	width  int
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

// decode reads one message.
func (d *decoder) decode(data []byte) ([]event, error) {
	m, err := pglogrepl.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("stream: decode: %w", err)
	}
	switch m := m.(type) {
	case *pglogrepl.RelationMessage:
		d.relations[m.RelationID] = relationOf(m)
	case *pglogrepl.BeginMessage:
		d.open, d.lsn, d.seq, d.xid, d.at = true, int64(m.FinalLSN), 0, widen(m.Xid, d.near), m.CommitTime
	case *pglogrepl.CommitMessage:
		d.open = false
		return []event{{commit: int64(m.TransactionEndLSN), when: m.CommitTime}}, nil
	case *pglogrepl.InsertMessage:
		return d.row(Insert, m.RelationID, nil, m.Tuple)
	case *pglogrepl.UpdateMessage:
		return d.row(Update, m.RelationID, m.OldTuple, m.NewTuple)
	case *pglogrepl.DeleteMessage:
		return d.row(Delete, m.RelationID, m.OldTuple, nil)
	case *pglogrepl.TruncateMessage:
		var out []event
		for _, id := range m.RelationIDs {
			r, err := d.relation(id)
			if err != nil {
				return nil, err
			}
			out = append(out, d.next(&change{op: Truncate, schema: r.schema, shape: r.shape}))
		}
		return out, nil
	case *pglogrepl.LogicalDecodingMessage:
		return d.fence(m)
	}
	return nil, nil
}

// next numbers a change.
func (d *decoder) next(c *change) event {
	d.seq++
	c.lsn, c.seq, c.xid, c.at = d.lsn, d.seq, d.xid, d.at
	c.size += 64
	return event{change: c}
}

func (d *decoder) relation(id uint32) (*relation, error) {
	r := d.relations[id]
	if r == nil {
		return nil, fmt.Errorf("stream: decode: blue did not describe relation %d", id)
	}
	return r, nil
}

func relationOf(m *pglogrepl.RelationMessage) *relation {
	r := &relation{schema: m.Namespace, width: len(m.Columns)}
	var names, numbers []string
	for i, c := range m.Columns {
		names = append(names, c.Name)
		if c.Flags&1 != 0 {
			r.key = append(r.key, i)
			numbers = append(numbers, strconv.Itoa(i+1))
		}
	}
	r.shape = shapeKey{m.RelationName, strings.Join(names, "\x00"), strings.Join(numbers, "\x00")}
	return r
}

// row reads a change of one row. The old key is sent only when it is another one.
func (d *decoder) row(op byte, id uint32, before, after *pglogrepl.TupleData) ([]event, error) {
	r, err := d.relation(id)
	if err != nil {
		return nil, err
	}
	c := &change{op: op, schema: r.schema, shape: r.shape}
	if after != nil {
		c.row = make([]*string, len(after.Columns))
		for i, v := range after.Columns {
			switch v.DataType {
			case pglogrepl.TupleDataTypeNull:
			case pglogrepl.TupleDataTypeToast:
				c.unchanged = append(c.unchanged, int32(i+1))
			default:
				c.row[i] = c.text(v.Data)
			}
		}
	}
	if op != Insert {
		for _, i := range r.key {
			switch {
			case before != nil && i < len(before.Columns) && before.Columns[i].DataType == pglogrepl.TupleDataTypeText:
				c.key = append(c.key, c.text(before.Columns[i].Data))
			case before == nil && c.row != nil && c.row[i] != nil:
				c.key = append(c.key, c.row[i])
			default:
				return nil, fmt.Errorf("stream: decode: a change of table %s has no key: its REPLICA IDENTITY must be its primary key", r.shape.table)
			}
		}
	}
	return []event{d.next(c)}, nil
}

func (c *change) text(b []byte) *string {
	s := string(b)
	c.size += len(b) + 24
	return &s
}

// fence reads the message that coditect.fence sends in its transaction: "fence TENANT ID".
func (d *decoder) fence(m *pglogrepl.LogicalDecodingMessage) ([]event, error) {
	if m.Prefix != "coditect" || !m.Transactional {
		return nil, nil
	}
	words := strings.Fields(string(m.Content))
	if len(words) != 3 || words[0] != "fence" {
		return nil, nil
	}
	id, err := tenant.ParseID(words[1])
	if err != nil {
		return nil, fmt.Errorf("stream: decode: fence of %q: %w", words[1], err)
	}
	return []event{d.next(&change{op: Fence, fenced: id, key: []*string{&words[2]}})}, nil
}
