package organisation

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

// Suspend stops all reads and writes of a tenant, also by instances that do not
// know it yet: the gate in its home refuses them. Operators only; suspending
// twice is suspending once.
func (s *Service) Suspend(ctx context.Context, caller Caller, id tenant.ID) (Organisation, error) {
	return s.changeStatus(ctx, caller, id, 0, "tenant.suspended", func(o *Organisation) (bool, error) {
		switch {
		case !caller.Operator:
			return false, errOperatorsOnly()
		case o.Status == tenant.Suspended:
			return false, nil
		case o.Status != tenant.Active:
			return false, mayChange(*o, caller)
		}
		now := s.now()
		o.Status, o.suspended = tenant.Suspended, &now
		return true, nil
	})
}

// Resume ends a suspension. Operators only.
func (s *Service) Resume(ctx context.Context, caller Caller, id tenant.ID) (Organisation, error) {
	return s.changeStatus(ctx, caller, id, 0, "tenant.resumed", func(o *Organisation) (bool, error) {
		switch {
		case !caller.Operator:
			return false, errOperatorsOnly()
		case o.Status == tenant.Active:
			return false, nil
		case o.Status != tenant.Suspended:
			return false, mayChange(*o, caller)
		}
		o.Status, o.suspended = tenant.Active, nil
		return true, nil
	})
}

// Delete begins the grace time of a tenant: it is shut at once, and its rows
// are erased when the time is over. Version 0 is any.
func (s *Service) Delete(ctx context.Context, caller Caller, id tenant.ID, version int64) (Organisation, error) {
	return s.changeStatus(ctx, caller, id, version, "tenant.deleting", func(o *Organisation) (bool, error) {
		if o.Status == tenant.Deleting || o.Status == tenant.Deleted {
			return false, nil
		}
		if err := mayChange(*o, caller); err != nil {
			return false, err
		}
		if o.Home == tenant.Blue && o.database != citus.BlueDatabase {
			return false, fault.New(fault.Conflict, "tenant_foreign", "the organisation lives in the foreign database %q: move it first, or delete it there", o.database)
		}
		due := s.now().Add(s.cfg.Grace)
		o.Status, o.DeleteAfter = tenant.Deleting, &due
		return true, nil
	})
}

// Restore takes a deletion back while the grace time lasts. A tenant that was
// suspended before is suspended again.
func (s *Service) Restore(ctx context.Context, caller Caller, id tenant.ID) (Organisation, error) {
	return s.changeStatus(ctx, caller, id, 0, "tenant.restored", func(o *Organisation) (bool, error) {
		switch {
		case o.Status == tenant.Active, o.Status == tenant.Suspended:
			return false, nil
		case o.Status != tenant.Deleting:
			return false, mayChange(*o, caller)
		case !s.now().Before(*o.DeleteAfter):
			// Its rows may be partly gone already.
			return false, fault.New(fault.Conflict, "grace_time_over", "the grace time is over: the organisation's rows are being erased")
		}
		o.Status, o.DeleteAfter = tenant.Active, nil
		if o.suspended != nil {
			o.Status = tenant.Suspended
		}
		return true, nil
	})
}

// changeStatus is change, and then the gate follows. It follows also when
// nothing changed: the earlier request may have died in between.
func (s *Service) changeStatus(ctx context.Context, caller Caller, id tenant.ID, version int64, event string, decide func(*Organisation) (bool, error)) (Organisation, error) {
	o, err := s.change(ctx, caller, id, version, event, decide)
	if err != nil {
		return Organisation{}, err
	}
	if err := s.syncGate(ctx, id); err != nil {
		return Organisation{}, err
	}
	return o, nil
}

// gatePatience bounds the wait for the gate: the tenant's row is locked
// meanwhile, and a move may hold the gate.
const gatePatience = 3 * time.Second

// syncGate makes the gate in the tenant's home say what control.tenant says.
// Under the lock of the tenant's row neither the status nor the home can
// change, so whoever comes last leaves the truth behind, in whatever order
// suspensions, resumptions and the flip of a move arrive.
func (s *Service) syncGate(ctx context.Context, id tenant.ID) error {
	defer s.d.Forget(id)
	return s.inControl(ctx, func(tx pgx.Tx) error {
		o, err := find(ctx, tx, Caller{Operator: true}, id, toWrite)
		if err != nil {
			return err
		}
		var gate querier = tx
		if o.database != citus.GreenDatabase {
			if gate, err = s.d.Databases.Pool(ctx, o.database); err != nil {
				return err
			}
		}
		shut := o.Status != tenant.Active
		waiting, cancel := context.WithTimeout(ctx, gatePatience)
		defer cancel()
		if _, err := gate.Exec(waiting, `UPDATE coditect.gate SET suspended = $2 WHERE tenant_id = $1 AND suspended <> $2`, id, shut); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `DELETE FROM control.gate_due WHERE tenant_id = $1`, id)
		return err
	})
}
