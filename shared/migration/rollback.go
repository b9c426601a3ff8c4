package migration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

// Rollback brings a green tenant back to the blue schema that it came from, with everything
// that was written in green. It is the cutover mirrored: bring over what was written; compare;
// shut green's gate, which drains its writers; bring over the rest; prove that both sides are
// the same; sequences; flip; open blue. Its writers wait from the gate on, for as long as the
// rest takes.
//
// Until the flip any failure opens green again. The request stands until it is done or turns
// out to be impossible: what a crash, a busy tenant or a lost connection has cut short is taken
// up by [Mover.Sweep], and the error is a fault of kind Unavailable, code "rollback_under_way".
// So is a comparison that takes longer than a step may: the next one goes on where it stands. A tenant that cannot go back stays in green, and the error says why.
func (m *Mover) Rollback(ctx context.Context, id uuid.UUID, who tenant.ID, actor string) error {
	v, err := m.move(ctx, id, who)
	if err != nil {
		return err
	}
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	tag, err := control.Exec(ctx, `UPDATE control.move SET back_by = coalesce(back_by, $3), back_attempts = 0, error = NULL, updated_at = clock_timestamp()
		WHERE run_id = $1 AND tenant_id = $2 AND state IN ('green', 'fenced_back')`, id, who, actor)
	if err != nil {
		return err
	}
	if tag.RowsAffected() == 0 {
		if back, err := m.wasRolledBack(ctx, id, who); back || err != nil {
			return err // asked for twice
		}
		return notGreen(v.State)
	}
	m.crash("rollback recorded")
	return m.rollBack(ctx, id, who)
}

// wasRolledBack tells a move that came back from one that never was in green.
func (m *Mover) wasRolledBack(ctx context.Context, id uuid.UUID, who tenant.ID) (back bool, err error) {
	control, err := m.control(ctx)
	if err != nil {
		return false, err
	}
	err = control.QueryRow(ctx, `SELECT state = 'blue' AND blue_schema IS NOT NULL FROM control.move WHERE run_id = $1 AND tenant_id = $2`, id, who).Scan(&back)
	return back, err
}

// rollBack takes a recorded request as far as it gets.
func (m *Mover) rollBack(ctx context.Context, id uuid.UUID, who tenant.ID) error {
	w, err := m.wayBack(ctx, id, who)
	if err != nil {
		return m.cannotBegin(ctx, id, who, err)
	}
	if w.State != Green && w.State != FencedBack {
		return nil
	}
	err = m.claimBack(ctx, w)
	if err == nil {
		err = m.bringBack(ctx, w)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errOutdated):
		return underWay(nil)
	case errors.Is(err, errBudget):
		return underWay(m.pauseBack(ctx, w))
	}
	if again := m.goOn(ctx, w); again != nil {
		return underWay(errors.Join(err, again)) // the sweep opens green
	}
	if isTenantsFault(err) || w.tries >= m.cfg.MaxAttempts {
		return errors.Join(m.stayGreen(ctx, w.Move, err), err)
	}
	if noteErr := m.setError(ctx, w.Move, messageOf(err)); noteErr != nil {
		err = errors.Join(err, noteErr)
	}
	return underWay(err)
}

// pauseBack lets the next step begin at once: this one got further.
func (m *Mover) pauseBack(ctx context.Context, w *wayBack) error {
	return ignoreOutdated(m.claimed(ctx, w, func(b *pgx.Batch) {
		b.Queue(`UPDATE control.move SET back_paused = true, back_attempts = 0, updated_at = clock_timestamp() WHERE run_id = $1 AND tenant_id = $2`, w.Run, w.Tenant)
	}))
}

// cannotBegin ends a request whose tenant's structure forbids it; any other error is tried again.
func (m *Mover) cannotBegin(ctx context.Context, id uuid.UUID, who tenant.ID, why error) error {
	v, err := m.move(ctx, id, who)
	if err != nil || !isTenantsFault(why) || v.State != Green && v.State != FencedBack {
		return why
	}
	w := &wayBack{Move: v}
	if err := m.claimBack(ctx, w); err != nil { // a crash may have left green shut
		return errors.Join(why, err)
	}
	return errors.Join(m.stayGreen(ctx, w.Move, why), why)
}

