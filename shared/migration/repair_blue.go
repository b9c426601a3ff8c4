package migration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/change"
	"github.com/coditect/platform/shared/migration/convert"
)

// What follows is for a tenant that lives in green while blue follows: a pass brings each change to the row that it was
// made on (reverse.go). Where that row is not what it should be, the pass stops; where nobody changes the row, nobody
// notices. Repairing makes some of blue's rows those that green has at one moment, and notes with them that blue has all
// that was captured of these rows until that moment. What is captured later finds the rows that it was made on.
//
// Both are one transaction, which holds the tenant's gate in blue as a pass does: a pass comes before it, or after it and
// then is refused if it has read changes that are noted by now.

// mending is the repair of a tenant's rows in blue.
type mending struct {
	*wayBack
	actor   string
	claimed bool
	changed bool // something was repaired
	out     *Verification
	failed  map[string]map[string]Difference // by table and key
}

// repairBlue makes blue's rows that differ those of green.
func (m *Mover) repairBlue(ctx context.Context, c *comparison, actor, cursor string, out *Verification) error {
	w, err := m.wayBack(ctx, c.Run, c.Tenant)
	switch {
	case err != nil:
		return err
	case w.State != Green:
		return notGreen(w.State)
	case w.asked != nil:
		return fault.New(fault.Conflict, "going_back", "the tenant is on its way back to blue, which compares all rows itself")
	case w.finalising:
		return fault.New(fault.Conflict, "finalise_busy", "the tenant is being finalised at this moment")
	}
	r := &mending{wayBack: w, actor: actor, out: out, failed: map[string]map[string]Difference{}}
	if err := m.unblock(ctx, r, m.now().Add(m.cfg.StepBudget/2)); err != nil {
		return err
	}
	err = m.parts(ctx, c, cursor, out, func(p part) (next, error) {
		before := len(out.Differences)
		err := m.mendAll(ctx, c, r, p.table, bare(p.keys))
		return after(p, len(out.Differences)-before, len(out.Differences)+len(r.left())), err
	})
	if err != nil || !r.changed {
		out.Failed = r.left()
		return err
	}
	// What was in the way of a unique value may be gone by now.
	for _, name := range slices.Sorted(maps.Keys(r.failed)) {
		if err := m.mendAll(ctx, c, r, r.tables[name], slices.Sorted(maps.Keys(r.failed[name]))); err != nil {
			return err
		}
	}
	out.Failed = r.left()
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	_, err = m.tryReverse(ctx, control, r.Move, m.now().Add(m.cfg.StepBudget)) // and what was noted with the move, because passes could not go on, is over
	return err
}

// left lists the rows that blue does not take.
func (r *mending) left() (out []Difference) {
	for _, name := range slices.Sorted(maps.Keys(r.failed)) {
		for _, key := range slices.Sorted(maps.Keys(r.failed[name])) {
			out = append(out, r.failed[name][key])
		}
	}
	return out
}

// unblock makes passes until blue has nearly all that was written in green. A change that does not find the row it was
// made on stops all that come after it, also when that row is the same on both sides by now, which no comparison shows.
func (m *Mover) unblock(ctx context.Context, r *mending, until time.Time) error {
	for outdone := 0; m.now().Before(until) && outdone < 10; {
		_, all, err := m.pass(ctx, r.wayBack, nil)
		var wrong *change.Mismatch
		if errors.As(err, &wrong) {
			ok, err := m.mend(ctx, r, wrong.Table, []string{strings.Join(wrong.Key, "\x00")})
			if err != nil || !ok {
				return err
			}
			continue
		}
		switch {
		case errors.Is(err, errOutdated): // by somebody else's pass, or for good, which is told when there is something to repair
			outdone++
		case err != nil && isTenantsFault(err): // a row does not fit, and the pass does not say which
			if ok, err := m.mendFound(ctx, r); err != nil || !ok {
				return err
			}
		case err != nil || all: // what is written meanwhile is never all there
			return err
		}
	}
	return nil
}

// mendFound repairs the rows of those changes that a pass finds first.
func (m *Mover) mendFound(ctx context.Context, r *mending) (ok bool, err error) {
	found, _, err := m.readCaptured(ctx, r.Tenant)
	if err != nil {
		return false, err
	}
	byTable, err := r.changes(found)
	if err != nil {
		return false, err
	}
	for _, name := range slices.Sorted(maps.Keys(byTable)) {
		var keys []string
		for _, key := range keysOfChanges(r.targets[name], byTable[name]) {
			keys = append(keys, joinKey(key))
		}
		slices.Sort(keys)
		did, err := m.mend(ctx, r, name, slices.Compact(keys))
		if err != nil {
			return false, err
		}
		ok = ok || did
	}
	return ok, nil
}

