/* Cutover → rollback → cutover. There the short way, as ahead.go goes it: copy as of one snapshot, fence, then what
 * is younger than the snapshot. Back by the outbox that triggers fill in green. */

#ifndef WRITES
#define WRITES 3
#endif
#ifndef WRITERS
#define WRITERS 2
#endif
#ifndef TASKS
#define TASKS 2
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef CLAIMS
#define CLAIMS 4             /* over all moves: three are needed, others are zombies' and successors' */
#endif
#ifndef ROLLBACKS
#define ROLLBACKS 1
#endif
#ifndef MOVES
#define MOVES 2
#endif
#define TASK_1 (WRITERS + 1) /* its _pid: init's is 0 */

#include "databases.pml"

byte moves = 1;              /* begun so far */
byte rolled_back;            /* a rollback was begun: one is enough */
bit  returned;               /* it has come to its end */
byte outbox;                 /* green: committed rows of the outbox, as a set; a row's number in the sequence is the transaction's */
byte position;               /* blue: grows with each change of green's that is applied … */
byte applied;                /* … which is this one */
bit  armed;                  /* green: the capture trigger is on for the tenant */

inline in_blue_log() { skip }
inline in_blue_commit() { skip }
inline seen_in_blue() {
	if
	:: state == PLANNED && moves == 1 -> SEEN("a write is acknowledged before the move")
	:: state == COPYING -> SEEN("a write is acknowledged during the copy")
	:: state == IN_BLUE && returned -> SEEN("a write is acknowledged in blue after a rollback")
	:: state == IN_BLUE && !returned -> SEEN("a write is acknowledged in blue after an undo")
	:: state == COPYING && returned -> SEEN("a write is acknowledged during the copy of the second cutover")
	:: else
	fi
}
inline in_green_log() {
	if :: armed -> change[x] = c :: else fi
}
inline in_green_commit() {
	visible = visible | BIT(x); /* nothing of it runs any more */
	if :: change[x] -> outbox = outbox | BIT(x) :: else fi;
	if
	:: returned -> SEEN("a write is acknowledged in green after the second cutover")
	:: else -> SEEN("a write is acknowledged in green after the cutover")
	fi
}

#include "writer.pml"

inline fence_message(id) { skip }
inline forget() { skip }

/* pg_snapshot_xmin(pg_current_snapshot()): the oldest transaction that may still run. */
inline oldest_running() {
	d_step {
		since = 1;
		do
		:: since <= xids && (visible & BIT(since)) -> since++
		:: else -> break
		od
	}
}
/* ahead.go, isYoung: written by a transaction that the copy's snapshot may not have seen. A row's value stands for its xmin. */
#define IS_YOUNG(k) (blue_row[k] >= since && blue_row[k] != INITIAL)
#define ROWS(row)   ((row[0] != 0) + (row[1] != 0))

#include "steps.pml"

#ifdef MISTAKE_CLOSE_WITHOUT_DRAIN
#define DRAINED true
#else
#define DRAINED !green_locks
#endif

#ifdef MISTAKE_WATERMARK
byte consumed;
#else
#define consumed 0 /* what is consumed is gone */
#endif

/* green: from here on the trigger fills the outbox */
inline arm_capture() {
	atomic {
		if
		:: token == mine -> armed = 1
		:: else -> goto start
		fi;
		MAY_CRASH("way back armed")
	}
}

/* green: the outbox's oldest row. None while the gate is closed: there will be no more. */
inline next_of_outbox() {
	atomic {
		if
		:: (outbox >> (consumed + 1)) == 0 && state == FENCED_BACK && token == mine -> goto returned_all
		:: (outbox >> (consumed + 1)) == 0 && !(state == FENCED_BACK && token == mine) -> goto start
		:: (outbox >> (consumed + 1)) != 0 ->
			d_step {
				x = consumed + 1;
				do
				:: !(outbox & BIT(x)) -> x++
				:: else -> break
				od;
				c = change[x]
			}
		fi
	}
}