func underWay(err error) error {
	f := fault.New(fault.Unavailable, "rollback_under_way", "the tenant is on its way back; what was begun is finished by itself")
	if err != nil {
		f = fault.Wrap(err, fault.Unavailable, "rollback_under_way", "the tenant could not go back yet and stays in green until it is tried again: %s", messageOf(err))
	}
	f.RetryAfter = 5 * time.Second
	return f
}

// claimBack takes the move from whoever is at work on its way back, by a new token. One that
// was left fenced is opened first: its writers have waited long enough.
func (m *Mover) claimBack(ctx context.Context, w *wayBack) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	err = m.impatient(ctx, control, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, `UPDATE control.move SET token = nextval('control.move_token'), back_attempts = back_attempts + 1, back_paused = false, updated_at = clock_timestamp()
			WHERE run_id = $1 AND tenant_id = $2 AND token = $3 AND state = $4 RETURNING token, back_attempts`, w.Run, w.Tenant, w.Token, string(w.State)).Scan(&w.Token, &w.tries)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return errOutdated
	}
	if err != nil {
		return err
	}
	m.crash("rollback claimed")
	return m.goOn(ctx, w)
}

// goOn lets the tenant write in green: first the state, then the gate, for a flip whose answer
// was lost may have been made, and then this must not open green.
func (m *Mover) goOn(ctx context.Context, w *wayBack) error {
	ctx = context.WithoutCancel(ctx) // a caller that has gone away must not leave the tenant fenced
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := m.advanceBack(ctx, w, Green, `fenced_at = NULL`); err != nil {
		return err
	}
	m.crash("green again")
	return m.openGate(ctx, w.Move)
}

// advanceBack changes the state of a move on its way back, unless somebody else has claimed it.
func (m *Mover) advanceBack(ctx context.Context, w *wayBack, to State, set string) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	tag, err := control.Exec(ctx, `UPDATE control.move SET state = $4, `+set+`, updated_at = clock_timestamp()
		WHERE run_id = $1 AND tenant_id = $2 AND token = $3 AND state IN ('green', 'fenced_back')`, w.Run, w.Tenant, w.Token, string(to))
	if err := oneEach(tag.RowsAffected(), 1, err); err != nil {
		return err
	}
	w.State = to
	return nil
}

// stayGreen ends a request that cannot be fulfilled.
func (m *Mover) stayGreen(ctx context.Context, v Move, why error) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, control, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `UPDATE control.move SET back_by = NULL, error = $4, updated_at = clock_timestamp()
			WHERE run_id = $1 AND tenant_id = $2 AND token = $3 AND state = 'green'`, v.Run, v.Tenant, v.Token, "it cannot go back: "+messageOf(why))
		if err := oneEach(tag.RowsAffected(), 1, err); err != nil {
			return ignoreOutdated(err)
		}
		b := &pgx.Batch{}
		queueForget(b, v)
		if err := tx.SendBatch(ctx, b).Close(); err != nil {
			return err
		}
		return note(ctx, tx, v.Run, &v.Tenant, "mover", "rollback given up", map[string]any{"why": messageOf(why)})
	})
}

// fewChanges is how many changes may be left when green's gate is shut.
const fewChanges = 200

