// Package statedir is the folder in which scripts/dev keeps its state between
// starts: databases, logs, keys, remembered ports. One launcher at a time works in it.
package statedir

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Dir is a locked state folder.
type Dir struct {
	path string
	lock *os.File
}

// Open makes the folder and locks it. The lock goes with the process, however it ends.
func Open(path string) (*Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(abs, 0o755); err != nil {
		return nil, fmt.Errorf("the state folder cannot be made: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(abs, "lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("the state folder cannot be locked: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(lock.Name())
		_ = lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("the platform already runs on the state folder %s (process %s): stop that one first, or start this one with --state FOLDER and --port PORT", abs, strings.TrimSpace(string(holder)))
		}
		return nil, fmt.Errorf("the state folder cannot be locked: %w", err)
	}
	if err := errors.Join(lock.Truncate(0), writeAt(lock, fmt.Sprintln(os.Getpid()))); err != nil {
		return nil, err
	}
	return &Dir{path: abs, lock: lock}, nil
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

// Clear deletes everything in the folder but the lock.
func (d *Dir) Clear() error {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == "lock" {
			continue
		}
		if err := os.RemoveAll(filepath.Join(d.path, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// Path joins names to the folder.
func (d *Dir) Path(names ...string) string {
	return filepath.Join(append([]string{d.path}, names...)...)
}

// Load reads a JSON file of the folder into v; a file that is not there leaves v alone.
func (d *Dir) Load(name string, v any) error {
	b, err := os.ReadFile(d.Path(name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s is damaged (start with --fresh): %w", d.Path(name), err)
	}
	return nil
}

// Save writes v as a JSON file that only this user may read: it may hold a key. The
// file is replaced at once or not at all.
func (d *Dir) Save(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	half := d.Path(name + ".new")
	if err := os.WriteFile(half, append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(half, d.Path(name))
}

// Close gives the folder back.
func (d *Dir) Close() error { return d.lock.Close() }