// mendAll repairs rows by key: at once, unless they are large, so that they fit into memory.
func (m *Mover) mendAll(ctx context.Context, c *comparison, r *mending, t convert.Table, keys []string) error {
	inBlue, inGreen, err := m.perRow(ctx, c, t, `octet_length(`+rowText(t)+`)::text`, keyInBlue(t, keys), keyIn(t, keys))
	if err != nil {
		return err
	}
	for begin, size, i := 0, 0, 0; i < len(keys); i++ {
		blue, _ := strconv.Atoi(inBlue[rowKey{c.Tenant, keys[i]}]) // a row that is not there has no size
		green, _ := strconv.Atoi(inGreen[rowKey{c.Tenant, keys[i]}])
		size += blue + green
		if size < passBytes && i+1 < len(keys) {
			continue
		}
		if _, err := m.mend(ctx, r, t.Name, keys[begin:i+1]); err != nil {
			return err
		}
		begin, size = i+1, 0
	}
	return nil
}

// claimRepair takes the move by a new token: whoever was at work in blue before, and wakes up, changes nothing there. It is
// not taken from a rollback or a finalisation, and whoever takes it later ends the repair.
func (m *Mover) claimRepair(ctx context.Context, r *mending) error {
	if r.claimed {
		return nil
	}
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	err = m.impatient(ctx, control, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, `UPDATE control.move m SET token = nextval('control.move_token'), updated_at = clock_timestamp()
			WHERE run_id = $1 AND tenant_id = $2 AND token = $3 AND state = 'green' AND back_by IS NULL
			  AND NOT EXISTS (SELECT FROM control.archive a WHERE a.run_id = m.run_id AND a.tenant_id = m.tenant_id AND a.lease_until > clock_timestamp())
			RETURNING token`, r.Run, r.Tenant, r.Token).Scan(&r.Token)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return errOvertaken()
	}
	r.claimed = err == nil
	return err
}

func errOvertaken() error {
	return fault.New(fault.Conflict, "repair_overtaken", "somebody else is at work on the tenant's move: a rollback, a finalisation or another repair; what was repaired until then stays so")
}

// mend makes blue's rows with some keys those that green has, and reports whether it has changed anything. The rows of keys
// that differ no more are left alone; those that blue does not take are told by key, and the others are repaired.
func (m *Mover) mend(ctx context.Context, r *mending, table string, keys []string) (ok bool, err error) {
	if err := m.claimRepair(ctx, r); err != nil {
		return false, err
	}
	m.crash("repair claimed")
	var (
		done, refused []*unit
		known         []captured
		rows          int
	)
	err = m.writeBlue(ctx, r.wayBack, func(tx pgx.Tx) error {
		at, err := positionOf(ctx, tx, r.Tenant)
		if err != nil {
			return err
		}
		// What blue has already goes: what green has captured from here on is what blue does not have.
		if err := m.deleteCaptured(ctx, r.Tenant, at.applied); err != nil {
			return err
		}
		units, err := m.units(ctx, tx, r, r.tables[table], keys)
		if err != nil {
			return err
		}
		if done, refused, err = applyFitting(ctx, tx, r.targets[table], units); err != nil {
			return err
		}
		for _, u := range done {
			known, rows = append(known, u.known...), rows+len(u.changes)
		}
		if len(known)+rows == 0 {
			return nil
		}
		// Also if that is none: blue is not what the flip has left any more, which a finalisation asks.
		if err := at.moveOn(ctx, tx, r.Tenant, known); err != nil {
			return err
		}
		// Before it is committed: an entry for what has not come about is better than none for what has.
		control, err := m.control(ctx)
		if err != nil {
			return err
		}
		detail := map[string]any{"table": table, "rows": rows, "changed_in": "blue"}
		if len(known) > 0 {
			detail["changes"] = len(known) // of green that blue has with them
		}
		if err := note(ctx, control, r.Run, &r.Tenant, r.actor, "repaired", detail); err != nil {
			return err
		}
		m.crash("repair noted")
		return nil
	})
	if errors.Is(err, errOutdated) {
		return false, errOvertaken()
	}
	if err != nil {
		return false, fmt.Errorf("migration: repair table %s of %s: %w", table, r.Tenant, err)
	}
	r.tell(table, done, refused)
	if rows+len(known) == 0 {
		return false, nil
	}
	r.changed = true
	m.crash("rows repaired")
	if err := m.deleteCaptured(ctx, r.Tenant, known); err != nil {
		return false, err
	}
	m.crash("part repaired")
	return true, nil
}

// tell adds to the answer.
func (r *mending) tell(table string, done, refused []*unit) {
	for _, u := range done {
		r.out.Differences = append(r.out.Differences, u.differ...)
		for _, k := range u.keys {
			delete(r.failed[table], k)
		}
	}
	for _, u := range refused {
		if r.failed[table] == nil {
			r.failed[table] = map[string]Difference{}
		}
		for i, d := range u.differ {
			d.Error = u.why
			r.failed[table][u.differing[i]] = d
		}
	}
}
