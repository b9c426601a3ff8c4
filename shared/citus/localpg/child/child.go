// Package child starts programs that do not outlive the process that started
// them: database servers, the task queue, the functions on a developer's
// machine. A test binary that panics, or a launcher that is killed with kill -9,
// leaves nothing behind.
//
// The kernel does the work (PR_SET_PDEATHSIG), with one trap: the signal is
// sent when the *thread* that started the child ends, and Go may end a thread
// early. Each child is therefore started and waited for by one goroutine that
// keeps its thread to itself.
//
// On systems other than Linux there is no such signal: there the owner's own
// Stop is the only protection.
package child

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// Process is a started program.
type Process struct {
	pid  int
	proc *os.Process
	done chan struct{}
	err  error // of Wait; read after done
}

// Start starts cmd in a process group of its own, so that a Ctrl-C in the
// terminal reaches only the parent, which then ends its children in its own
// order. onParentDeath is what the child gets when this process dies.
func Start(cmd *exec.Cmd, onParentDeath syscall.Signal) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	dieWithParent(cmd.SysProcAttr, onParentDeath)

	p := &Process{done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with this goroutine, after the child has.
		runtime.LockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		p.pid, p.proc = cmd.Process.Pid, cmd.Process
		started <- nil
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return p, nil
}

// Pid is the process's number.
func (p *Process) Pid() int { return p.pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err is how the process ended: nil for status 0. It is valid after Done.
func (p *Process) Err() error { return p.err }

// Signal sends sig to the process alone. A process that has ended is no error.
func (p *Process) Signal(sig syscall.Signal) error {
	if err := p.proc.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// KillGroup sends SIGKILL to the process and everything it started in its group.
func (p *Process) KillGroup() error {
	select {
	case <-p.done:
		return nil // the number may belong to somebody else by now
	default:
	}
	if err := syscall.Kill(-p.pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}

// Stop sends sig and waits for the end; when ctx ends first, the whole group
// is killed.
func (p *Process) Stop(ctx context.Context, sig syscall.Signal) error {
	if err := p.Signal(sig); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
	}
	if err := p.KillGroup(); err != nil {
		return err
	}
	<-p.done
	return fmt.Errorf("process %d did not end in time after %v and was killed", p.pid, sig)
}
