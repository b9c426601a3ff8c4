package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Ops of a change, as the spool has them.
const (
	Insert   = 'I'
	Update   = 'U'
	Delete   = 'D'
	Truncate = 'T'
	Fence    = 'F' // the fence went up: every change before it is before this one
)

// Change is one change of a tenant's row, as it is in the spool.
type Change struct {
	LSN, Seq int64 // where its transaction commits, and its number within it, from 1
	XID      int64 // of the transaction, 64 bits wide
	Op       byte
	Shape    int32 // of its table (control.change_shape); 0 of a Fence
	Old      Tuple // of an update that changes the key, and of a delete: the row before, of which only the key counts
	New      Tuple // of an insert and an update: the row after
	FenceID  int64 // of a Fence
}

// Tuple is a row as blue has sent it: pgoutput's TupleData. "" is none.
type Tuple string

// Value is one column of a row.
type Value struct {
	Text string
	Kind byte // Null, Unchanged or Text
}

// Kinds of a value, as pgoutput has them.
const (
	Null      = 'n'
	Unchanged = 'u' // a TOASTed value that was not sent: it stays what it is
	Text      = 't'
)

var errShort = errors.New("it ends too early")

// Values reads a row's columns, in the order of its shape, into a slice that may be used again.
func (t Tuple) Values(into []Value) ([]Value, error) {
	if len(t) < 2 {
		return nil, fmt.Errorf("stream: decode a row: %w", errShort)
	}
	n := int(t[0])<<8 | int(t[1])
	out, rest := into[:0], string(t[2:])
	for range n {
		if rest == "" {
			return nil, fmt.Errorf("stream: decode a row: %w", errShort)
		}
		v := Value{Kind: rest[0]}
		rest = rest[1:]
		switch v.Kind {
		case Null, Unchanged:
		case Text:
			if len(rest) < 4 {
				return nil, fmt.Errorf("stream: decode a row: %w", errShort)
			}
			size := int(rest[0])<<24 | int(rest[1])<<16 | int(rest[2])<<8 | int(rest[3])
			if len(rest)-4 < size {
				return nil, fmt.Errorf("stream: decode a row: %w", errShort)
			}
			v.Text, rest = rest[4:4+size], rest[4+size:]
		default:
			return nil, fmt.Errorf("stream: decode a row: its values are of kind %q, not text", v.Kind)
		}
		out = append(out, v)
	}
	return out, nil
}

// pack collects changes of one tenant that follow each other.
type pack struct {
	changes, bytes         int
	begins, lsn, seq, last int64 // last is the xid
	at                     time.Time
	data                   []byte
}

// add appends a change. Numbers are differences to the change before, as varints; then come the
// operation and the rows, each with its length.
func (p *pack) add(c *change, shape int32) {
	if p.changes == 0 {
		p.begins, p.at = c.lsn, c.at
	}
	p.data = append(p.data, c.op)
	p.data = binary.AppendVarint(p.data, c.lsn-p.lsn)
	p.data = binary.AppendVarint(p.data, c.seq)
	p.data = binary.AppendVarint(p.data, c.xid-p.last)
	p.data = binary.AppendVarint(p.data, int64(shape))
	if c.op == Fence {
		p.data = binary.AppendVarint(p.data, c.fenceID)
	}
	for _, row := range [][]byte{c.before, c.after} {
		p.data = binary.AppendUvarint(p.data, uint64(len(row)))
		p.data = append(p.data, row...)
	}
	p.lsn, p.seq, p.last = c.lsn, c.seq, c.xid
	p.changes++
	p.bytes += c.size()
}

// Unpack reads the changes of a pack, as control.pack has them. Their rows are parts of data.
func Unpack(data string) ([]Change, error) {
	r := unpacker{rest: data}
	var out []Change
	var last Change
	for r.rest != "" && r.err == nil {
		c := Change{Op: r.rest[0]}
		r.rest = r.rest[1:]
		c.LSN = last.LSN + r.number()
		c.Seq = r.number()
		c.XID = last.XID + r.number()
		c.Shape = int32(r.number())
		if c.Op == Fence {
			c.FenceID = r.number()
		}
		c.Old, c.New = r.row(), r.row()
		out = append(out, c)
		last = c
	}
	if r.err != nil {
		return nil, fmt.Errorf("stream: unpack changes: %w", r.err)
	}
	return out, nil
}

type unpacker struct {
	rest string
	err  error
}

func (r *unpacker) number() int64 {
	u := r.unsigned()
	n := int64(u >> 1)
	if u&1 != 0 {
		n = ^n
	}
	return n
}

func (r *unpacker) unsigned() (n uint64) {
	for shift := 0; shift < 64; shift += 7 {
		if r.rest == "" {
			r.err = errShort
			return 0
		}
		b := r.rest[0]
		r.rest = r.rest[1:]
		n |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return n
		}
	}
	r.err = errors.New("a number is too long")
	return 0
}

func (r *unpacker) row() Tuple {
	n := r.unsigned()
	if n > uint64(len(r.rest)) {
		r.err = errShort
		return ""
	}
	out := r.rest[:n]
	r.rest = r.rest[n:]
	return Tuple(out)
}
