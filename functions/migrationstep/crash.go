package migrationstep

import (
	"os"
	"syscall"

	"github.com/coditect/platform/shared/migration"
)

// crashPoints makes the process kill itself at the point that CODITECT_CRASH_POINT names,
// once: the file CODITECT_CRASH_ONCE remembers it. The crash tests set both; nothing else does.
func crashPoints() []migration.Option {
	point, once := os.Getenv("CODITECT_CRASH_POINT"), os.Getenv("CODITECT_CRASH_ONCE")
	if point == "" || once == "" {
		return nil
	}
	return []migration.Option{migration.WithCrashPoints(func(at string) {
		if at != point {
			return
		}
		f, err := os.OpenFile(once, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return // it has crashed here before
		}
		_ = f.Close()
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal is on its way
	})}
}