// bringBack does all of a rollback, from an open green to an open blue, or as much of the comparison as
// a step has time for.
func (m *Mover) bringBack(ctx context.Context, w *wayBack) error {
	w.until = m.now().Add(m.cfg.StepBudget)
	asleep := m.stayAwake(ctx, w)
	defer asleep()
	if err := m.enterBlue(ctx, w); err != nil {
		return err
	}
	m.crash("blue entered")
	touched, err := m.resume(ctx, w)
	if err != nil {
		return err
	}
	since := touched
	if len(w.compared) == 0 {
		since = nil // what comes over before the comparison begins is compared by it
	}
	for {
		n, all, err := m.pass(ctx, w, since)
		if err != nil {
			return err
		}
		if all && n <= fewChanges {
			break
		}
		if m.now().After(w.until) {
			return errBudget
		}
	}
	if err := m.compareBack(ctx, w, touched); err != nil {
		return err
	}
	m.crash("compared")
	if err := m.settleBack(ctx, w, touched); err != nil {
		return err
	}
	shut := m.now()
	if err := m.fenceBack(ctx, w, touched); err != nil {
		return err
	}
	asleep() // what is left is the sweep's, too
	m.crash("flipped back")
	// From here on a failure is left to the sweep: the tenant lives in blue.
	if err := m.openBlue(ctx, w.Move); err != nil {
		return err
	}
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	if _, err := control.Exec(ctx, `UPDATE control.move SET back_pause_us = $4 WHERE run_id = $1 AND tenant_id = $2 AND token = $3`,
		w.Run, w.Tenant, w.Token, m.now().Sub(shut).Microseconds()); err != nil {
		return err
	}
	return m.purgeUnread(ctx, w.Move)
}

// purgeUnread deletes what green has of an undone or rolled back tenant, unless it may still be read
// there: then a later sweep does. A transaction that was in green before the flip would find no
// rows with its next statement.
func (m *Mover) purgeUnread(ctx context.Context, v Move) error {
	wasThere, err := m.wasRolledBack(ctx, v.Run, v.Tenant)
	var readers []string
	if err == nil && wasThere {
		readers, err = m.inside(ctx)
	}
	for end := m.now().Add(readersPatience); err == nil && len(readers) > 0; {
		if m.now().After(end) {
			return nil
		}
		if err = m.wait(ctx, 20*time.Millisecond); err != nil {
			return err
		}
		var now []string
		now, err = m.inside(ctx)
		readers = slices.DeleteFunc(readers, func(r string) bool { return !slices.Contains(now, r) })
	}
	if err != nil {
		return err
	}
	return m.purgeTenant(ctx, v)
}

// readersPatience is how long a purge waits for transactions that are in green.
const readersPatience = 2 * time.Second

