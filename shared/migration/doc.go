// Package migration moves tenants from a schema of their own (blue) into the shared
// tables (green) while they are used.
//
// # States of one tenant's move
//
//	planned ──→ copying ──→ fenced ──→ green                  many small ones at once, a larger one alone
//	planned ──→ copying ──→ catching_up ⇄ fenced ──→ green    online: any size, each alone
//	planned ──→ fenced ──→ green                              large ones, where blue lets its changes not be read
//	   └────────────┴────────────┴──────────┴─────→ blue      undone: the tenant stays where it was
//
// Copying and catching_up go back to planned when the change stream was interrupted.
//
//	green → finalised and green → fenced_back → blue are the end and the way back.
//
// Each change is UPDATE … WHERE state = expected AND token = mine and must touch one
// row. See [State] for the table of transitions.
//
// # The short way
//
// A step takes a group of tenants and copies their rows as of one snapshot, while they are
// written, and compares count and hash of every table in both databases. Then, a few of them
// at a time: it raises the fence in blue, which drains the writers and refuses new ones; copies
// again what was written since the snapshot; moves the sequences; closes the gate in blue; and
// flips the home in the directory together with opening the gate in green, in one commit.
// ahead.go reads top-down in this order, cutover.go has the flip and the undo.
//
// What was copied small is read once more and hashed (scan.go): where that is as it was copied, nothing has changed. Elsewhere
// rows that the snapshot may not have seen are told by their xmin: rows without a young one are
// those that were copied. Deleted rows have none; they show as a difference in the number of
// rows, and are then found by comparing hashes of ranges of keys. So the pause grows
// with the changes and with counting rows, not with copying, hashing and building indexes.
//
// # The online way
//
// A tenant too large for that joins the change stream (package stream) behind a barrier; its
// tables are copied in chunks of keys (chunk.go), in blue's order of them (keyorder.go), each committed with the
// snapshot that it has seen; its changes are applied (apply.go) unless the chunk's snapshot has seen them; and the rows
// that they are about are compared before they are forgotten (changed.go). When little is left the
// fence goes up, its message in the stream is waited for, and what is left is applied and
// compared. online.go reads top-down in this order, with catchup.go in its midst. Where blue does not let its changes be read,
// such a tenant is copied page by page under the fence (copy.go), if its operator allows the pause.
//
// # The way back
//
// Triggers on green's tables read a gate beside the tenant's rows, and write each change down
// there while the tenant may go back (infra/schema/home/0002_reverse.sql, gate.go). The flip arms
// that gate before the tenant can write in green. The sweep brings the changes to the fenced
// schema in blue, pass by pass (reverse.go): blue notes which it has in the transaction that applies
// them, green deletes them afterwards, so a crash in between repeats nothing.
//
// A change that does not find the row it was made on stops the passes, and what was changed past fence or capture no
// pass brings. Verify finds such rows (compare.go), and a repair makes blue's those of green (repair_blue.go): as of
// one moment, and with all that was captured of them until then.
//
// A rollback is the cutover mirrored (rollback.go): the rows of both sides are compared, in as many
// steps as that takes (touched.go), while the tenant is written; the gate is shut, which drains its writers; the rest comes over; the rows
// that differed before or were written since are proven equal; sequences; one commit flips the
// home; blue opens.
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
