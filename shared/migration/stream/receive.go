package stream

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/convert"
)

// Received is what one run of the receiver has done.
type Received struct {
	Changes      int64 `json:"changes"`
	Transactions int64 `json:"transactions"`
	Closed       bool  `json:"closed"` // the lane has no tenants and no slot: there is nothing to receive
}

// Receiver spools the changes of lanes. Safe for concurrent use; of two that receive one
// lane, one waits for the other.
type Receiver struct {
	dbs   *citus.Databases // of the migrator's role
	cfg   Config
	crash func(point string)
	rests func(context.Context, Lane) (time.Duration, error)
}

// NewReceiver returns a receiver. crash, which may be nil, is called at each named point right after
// an effect has become durable: tests end the process there. From now on commits over dbs are
// durable: blue throws away what it is told is spooled.
func NewReceiver(dbs *citus.Databases, cfg Config, crash func(point string)) *Receiver {
	if crash == nil {
		crash = func(string) {}
	}
	dbs.ForMoves()
	return &Receiver{dbs: dbs, cfg: cfg.WithDefaults(), crash: crash, rests: func(context.Context, Lane) (time.Duration, error) { return 0, nil }}
}

// errTaken: another receiver has moved the lane's position, or the lane was given up. Whoever
// finds that stops without an error to anyone.
var errTaken = errors.New("stream: another receiver owns the lane")

// Receive spools a lane's changes until the budget is used up, ctx ends, or the lane has no
// tenants any more. It returns without an error when another receiver has taken over. Called
// again it goes on where the last one, however it ended, has committed.
func (r *Receiver) Receive(ctx context.Context, l Lane) (Received, error) {
	var out Received
	if _, err := Check(ctx, r.dbs, l, r.cfg.MaxRetained); err != nil {
		return out, err
	}
	closed, err := Close(ctx, r.dbs, l)
	if err != nil || closed {
		out.Closed = closed
		return out, err
	}
	until := time.Now().Add(r.cfg.Budget)
	for long := false; err == nil; {
		s := &session{r: r, lane: l, until: until, long: long, out: &out, waiting: semaphore.NewWeighted(waitingBytes)}
		err = s.run(ctx)
		if s.aimed.IsZero() || !time.Now().Before(until) {
			break
		}
		// One that takes long would take blue more than going on does: a transaction may be open for long, and what it
		// has written is decoded again each time.
		if long = time.Since(s.aimed) > longBurst; err == nil && !long {
			err = s.rest(ctx)
		}
	}
	if errors.Is(err, errTaken) {
		err = nil
	}
	return out, err
}

// session is one run over one connection to the slot.
type session struct {
	r         *Receiver
	lane      Lane
	until     time.Time
	long      bool         // a burst before it was: no more of them
	aimed     time.Time    // it ends with what blue had written by then,
	target    atomic.Int64 // which is up to here
	seen      int64        // what the reader has handed on is whole up to here
	out       *Received
	at        Position
	confirmed atomic.Uint64 // committed in the spool: may be told to blue
	ended     atomic.Bool
	waiting   *semaphore.Weighted // bytes of changes between reader and writer
	idle      *idle               // the reader's last, if nothing was sent since
}

// run connects a reader of the slot with a writer of the spool.
func (s *session) run(ctx context.Context) error {
	control, err := s.r.dbs.Control(ctx)
	if err != nil {
		return err
	}
	if s.at, err = PositionOf(ctx, control, s.lane); err != nil {
		return err
	}
	blue, err := s.r.dbs.Pool(ctx, s.lane.Database)
	if err != nil {
		return err
	}
	var xid int64
	if err := blue.QueryRow(ctx, `SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint`).Scan(&xid); err != nil {
		return fmt.Errorf("stream: transaction ids of %s: %w", s.lane.Database, err)
	}
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	}()
	// Somebody else may have received until a moment ago: what counts is the position now that the slot is ours.
	if s.at, err = PositionOf(ctx, control, s.lane); err != nil {
		return err
	}
	if err := s.start(ctx, conn); err != nil {
		return err
	}
	if err := s.aim(ctx, blue); err != nil {
		return err
	}
	if _, err := control.Exec(ctx, `UPDATE control.lane SET run_until = $4, heard_at = clock_timestamp() WHERE database_name = $1 AND number = $2 AND slot = $3`,
		s.lane.Database, s.lane.Number, s.at.Slot, s.until); err != nil {
		return err
	}
	s.confirmed.Store(uint64(s.at.Spooled))
	events := make(chan event, 4096)
	g, during := errgroup.WithContext(ctx)
	ended, end := context.WithCancel(during)
	g.Go(func() error { s.finish(ended, blue); return nil })
	g.Go(func() error {
		defer close(events)
		return s.read(during, conn, newDecoder(xid), events)
	})
	g.Go(func() error {
		defer end()
		defer s.ended.Store(true)
		w := &writer{session: s, control: control}
		return w.write(during, events)
	})
	err = g.Wait()
	// What was spooled last, too. It is sent again if this is lost.
	_ = s.report(ctx, conn)
	return err
}

