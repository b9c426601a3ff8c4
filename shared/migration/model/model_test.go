package model

import (
	"embed"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

//go:embed *.pml
var files embed.FS

// search is one run of SPIN over a model.
type search struct {
	model   string // file, without .pml
	defines string // bounds and mistakes
	formula string // the LTL formula to check, under weak fairness; "": assertions and deadlocks
}

// The searches that together are the proof. See the package's comment for the bounds.
var (
	forwardZombies = search{model: "forward", defines: "WRITES=3 WRITERS=1 ONE_KEY"}
	forwardKeys    = search{model: "forward", defines: "WRITES=2 TASKS=1 TRANSACTIONS_OF_BOTH"}
	shortZombies   = search{model: "back", defines: "WRITES=2 WRITERS=1 ONE_KEY ROLLBACKS=0 CLAIMS=3"}
	backZombies    = search{model: "back", defines: "WRITES=2 WRITERS=1 ONE_KEY FROM_GREEN CLAIMS=3"}
	backKeys       = search{model: "back", defines: "WRITES=2 TASKS=1 TRANSACTIONS_OF_BOTH"}
	forwardEnds    = search{model: "forward", defines: "LIVENESS WRITES=1 WRITERS=1 ONE_KEY CRASHES=2", formula: "promise_4"}
	forwardWrites  = search{model: "forward", defines: "LIVENESS WRITES=1 WRITERS=1 ONE_KEY CRASHES=2", formula: "promise_5"}
	backEnds       = search{model: "back", defines: "LIVENESS WRITES=2 WRITERS=1 ONE_KEY TASKS=1 CRASHES=2", formula: "promise_4"}
	backWrites     = search{model: "back", defines: "LIVENESS WRITES=2 WRITERS=1 ONE_KEY TASKS=1 CRASHES=2", formula: "promise_5"}
)

// A model that can do nothing keeps all promises. So everything that the model says it comes to see, and every
// place where a step dies, must have been seen in these same searches.
func TestPromisesHold(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	seen := map[string]map[string]bool{"forward": {}, "back": {}}
	t.Run("searches", func(t *testing.T) {
		for name, s := range map[string]search{
			"forward, zombies": forwardZombies, "forward, two keys": forwardKeys, "short way, zombies": shortZombies,
			"rollback, zombies": backZombies, "rollback, two keys": backKeys,
			"forward, every move ends": forwardEnds, "forward, every write is accepted": forwardWrites,
			"rollback, every move ends": backEnds, "rollback, every write is accepted": backWrites,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				out := s.run(t)
				assert.Regexp(t, `, errors: 0\n`, out)
				for _, not := range []string{"max search depth too small", "Search not completed", "out of memory", "MEMLIM", "aborting"} {
					assert.NotContains(t, out, not, "the search must be complete")
				}
				mu.Lock()
				defer mu.Unlock()
				for _, m := range regexp.MustCompile(`(?m)^seen: (.*)$`).FindAllStringSubmatch(out, -1) {
					seen[s.model][m[1]] = true
				}
			})
		}
	})
	both := maps.Clone(seen["forward"])
	maps.Copy(both, seen["back"])
	for file, seen := range map[string]map[string]bool{"forward.pml": seen["forward"], "back.pml": seen["back"], "writer.pml": both, "steps.pml": both} {
		for _, what := range witnesses(t, file) {
			assert.True(t, seen[what], "%s: no search comes to %q", file, what)
		}
	}
}

// witnesses lists what a file of the model says it comes to see.
func witnesses(t *testing.T, file string) []string {
	t.Helper()
	text, err := files.ReadFile(file)
	require.NoError(t, err)
	var out []string
	for _, kind := range []struct{ pattern, prefix string }{
		{`SEEN\("([^"]*)"\)`, ""},
		{`MAY_CRASH\("([^"]*)"\)`, "crash: "},
		{`RECORD\(state .*, (\w+)\)`, "crash: recorded: "},
	} {
		for _, m := range regexp.MustCompile(kind.pattern).FindAllStringSubmatch(string(text), -1) {
			out = append(out, kind.prefix+m[1])
		}
	}
	require.NotEmpty(t, out, file)
	slices.Sort(out)
	return slices.Compact(out)
}

