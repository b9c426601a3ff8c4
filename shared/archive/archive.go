// Package archive keeps dumps of tenants' schemas: it makes them with pg_dump, writes them
// to a folder or to a bucket of Google Cloud Storage, proves that they can be read, and
// restores them with pg_restore.
//
// An archive is named by a URL: file:///var/archive, or gs://bucket and gs://bucket/folder.
// PostgreSQL's programs must be at least as new as the servers they dump; connection
// strings reach them by the environment, which other users of a machine cannot read.
//
// Buckets are spoken to by the service's JSON API. Its client library (cloud.google.com/go/storage,
// also behind gocloud.dev's blob) brings gRPC with service discovery, and makes a function's
// program larger than 40 MB.
package archive

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/url"
	"strings"

	"google.golang.org/api/option"

	"github.com/coditect/platform/shared/fault"
)

// Config says where the archive is. The tags are those of sethvargo/go-envconfig.
type Config struct {
	URL      string `env:"CODITECT_ARCHIVE"`     // file:///folder or gs://bucket/folder; empty: there is no archive
	Programs string `env:"CODITECT_PG_PROGRAMS"` // the folder of pg_dump and pg_restore; empty: they are found in PATH
}

// Archive is a place for dumps. Safe for concurrent use.
type Archive struct {
	store    store
	programs string
}

// Saved is a dump that was written and read back.
type Saved struct {
	URL    string   // of this dump
	Bytes  int64    // its size
	SHA256 []byte   // of its bytes
	Tables []string // whose rows it holds, sorted
}

// store holds objects. A name is written once.
type store interface {
	// create begins an object. It is there, whole and durable, when Close has returned nil;
	// after abort, or without Close, it never is.
	create(ctx context.Context, name string) (writer, error)
	// open reads an object; a fault of kind NotFound when there is none.
	open(ctx context.Context, name string) (io.ReadCloser, error)
	// remove deletes an object. One that is not there is fine.
	remove(ctx context.Context, name string) error
	// locate returns an object's URL.
	locate(name string) string
}

type writer interface {
	io.WriteCloser
	abort()
}

// Open checks the configuration. It makes no round trip. Options are those of Google's client.
func Open(cfg Config, opts ...option.ClientOption) (*Archive, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, errURL(cfg.URL)
	}
	a := &Archive{programs: cfg.Programs}
	switch {
	case u.Scheme == "file" && u.Host == "" && strings.HasPrefix(u.Path, "/"):
		a.store = folder(u.Path)
	case u.Scheme == "gs" && u.Host != "":
		a.store = newBucket(u.Host, strings.Trim(u.Path, "/"), opts)
	default:
		return nil, errURL(cfg.URL)
	}
	return a, nil
}

func errURL(got string) error {
	return fault.BadField("archive", "must be the URL of a folder, file:///var/archive, or of a bucket, gs://bucket/folder; it is %q", got)
}

// OpenDump returns the archive that holds one dump, and the dump's name in it.
func OpenDump(cfg Config, dump string, opts ...option.ClientOption) (*Archive, string, error) {
	at := strings.LastIndexByte(dump, '/')
	if at < 0 {
		return nil, "", errURL(dump)
	}
	name, err := url.PathUnescape(dump[at+1:])
	if err != nil {
		return nil, "", errURL(dump)
	}
	cfg.URL = dump[:at]
	a, err := Open(cfg, opts...)
	return a, name, err
}

// Save dumps one schema into the archive and reads the dump back: its bytes must be those
// that were written, and pg_restore must find its way in it. Memory does not grow with the schema.
// An error leaves nothing behind.
func (a *Archive) Save(ctx context.Context, dsn, schema, name string) (Saved, error) {
	out := Saved{URL: a.store.locate(name)}
	w, err := a.store.create(ctx, name)
	if err != nil {
		return out, fmt.Errorf("archive: begin %s: %w", out.URL, err)
	}
	sum := sha256.New()
	counted := &counter{to: io.MultiWriter(w, sum)}
	if err := a.dump(ctx, dsn, schema, counted); err != nil {
		w.abort()
		return out, err
	}
	if err := w.Close(); err != nil {
		return out, fmt.Errorf("archive: write %s: %w", out.URL, err)
	}
	out.Bytes, out.SHA256 = counted.n, sum.Sum(nil)
	if out.Tables, err = a.check(ctx, name, out); err != nil {
		return out, errors.Join(err, a.Remove(context.WithoutCancel(ctx), name))
	}
	return out, nil
}

// Remove deletes a dump. One that is not there is fine.
func (a *Archive) Remove(ctx context.Context, name string) error {
	if err := a.store.remove(ctx, name); err != nil {
		return fmt.Errorf("archive: delete %s: %w", a.store.locate(name), err)
	}
	return nil
}

// check reads a dump from the archive: its bytes are those that were written, and pg_restore
// lists what is in it. It returns the tables whose rows it holds.
func (a *Archive) check(ctx context.Context, name string, want Saved) ([]string, error) {
	r, err := a.store.open(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("archive: read %s: %w", want.URL, err)
	}
	defer func() { _ = r.Close() }() // read only
	read := newSummed(r)
	contents, err := a.list(ctx, read)
	if err != nil {
		return nil, fmt.Errorf("archive: read %s: %w", want.URL, err)
	}
	if err := read.same(want); err != nil {
		return nil, err
	}
	return tablesOf(contents), nil
}

// counter counts what is written through it.
type counter struct {
	to io.Writer
	n  int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.to.Write(p)
	c.n += int64(n)
	return n, err
}

// summed sums up what is read through it.
type summed struct {
	from io.Reader
	sum  hash.Hash
	n    int64
}

func newSummed(r io.Reader) *summed { return &summed{from: r, sum: sha256.New()} }

func (s *summed) Read(p []byte) (int, error) {
	n, err := s.from.Read(p)
	s.sum.Write(p[:n])
	s.n += int64(n)
	return n, err
}

// same reads what is left, and compares all with what was written.
func (s *summed) same(want Saved) error {
	if _, err := io.Copy(io.Discard, s); err != nil {
		return fmt.Errorf("archive: read %s: %w", want.URL, err)
	}
	if s.n != want.Bytes || string(s.sum.Sum(nil)) != string(want.SHA256) {
		return fault.New(fault.Conflict, "archive_damaged", "the dump %s is not what was written: it has %d bytes with the SHA-256 %x; written were %d bytes with the SHA-256 %x",
			want.URL, s.n, s.sum.Sum(nil), want.Bytes, want.SHA256)
	}
	return nil
}
