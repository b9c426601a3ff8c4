/* The online way from blue to green: publication barrier, copy in chunks, change stream, fence, cutover; and the undo. */

#ifndef WRITES
#define WRITES 3
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef ATTEMPTS
#define ATTEMPTS 2
#endif
#ifndef WRITERS
#define WRITERS 2
#endif
#ifndef TASKS
#ifndef TASKS
#define TASKS 2
#endif
#endif
#define TASK_1 (WRITERS + 1) /* its _pid: init's is 0 */

#include "databases.pml"

/* ---- blue: what is written ahead, and decoded by pgoutput ---- */
bit  published;              /* the tenant's tables are in the publication */
byte wal[WRITES + 2];        /* commit records in their order: the transaction, or FENCE_MESSAGE + fence_id */
byte wal_end;
#define FENCE_MESSAGE 16
byte truncations;            /* the transactions that truncated, as a set */

/* ---- green: what a move knows ---- */
byte chunks;                 /* keys that are copied, as a set: a chunk is one key */
byte chunk_sees[KEYS];       /* S: what the snapshot saw that copied the key */
byte checkpoint;             /* the changes before it are applied */
byte fence_reached;          /* the fence whose message was applied last */

inline in_blue_log() {
	/* pgoutput looks at the catalogue as of the row's record, not as of the commit */
	change[x] = c | (published -> PUBLISHED : 0)
}
inline in_blue_commit() { wal[wal_end] = x; wal_end++ }
inline seen_in_blue() {
	if
	:: c & TRUNCATES -> truncations = truncations | BIT(x)
	:: else
	fi;
	if
	:: state == PLANNED -> SEEN("a write is acknowledged before the copy");
	:: state == COPYING -> SEEN("a write is acknowledged during the copy");
	:: state == CATCHING_UP -> SEEN("a write is acknowledged while the stream is applied");
	:: state == IN_BLUE -> SEEN("a write is acknowledged in blue after an undo");
	:: else
	fi
}
inline in_green_log() { skip }
inline in_green_commit() { SEEN("a write is acknowledged in green") }

#include "writer.pml"

/* One change of the stream on one key. The row is there or not, as the change found it in blue: whatever touches
 * another number of rows than one is an error. */
inline apply(x, k) {
	if
	:: !TOUCHES(change[x], k) -> skip
#ifdef MISTAKE_LSN_GATE
	:: TOUCHES(change[x], k) && checkpoint < chunk_sees[k] -> SEEN("a change is skipped, for the copy has it"); skip
	:: TOUCHES(change[x], k) && checkpoint >= chunk_sees[k] ->
#else
	:: TOUCHES(change[x], k) && (chunk_sees[k] & BIT(x)) -> SEEN("a change is skipped, for the copy has it"); skip
	:: TOUCHES(change[x], k) && !(chunk_sees[k] & BIT(x)) ->
#endif
		SEEN("a change is applied");
		if
		:: !(change[x] & TRUNCATES) && (FOUND(change[x], k) != 0) != (green_row[k] != 0) ->
			BROKEN("promise 2: a change does not touch exactly one row")
		:: else
		fi;
#ifdef MISTAKE_TRUNCATE_SHARED
		if :: change[x] & TRUNCATES -> neighbour = 0 :: else fi; /* TRUNCATE, where all tenants' rows are */
#endif
		green_row[k] = (LEAVES(change[x], k) -> x : 0)
	fi
}

/* What has been streamed and copied matters to nobody any more. Saves states, nothing else. */
inline forget() {
	d_step {
		chunks = 0; chunk_sees[0] = 0; chunk_sees[1] = 0; checkpoint = 0; fence_reached = 0;
		do
		:: wal_end > 0 ->
			wal_end--;
			if
			:: wal[wal_end] < FENCE_MESSAGE -> change[wal[wal_end]] = 0
			:: else
			fi;
			wal[wal_end] = 0
		:: else -> break
		od;
		visible = 0; truncations = 0
	}
}

inline fence_message(id) { wal[wal_end] = FENCE_MESSAGE + id; wal_end++ }

#include "steps.pml"

/* A step of the move, delivered any number of times: two are at work, and each may sleep for as long as it
 * likes and wake up as a zombie. */
