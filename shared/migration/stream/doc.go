// Package stream brings the changes that tenants make in a blue database into the spool of
// green (control.pack), in the order of their commits, each exactly once.
//
// A [Lane] is one logical replication slot with a publication of the same name. [Join] puts a
// tenant's tables into the publication behind a barrier; from then on [Receive], which runs for
// a bounded time and is started again and again, writes every transaction of theirs into the
// spool, and confirms to blue only what is committed there. Applying the changes is package
// migration's.
//
// # What is guaranteed
//
//   - A transaction is spooled once. The lane's position moves in the transaction that writes the
//     changes, by compare-and-set: of two receivers one wins, the other stops. After a crash blue
//     sends again what was not confirmed, and what the position covers is skipped.
//   - Nothing is lost in silence. Blue keeps its WAL until it is confirmed; when it keeps more than
//     Config.MaxRetained, or has thrown the slot away, the lane is given up by name: its tenants are
//     copied again under a new slot.
//   - Memory is bounded: a large transaction is spooled in parts, and is not applied before it is
//     whole.
//
// The wire protocol is PostgreSQL's "Logical Streaming Replication Protocol", version 1.
package stream