// connect opens a walsender whose values have the canonical text.
func (s *session) connect(ctx context.Context) (*pgconn.PgConn, error) {
	// As the pools read it: what is meant for them must not be sent to blue.
	parsed, err := pgxpool.ParseConfig(s.r.dbs.DSN(s.lane.Database))
	if err != nil {
		return nil, fmt.Errorf("stream: connection string of %s: %w", s.lane.Database, err)
	}
	cfg := &parsed.ConnConfig.Config
	cfg.ConnectTimeout = 5 * time.Second
	cfg.RuntimeParams["replication"] = "database"
	cfg.RuntimeParams["application_name"] = s.at.Slot
	for name, value := range convert.CanonicalSettings() {
		cfg.RuntimeParams[name] = value
	}
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("stream: replication connection to %s: %w", s.lane.Database, err)
	}
	return conn, nil
}

// start begins to stream. While another receiver holds the slot it waits for it, up to the
// end of its own budget.
func (s *session) start(ctx context.Context, conn *pgconn.PgConn) error {
	for {
		err := pglogrepl.StartReplication(ctx, conn, s.at.Slot, pglogrepl.LSN(uint64(s.at.Spooled)), pglogrepl.StartReplicationOptions{
			Mode:       pglogrepl.LogicalReplication,
			PluginArgs: []string{"proto_version '1'", "messages 'true'", "publication_names '" + s.at.Slot + "'"},
		})
		if citus.StateOf(err) != objectInUse {
			if err != nil {
				return fmt.Errorf("stream: read slot %s: %w", s.at.Slot, err)
			}
			return nil
		}
		if time.Now().After(s.until) {
			return fault.Wrap(err, fault.Unavailable, "lane_busy", "another receiver is at work on lane %d of %s", s.lane.Number, s.lane.Database)
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return err
		}
		control, err := s.r.dbs.Control(ctx)
		if err != nil {
			return err
		}
		slot := s.at.Slot
		if s.at, err = PositionOf(ctx, control, s.lane); err != nil {
			return err
		}
		if s.at.Slot != slot {
			return errTaken
		}
	}
}

// waitingBytes of changes may wait for the writer, or one that is larger.
const waitingBytes = 16 << 20

func (c *change) waits() int64 { return min(int64(c.size()), waitingBytes) }

// event is what the reader hands to the writer.
type event struct {
	change  *change   // one change, or
	changes []*change // several, or
	commit  int64     // the end of their transaction, or
	idle    *idle     // a position before which there is nothing else, or nothing
	urgent  bool      // somebody waits for the transaction
	end     int64     // of blue's WAL, as of the message
	when    time.Time
}

// idle is a position that the reader moves on until the writer takes it, or something else is sent behind it.
type idle struct{ at atomic.Int64 }

const taken = -1

// moveOn reports whether the position could be moved on.
func (i *idle) moveOn(to int64) bool {
	if i == nil {
		return false
	}
	was := i.at.Load()
	return was != taken && i.at.CompareAndSwap(was, max(was, to))
}

// read hands on what blue sends until the budget is used up, and confirms what is spooled.
func (s *session) read(ctx context.Context, conn *pgconn.PgConn, d *decoder, events chan<- event) error {
	status, heard := time.Now(), time.Now()
	var reported uint64
	receive, end := receiver(ctx, conn)
	defer end()
	woke := time.Now()
	for !s.ended.Load() && !s.reached(d) && (time.Now().Before(s.until) || d.open && time.Since(heard) < silence) {
		msg, err := receive()
		if ctx.Err() != nil {
			err = ctx.Err()
		} else if pgconn.Timeout(err) {
			err = nil
		}
		if err != nil {
			return fmt.Errorf("stream: read slot %s: %w", s.at.Slot, err)
		}
		asked, quiet := false, false
		switch m := msg.(type) {
		case nil:
		case *pgproto3.ErrorResponse:
			return fmt.Errorf("stream: read slot %s: %w", s.at.Slot, pgconn.ErrorResponseToPgError(m))
		case *pgproto3.CopyData:
			quiet = m.Data[0] == pglogrepl.PrimaryKeepaliveMessageByteID && !d.open
			if asked, err = s.message(ctx, m.Data, d, events); err != nil {
				return err
			}
			heard = time.Now()
		}
		// What is encrypted comes message by message: that nothing more was read does not mean that there is nothing.
		if quiet && !asked && conn.Frontend().ReadBufferLen() == 0 && time.Since(woke) > napFor/10 {
			if err := pause(ctx, napFor); err != nil {
				return fmt.Errorf("stream: read slot %s: %w", s.at.Slot, err)
			}
			woke = time.Now()
		}
		if since := time.Since(status); asked || since > sameEvery || since > statusEvery && s.confirmed.Load() != reported {
			status, reported = time.Now(), s.confirmed.Load()
			if err := s.report(ctx, conn); err != nil {
				return fmt.Errorf("stream: confirm slot %s: %w", s.at.Slot, err)
			}
		}
	}
	return nil
}