// inside lists the transactions that have entered a tenant in green. Who enters reads the gate, and
// so holds a lock on it to its end.
func (m *Mover) inside(ctx context.Context) ([]string, error) {
	control, err := m.control(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := control.Query(ctx, `SELECT DISTINCT l.virtualtransaction FROM pg_locks l JOIN pg_stat_activity a USING (pid)
		WHERE l.locktype = 'relation' AND l.relation = 'coditect.gate'::regclass AND l.granted AND a.usename <> current_user
		  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// fenceBack is what writers wait for: from the gate of green to the flip. It ends in time, and
// is not begun in what the comparison has left of it.
func (m *Mover) fenceBack(ctx context.Context, w *wayBack, touched *touchedKeys) error {
	defer m.calm.enter()()
	ctx, cancel := context.WithTimeout(ctx, max(m.cfg.StepBudget, m.cfg.CutoverPatience))
	defer cancel()
	if err := m.advanceBack(ctx, w, FencedBack, `fenced_at = clock_timestamp()`); err != nil {
		return err
	}
	m.crash("fenced back")
	if err := m.shutGate(ctx, w.Move); err != nil {
		return err
	}
	m.crash("gate shut")
	if err := m.drainGate(ctx, w.Move); err != nil {
		return err
	}
	m.crash("writers drained")
	if err := m.drainTo(ctx, w, 0, touched); err != nil {
		return err
	}
	err := both(ctx,
		func(ctx context.Context) error { return m.proveBack(ctx, w, touched) },
		func(ctx context.Context) error { return m.sequencesBack(ctx, w) })
	if err != nil {
		return err
	}
	m.crash("proven")
	return m.flipBack(ctx, w)
}

// stayAwake shows the sweep that somebody is at work, until it is ended.
func (m *Mover) stayAwake(ctx context.Context, w *wayBack) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	stopped := make(chan struct{})
	v := w.Move // its state changes meanwhile, the rest does not
	go func() {
		defer close(stopped)
		tick := time.NewTicker(m.cfg.Lease / 5)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if control, err := m.control(ctx); err == nil {
					_, _ = control.Exec(ctx, `UPDATE control.move SET updated_at = clock_timestamp() WHERE run_id = $1 AND tenant_id = $2 AND token = $3`, v.Run, v.Tenant, v.Token)
				}
			}
		}
	}()
	return func() { cancel(); <-stopped }
}

// drainTo makes passes until one finds no more than few changes, in blue when the last has ended.
func (m *Mover) drainTo(ctx context.Context, w *wayBack, few int, touched *touchedKeys) error {
	for {
		n, all, err := m.pass(ctx, w, touched)
		if err != nil || all && n <= few {
			return err
		}
	}
}

// sequencesBack moves blue's sequences past what green has given out. Green's have drawn for
// all tenants of the source: where that does not fit into blue's, the tenant's own rows count.
func (m *Mover) sequencesBack(ctx context.Context, w *wayBack) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	for _, s := range w.layout.Sequences {
		var drawn *int64
		green := quoted(w.layout.GreenSchema, s.Green)
		if err := control.QueryRow(ctx, `SELECT CASE WHEN is_called THEN last_value END FROM `+green).Scan(&drawn); err != nil {
			return fmt.Errorf("migration: read green's sequence %s: %w", s.Green, err)
		}
		if drawn == nil {
			continue
		}
		need := []int64{*drawn}
		if s.Column != "" {
			furthest := "max"
			if s.Increment < 0 {
				furthest = "min"
			}
			var used *int64
			if err := control.QueryRow(ctx, fmt.Sprintf(`SELECT %s(%s)::bigint FROM %s WHERE tenant_id = $1`, furthest, quoted(s.Column), quoted(w.layout.GreenSchema, s.Table)), w.Tenant).
				Scan(&used); err != nil {
				return fmt.Errorf("migration: read table %s of green: %w", s.Table, err)
			}
			if used != nil {
				need = append(need, *used)
			}
		}
		// The furthest of those that fit; blue's own position is never taken back.
		if _, err := w.blue.Exec(ctx, `SELECT setval(c.oid, x.v) FROM coditect.relations($1) c JOIN pg_sequence s ON s.seqrelid = c.oid
			CROSS JOIN LATERAL (SELECT CASE WHEN s.seqincrement > 0 THEN max(v) ELSE min(v) END AS v FROM unnest($3::bigint[]) v WHERE v BETWEEN s.seqmin AND s.seqmax) x
			WHERE c.relkind = 'S' AND c.relname = $2 AND x.v IS NOT NULL
			  AND (pg_sequence_last_value(c.oid) IS NULL OR (x.v - pg_sequence_last_value(c.oid)) * sign(s.seqincrement) > 0)`, w.Schema, s.Blue, need); err != nil {
			return fmt.Errorf("migration: move sequence %s: %w", s.Blue, err)
		}
	}
	return nil
}

// flipBack changes the home: the directory, the move and green's readers' gate in one commit.
func (m *Mover) flipBack(ctx context.Context, w *wayBack) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	err = pgx.BeginFunc(ctx, control, func(tx pgx.Tx) error {
		one := func(tag pgconn.CommandTag) error { return oneEach(tag.RowsAffected(), 1, nil) }
		b := &pgx.Batch{}
		// fence_up and purge_due are what a crash leaves to the sweep: blue is still fenced, green still has the rows.
		b.Queue(`UPDATE control.move SET state = 'blue', error = NULL, fence_up = true, purge_due = true, updated_at = clock_timestamp()
			WHERE run_id = $1 AND tenant_id = $2 AND token = $3 AND state = 'fenced_back'`, w.Run, w.Tenant, w.Token).Exec(one)
		b.Queue(`UPDATE control.tenant t SET home = 'blue', database_name = m.blue_database, schema_name = m.blue_schema, epoch = t.epoch + 1, updated_at = clock_timestamp()
			FROM control.move m WHERE m.run_id = $1 AND m.tenant_id = $2 AND t.id = m.tenant_id AND t.home = 'green' AND t.epoch = m.epoch + 1`, w.Run, w.Tenant).Exec(one)
		b.Queue(`UPDATE coditect.gate SET closed = true WHERE tenant_id = $1`, w.Tenant).Exec(one)
		b.Queue(`INSERT INTO control.move_event (run_id, tenant_id, actor, event) SELECT run_id, tenant_id, back_by, 'rolled back' FROM control.move WHERE run_id = $1 AND tenant_id = $2`,
			w.Run, w.Tenant)
		queueForget(b, w.Move)
		return tx.SendBatch(ctx, b).Close()
	})
	if err != nil {
		return fmt.Errorf("migration: flip back: %w", err)
	}
	w.State = Blue
	return nil
}

// openBlue lifts the fence of a tenant that lives in blue. Its gate learns what the directory
// says first: the directory's row is held meanwhile, so that a suspension comes before or after.
func (m *Mover) openBlue(ctx context.Context, v Move) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	blue, err := m.dbs.Pool(ctx, v.Database)
	if err != nil {
		return err
	}
	err = pgx.BeginFunc(ctx, control, func(tx pgx.Tx) error {
		var (
			active bool
			epoch  int64
		)
		err := tx.QueryRow(ctx, `SELECT status = 'active', epoch FROM control.tenant WHERE id = $1 AND home = 'blue' FOR SHARE`, v.Tenant).Scan(&active, &epoch)
		if errors.Is(err, pgx.ErrNoRows) {
			return errOutdated // a newer run has moved it since
		}
		if err != nil {
			return err
		}
		_, err = blue.Exec(ctx, `UPDATE coditect.gate SET suspended = $2, epoch = $3 WHERE tenant_id = $1 AND token <= $4`, v.Tenant, !active, epoch, v.Token)
		return err
	})
	if err != nil {
		return fmt.Errorf("migration: open blue for %s: %w", v.Tenant, err)
	}
	m.crash("blue's gate told")
	return m.liftFence(ctx, v)
}

// finishRollbacks takes up requests that nobody has been at work on for a while, or whose last step has
// used up its time; those first, and soon, whose writers wait: the door does so for ten seconds. To take one
// from somebody who is only slow does no harm. It begins none after a step's time: the sweep has other things to do.
func (m *Mover) finishRollbacks(ctx context.Context) (n int, err error) {
	control, err := m.control(ctx)
	if err != nil {
		return 0, err
	}
	var errs []error
	seen := []tenant.ID{}
	for until := m.now().Add(m.cfg.StepBudget); len(seen) == 0 || m.now().Before(until); {
		var v Move // one by one: another sweep may have taken up the next meanwhile
		err := control.QueryRow(ctx, `SELECT run_id, tenant_id FROM control.move WHERE back_by IS NOT NULL AND state IN ('green', 'fenced_back')
			AND (back_paused OR updated_at < clock_timestamp() - CASE state WHEN 'fenced_back' THEN $1::interval / 2 ELSE $1 END)
			AND tenant_id <> ALL ($2) ORDER BY state = 'fenced_back' DESC, updated_at LIMIT 1`, m.cfg.Lease, seen).Scan(&v.Run, &v.Tenant)
		if errors.Is(err, pgx.ErrNoRows) {
			break
		}
		if err != nil {
			return n, err
		}
		seen = append(seen, v.Tenant)
		if err := m.rollBack(ctx, v.Run, v.Tenant); err != nil {
			errs = append(errs, err)
			continue
		}
		n++
	}
	if citus.StateOf(errors.Join(errs...)) != "" || ctx.Err() != nil {
		return n, errors.Join(errs...)
	}
	return n, nil // what is a tenant's own stands with its move
}
