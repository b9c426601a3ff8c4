package migration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/migration/stream"
)

// ReceiveTask is the wake-up call for one run of a lane's receiver.
type ReceiveTask struct {
	Database string `json:"database" maxLength:"63"`
	Lane     int    `json:"lane" minimum:"1"`
	Step     int64  `json:"step"` // with database and lane, the task's name
}

// handOver is how long before its end a receiver has the next one called: it waits for the
// slot, so that between two runs nobody waits for changes.
const handOver = 500 * time.Millisecond

// Receive receives a lane's changes for a bounded time. It may be called at any time, any
// number of times: only one receives, and of the calls for one step only the first has the next
// one called.
func (m *Mover) Receive(ctx context.Context, t ReceiveTask) (stream.Received, error) {
	lane := stream.Lane{Database: t.Database, Number: t.Lane}
	control, err := m.control(ctx)
	if err != nil {
		return stream.Received{}, err
	}
	var open bool
	err = control.QueryRow(ctx, `UPDATE control.lane SET step = step + 1 WHERE database_name = $1 AND number = $2 AND step = $3 RETURNING open`,
		t.Database, t.Lane, t.Step).Scan(&open)
	if errors.Is(err, pgx.ErrNoRows) {
		return stream.Received{}, nil // another call has this step, or it is an old one
	}
	if err != nil {
		return stream.Received{}, fmt.Errorf("migration: receive lane %d of %s: %w", t.Lane, t.Database, err)
	}
	if open {
		next := ReceiveTask{Database: t.Database, Lane: t.Lane, Step: t.Step + 1}
		if err := m.enqueueReceive(ctx, next, m.now().Add(m.cfg.Stream.Budget-handOver)); err != nil {
			return stream.Received{}, err // delivered again, the step is no longer this one: the sweep goes on
		}
	}
	return stream.NewReceiver(m.dbs, m.cfg.Stream, m.crash).Rests(m.receiverRests).Receive(ctx, lane)
}

// restCopying is how long tenants that are copied can do without their changes, which are applied afterwards.
const restCopying = 2 * time.Second

// receiverRests is how long the receiver of a lane may rest: not at all when a tenant catches up or waits behind its fence.
func (m *Mover) receiverRests(ctx context.Context, l stream.Lane) (time.Duration, error) {
	control, err := m.control(ctx)
	if err != nil {
		return 0, err
	}
	var waits, follows bool
	err = control.QueryRow(ctx, `SELECT coalesce(bool_or(m.state NOT IN ('planned', 'copying', 'following')), false), coalesce(bool_or(m.state = 'following'), false)
		FROM control.streamed s JOIN control.move m ON m.run_id = s.run_id AND m.tenant_id = s.tenant_id WHERE s.database_name = $1 AND s.number = $2`,
		l.Database, l.Number).Scan(&waits, &follows)
	switch {
	case err != nil:
		return 0, fmt.Errorf("migration: who waits for lane %d of %s: %w", l.Number, l.Database, err)
	case waits:
		return 0, nil
	case follows:
		return m.cfg.Stream.Rest, nil
	}
	return restCopying, nil
}

func (m *Mover) enqueueReceive(ctx context.Context, t ReceiveTask, after time.Time) error {
	body, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return m.queue.EnqueueReceive(ctx, fmt.Sprintf("%d-lane-%d-%x", t.Step, t.Lane, t.Database), body, after)
}

// wakeReceiver has a lane's receiver called if none is at work and none was called lately.
func (m *Mover) wakeReceiver(ctx context.Context, l stream.Lane) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	t := ReceiveTask{Database: l.Database, Lane: l.Number}
	err = control.QueryRow(ctx, `UPDATE control.lane SET step = step + 1, woken_at = clock_timestamp() WHERE database_name = $1 AND number = $2 AND open
		AND coalesce(heard_at, '-infinity') < clock_timestamp() - $3::interval AND coalesce(woken_at, '-infinity') < clock_timestamp() - $3::interval RETURNING step`,
		l.Database, l.Number, wakePatience).Scan(&t.Step)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("migration: wake the receiver of lane %d of %s: %w", l.Number, l.Database, err)
	}
	return m.enqueueReceive(ctx, t, time.Time{})
}

// wakePatience is how long nobody may have been heard of a receiver, and how long a task that was
// enqueued may take to come.
const wakePatience = 3 * time.Second

// sweepLanes does for the change stream what a crash has left undone: lanes that nobody
// receives, tenants that have left it but are still in it, slots that nobody reads any more.
func (m *Mover) sweepLanes(ctx context.Context) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	rows, err := control.Query(ctx, `SELECT database_name, number FROM control.lane WHERE open`)
	if err != nil {
		return err
	}
	lanes, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l stream.Lane, err error) { return l, row.Scan(&l.Database, &l.Number) })
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range lanes {
		_, err := stream.Check(ctx, m.dbs, l, m.cfg.Stream.MaxRetained)
		errs = append(errs, err, m.wakeReceiver(ctx, l))
	}
	rows, err = control.Query(ctx, `SELECT `+moveColumns+` FROM control.streamed s JOIN control.move m ON m.run_id = s.run_id AND m.tenant_id = s.tenant_id
		JOIN control.tenant t ON t.id = m.tenant_id WHERE m.state NOT IN `+openStates+` AND NOT m.purge_due AND m.updated_at < clock_timestamp() - interval '2 seconds' LIMIT 1000`)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	left, err := pgx.CollectRows(rows, scanMove)
	errs = append(errs, err)
	for _, v := range left {
		errs = append(errs, m.leaveStream(ctx, v))
	}
	// A receiver that knew a tenant for a moment longer may have spooled what it had written before it left.
	for _, table := range []string{"pack", "unproven"} {
		_, err := control.Exec(ctx, `DELETE FROM control.`+table+` p WHERE NOT EXISTS (SELECT FROM control.streamed s WHERE s.tenant_id = p.tenant_id)`)
		errs = append(errs, err)
	}
	return errors.Join(append(errs, stream.DropDue(ctx, m.dbs))...)
}
