package migration

import (
	"context"
	"fmt"
	"sync"

	"github.com/coditect/platform/shared/migration/convert"
)

// visibility tells which changes of a table the copy has seen.
type visibility struct {
	o      *onlineMove
	t      convert.Table
	chunks []chunk
	order  keyOrder
	all    int64            // transactions before it are seen by every chunk
	none   int64            // and from this one on by no chunk
	of     map[string]int64 // chunk by key, of the changes that are looked at
}

// visibilities are those of a tenant's tables, each made when it is asked for.
type visibilities struct {
	mu      sync.Mutex
	byTable map[string]*visibility
}

func (o *onlineMove) visibilityOf(ctx context.Context, t convert.Table) (*visibility, error) {
	o.visible.mu.Lock()
	defer o.visible.mu.Unlock()
	if g := o.visible.byTable[t.Name]; g != nil {
		return g, nil
	}
	chunks, err := o.chunksOf(ctx, t)
	if err != nil {
		return nil, err
	}
	if len(chunks) == 0 || chunks[len(chunks)-1].upto != nil {
		return nil, fmt.Errorf("migration: table %s of %s is not wholly copied", t.Name, o.v.Tenant)
	}
	order, err := o.orderOf(ctx, t)
	if err != nil {
		return nil, err
	}
	g := &visibility{o: o, t: t, chunks: chunks, order: order, all: chunks[0].snapshot.xmin, of: map[string]int64{}}
	for _, c := range chunks {
		g.all, g.none = min(g.all, c.snapshot.xmin), max(g.none, c.snapshot.xmax)
	}
	if o.visible.byTable == nil {
		o.visible.byTable = map[string]*visibility{}
	}
	o.visible.byTable[t.Name] = g
	return g, nil
}

// asks reports whether it depends on the key what the copy has seen of a transaction.
func (g *visibility) asks(xid int64) bool { return len(g.chunks) > 1 && g.all <= xid && xid < g.none }

// learn finds the chunks of the keys of changes for which they count: a database compares, for it knows the
// order. These are only changes by transactions that ran while the table was copied.
func (g *visibility) learn(ctx context.Context, changes []rowChange) error {
	clear(g.of)
	var keys [][]string
	for _, c := range changes {
		for _, key := range [][]string{c.before, c.after} {
			if key == nil || !g.asks(c.xid) {
				continue
			}
			if _, known := g.of[joinKey(key)]; !known {
				g.of[joinKey(key)] = 0
				keys = append(keys, key)
			}
		}
	}
	if len(keys) == 0 {
		return nil
	}
	ends := make([][]string, len(g.chunks)-1)
	for i := range ends {
		ends[i] = g.chunks[i].upto
	}
	numbers, err := g.order.places(ctx, ends, keys)
	if err != nil {
		return fmt.Errorf("migration: chunks of the keys of table %s: %w", g.t.Name, err)
	}
	for i, key := range keys {
		g.of[joinKey(key)] = numbers[i]
	}
	return nil
}

// seen reports whether the copy of a key that was learnt has seen a transaction. Never by positions in the
// WAL: a commit is streamed before snapshots see it.
func (g *visibility) seen(xid int64, key []string) bool {
	switch {
	case xid < g.all:
		return true
	case xid >= g.none:
		return false
	case len(g.chunks) == 1:
		return g.chunks[0].snapshot.sees(xid)
	}
	return g.chunks[g.of[joinKey(key)]].snapshot.sees(xid)
}