// Each mistake changes one step of the model, and must be found out by what it breaks.
func TestMistakesAreCaught(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		mistake string
		in      search
		breaks  string
	}{
		// The position in the log stands for what a snapshot has seen: PostgreSQL streams a commit before it is visible.
		{"LSN_GATE", forwardZombies, "promise 2: all was brought over, and green's rows are not blue's"},
		{"LSN_GATE", forwardKeys, "promise 2"},
		// The schema is renamed instead of fenced: unqualified names are found in public.
		{"RENAME_FENCE", forwardZombies, "promise 3: a write fell into the schema public"},
		// The tables are added to the publication while transactions that have written them are open.
		{"NO_BARRIER", forwardZombies, "promise 2: all was brought over, and green's rows are not blue's"},
		// The message that ends the stream is written before the locks that drain the writers.
		{"POSITION_BEFORE_LOCK", forwardZombies, "promise 2: all was brought over, and green's rows are not blue's"},
		// A chunk's snapshot is older than its lock, and a TRUNCATE comes in between.
		{"SNAPSHOT_BEFORE_LOCK", forwardKeys, "promise 2: a change does not touch exactly one row"},
		// Green's gate is opened, and only then the fencing token is looked at.
		{"GATE_BEFORE_TOKEN", forwardZombies, "promise 1: two writable homes"},
		{"GATE_BEFORE_TOKEN", shortZombies, "promise 1: two writable homes"},
		// The checkpoint is set without a look at what it was.
		{"NO_CHECKPOINT", forwardZombies, "promise 2: a change does not touch exactly one row"},
		// A streamed TRUNCATE is repeated on the table that all tenants share.
		{"TRUNCATE_SHARED", forwardKeys, "promise 3: the neighbour's rows were touched"},
		// The rows of an undone move are deleted without a look at whether it still is undone.
		{"PURGE_WITHOUT_LOCK", shortZombies, "promise 2: green is the home"},
		// Nobody finishes what a death has left.
		{"NO_SWEEPER", shortZombies, "promise 4: nobody is at work any more, and the move has not ended"},
		// A step that is refused tries again with the token that it has.
		{"OLD_TOKEN_AGAIN", forwardEnds, "acceptance cycle"},
		// A refused writer does not ask the directory again.
		{"STALE_ROUTE", forwardWrites, "acceptance cycle"},
		// Green's gate closes, and writers that are inside go on.
		{"CLOSE_WITHOUT_DRAIN", backZombies, "promise 1"},
		// Capture begins when the way back does, not before the gate opens.
		{"ARM_LATE", backKeys, "promise 2: all was brought over, and green's rows are not blue's"},
		// The outbox is consumed up to a number of its sequence, which is not the order of commits.
		{"WATERMARK", backKeys, "promise 2: all was brought over, and green's rows are not blue's"},
		// The outbox is read, and only then blue's position, which the changes are applied against.
		{"READ_BEFORE_POSITION", backZombies, "promise 2: all was brought over, and green's rows are not blue's"},
	} {
		t.Run(c.mistake+" "+c.in.model, func(t *testing.T) {
			t.Parallel()
			s := c.in
			s.defines += " MISTAKE_" + c.mistake
			out := s.run(t)
			assert.Regexp(t, `, errors: [1-9]`, out, "the mistake was not noticed")
			assert.Regexp(t, `(?m)^(broken|pan:1): `+regexp.QuoteMeta(c.breaks), out)
		})
	}
}

// atOnce bounds the memory: a search takes less than 300 MB.
var atOnce = make(chan struct{}, 2)

var (
	counted = regexp.MustCompile(`(\d+) states, stored`)
	timed   = regexp.MustCompile(`elapsed time (\S+) seconds`)
)

// run has SPIN write the program that searches, compiles and runs it, and returns what it has printed.
func (s search) run(t *testing.T) string {
	t.Helper()
	atOnce <- struct{}{}
	defer func() { <-atOnce }()
	began := time.Now()
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(dir, files))
	spin := []string{"-a"}
	for _, d := range strings.Fields(s.defines) {
		spin = append(spin, "-D"+d)
	}
	command(t, dir, "spin", "spin", append(spin, s.model+".pml")...)
	// Not optimised: it would take longer to compile than it saves in the search.
	compile := []string{"-O0", "-w", "-DMEMLIM=1500", "-o", "pan", "pan.c"}
	search := []string{"-n", "-m100000"}
	if s.formula == "" {
		compile = append(compile, "-DSAFETY", "-DNOFAIR")
	} else {
		compile = append(compile, "-DNFAIR=3")
		search = append(search, "-a", "-f", "-N", s.formula)
	}
	command(t, dir, "gcc", "gcc libc6-dev", compile...)
	out := command(t, dir, filepath.Join(dir, "pan"), "", search...)
	states, took := counted.FindStringSubmatch(out), timed.FindStringSubmatch(out)
	require.NotNil(t, states, out)
	require.NotNil(t, took, out)
	t.Logf("%s.pml %s %s: %s states, searched in %s s, %.1f s in all", s.model, s.defines, s.formula, states[1], took[1], time.Since(began).Seconds())
	return out
}

// command runs a program, which must be there: without the proof the test has failed.
func command(t *testing.T, dir, name, packages string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	require.NoError(t, err, "%s is needed to check the model of the migration: install it with 'apt-get install %s', or run ./scripts/test, which does", name, packages)
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s %s: %s", name, strings.Join(args, " "), out)
	return string(out)
}
