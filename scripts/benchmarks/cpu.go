package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/coditect/platform/shared/citus/localpg"
)

// cost is the processor time of one call, in microseconds: of the database's
// processes, and of all others (clients, and the function where it takes part).
type cost struct {
	Database float64 `json:"database"`
	Others   float64 `json:"others"`
}

// meter reads processor times before and after. They come from /proc; where there is
// none, all costs are 0.
type meter struct {
	server           *localpg.Server
	function         *process
	database, others float64
}

func newMeter(server *localpg.Server, function *process) *meter {
	m := &meter{server: server, function: function}
	m.database, m.others = m.read()
	return m
}

// per is what one of so many calls since then has cost.
func (m *meter) per(calls int64) cost {
	if calls == 0 {
		return cost{}
	}
	database, others := m.read()
	return cost{Database: round((database-m.database)*1e6/float64(calls), 1), Others: round((others-m.others)*1e6/float64(calls), 1)}
}

// read returns seconds of processor time so far.
func (m *meter) read() (database, others float64) {
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} { // children: those that have ended, pgbench
		var u syscall.Rusage
		if syscall.Getrusage(who, &u) == nil {
			others += float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
		}
	}
	if m.function != nil {
		others += times(m.function.Pid(), 2)
	}
	text, err := os.ReadFile(filepath.Join(m.server.Dir(), "postmaster.pid"))
	if err != nil {
		return 0, others
	}
	first, _, _ := strings.Cut(string(text), "\n")
	postmaster, err := strconv.Atoi(first)
	if err != nil {
		return 0, others
	}
	database = times(postmaster, 4) // with those of its children that have ended
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", postmaster, postmaster))
	for word := range strings.FieldsSeq(string(children)) {
		if pid, err := strconv.Atoi(word); err == nil {
			database += times(pid, 2)
		}
	}
	return database, others
}

// times reads the first n of a process's utime, stime, cutime, cstime, in seconds.
func times(pid, n int) (seconds float64) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // it may have ended
	_, after, found := strings.Cut(string(text), ") ")
	if !found {
		return 0
	}
	for _, field := range strings.Fields(after)[11 : 11+n] {
		ticks, _ := strconv.ParseFloat(field, 64)
		seconds += ticks / 100 // USER_HZ, the same on all of Linux
	}
	return seconds
}

func medianCost(costs []cost) cost {
	var database, others []float64
	for _, c := range costs {
		database, others = append(database, c.Database), append(others, c.Others)
	}
	return cost{Database: median(database), Others: median(others)}
}
