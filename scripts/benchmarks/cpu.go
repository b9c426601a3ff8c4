package main

import (
	"fmt"
	"os"
	osexec "os/exec"
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
	database, others := m.since()
	return cost{Database: round(database*1e6/float64(calls), 1), Others: round(others*1e6/float64(calls), 1)}
}

// since returns seconds of processor time since the meter was made.
func (m *meter) since() (database, others float64) {
	database, others = m.read()
	return database - m.database, others - m.others
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
	postmaster, err := postmasterOf(m.server)
	if err != nil {
		return 0, others
	}
	database = times(postmaster, 4) // with those of its children that have ended
	for _, pid := range childrenOf(postmaster) {
		database += times(pid, 2)
	}
	return database, others
}

func postmasterOf(s *localpg.Server) (pid int, err error) {
	text, err := os.ReadFile(filepath.Join(s.Dir(), "postmaster.pid"))
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), "\n")
	return strconv.Atoi(first)
}

// childrenOf lists the processes that any thread of a process has started.
func childrenOf(pid int) (pids []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		text, _ := os.ReadFile(list) // the thread may have ended
		for word := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(word); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// pin has a process, all its threads, its children and whatever they start run on one processor.
func pin(processor, pid int) error {
	out, err := osexec.Command("taskset", "--all-tasks", "--cpu-list", "--pid", strconv.Itoa(processor), strconv.Itoa(pid)).CombinedOutput()
	if _, gone := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil && gone == nil {
		return fmt.Errorf("pin process %d to processor %d: %w: %s", pid, processor, err, out)
	}
	for _, child := range childrenOf(pid) {
		if err := pin(processor, child); err != nil {
			return err
		}
	}
	return nil
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
