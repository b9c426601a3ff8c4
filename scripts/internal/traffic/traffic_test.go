package traffic

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/tenant"
)

func journal(t *testing.T) (*Journal, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal")
	j, err := OpenJournal(path)
	require.NoError(t, err)
	return j, path
}

func TestCheckFindsWhatIsWrong(t *testing.T) {
	j, _ := journal(t)
	id := tenant.NewID()
	write := func(token string, events ...string) Key {
		k := Key{Tenant: id, Kind: "task", Token: token}
		for v, e := range events {
			j.record(k, v, tried)
			if e != "open" {
				j.record(k, v, e)
			}
		}
		return k
	}
	ok := write("ok", acknowledged, acknowledged)
	gone := write("gone", acknowledged)
	old := write("old", acknowledged, acknowledged)
	twice := write("twice", acknowledged)
	foreign := write("foreign", acknowledged)
	maybe := write("maybe", acknowledged, "open")
	write("never", "open")
	fenced := write("fenced", acknowledged, refused)

	v := j.Check(Found{ok: {1}, old: {0}, twice: {0, 0}, foreign: {7}, maybe: {1}, fenced: {0}})
	require.Equal(t, 9, v.Acknowledged)
	require.Equal(t, 2, v.Lost, "%v", v.Examples)
	require.Equal(t, 1, v.Duplicated)
	require.Equal(t, 1, v.Different)
	require.False(t, v.Clean())
	require.Len(t, v.Examples, 4)

	v = j.Check(Found{ok: {1}, gone: {0}, old: {1}, twice: {0}, foreign: {0}, maybe: {0}, fenced: {0}})
	require.True(t, v.Clean(), "%v", v.Examples)
	// A write that was refused must not be there.
	v = j.Check(Found{ok: {1}, gone: {0}, old: {1}, twice: {0}, foreign: {0}, maybe: {0}, fenced: {1}})
	require.Equal(t, 1, v.Different)
}

// What one launcher recorded before kill -9 is checked by the next one.
func TestJournalSurvives(t *testing.T) {
	j, path := journal(t)
	k := Key{Tenant: tenant.NewID(), Kind: "task", Token: "a"}
	j.record(k, 0, tried)
	j.record(k, 0, acknowledged)
	j.record(k, 1, tried)
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString(`{"tenant":"`) // cut short
	require.NoError(t, err)
	require.NoError(t, f.Close())

	again, err := OpenJournal(path)
	require.NoError(t, err)
	again.record(Key{Tenant: k.Tenant, Kind: "task", Token: "b"}, 0, tried)
	require.NoError(t, again.Close())
	third, err := OpenJournal(path)
	require.NoError(t, err)
	require.True(t, third.Check(Found{k: {1}}).Clean())
	require.Equal(t, 1, third.Check(Found{}).Lost)
	require.Equal(t, map[Key]bool{{Tenant: k.Tenant, Kind: "task"}: true}, third.targets())
}

func TestTextRoundTrip(t *testing.T) {
	text := Text("old-019-65f1a2b3-12345", 123)
	require.LessOrEqual(t, len(text), 50)
	token, version, ok := Parse(text)
	require.True(t, ok)
	require.Equal(t, "old-019-65f1a2b3-12345", token)
	require.Equal(t, 123, version)
	_, _, ok = Parse("Buy milk v2")
	require.False(t, ok)
}

// store is a tenant's home in memory, with faults to be found.
type store struct {
	mu     sync.Mutex
	rows   map[string]string
	fault  func(op string) error
	forget bool // acknowledge updates without doing them
}

func (s *store) Kind() string { return "task" }

func (s *store) Create(_ context.Context, key, text string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fault("create"); err != nil {
		return "", err
	}
	s.rows[key] = text
	return key, nil
}

func (s *store) Update(_ context.Context, id, text string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fault("update"); err != nil {
		return err
	}
	if !s.forget {
		s.rows[id] = text
	}
	return nil
}

func (s *store) Read(_ context.Context, id string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rows[id], nil
}

func (s *store) Page(context.Context) error { return nil }

func (s *store) found(id tenant.ID) Found {
	f := Found{}
	for _, text := range s.rows {
		token, version, _ := Parse(text)
		k := Key{Tenant: id, Kind: "task", Token: token}
		f[k] = append(f[k], version)
	}
	return f
}

func drive(t *testing.T, s *store, mayBeFenced bool) (Figures, Verdict, []string) {
	t.Helper()
	s.rows = map[string]string{}
	if s.fault == nil {
		s.fault = func(string) error { return nil }
	}
	j, _ := journal(t)
	id := tenant.NewID()
	var writers []Writer
	for n := range 8 {
		writers = append(writers, Writer{Name: fmt.Sprint("w", n), Target: Key{Tenant: id}, Client: s, MayBeFenced: mayBeFenced})
	}
	tr := Start(t.Context(), j, writers, time.Millisecond)
	require.Eventually(t, func() bool { return tr.Figures().Requests > 400 }, 10*time.Second, time.Millisecond)
	tr.Stop()
	return tr.Figures(), j.Check(s.found(id)), tr.Errors()
}

func TestHonestStoreIsClean(t *testing.T) {
	figures, verdict, errs := drive(t, &store{}, false)
	require.True(t, verdict.Clean(), "%v", verdict.Examples)
	require.Empty(t, errs)
	require.Zero(t, figures.Failed+figures.Stale+figures.Fenced)
	require.EqualValues(t, verdict.Acknowledged, figures.Acked)
}

func TestForgetfulStoreIsFound(t *testing.T) {
	figures, verdict, _ := drive(t, &store{forget: true}, false)
	require.Positive(t, verdict.Lost)
	require.Positive(t, figures.Stale)
}

func TestFenceIsAllowedOnlyForTheOldApplication(t *testing.T) {
	refuse := func(op string) error {
		if op == "update" {
			return ErrFenced
		}
		return nil
	}
	figures, verdict, _ := drive(t, &store{fault: refuse}, true)
	require.True(t, verdict.Clean(), "%v", verdict.Examples)
	require.Positive(t, figures.Fenced)
	require.Zero(t, figures.Failed)

	figures, _, errs := drive(t, &store{fault: refuse}, false)
	require.Positive(t, figures.Failed)
	require.Contains(t, errs[0], "refused by the fence")
}

func TestOpenOutcomesAreNotLost(t *testing.T) {
	n := 0
	figures, verdict, _ := drive(t, &store{fault: func(string) error {
		if n++; n%3 == 0 {
			return errors.New("connection reset")
		}
		return nil
	}}, false)
	require.True(t, verdict.Clean(), "%v", verdict.Examples)
	require.Positive(t, figures.Failed)
}
