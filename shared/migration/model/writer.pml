/* The tenant's writers: shared/citus, the door. A file that includes this one says before what happens
 * beside a write: in_blue_log, in_blue_commit, in_green_log, in_green_commit.
 *
 * A write is one transaction. It is refused only in ways that the door understands (SQLSTATE CD001, or no
 * row of the gate); then the door asks the directory and tries again, and the caller sees a pause. So
 * promise 5 is: every write comes to its end.
 */

/* What a transaction does, as far as the rows that are there and the locks of others permit. (An inline takes no arrays.) */
#define CHOOSE(row, locks) \
	if \
	:: !(locks & BIT(0)) -> c = BIT(0) | LEAVE(0) | (row[0] -> FIND(0) : 0) /* INSERT or UPDATE */ \
	:: !(locks & BIT(0)) && row[0] -> c = BIT(0) | FIND(0) /* DELETE */ \
	CHOOSE_KEY_1(row, locks) \
	CHOOSE_BOTH(row, locks) \
	fi
#ifdef ONE_KEY
#define CHOOSE_KEY_1(row, locks)
#else
#define CHOOSE_KEY_1(row, locks) \
	:: !(locks & BIT(1)) -> c = BIT(1) | LEAVE(1) | (row[1] -> FIND(1) : 0) \
	:: !(locks & BIT(1)) && row[1] -> c = BIT(1) | FIND(1)
#endif
#ifdef TRANSACTIONS_OF_BOTH
#define CHOOSE_BOTH(row, locks) \
	:: !locks && row[0] && !row[1] -> c = BOTH | LEAVE(1) | FIND(0) /* UPDATE of the key */ \
	:: !locks && row[1] && !row[0] -> c = BOTH | LEAVE(0) | FIND(1) \
	:: !locks -> c = BOTH | TRUNCATES
#else
#define CHOOSE_BOTH(row, locks)
#endif

/* Makes rows what transaction x leaves, which does c. */
#define PUT(row) \
	if :: TOUCHES(c, 0) -> row[0] = (LEAVES(c, 0) -> x : 0) :: else fi; \
	if :: TOUCHES(c, 1) -> row[1] = (LEAVES(c, 1) -> x : 0) :: else fi

proctype Writer() {
	byte x, c;
#ifdef LIVENESS
	bit at; /* the route, from memory: the directory is asked again when it was wrong */
#define ROUTE(to) at == to
#ifdef MISTAKE_STALE_ROUTE
#define REFUSED   skip
#else
#define REFUSED   at = home
#endif
#else
#define ROUTE(to) true /* the route is anything, and so are snapshots and prepared statements: the gate and the trigger decide */
#define REFUSED   skip
#endif

next:
	atomic {
		if
		:: xids == WRITES -> goto done
		/* The write: ROW EXCLUSIVE on the table, the statement trigger, the row's lock. */
		:: xids < WRITES && ROUTE(BLUE) && !blue_fenced && blue_locks != ALL_KEYS && FIRST_OF(xids, 1) ->
			CHOOSE(blue_row, blue_locks);
			xids++; x = xids;
			blue_locks = blue_locks | (c & BOTH);
			truncating = truncating || (c & TRUNCATES);
			in_blue_log();
			promises()
		:: xids < WRITES && ROUTE(BLUE) && blue_fenced ->
			SEEN("a write is refused by blue's fence");
#ifdef MISTAKE_RENAME_FENCE
			public_touched = 1; promises(); /* the schema has another name, and an unqualified one is found further on in search_path */
#endif
			REFUSED; goto next
		/* Here the row trigger reads the gate's row FOR KEY SHARE. */
		:: xids < WRITES && ROUTE(GREEN) && green_open && green_locks != ALL_KEYS && FIRST_OF(xids, 1) ->
			CHOOSE(green_row, green_locks);
			xids++; x = xids;
			green_locks = green_locks | (c & BOTH);
			in_green_log();
			promises();
			goto in_green
		:: xids < WRITES && ROUTE(GREEN) && !green_open ->
			SEEN("a write is refused by green's gate");
			REFUSED; goto next
		fi
	}
	atomic { in_blue_commit() } /* the commit record is flushed: from here on it is streamed */
	atomic { /* and now a snapshot sees it; then the locks go, then the client hears of it */
		PUT(blue_row); PUT(want);
		visible = visible | BIT(x);
		blue_locks = blue_locks & ~(c & BOTH);
		truncating = truncating && !(c & TRUNCATES);
		seen_in_blue();
		promises();
		x = 0; c = 0;
		goto next
	}
in_green:
	atomic {
		PUT(green_row); PUT(want);
		green_locks = green_locks & ~(c & BOTH);
		in_green_commit();
		promises();
		x = 0; c = 0;
		goto next
	}
done:
	writing--
}
