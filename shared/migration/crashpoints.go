package migration

import (
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// CrashPoints are options that make the process kill itself at the point that CODITECT_CRASH_POINT names,
// once: the file CODITECT_CRASH_ONCE remembers it. With CODITECT_CRASH_HOLD it lives, and waits
// there until the file is gone: somebody else is to be killed at that point. The crash tests
// set these; nothing else does.
func CrashPoints() []Option {
	point, once := os.Getenv("CODITECT_CRASH_POINT"), os.Getenv("CODITECT_CRASH_ONCE")
	if point == "" || once == "" {
		return nil
	}
	hold := os.Getenv("CODITECT_CRASH_HOLD") != ""
	var held atomic.Bool
	return []Option{WithCrashPoints(func(at string) {
		if at != point || hold && held.Swap(true) {
			return
		}
		f, err := os.OpenFile(once, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return // it has crashed here before
		}
		_ = f.Close()
		for hold {
			if _, err := os.Stat(once); err != nil {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal is on its way
	})}
}
