package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// event is a line of `go test -json`.
type event struct {
	Action     string
	Package    string
	Test       string
	Output     string
	ImportPath string // of build output
}

// report turns the events of `go test -json` into what `go test` prints, and counts.
type report struct {
	out     io.Writer
	live    bool   // print everything at once, for runs that take long
	partial []byte // of the next line

	packages map[string]*pkg
	began    time.Time

	passed, failed, onCitus, packagesRun int
	skipped, notRun                      []string
}

// pkg is a package whose tests are running.
type pkg struct {
	output []event
	result map[string]string // test → pass, fail, skip
}

func newReport(out io.Writer, live bool) *report {
	return &report{out: out, live: live, packages: map[string]*pkg{}, began: time.Now()}
}

// Write takes the standard output of `go test -json`.
func (r *report) Write(b []byte) (int, error) {
	r.partial = append(r.partial, b...)
	for {
		line, rest, ok := bytes.Cut(r.partial, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			fmt.Fprintf(r.out, "%s\n", line) // not an event: the go command itself speaks
		} else {
			r.take(e)
		}
		r.partial = slices.Clone(rest)
	}
}

func (r *report) take(e event) {
	if e.Action == "build-output" {
		fmt.Fprint(r.out, e.Output)
		return
	}
	p := r.packages[e.Package]
	if p == nil {
		p = &pkg{result: map[string]string{}}
		r.packages[e.Package] = p
	}
	switch {
	case e.Action == "output":
		p.output = append(p.output, e)
		if i := strings.Index(e.Output, notRunMark); i >= 0 {
			r.notRun = append(r.notRun, strings.TrimSpace(e.Output[i:]))
		}
		if r.live && !isNoise(e.Output) {
			fmt.Fprint(r.out, e.Output)
		}
	case e.Test != "":
		r.count(p, e)
	case e.Action == "pass" || e.Action == "fail" || e.Action == "skip":
		r.finish(p, e.Action)
		delete(r.packages, e.Package)
	}
}

// notRunMark begins the line of a test that could not run as a whole (citustest.Each).
const notRunMark = "NOT RUN"

func (r *report) count(p *pkg, e event) {
	switch e.Action {
	case "pass":
		r.passed++
		if strings.Contains(strings.ToLower(e.Test), "/citus") {
			r.onCitus++
		}
	case "fail":
		r.failed++
	case "skip":
		r.skipped = append(r.skipped, strings.TrimPrefix(e.Package, "github.com/coditect/platform/")+" "+e.Test)
	default:
		return
	}
	p.result[e.Test] = e.Action
}

// finish prints a package: its one line when all is well; of a failed one everything
// but the tests that passed.
func (r *report) finish(p *pkg, action string) {
	if len(p.result) > 0 {
		r.packagesRun++
	}
	if r.live {
		return
	}
	for _, e := range p.output {
		switch {
		case action != "fail" && e.Test == "" && isVerdict(e.Output),
			action == "fail" && p.result[e.Test] != "pass" && !isNoise(e.Output):
			fmt.Fprint(r.out, e.Output)
		}
	}
}

// isVerdict reports whether a line is what `go test` says of a package that is fine.
func isVerdict(line string) bool {
	return strings.HasPrefix(line, "ok  \t") || strings.HasPrefix(line, "?   \t")
}

func isNoise(line string) bool {
	for _, s := range []string{"=== RUN", "=== PAUSE", "=== CONT", "=== NAME"} {
		if strings.HasPrefix(line, s) {
			return true
		}
	}
	return false
}

// good reports whether tests ran and none failed; go test itself is content with none.
func (r *report) good() bool { return r.failed == 0 && r.passed > 0 }

// summary tells what go test keeps quiet about.
func (r *report) summary(hasCitus bool) {
	// A test binary that died left its tests without a verdict.
	for _, name := range slices.Sorted(maps.Keys(r.packages)) {
		if p := r.packages[name]; len(p.output) > 0 {
			r.finish(p, "fail")
		}
	}
	fmt.Fprintf(r.out, "\nTests: %d passed, %d failed, %d skipped, in %d packages, in %.0f s\n",
		r.passed, r.failed, len(r.skipped), r.packagesRun, time.Since(r.began).Seconds())
	if r.passed+r.failed == 0 {
		fmt.Fprintln(r.out, "  NO TEST RAN: no package has one that was asked for, or none could be built")
	}
	for _, s := range r.skipped {
		fmt.Fprintf(r.out, "  SKIPPED: %s\n", s)
	}
	switch {
	case hasCitus:
		fmt.Fprintf(r.out, "Citus: %d tests ran on Citus (a coordinator with two workers)\n", r.onCitus)
	default:
		fmt.Fprintln(r.out, "Citus: NO test ran on Citus, because the PostgreSQL installed here does not offer the extension; plain PostgreSQL was tested")
	}
	for _, s := range r.notRun {
		fmt.Fprintf(r.out, "  %s\n", s)
	}
}
