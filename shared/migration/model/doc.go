// Package model holds a model of the migration protocol that SPIN searches through: every order in
// which writers, steps of the move, their doubles and their deaths can come, up to the bounds below.
// The package has no code; its test is the proof, and runs with all others.
//
// # The promises
//
//  1. At most one home is writable, at any instant; and no transaction that has written is open in
//     one home while the other is writable.
//  2. The rows of the home are the acknowledged writes, at any instant. Verification never finds a
//     difference, and a change of the stream touches exactly one row: the protocol does not lean on them.
//  3. No write falls into the schema public; the neighbour's rows in the shared tables stay as they are.
//  4. Every move ends in green or, with fence, gate and leftovers cleared, in blue.
//  5. Every write is accepted, in the end: a writer is refused only in ways that make it ask the
//     directory and try again.
//
// 1 to 3 are asserted in every step that changes what they speak of (inline promises in databases.pml),
// 4 and 5 are LTL formulas, under weak fairness; besides, no run comes to a halt in the middle.
//
// # What stands for what
//
//   - databases.pml: the two databases. A variable is a column (blue_token is gate.token in blue, state
//     and token are control.move's) or what PostgreSQL keeps (row locks, the set of transactions that
//     a new snapshot sees). One atomic block is one transaction of one database, or one side of it where
//     others can come in between: between a commit's record in the log, which is when it is streamed, and
//     its visibility, others can.
//   - writer.pml: the door (shared/citus) and any client past it. In the searches for 1 to 3 a writer tries
//     any home at any time: that covers every stale route, snapshot and prepared statement.
//   - steps.pml: claim (store.go), fence, close_gates and unfence (infra/schema/home), flip, endMove, purge
//     (cutover.go), sweep.go.
//   - forward.pml: publication barrier, chunks with a snapshot each, the stream and its visibility gate, the
//     checkpoint, fence, cutover, undo.
//   - back.pml: the short way as ahead.go goes it (snapshot, fence, young rows, reconciliation), green's gate,
//     the outbox, rollback, the second cutover.
//
// A step that dies begins anew and knows nothing; it may die after every effect. Two of them run the same
// move; each may sleep anywhere and wake up as a zombie. An ambiguous commit is a death right after it.
//
// # Bounds, and why they are enough
//
// Two or three writes, one or two keys, two writers, two steps, two or three claims, two moves. Single-row
// changes of different keys meet nowhere but in the sets of locks and in the order of the stream, so zombies
// are searched with one key, and two keys, two open transactions, changes of keys and TRUNCATE with one step that
// dies as often as it likes. Three writes are the longest history of one key that a gate can confuse (there, deleted,
// there again). Two claims make one zombie and one successor, the third token is the undo's. Deaths are
// unbounded, but at most two where a move must end. That a rollback ends is searched with one step that dies, and zombies
// of a rollback from green on: what sleeps of the first cutover sleeps for ever there. The neighbour stands still: nothing of it is shared but tables.
//
// # What it does not show
//
// That the SQL does what a block says; that is what the tests on real servers and the crash tests are for. It
// knows no time: a pause has no length, the door's patience no end, and limits fire whenever they like. The receiver
// and its spool stand for the log itself (a prefix of it, delivered later); a lost slot means copying again. Rollbacks of
// writers, sequences, foreign keys, types, crashes of a server with its sessions, and finalising are not in it.
//
// # What it asks of the code
//
// Each seeded mistake (MISTAKE_… in the files, the list is in the test) changes one step, and the search finds what it
// breaks. Three are easily made: whoever applies the outbox reads blue's position, which the changes are applied
// against, before it reads the outbox, not after; capture is armed before green's gate opens; and a purge of
// green's rows holds the row of the undone move, for it may have slept until the tenant lives there.
package model
