package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coditect/platform/shared/fault"
)

// dump writes one schema to w in pg_dump's custom format.
func (a *Archive) dump(ctx context.Context, dsn, schema string, w io.Writer) error {
	env, err := environment(dsn)
	if err != nil {
		return err
	}
	// A pattern in double quotes matches the name alone.
	pattern := `"` + strings.ReplaceAll(schema, `"`, `""`) + `"`
	err = a.run(ctx, env, nil, w, "pg_dump", "--format=custom", "--strict-names", "--lock-wait-timeout=10s", "--no-password", "--schema="+pattern)
	if err != nil {
		return fmt.Errorf("archive: dump schema %s: %w", schema, err)
	}
	return nil
}

// list returns the lines of a dump's table of contents. Of r it reads as much as it takes.
func (a *Archive) list(ctx context.Context, r io.Reader) ([]string, error) {
	var out bytes.Buffer
	if err := a.run(ctx, nil, r, &out, "pg_restore", "--list"); err != nil {
		return nil, err
	}
	return strings.Split(out.String(), "\n"), nil
}

// tablesOf finds the tables with rows in a table of contents, whose lines read
// "3405; 0 16385 TABLE DATA schema table owner". Names may hold blanks, so only the name's
// place tells it; a list is for counting, and for people.
func tablesOf(contents []string) []string {
	var out []string
	for _, line := range contents {
		if _, after, ok := strings.Cut(line, " TABLE DATA "); ok && !strings.HasPrefix(line, ";") {
			out = append(out, after)
		}
	}
	slices.Sort(out)
	return out
}

// Restore makes the schema of a dump in another database, in one transaction, as the role of dsn
// and without the fence of its tenant: what is restored can be written. The dump must be
// the one that was saved.
func (a *Archive) Restore(ctx context.Context, name string, want Saved, dsn string) error {
	env, err := environment(dsn)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "coditect-restore-")
	if err != nil {
		return fmt.Errorf("archive: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	file := filepath.Join(dir, "dump")
	if err := a.fetch(ctx, name, want, file); err != nil {
		return err
	}
	contents, err := a.contents(ctx, file)
	if err != nil {
		return err
	}
	chosen := filepath.Join(dir, "list")
	if err := os.WriteFile(chosen, []byte(strings.Join(withoutFence(contents), "\n")), 0o600); err != nil {
		return fmt.Errorf("archive: %w", err)
	}
	database := databaseOf(env)
	err = a.run(ctx, env, nil, io.Discard, "pg_restore", "--dbname="+database, "--use-list="+chosen, "--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges", "--no-password", file)
	if err != nil {
		return fmt.Errorf("archive: restore %s: %w", want.URL, err)
	}
	return nil
}

// fetch brings a dump into a file and proves that it is the one that was saved.
func (a *Archive) fetch(ctx context.Context, name string, want Saved, path string) error {
	r, err := a.store.open(ctx, name)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }() // read only
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("archive: %w", err)
	}
	read := newSummed(r)
	_, err = io.Copy(file, read)
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("archive: read %s: %w", want.URL, err)
	}
	return read.same(want)
}

func (a *Archive) contents(ctx context.Context, path string) ([]string, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	defer func() { _ = file.Close() }() // read only
	return a.list(ctx, file)
}

// withoutFence leaves out the triggers that refuse the tenant's writes: they belong to its
// move, and need functions that only a home of tenants has.
func withoutFence(contents []string) []string {
	return slices.DeleteFunc(slices.Clone(contents), func(line string) bool {
		return strings.Contains(line, " TRIGGER ") && strings.Contains(line, " coditect_fence ")
	})
}

// run runs one of PostgreSQL's programs to its end. It has no more of our environment
// than it needs. Its complaint is a part of the error.
func (a *Archive) run(ctx context.Context, env []string, in io.Reader, out io.Writer, name string, args ...string) error {
	program := name
	if a.programs != "" {
		program = filepath.Join(a.programs, name)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = slices.Concat(env, []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"})
	cmd.WaitDelay = 5 * time.Second
	said := &tail{}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, said // a program that has read enough closes its end: that is fine
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return fault.Wrap(err, fault.Internal, "programs_missing", "the program %s is not installed here", name)
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, said.text())
	}
	return nil
}

// tail keeps the end of what a program says.
type tail struct{ b []byte }

const tailBytes = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if len(t.b) > tailBytes {
		t.b = t.b[len(t.b)-tailBytes:]
	}
	return len(p), nil
}

func (t *tail) text() string { return strings.Join(strings.Fields(string(t.b)), " ") }
