/* What forward.pml and back.pml share: the two databases, the tenant's writers, and the promises.
 *
 * One step of a process is one transaction of one database, or a part of one where somebody else can
 * come in between. Nothing else is atomic: between two steps any other process runs, dies or sleeps.
 *
 * A row's value is the number of the transaction that wrote it, 0 is no row; so a write that is lost,
 * applied twice or applied over a newer one shows as a wrong value.
 */

#define KEYS  2
#define BOTH  3          /* both keys, as a set */
#ifdef ONE_KEY
#define ALL_KEYS 1
#else
#define ALL_KEYS BOTH
#endif
#define BIT(i) (1 << (i))
#define INITIAL 7        /* the value of the row that is there before the first write */

#define BLUE  0
#define GREEN 1

/* control.move.state */
#define PLANNED     0
#define COPYING     1
#define CATCHING_UP 2
#define FENCED      3
#define IN_GREEN    4    /* 'green' */
#define FENCED_BACK 5
#define IN_BLUE     6    /* 'blue': undone or rolled back */

/* ---- blue: the tenant's schema, coditect.gate, the write-ahead log ---- */
byte blue_row[KEYS];     /* what a new snapshot sees */
byte blue_locks;         /* keys whose rows an open transaction has locked; not 0: somebody holds ROW EXCLUSIVE on the table */
bit  truncating;         /* an open transaction holds ACCESS EXCLUSIVE */
bit  blue_fenced;        /* gate.fenced, and trigger coditect_fence is ENABLE ALWAYS */
bit  blue_closed;        /* gate.closed */
byte blue_token;         /* gate.token */
byte fence_id;           /* gate.fence_id */
byte xids;               /* transactions that have written so far: the last one's number */
byte visible;            /* the committed transactions that a snapshot taken now sees, as a set */
bit  public_touched;     /* a row of the tenant was written into the schema public */

/* ---- green: the shared tables, control.* and coditect.gate: one database, so one commit may change all of it ---- */
byte green_row[KEYS];    /* committed rows of the tenant */
byte green_locks;        /* keys whose rows an open transaction has locked; it holds the gate's row FOR KEY SHARE, too */
bit  green_open;         /* the gate has an open row of the tenant */
bit  neighbour = 1;      /* the neighbour's rows in the shared tables are as they were */
bit  home = BLUE;        /* control.tenant.home */
byte state = PLANNED;    /* control.move.state */
byte token;              /* control.move.token */
byte next_token = 1;     /* sequence control.move_token */
byte attempts;           /* control.move.attempts */
bit  fence_up;           /* control.move.fence_up: a fence may be up in blue */
bit  purge_due;          /* control.move.purge_due: green may hold rows of an undone move */

/* ---- what nobody in the system knows ---- */
byte want[KEYS];         /* the acknowledged writes, one after the other */
byte crashes;            /* so far */
byte change[WRITES + 1]; /* by transaction: what the log has of it, which key it has written and how */
byte writing = 255;      /* writers that have writes left; not 0 before init has begun */
byte moving = 255;       /* steps of the move that have not come to their end */

#define LEAVE(k)       (BIT(k) << 2)
#define FIND(k)        (BIT(k) << 4)
#define TOUCHES(c, k)  (c & BIT(k))           /* it writes the row of key k … */
#define LEAVES(c, k)   (c & LEAVE(k))         /* … which is there afterwards … */
#define FOUND(c, k)    (c & FIND(k))          /* … and was there before */
#define TRUNCATES      64                     /* TRUNCATE: takes ACCESS EXCLUSIVE, and names no rows */
#define PUBLISHED      128                    /* the publication had the table when the row was written */

#define BLUE_OPEN (!blue_fenced && !blue_closed)
#define OPEN_MOVE (state == PLANNED || state == COPYING || state == CATCHING_UP || state == FENCED)

/* What is seen and what is broken is printed once. The memory for it is outside of the state, so that
 * it costs no states: that all is seen holds for the very search that proves the promises. */
c_decl {
	\#include <stdio.h>
	\#include <string.h>
	static const char *told[256];
	static void tell(const char *kind, const char *what) {
		int i;
		for (i = 0; i < 256 && told[i]; i++) {
			if (strcmp(told[i], what) == 0) return;
		}
		if (i < 256) told[i] = what;
		printf("%s: %s\n", kind, what);
	}
}
#define SEEN(what)   c_code { tell("seen", what); }
#define BROKEN(what) c_code { tell("broken", what); }; assert(false)

/* The promises that are true at any instant. Called in every step that changes anything of theirs. */
inline promises() {
	if
	:: BLUE_OPEN && green_open -> BROKEN("promise 1: two writable homes")
	:: (blue_locks && green_open) || (green_locks && BLUE_OPEN) -> BROKEN("promise 1: one home is writable, and a transaction that has written is open in the other")
	:: else
	fi;
	if
	:: public_touched -> BROKEN("promise 3: a write fell into the schema public")
	:: !neighbour -> BROKEN("promise 3: the neighbour's rows were touched")
	:: else
	fi;
	if
	:: home == BLUE && (blue_row[0] != want[0] || blue_row[1] != want[1]) -> BROKEN("promise 2: blue is the home, and its rows are not the acknowledged ones")
	:: home == GREEN && (green_row[0] != want[0] || green_row[1] != want[1]) -> BROKEN("promise 2: green is the home, and its rows are not the acknowledged ones")
	:: else
	fi
}

/* Processes of a kind are alike: it does not matter which of them is the first. */
#define FIRST_OF(so_far, pid) (so_far > 0 || _pid == pid)

/* A process dies here or goes on. What dies forgets all it knew, and is started anew by the queue or the sweeper.
 * For promises 1 to 3 it may do so without end; for a move to end, deaths must. */
#ifdef LIVENESS
#define MAY_CRASH(where) if :: crashes < CRASHES -> crashes++; goto start :: true fi
#else
#define MAY_CRASH(where) if :: true -> SEEN("crash: " where); goto start :: true fi
#endif

/* Under weak fairness (pan -f): whoever can always go on does go on. */
#ifdef LIVENESS
ltl promise_4 { <> (moving == 0) }
ltl promise_5 { <> (writing == 0) }
#endif
