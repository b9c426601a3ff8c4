package migration

import (
	"context"
	"hash/fnv"

	"github.com/coditect/platform/shared/migration/stream"
)

// backlog is what is known of the changes that are in the spool and not applied yet: of which rows they
// are. To compare one of these before would be in vain.
type backlog struct {
	upto watermark
	last map[rowID]watermark // the last pack with a change of a row
}

// rowID is a hash of table and key.
type rowID [16]byte

func rowIDOf(table string, key []string) (id rowID) {
	h := fnv.New128a()
	_, _ = h.Write([]byte(table))
	for _, k := range key {
		_, _ = h.Write([]byte{0})
		_, _ = h.Write([]byte(k))
	}
	h.Sum(id[:0])
	return id
}

// changedAfter reports whether a row is known to be changed after a place.
func (b *backlog) changedAfter(at watermark, table string, key []string) bool {
	if b == nil {
		return false
	}
	id := rowIDOf(table, key)
	last, known := b.last[id]
	if known && !last.after(at) {
		delete(b.last, id)
	}
	return known && last.after(at)
}

func (w watermark) after(other watermark) bool {
	return w.lsn > other.lsn || w.lsn == other.lsn && w.seq > other.seq
}

// Bounds of the backlog. One that is longer is not known, and nothing is compared before it is shorter; unless
// spoolLarge: then rows are compared although they may be changed again.
const (
	backlogRows  = 200_000
	backlogBytes = 256 << 20
	aheadAtOnce  = 64 << 20 // bytes in one round
	spoolLarge   = 2_000_000
)

// lookAhead learns which rows the changes are about that are to be applied after a batch. False: it does not know
// all of them yet, for there are too many, or they are not in the spool.
func (o *onlineMove) lookAhead(ctx context.Context, control querier, upto watermark, meanwhile batch, size spoolSize) (bool, error) {
	if meanwhile.lags || o.ahead == nil && (size.changes > 2*backlogRows || size.bytes > backlogBytes) {
		o.ahead = nil
		return false, nil
	}
	if o.ahead == nil {
		o.ahead = &backlog{upto: upto, last: map[rowID]watermark{}}
	}
	b, read := o.ahead, 0
	for {
		// All that is there: also of a transaction that is not whole yet.
		packs, err := o.readPacks(ctx, control, `(lsn, seq) > ($2, $3)`, compareAtOnce, b.upto.lsn, b.upto.seq)
		if err != nil {
			return false, err
		}
		var r rowReader
		for _, k := range packs {
			changes, err := stream.Unpack(k.data)
			if err != nil {
				return false, err
			}
			for _, c := range changes {
				if c.Op == stream.Fence || c.Op == stream.Truncate {
					continue
				}
				f, err := o.fitOf(ctx, c.Shape)
				if err != nil {
					return false, err
				}
				before, after, err := r.keys(f, c)
				if err != nil {
					return false, err
				}
				for _, key := range [][]string{before, after} {
					if key != nil {
						b.last[rowIDOf(f.table.Name, key)] = k.watermark
					}
				}
			}
			b.upto = k.watermark
			read += k.bytes
		}
		switch {
		case len(packs) == 0:
			return true, nil
		case len(b.last) > 2*backlogRows:
			o.ahead = nil
			return false, nil
		case read >= aheadAtOnce || o.stop():
			return false, nil
		}
	}
}
