// Package migration moves tenants from a schema of their own (blue) into the shared
// tables (green) while they are used.
//
// # States of one tenant's move
//
//	planned ──→ fenced ──→ green                      small tenants, many at once
//	planned ──→ copying ──→ fenced ──→ green          larger ones, each alone
//	   └────────────┴──────────┴─────→ blue           undone: the tenant stays where it was
//
//	catching_up, finalised, and green → fenced_back → blue are the states of the online way and
//	of the way back; the table has them already.
//
// Each change is UPDATE … WHERE state = expected AND token = mine and must touch one
// row. See [State] for the table of transitions.
//
// # The short way
//
// A step takes a small group of tenants and: raises the fence in blue, which drains
// the writers and refuses new ones; copies the rows; compares count and hash of every
// table in both databases; moves the sequences; closes the gate in blue; and flips
// the home in the directory together with opening the gate in green, in one commit.
// cutover.go reads top-down in this order.
//
// A tenant whose rows take more than a moment is copied before the fence, while it is
// written (ahead.go). Under the fence only hashes are computed, of small ranges of keys, and
// what has changed meanwhile is copied again: the pause grows with the changes and
// with what hashing costs, not with what building indexes costs. A tenant too large
// for that is copied page by page under the fence (copy.go), if its operator allows the pause.
//
// # Why nothing is lost or doubled
//
//   - At most one home is writable: the fence and the gates are in the databases, so
//     a stale route, an old snapshot or a prepared statement gets an error.
//   - A step that was thought dead and wakes up is harmless: whoever claims a move
//     takes a fencing token greater than all before. The gate in blue, the copy (which
//     locks the move's row in its own transaction) and the flip refuse smaller ones.
//   - A crash leaves either a fenced tenant in blue, whose move is taken up again (rows
//     copied under an older fence are deleted first) or undone, or a green one.
//   - Tasks are only wake-up calls: they carry no state, so a doubled, late or lost one
//     changes nothing. The sweeper makes up for the lost.
package migration
