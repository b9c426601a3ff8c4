/* The steps that both ways have in common. Each is one transaction of one database. A caller declares
 * mine, its fencing token, and a label start, where one goes on that knows nothing any more. */


/* control: claim, in store.go. Whoever claims a move takes a token greater than all before. */
inline claim() {
	mine = next_token; token = mine; next_token++;
	attempts++
}

/* control: endMove, in cutover.go: an operator, a limit or an error of the tenant's ends a move that is not green. */
inline end_move() {
	mine = next_token; token = mine; next_token++;
	state = IN_BLUE; purge_due = fence_up
}

/* control: UPDATE control.move SET state WHERE token = mine AND state = expected, and one row, or the caller is a zombie. */
#define RECORD(expected, to) \
	atomic { \
		if \
		:: token == mine && (expected) -> state = to \
		:: else -> SEEN("a zombie is refused by the move's row"); goto start \
		fi; \
		MAY_CRASH("recorded: " #to) \
	}

/* blue: coditect.fence. The token, LOCK TABLE … IN SHARE ROW EXCLUSIVE MODE, ENABLE ALWAYS TRIGGER, and last the message. */
inline raise_fence() {
#ifdef MISTAKE_POSITION_BEFORE_LOCK
	atomic {
		if
		:: mine >= blue_token && !blue_fenced -> fence_message(fence_id + 1)
		:: else
		fi
	}
#endif
	atomic {
		if
#ifdef MISTAKE_OLD_TOKEN_AGAIN
		:: mine < blue_token -> goto raise
#else
		:: mine < blue_token -> SEEN("a zombie's fence is refused by blue's gate"); goto start
#endif
		:: mine >= blue_token && blue_fenced
		:: mine >= blue_token && !blue_fenced && !blue_locks ->
			blue_fenced = 1; fence_id++;
#ifndef MISTAKE_POSITION_BEFORE_LOCK
			fence_message(fence_id)
#endif
		fi;
		blue_token = mine; fence = fence_id;
		MAY_CRASH("fence raised")
	}
}

/* Verification is the second line of defence. Here it is the question: would it ever find anything? */
inline verify(fenced_state) {
	atomic {
		if
		:: token == mine && state == fenced_state ->
			if
			:: green_row[0] != blue_row[0] || green_row[1] != blue_row[1] -> BROKEN("promise 2: all was brought over, and green's rows are not blue's")
			:: else
			fi
		:: else -> SEEN("a zombie's comparison is worth nothing"); goto start
		fi;
		MAY_CRASH("verified")
	}
}

/* blue: coditect.close_gates */
inline close_blue() {
	atomic {
		if
		:: blue_token == mine && blue_fenced -> blue_closed = 1
		:: else -> SEEN("a zombie may not close blue's gate"); goto start
		fi;
		MAY_CRASH("blue's gate closed")
	}
}

/* green: the flip. Directory, green's gate and the move in one commit. */
inline flip() {
#ifdef MISTAKE_GATE_BEFORE_TOKEN
	atomic { green_open = 1; promises() }
#endif
	atomic {
		if
		:: token == mine && state == FENCED && home == BLUE ->
			state = IN_GREEN; home = GREEN; green_open = 1; forget();
			fence_up = 0 /* the next move has a row of its own */
		:: else -> SEEN("a zombie's flip is refused"); goto start
		fi;
		promises();
		MAY_CRASH("flipped");
		goto start
	}
}

/* The rest of an undo or a rollback, by whoever began it or by the sweeper: coditect.unfence, then control, then green's rows. */
inline stay_in_blue() {
	atomic {
		if
		:: mine >= blue_token -> blue_fenced = 0; blue_closed = 0; blue_token = mine
		:: else -> SEEN("a zombie may not lift a newer fence")
		fi;
		promises();
		MAY_CRASH("fence lifted")
	}
	atomic {
		if
		:: token == mine -> fence_up = 0
		:: else
		fi;
		MAY_CRASH("lift recorded")
	}
	atomic {
		/* Under the move's row lock: a purge that sleeps must not wake up when the tenant lives in green. */
		if
#ifdef MISTAKE_PURGE_WITHOUT_LOCK
		:: true ->
#else
		:: state == IN_BLUE && purge_due ->
#endif
			green_row[0] = 0; green_row[1] = 0; purge_due = 0
		:: else -> SEEN("a zombie's purge is refused")
		fi;
		promises();
		MAY_CRASH("purged");
		goto start
	}
}

/* liftLeft, in sweep.go, finds by it what a crash has left undone. */
#ifdef MISTAKE_NO_SWEEPER
#define LEFT_OVER false
#else
#define LEFT_OVER (fence_up || purge_due)
#endif

/* There is nothing to do any more. */
inline rest() {
	atomic {
		if
		:: moving == 1 && !(state == IN_GREEN || (state == IN_BLUE && !blue_fenced && !blue_closed && !purge_due)) ->
			BROKEN("promise 4: nobody is at work any more, and the move has not ended")
		:: else
		fi;
		moving--
	}
}
