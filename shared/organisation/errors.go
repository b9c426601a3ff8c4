package organisation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
)

// errNotFound is also the answer about what is somebody else's.
func errNotFound() error {
	return fault.New(fault.NotFound, "tenant_not_found", "there is no such organisation")
}

func errSuspended() error {
	return fault.New(fault.Forbidden, "tenant_suspended", "the organisation is suspended")
}

func errDeleting() error {
	return fault.New(fault.Conflict, "tenant_deleting", "the organisation is being deleted; restore it first")
}

func errProvisioning() error {
	f := fault.New(fault.Unavailable, "tenant_provisioning", "the organisation is being set up; try again")
	f.RetryAfter = 2 * time.Second
	return f
}

func errStale(version int64) error {
	return fault.New(fault.Stale, "stale_version", "it has been changed meanwhile: its version is %d now; read it again", version)
}

func errOperatorsOnly() error {
	return fault.New(fault.Forbidden, "operators_only", "only operators of the platform may do this")
}

// attempts bounds how often a transaction that lost against others is run again.
const attempts = 4

// inControl runs fn in one transaction on the control tables. It may run again
// after a serialization failure or a deadlock.
func (s *Service) inControl(ctx context.Context, fn func(tx pgx.Tx) error) error {
	db, err := s.d.Databases.Control(ctx)
	if err != nil {
		return err
	}
	for n := 1; ; n++ {
		err = inTx(ctx, db, fn)
		if state := citus.StateOf(err); n == attempts || state != "40001" && state != "40P01" {
			return faultOf(err)
		}
	}
}

func inTx(ctx context.Context, db *citus.Pool, fn func(tx pgx.Tx) error) error {
	tx, err := db.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if err := fn(tx); err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		var pgErr *pgconn.PgError
		if errors.As(err, &pgErr) || errors.Is(err, pgx.ErrTxCommitRollback) || pgconn.SafeToRetry(err) {
			return err
		}
		return fault.Wrap(err, fault.Uncertain, "commit_uncertain", "the connection broke while the change was being saved; sending the request again is safe")
	}
	return nil
}

// faultOf gives errors of the database their words; faults stay what they are.
func faultOf(err error) error {
	if err == nil || fault.As(err) != nil || errors.Is(err, context.Canceled) {
		return err
	}
	var connect *pgconn.ConnectError
	unreachable := errors.As(err, &connect) || pgconn.SafeToRetry(err) || pgconn.Timeout(err) || errors.Is(err, context.DeadlineExceeded)
	switch state := citus.StateOf(err); {
	case unreachable, state == "40001", state == "40P01", state == "55P03", state == "57014", len(state) == 5 && (state[:3] == "57P" || state[:2] == "53" || state[:2] == "08"):
		f := fault.Wrap(fmt.Errorf("organisation: %w", err), fault.Unavailable, "directory_unavailable", "the directory of organisations does not answer at the moment; try again")
		f.RetryAfter = time.Second
		return f
	}
	return fmt.Errorf("organisation: %w", err)
}
