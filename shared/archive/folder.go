package archive

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"github.com/coditect/platform/shared/fault"
)

// folder keeps each object in a file, readable by its owner alone.
type folder string

func (f folder) create(_ context.Context, name string) (writer, error) {
	if err := os.MkdirAll(string(f), 0o700); err != nil {
		return nil, err
	}
	file, err := os.CreateTemp(string(f), ".unfinished-*")
	if err != nil {
		return nil, err
	}
	return &unfinished{File: file, path: f.path(name)}, nil
}

func (f folder) open(_ context.Context, name string) (io.ReadCloser, error) {
	file, err := os.Open(f.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Wrap(err, fault.NotFound, "archive_missing", "there is no dump %s", f.locate(name))
	}
	return file, err
}

func (f folder) remove(_ context.Context, name string) error {
	if err := os.Remove(f.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (f folder) path(name string) string { return filepath.Join(string(f), name) }

func (f folder) locate(name string) string {
	u := url.URL{Scheme: "file", Path: f.path(name)}
	return u.String()
}

// unfinished is a file that gets its name when it is whole.
type unfinished struct {
	*os.File
	path string
}

// Close makes the file durable, its name too.
func (u *unfinished) Close() error {
	err := u.Sync()
	if closed := u.File.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(u.Name(), u.path)
	}
	if err != nil {
		_ = os.Remove(u.Name())
		return err
	}
	dir, err := os.Open(filepath.Dir(u.path))
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }() // read only
	return dir.Sync()
}

func (u *unfinished) abort() {
	_ = u.File.Close()
	_ = os.Remove(u.Name())
}
