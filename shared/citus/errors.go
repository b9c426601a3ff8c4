package citus

import (
	"context"
	"errors"
	"io"
	"net"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/coditect/platform/shared/fault"
)

// SQLSTATEs of our own, raised by infra/schema/home. Class CD is nobody else's.
const (
	StateFenced   = "CD001" // the tenant's tables take no writes: it is moving
	StateNotHere  = "CD003" // the tenant is not in this database
	StateOutdated = "CD004" // the caller's fencing token is older than the gate's
)

// StateOf returns the SQLSTATE in err's chain, "" when there is none.
func StateOf(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}

// isElsewhere: the tenant moves or has moved; ask the directory and try again.
func isElsewhere(err error) bool {
	return errors.Is(err, errNotHere) || StateOf(err) == StateFenced || StateOf(err) == StateNotHere
}

// isRepeatable: nothing was committed, and trying again may succeed.
func isRepeatable(err error) bool {
	var lost lostConnection
	switch StateOf(err) {
	case pgSerializationFailure, pgDeadlockDetected:
		return true
	}
	return errors.As(err, &lost) || isStalePlan(err)
}

// isStalePlan: a prepared statement does not fit any more.
func isStalePlan(err error) bool {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return false
	}
	return pgErr.Code == pgUndefinedPrepared || pgErr.Code == pgFeatureNotSupported && strings.Contains(pgErr.Message, "cached plan")
}

// SQLSTATEs of PostgreSQL: appendix A of its manual.
const (
	pgSerializationFailure = "40001"
	pgDeadlockDetected     = "40P01"
	pgUndefinedPrepared    = "26000"
	pgFeatureNotSupported  = "0A000"
	pgUniqueViolation      = "23505"
	pgForeignKeyViolation  = "23503"
	pgCheckViolation       = "23514"
	pgExclusionViolation   = "23P01"
	pgQueryCanceled        = "57014"
	pgLockNotAvailable     = "55P03"
)

// isShutdown: the server ended the session. Unlike other errors it may come after
// a COMMIT has taken effect.
func isShutdown(e *pgconn.PgError) bool {
	return e.Code == "57P01" || e.Code == "57P02" || e.Code == "57P03" || e.Severity == "FATAL" || e.Severity == "PANIC"
}

var shardSuffix = regexp.MustCompile(`_\d{6,}$`)

// ConstraintName returns the name of the violated constraint as the schema has it.
// Citus leaves PgError.ConstraintName empty, and its messages carry the shard's
// name: "customers_pkey_102035".
func ConstraintName(err error) string {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return ""
	}
	name := pgErr.ConstraintName
	if name == "" {
		// The last quoted word is the constraint: … violates unique constraint "x"
		parts := strings.Split(pgErr.Message, `"`)
		if len(parts) >= 3 {
			name = parts[len(parts)-2]
		}
	}
	return shardSuffix.ReplaceAllString(name, "")
}

// Fault makes the fault that callers see of a database error outside of a tenant: a
// broken connection is Unavailable, not an error of ours. Anything else stays what it is.
func Fault(err error) error {
	var (
		pgErr   *pgconn.PgError
		connect *pgconn.ConnectError
		netErr  net.Error
	)
	if errors.As(err, &connect) || errors.As(err, &netErr) || errors.Is(err, io.ErrUnexpectedEOF) || (errors.As(err, &pgErr) && isShutdown(pgErr)) {
		return faultOf(lostConnection{err})
	}
	return err
}

// faultOf makes the fault that callers see of an error; a fault stays what it is.
func faultOf(err error) error {
	if err == nil || fault.As(err) != nil || errors.Is(err, context.Canceled) || errors.Is(err, pgx.ErrNoRows) {
		return err
	}
	var lost lostConnection
	if errors.As(err, &lost) {
		return unavailable(err, "database_unavailable", "the database does not answer at the moment; try again")
	}
	switch StateOf(err) {
	case pgUniqueViolation, pgExclusionViolation:
		return fault.Wrap(err, fault.Conflict, "duplicate", "there is one like it already")
	case pgForeignKeyViolation:
		return fault.Wrap(err, fault.Conflict, "missing_reference", "something it refers to does not exist, or something else refers to it")
	case pgCheckViolation:
		return fault.Wrap(err, fault.Invalid, "check_violation", "a value is outside of what is allowed")
	case pgSerializationFailure, pgDeadlockDetected, pgLockNotAvailable:
		return unavailable(err, "contention", "too many changes at the same time; try again")
	case pgQueryCanceled:
		return unavailable(err, "statement_timeout", "the database took too long; try again")
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return unavailable(err, "deadline_exceeded", "there was not enough time; try again")
	}
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && isShutdown(pgErr) {
		return unavailable(err, "database_unavailable", "the database does not answer at the moment; try again")
	}
	return err
}

func unavailable(cause error, code, message string) error {
	f := fault.Wrap(cause, fault.Unavailable, code, "%s", message)
	f.RetryAfter = time.Second
	return f
}
