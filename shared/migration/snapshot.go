package migration

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// snapshot is what a copy has seen: PostgreSQL's pg_snapshot, "xmin:xmax:xip,xip".
type snapshot struct {
	xmin, xmax int64
	open       []int64 // sorted: between the two, but had not ended
}

func parseSnapshot(s string) (snapshot, error) {
	parts := strings.Split(s, ":")
	if len(parts) != 3 {
		return snapshot{}, fmt.Errorf("migration: %q is no snapshot", s)
	}
	var out snapshot
	var err error
	if out.xmin, err = strconv.ParseInt(parts[0], 10, 64); err != nil {
		return out, fmt.Errorf("migration: %q is no snapshot: %w", s, err)
	}
	if out.xmax, err = strconv.ParseInt(parts[1], 10, 64); err != nil {
		return out, fmt.Errorf("migration: %q is no snapshot: %w", s, err)
	}
	if parts[2] == "" {
		return out, nil
	}
	for _, x := range strings.Split(parts[2], ",") {
		n, err := strconv.ParseInt(x, 10, 64)
		if err != nil {
			return out, fmt.Errorf("migration: %q is no snapshot: %w", s, err)
		}
		out.open = append(out.open, n)
	}
	slices.Sort(out.open)
	return out, nil
}

// sees reports whether what a committed transaction did is in the snapshot, as
// pg_visible_in_snapshot does.
func (s snapshot) sees(xid int64) bool {
	switch {
	case xid < s.xmin:
		return true
	case xid >= s.xmax:
		return false
	}
	_, open := slices.BinarySearch(s.open, xid)
	return !open
}
