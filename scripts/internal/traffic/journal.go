package traffic

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/coditect/platform/shared/tenant"
)

// Key names one row that a writer made. Token is unique over all writers and
// starts, and stands in the row itself, so that the row is found whatever id it has.
type Key struct {
	Tenant tenant.ID `json:"tenant"`
	Kind   string    `json:"kind"` // what the row is: "task", "label", "setting"
	Token  string    `json:"token"`
}

// line is one line of the journal's file.
type line struct {
	Key
	Version int    `json:"version"`
	Event   string `json:"event"`
}

// Events of a write. A write is tried, and then acknowledged or refused, or its
// outcome stays open.
const (
	tried        = "tried"
	acknowledged = "acknowledged"
	refused      = "refused"
)

// row is what the journal knows of one row.
type row struct {
	acked int          // newest acknowledged version, -1 for none
	open  map[int]bool // versions tried whose outcome is unknown
}

// Journal records every write outside the databases: in memory, and in a file so
// that it survives the launcher. A version is written before it is tried, so
// that after kill -9 the journal knows what may be there.
type Journal struct {
	mu   sync.Mutex
	file *os.File
	buf  *bufio.Writer
	rows map[Key]*row
	acks int
	err  error // first failure to write the file
}

// OpenJournal opens the journal at path, and reads what an earlier start wrote.
func OpenJournal(path string) (*Journal, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	j := &Journal{file: f, rows: map[Key]*row{}}
	dec := json.NewDecoder(bufio.NewReader(f))
	for {
		var l line
		err := dec.Decode(&l)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break // the last line may be cut short by kill -9; nothing acknowledged is behind it
		}
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("journal %s: %w", path, err)
		}
		j.apply(l)
	}
	// Cut off a half line, so that the next one does not join it.
	if err := f.Truncate(dec.InputOffset()); err != nil {
		_ = f.Close()
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekEnd); err != nil {
		_ = f.Close()
		return nil, err
	}
	j.buf = bufio.NewWriter(f)
	return j, nil
}

// Close writes what is buffered and closes the file.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return errors.Join(j.err, j.buf.Flush(), j.file.Close())
}

func (j *Journal) record(k Key, version int, event string) {
	l := line{Key: k, Version: version, Event: event}
	b, err := json.Marshal(l)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.apply(l)
	if err == nil {
		_, err = j.buf.Write(append(b, '\n'))
	}
	if err == nil {
		err = j.buf.Flush() // to the kernel: that is what survives kill -9
	}
	if err != nil && j.err == nil {
		j.err = fmt.Errorf("journal: %w", err)
	}
}

func (j *Journal) apply(l line) {
	r := j.rows[l.Key]
	if r == nil {
		r = &row{acked: -1, open: map[int]bool{}}
		j.rows[l.Key] = r
	}
	switch l.Event {
	case tried:
		r.open[l.Version] = true
	case acknowledged:
		j.acks++
		r.acked = l.Version
		// A writer writes its rows one write after the other: what was open before
		// this one has been overwritten.
		clear(r.open)
	case refused:
		delete(r.open, l.Version)
	}
}

// allows reports whether a row may have the version now, and which was acknowledged last.
func (j *Journal) allows(k Key, version int) (bool, int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	r := j.rows[k]
	if r == nil {
		return false, -1
	}
	return version == r.acked || r.open[version], r.acked
}

// targets lists what was written to: keys without a token.
func (j *Journal) targets() map[Key]bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	set := map[Key]bool{}
	for k := range j.rows {
		set[Key{Tenant: k.Tenant, Kind: k.Kind}] = true
	}
	return set
}

// Found is what the databases hold: the versions of all rows with a key. More
// than one is a duplicate.
type Found map[Key][]int

// Verdict compares what was acknowledged with what was found.
type Verdict struct {
	Acknowledged int      `json:"acknowledged"` // writes, not rows
	Lost         int      `json:"lost"`         // rows gone, or older than what was acknowledged
	Duplicated   int      `json:"duplicated"`   // rows too many
	Different    int      `json:"different"`    // rows with a version that nobody wrote
	Examples     []string `json:"examples,omitempty"`
}

// Clean reports whether every acknowledged write is there, once and unchanged.
func (v Verdict) Clean() bool { return v.Lost+v.Duplicated+v.Different == 0 }

// maxExamples bounds what a report prints of a disaster.
const maxExamples = 20

func (v *Verdict) example(format string, args ...any) {
	if len(v.Examples) < maxExamples {
		v.Examples = append(v.Examples, fmt.Sprintf(format, args...))
	}
}

// Check looks for every acknowledged write in found.
func (j *Journal) Check(found Found) Verdict {
	j.mu.Lock()
	defer j.mu.Unlock()
	v := Verdict{Acknowledged: j.acks}
	for k, versions := range found {
		if len(versions) > 1 {
			v.Duplicated += len(versions) - 1
			v.example("tenant %s: %s %q is there %d times", k.Tenant, k.Kind, k.Token, len(versions))
		}
	}
	for k, r := range j.rows {
		versions := found[k]
		if len(versions) == 0 {
			if r.acked >= 0 {
				v.Lost++
				v.example("tenant %s: %s %q, acknowledged with version %d, is gone", k.Tenant, k.Kind, k.Token, r.acked)
			}
			continue
		}
		for _, got := range versions {
			switch {
			case got == r.acked || r.open[got]:
			case got < r.acked:
				v.Lost++
				v.example("tenant %s: %s %q has version %d, acknowledged was %d", k.Tenant, k.Kind, k.Token, got, r.acked)
			default:
				v.Different++
				v.example("tenant %s: %s %q has version %d, which nobody wrote (acknowledged was %d)", k.Tenant, k.Kind, k.Token, got, r.acked)
			}
		}
	}
	return v
}
