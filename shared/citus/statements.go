package citus

import (
	"container/list"
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// statements are those prepared on one connection, the most recently used first.
// pgx would prepare by itself, but before the transaction begins, when no
// search_path is set and no name can be found.
//
// Where every tenant has a schema of its own, one prepared statement serves them
// all, but PostgreSQL plans it anew whenever the search_path differs from that of
// the use before: two to three times the work of a short statement. So a schema
// that keeps using a statement gets one of its own, whose plan stays valid. That
// takes two round trips once; hence only after dedicateAfter uses that were planned
// anew. Nothing depends on it but speed: PostgreSQL compares the search_path itself.
type statements struct {
	byKey    map[statementKey]*list.Element // of *statement
	recent   *list.List
	replans  map[statementKey]int // how often a schema's use of a shared statement was planned anew
	turn     uint64               // counts sendings; what one needs is not evicted for it
	lastName int
}

type statementKey struct{ schema, sql string } // schema "": shared by all tenants

type statement struct {
	key      statementKey
	name     string // under which pgx knows it
	turn     uint64 // of the last use
	lastUsed string // schema of the last use of a shared one
}

// dedicateAfter: with one more use a statement is prepared for its schema. It bounds
// what is lost when more are in use than may be prepared: one preparation in so many
// uses.
const dedicateAfter = 2

const statementsKey = "coditect statements"

func statementsOf(conn *pgx.Conn) *statements {
	data := conn.PgConn().CustomData()
	if s, ok := data[statementsKey].(*statements); ok {
		return s
	}
	s := &statements{}
	s.clear()
	data[statementsKey] = s
	return s
}

func (s *statements) clear() {
	s.byKey = map[statementKey]*list.Element{}
	s.recent = list.New()
	s.replans = map[statementKey]int{}
}

// name returns the name to send a statement under, and prepares it where it is not. Where
// nothing is to be prepared, for a pooler hands each transaction to another connection of the
// server, that is the statement itself.
func (s *statements) name(ctx context.Context, tx *Tx, sql string) (string, error) {
	if tx.at.pool.unprepared {
		return sql, nil
	}
	key := statementKey{tx.at.schema, sql}
	if known := s.use(key); known != nil {
		return known.name, nil
	}
	shared := statementKey{sql: sql}
	known := s.use(shared)
	if known == nil {
		var err error
		if known, err = s.prepare(ctx, tx, shared, sql); err != nil {
			return "", err
		}
		known.lastUsed = key.schema
	}
	if known.lastUsed == key.schema {
		return known.name, nil
	}
	if s.replans[key] < dedicateAfter {
		if len(s.replans) >= tx.door.dbs.cfg.StatementCache {
			clear(s.replans)
		}
		s.replans[key]++
		known.lastUsed = key.schema
		return known.name, nil
	}
	s.lastName++
	known, err := s.prepare(ctx, tx, key, "own_"+strconv.Itoa(s.lastName))
	if err != nil {
		return "", err
	}
	delete(s.replans, key)
	return known.name, nil
}

func (s *statements) use(key statementKey) *statement {
	e := s.byKey[key]
	if e == nil {
		return nil
	}
	s.recent.MoveToFront(e)
	known := e.Value.(*statement)
	known.turn = s.turn
	return known
}

// prepare prepares a statement under a name, entering the tenant first where it is
// not. Others go for it once there are Config.StatementCache.
func (s *statements) prepare(ctx context.Context, tx *Tx, key statementKey, name string) (*statement, error) {
	if !tx.begun {
		begin, enter := pgx.QueuedQuery{SQL: tx.begin()}, tx.enter()
		pb := &pgx.Batch{QueuedQueries: []*pgx.QueuedQuery{&begin, &enter}}
		tx.begun = true
		if err := tx.conn.SendBatch(ctx, pb).Close(); err != nil {
			return nil, err
		}
	}
	for len(s.byKey) >= tx.door.dbs.cfg.StatementCache {
		oldest := s.recent.Back().Value.(*statement)
		if oldest.turn == s.turn {
			break // all are needed now
		}
		if err := tx.conn.Deallocate(ctx, oldest.name); err != nil {
			return nil, fmt.Errorf("citus: forget a prepared statement: %w", err)
		}
		s.recent.Remove(s.byKey[oldest.key])
		delete(s.byKey, oldest.key)
	}
	if _, err := tx.conn.Prepare(ctx, name, key.sql); err != nil {
		return nil, err
	}
	known := &statement{key: key, name: name, turn: s.turn}
	s.byKey[key] = s.recent.PushFront(known)
	return known, nil
}

// forgetIfStale drops a connection's prepared statements after an error that says
// that they no longer fit: a table got another shape, or a pooler lost them.
func forgetIfStale(ctx context.Context, conn *pgx.Conn, err error) {
	if !isStalePlan(err) || conn.IsClosed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.DeallocateAll(ctx)
	statementsOf(conn).clear()
}
