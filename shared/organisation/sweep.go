package organisation

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/tenant"
)

// retire gives up a sign-up whose home could not be made for long: what there is
// of it goes, and the slug is free again.
func (s *Service) retire(ctx context.Context, id tenant.ID) error {
	return s.inControl(ctx, func(tx pgx.Tx) error {
		o, err := find(ctx, tx, sweeper, id, toWrite)
		if err != nil || o.Status != tenant.Provisioning {
			return err
		}
		if err := s.dropBlue(ctx, o); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE control.tenant SET slug = $2 WHERE id = $1`, id, "retired-"+strings.ReplaceAll(id.String(), "-", "")); err != nil {
			return err
		}
		return s.end(ctx, tx, o)
	})
}

var sweeper = Caller{Subject: "sweeper", Operator: true}

// How long work is left to the request that began it, and how long is too long.
const (
	provisionDue   = 30 * time.Second
	provisionLimit = time.Hour
	gateDue        = 5 * time.Second
	signUpKept     = 7 * 24 * time.Hour
	sweepLimit     = 200
)

// Swept counts what a sweep did.
type Swept struct {
	Finished int `json:"finished" doc:"Half-made organisations that are active now"`
	Retired  int `json:"retired" doc:"Half-made organisations that were given up"`
	Gates    int `json:"gates" doc:"Gates that were brought up to date"`
	Erased   int `json:"erased" doc:"Deleted organisations whose rows are gone now"`
	Busy     int `json:"busy" doc:"Deleted organisations that are moving, or that another sweep erases; a later sweep looks again"`
	Failed   int `json:"failed" doc:"What failed and is tried again by the next sweep"`
}

// Sweep finishes what requests and crashes left over, and erases what is due.
// Several sweeps may run at once, and each may be cut off at any point. An
// error of one tenant does not stop the others; they are joined.
func (s *Service) Sweep(ctx context.Context, caller Caller) (Swept, error) {
	var done Swept
	if !caller.Operator {
		return done, errOperatorsOnly()
	}
	db, err := s.d.Databases.Control(ctx)
	if err != nil {
		return done, err
	}
	var errs []error
	each := func(sql string, before time.Time, work func(tenant.ID) error) {
		rows, err := db.Query(ctx, sql, before, sweepLimit)
		if err != nil {
			errs = append(errs, faultOf(err))
			return
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[tenant.ID])
		if err != nil {
			errs = append(errs, faultOf(err))
		}
		for _, id := range ids {
			// What time is left is for whole pieces of work; the rest waits for the next sweep.
			if ctx.Err() != nil {
				return
			}
			switch err := work(id); {
			case errors.Is(err, errBusy):
				done.Busy++
			case err != nil:
				done.Failed++
				errs = append(errs, fmt.Errorf("tenant %s: %w", id, err))
			}
		}
	}
	now := s.now()
	each(`SELECT id FROM control.tenant WHERE status = 'provisioning' AND created_at <= $1 ORDER BY created_at LIMIT $2`, now.Add(-provisionDue), func(id tenant.ID) error {
		return s.finish(ctx, id, now, &done)
	})
	each(`SELECT tenant_id FROM control.gate_due WHERE since <= $1 ORDER BY since LIMIT $2`, now.Add(-gateDue), func(id tenant.ID) error {
		err := s.syncGate(ctx, id)
		if err == nil {
			done.Gates++
		}
		return err
	})
	each(`SELECT id FROM control.tenant WHERE status = 'deleting' AND delete_after <= $1 ORDER BY delete_after LIMIT $2`, now, func(id tenant.ID) error {
		err := s.erase(ctx, id)
		if err == nil {
			done.Erased++
		}
		return err
	})
	if _, err := db.Exec(ctx, `DELETE FROM control.sign_up WHERE created_at < $1`, now.Add(-signUpKept)); err != nil {
		errs = append(errs, faultOf(err))
	}
	return done, errors.Join(errs...)
}

// finish makes a half-made organisation whole, or gives it up.
func (s *Service) finish(ctx context.Context, id tenant.ID, now time.Time, done *Swept) error {
	o, err := s.provision(ctx, sweeper, id)
	switch {
	case err == nil:
		done.Finished++
		return nil
	case !o.CreatedAt.IsZero() && now.Sub(o.CreatedAt) >= provisionLimit:
		if retired := s.retire(ctx, id); retired != nil {
			return errors.Join(err, retired)
		}
		done.Retired++
		return nil
	}
	return err
}