proctype Task() {
	byte mine;                /* the fencing token */
	byte fence;
	byte since, v0, v1;       /* the copy's snapshot and what it has read */
	bit  ahead;               /* this step has copied ahead of the fence, and knows since */
	byte at, has;             /* blue's position, as read, and the change that it stands after */
	byte x, c;                /* the outbox's row at hand: the transaction, and what it did */

start:
	atomic {
		mine = 0; fence = 0; since = 0; v0 = 0; v1 = 0; ahead = 0; at = 0; has = 0; x = 0; c = 0;
		if
		:: state == IN_BLUE && LEFT_OVER -> mine = token; goto lift /* the sweeper */
		:: state == IN_BLUE && !LEFT_OVER -> goto done
		:: state == IN_BLUE && !LEFT_OVER && moves < MOVES -> state = PLANNED; moves++; goto start
		:: OPEN_MOVE && attempts < CLAIMS && FIRST_OF(next_token - 1, TASK_1) -> claim(); fence_up = 1
		:: OPEN_MOVE && FIRST_OF(next_token - 1, TASK_1) -> end_move();
			MAY_CRASH("undone");
			if
			:: purge_due -> goto lift
			:: else -> goto start /* no step ever touched the tenant */
			fi
		:: state == IN_GREEN -> goto done
		:: state == IN_GREEN && attempts < CLAIMS && rolled_back < ROLLBACKS -> claim(); goto send_back
		/* The gate's row FOR UPDATE, which waits for all that hold it FOR KEY SHARE; the move is in the same database. */
		:: state == IN_GREEN && attempts < CLAIMS && rolled_back < ROLLBACKS && DRAINED ->
			claim(); state = FENCED_BACK; green_open = 0; rolled_back = 1;
			promises();
			MAY_CRASH("green's gate closed");
			goto send_back
		:: state == FENCED_BACK && attempts < CLAIMS -> claim(); goto send_back
		:: state == FENCED_BACK && attempts == CLAIMS -> /* given up: the tenant stays in green */
			claim(); state = IN_GREEN; green_open = 1;
			SEEN("a rollback is given up");
			promises();
			goto start
		fi;
		MAY_CRASH("claimed");
		if
		:: state == FENCED -> goto raise
		:: else
		fi
	}
	RECORD(state == PLANNED || state == COPYING, COPYING);
	atomic { /* copyPart: BEGIN ISOLATION LEVEL REPEATABLE READ, pg_current_snapshot(), the rows … */
		!truncating;
		oldest_running(); v0 = blue_row[0]; v1 = blue_row[1];
		if :: blue_locks -> SEEN("a transaction is open while its rows are copied") :: else fi
	}
	atomic { /* … and writeGreen, after whatever an earlier attempt has left was deleted */
		if
		:: token == mine && state == COPYING -> green_row[0] = v0; green_row[1] = v1
		:: else -> SEEN("a zombie's copy is refused"); goto start
		fi;
		v0 = 0; v1 = 0; ahead = 1;
		promises();
		MAY_CRASH("copied")
	}

raise:
	raise_fence();
	RECORD(state == COPYING || state == FENCED, FENCED);
	atomic { /* catchUp: young rows anew; and if green has another number of rows, something was deleted */
		fence = 0;
		if
		:: token == mine && state == FENCED ->
			if
			:: ahead && blue_row[0] && IS_YOUNG(0) -> green_row[0] = blue_row[0]; SEEN("a young row is copied under the fence")
			:: else
			fi;
			if
			:: ahead && blue_row[1] && IS_YOUNG(1) -> green_row[1] = blue_row[1]
			:: else
			fi
		:: else -> SEEN("a zombie's young rows are refused"); goto start
		fi;
		since = 0;
		MAY_CRASH("young rows copied");
		if
		:: ahead && ROWS(green_row) == ROWS(blue_row) -> ahead = 0; goto compared
		:: else -> ahead = 0
		fi
	}
	atomic { /* reconcile */
		if
		:: token == mine && state == FENCED -> green_row[0] = blue_row[0]; green_row[1] = blue_row[1]
		:: else -> goto start
		fi;
		MAY_CRASH("reconciled")
	}
compared:
	verify(FENCED);
	close_blue();
#ifndef MISTAKE_ARM_LATE
	arm_capture();
#endif
	flip();

send_back:
#ifdef MISTAKE_ARM_LATE
	arm_capture();
#endif
next:
#ifdef MISTAKE_READ_BEFORE_POSITION
	next_of_outbox();
	atomic { at = position; has = applied }
#else
	atomic { at = position; has = applied } /* blue, and only then green: what is deleted in between moves the position on */
	next_of_outbox();
#endif
	atomic { /* coditect.enter_reverse: not an older token, and the tenant does not live here; then position and rows in one commit */
		if
		:: x == has -> SEEN("a change that blue has is not applied again")
		:: x != has && mine >= blue_token && blue_fenced && blue_closed && position == at ->
			blue_token = mine; PUT(blue_row); position++; applied = x;
			SEEN("a change of green's is applied in blue")
		:: x != has && !(mine >= blue_token && blue_fenced && blue_closed) -> SEEN("a zombie's change of green's is refused by blue's gate"); goto start
		:: x != has && mine >= blue_token && blue_fenced && blue_closed && position != at -> SEEN("a doubled change of green's is refused by blue's position"); goto start
		fi;
		at = 0; has = 0;
		promises();
		MAY_CRASH("applied in blue")
	}
	atomic { /* green: consumed by delete */
#ifdef MISTAKE_WATERMARK
		consumed = x;
#else
		outbox = outbox & ~BIT(x); change[x] = 0;
#endif
		x = 0; c = 0;
		MAY_CRASH("consumed");
		goto next
	}

returned_all:
	verify(FENCED_BACK);
	atomic { /* the flip back; then blue's fence is lifted */
		if
		:: token == mine && state == FENCED_BACK && home == GREEN ->
			state = IN_BLUE; home = BLUE; fence_up = 1; purge_due = 1; armed = 0; returned = 1
		:: else -> SEEN("a zombie's flip back is refused"); goto start
		fi;
		promises();
		MAY_CRASH("flipped back")
	}
lift:
	stay_in_blue();
done:
	rest()
}

init {
	atomic {
		blue_row[0] = INITIAL; want[0] = INITIAL;
#ifdef FROM_GREEN
		/* The first cutover lies behind us; what sleeps of it sleeps for ever. */
		green_row[0] = INITIAL; home = GREEN; state = IN_GREEN; green_open = 1; blue_fenced = 1; blue_closed = 1; armed = 1;
#endif
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