// report tells blue what is spooled.
func (s *session) report(ctx context.Context, conn *pgconn.PgConn) error {
	at := pglogrepl.LSN(s.confirmed.Load())
	return pglogrepl.SendStandbyStatusUpdate(ctx, conn, pglogrepl.StandbyStatusUpdate{WALWritePosition: at, WALFlushPosition: at, WALApplyPosition: at})
}

// receiver returns a function that waits for blue's next message, for about statusEvery at most, and no
// longer than ctx. A context for each message would cost more than reading it.
func receiver(ctx context.Context, conn *pgconn.PgConn) (receive func() (pgproto3.BackendMessage, error), end func()) {
	past := time.Unix(1, 0)
	stop := context.AfterFunc(ctx, func() { _ = conn.Conn().SetReadDeadline(past) })
	var until time.Time
	receive = func() (pgproto3.BackendMessage, error) {
		if now := time.Now(); until.Sub(now) < statusEvery/2 {
			until = now.Add(statusEvery)
			_ = conn.Conn().SetReadDeadline(until)
			if ctx.Err() != nil { // or else what ended it sets the deadline afterwards
				_ = conn.Conn().SetReadDeadline(past)
			}
		}
		return conn.ReceiveMessage(context.Background())
	}
	end = func() {
		stop()
		_ = conn.Conn().SetReadDeadline(time.Time{})
	}
	return receive, end
}

// napFor is how long the reader looks away after a message that only says how far blue is. Blue sends one after each
// commit that is not ours, thousands a second: to wake up for each took as much time as they took to decode. After a nap
// those that have come meanwhile are read at once.
const napFor = 10 * time.Millisecond

// statusEvery is how often blue hears what is spooled, and sameEvery, how often it hears what it knows. TCP puts off asking
// whether the receiver's window is open again whenever it hears of it, for 200 ms at least: told more often than that, a
// blue whose next segment did not fit into the window (loopback's are as large as a window at first) never sent again.
const (
	statusEvery = 200 * time.Millisecond
	sameEvery   = time.Second
)

// silence is how long a receiver whose time is over waits for more of an open transaction. The next one reads it anew.
const silence = 5 * time.Second

// message handles one message of the walsender; it reports whether an answer is asked for.
func (s *session) message(ctx context.Context, data []byte, d *decoder, events chan<- event) (asked bool, err error) {
	send := func(e event) error {
		if e.change != nil {
			if err := s.waiting.Acquire(ctx, e.change.waits()); err != nil {
				return err
			}
		}
		select {
		case events <- e:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	switch data[0] {
	case pglogrepl.PrimaryKeepaliveMessageByteID:
		k, err := pglogrepl.ParsePrimaryKeepaliveMessage(data[1:])
		if err != nil {
			return false, fmt.Errorf("stream: keepalive: %w", err)
		}
		if at := int64(k.ServerWALEnd); !d.open {
			s.seen = max(s.seen, at)
			if !s.idle.moveOn(at) {
				s.idle = &idle{}
				s.idle.at.Store(at)
				err = send(event{idle: s.idle})
			}
		}
		return k.ReplyRequested, err
	case pglogrepl.XLogDataByteID:
		x, err := pglogrepl.ParseXLogData(data[1:])
		if err != nil {
			return false, fmt.Errorf("stream: data: %w", err)
		}
		e, err := d.decode(x.WALData)
		if err != nil {
			return false, err
		}
		if e.change == nil && e.changes == nil && e.commit == 0 && !e.urgent {
			return false, nil
		}
		e.end = int64(x.ServerWALEnd)
		s.idle, s.seen = nil, max(s.seen, e.commit) // it is before this
		return false, send(e)
	}
	return false, nil
}