proctype Task() {
	byte mine;     /* the fencing token */
	byte fence;    /* fence_id, as raised */
	byte at;       /* the checkpoint, as read */
	byte k, sees, v;

start:
	atomic {
		mine = 0; fence = 0; at = 0; k = 0; sees = 0; v = 0;
		if
		:: state == IN_GREEN || (state == IN_BLUE && !LEFT_OVER) -> goto done
		:: state == IN_BLUE && LEFT_OVER -> mine = token; goto lift /* the sweeper */
		:: OPEN_MOVE && attempts < ATTEMPTS && FIRST_OF(next_token - 1, TASK_1) -> /* claim */
			claim(); fence_up = 1
		:: OPEN_MOVE && FIRST_OF(next_token - 1, TASK_1) -> end_move(); forget();
			MAY_CRASH("undone");
			if
			:: purge_due -> goto lift
			:: else -> goto start /* no step ever touched the tenant */
			fi
		fi;
		MAY_CRASH("claimed");
		if
		:: state == PLANNED
		:: state == COPYING -> goto copy
		:: state == CATCHING_UP -> goto catch_up
		:: state == FENCED -> goto raise
		fi
	}

	/* Publication barrier. LOCK TABLE … IN SHARE ROW EXCLUSIVE MODE; ALTER PUBLICATION … ADD TABLE */
	atomic {
#ifndef MISTAKE_NO_BARRIER
		!blue_locks;
#endif
		published = 1;
		MAY_CRASH("published")
	}
	RECORD(state == PLANNED, COPYING);

copy:
	atomic {
		if
		:: chunks == ALL_KEYS -> goto copied
		:: !(chunks & BIT(0)) -> k = 0
		:: chunks == BIT(0) && ALL_KEYS != BIT(0) -> k = 1
		fi
	}
#ifdef MISTAKE_SNAPSHOT_BEFORE_LOCK
	atomic { sees = visible; v = blue_row[k] }
	atomic {
		!truncating;
		if
		:: truncations & ~sees -> v = 0 /* the file that the snapshot could see is gone */
		:: else
		fi
	}
#else
	/* BEGIN ISOLATION LEVEL REPEATABLE READ; LOCK … ACCESS SHARE; S = pg_current_snapshot(); SELECT … */
	atomic {
		!truncating;
		sees = visible; v = blue_row[k];
#ifdef MISTAKE_LSN_GATE
		sees = wal_end; /* pg_current_wal_lsn() */
#endif
		if :: blue_locks & BIT(k) -> SEEN("a transaction is open on a key while its chunk is read"); :: else fi
	}
#endif
	atomic { /* writeGreen: rows, range and S in one transaction, under the move's row lock */
		if
		:: token == mine && state == COPYING ->
			green_row[k] = v; chunk_sees[k] = sees; chunks = chunks | BIT(k);
			promises()
		:: else -> SEEN("a zombie's chunk is refused"); goto start
		fi;
		k = 0; sees = 0; v = 0;
		MAY_CRASH("chunk copied");
		goto copy
	}
copied:
	RECORD(state == COPYING, CATCHING_UP);

catch_up:
	atomic {
		if
		:: !fence -> goto raise /* at any time: how near the stream is proves nothing */
		:: !fence && checkpoint < wal_end -> at = checkpoint
		:: fence && fence_reached != fence && checkpoint < wal_end -> at = checkpoint
		:: fence && fence_reached == fence -> goto verified
		:: state != CATCHING_UP && state != FENCED -> SEEN("a zombie finds that the move has ended"); goto start
		fi
	}
	atomic { /* UPDATE … SET checkpoint WHERE lsn = old and epoch, in one transaction with the data */
		if
#ifdef MISTAKE_NO_CHECKPOINT
		:: state == CATCHING_UP || state == FENCED ->
#else
		:: (state == CATCHING_UP || state == FENCED) && checkpoint == at ->
#endif
			if
			:: wal[at] >= FENCE_MESSAGE -> fence_reached = wal[at] - FENCE_MESSAGE
			:: wal[at] < FENCE_MESSAGE && !(change[wal[at]] & PUBLISHED) -> skip /* the stream has nothing of it */
			:: wal[at] < FENCE_MESSAGE && (change[wal[at]] & PUBLISHED) -> apply(wal[at], 0); apply(wal[at], 1)
			fi;
			checkpoint = at + 1;
#ifndef MISTAKE_NO_CHECKPOINT
			/* Nobody reads it again. */
			if :: wal[at] < FENCE_MESSAGE -> change[wal[at]] = 0 :: else fi;
			wal[at] = 0;
#endif
			promises()
		:: else -> SEEN("a doubled application is refused by the checkpoint"); goto lost
		fi;
		at = 0;
		MAY_CRASH("applied");
		goto catch_up
	}
lost:
	atomic {
		at = 0;
		if
		:: token == mine -> goto catch_up
		:: else -> goto start
		fi
	}

raise:
	raise_fence();
	RECORD(state == CATCHING_UP || state == FENCED, FENCED);
	goto catch_up;

verified:
	verify(FENCED);
	close_blue();
	flip();

lift:
	stay_in_blue();

done:
	rest()
}

init {
	atomic {
		blue_row[0] = INITIAL; want[0] = INITIAL;
		writing = WRITERS; moving = TASKS;
		run Writer();
#if WRITERS > 1
		run Writer();
#endif
		
#if TASKS > 1
		run Task();
#endif
		run Task()
	}
}
