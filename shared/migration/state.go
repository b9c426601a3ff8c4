package migration

// State is where one tenant's move stands. The table control.move has the same
// list as a CHECK.
type State string

// The states.
const (
	Planned    State = "planned"     // nothing was changed yet
	Copying    State = "copying"     // rows are copied while the tenant is written
	CatchingUp State = "catching_up" // online way: changes since the copy are applied
	Following  State = "following"   // online way: in step with blue, and held there until it is let go
	Fenced     State = "fenced"      // blue takes no writes
	Green      State = "green"       // the tenant lives in green
	FencedBack State = "fenced_back" // green takes no writes, on the way back
	Blue       State = "blue"        // undone or rolled back: the tenant lives in blue
	Finalised  State = "finalised"   // the blue schema is gone: no way back
)

// States lists them in the order in which a move goes through them.
var States = []State{Planned, Copying, CatchingUp, Following, Fenced, Green, FencedBack, Blue, Finalised}

// transitions is the whole state machine; what is not here does not happen.
var transitions = map[State][]State{
	Planned:    {Copying, Fenced, Blue},
	Copying:    {CatchingUp, Fenced, Planned, Blue},
	CatchingUp: {Following, Fenced, Planned, Blue},
	Following:  {CatchingUp, Planned, Blue},
	Fenced:     {Green, CatchingUp, Planned, Blue},
	Green:      {FencedBack, Finalised},
	FencedBack: {Blue, Green},
}

// openStates are those of a move that is neither finished nor undone, as SQL.
const openStates = `('planned', 'copying', 'catching_up', 'following', 'fenced')`

// Can reports whether a move may go from one state to another in one change.
func (s State) Can(to State) bool {
	for _, t := range transitions[s] {
		if t == to {
			return true
		}
	}
	return false
}

// RunState is where a run stands.
type RunState string

// The states of a run.
const (
	Running    RunState = "running"
	Paused     RunState = "paused"
	Cancelling RunState = "cancelling" // the moves that are not green yet are being undone
	Cancelled  RunState = "cancelled"
	Done       RunState = "done" // every move is green or blue
)
