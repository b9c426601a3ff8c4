package project

import (
	"hash/fnv"
	"strconv"
	"strings"
	"time"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

// Limits of a page.
const (
	DefaultLimit = 20
	MaxLimit     = 100
)

// Page is a part of a list. Next is where the following part begins; nil after the last.
//
// Pages are cut by the values of their last row, not by counting: rows that are
// made or deleted while a list is walked neither repeat nor hide another. A row
// whose sorted value changes meanwhile may be met twice or not at all.
type Page[T any] struct {
	Items []T
	Next  *Position
}

// Position is a place in one list: after the row with this key and id. List tells
// lists apart (tenant, sort, filter), because a place in one is nowhere in another.
type Position struct {
	List uint64 `json:"l"`
	Key  string `json:"k,omitempty"`
	ID   ID     `json:"i"`
}

// Sort is an order: a word, with a minus in front for descending.
type Sort string

// split returns the word and whether it is descending.
func (s Sort) split() (word string, descending bool) {
	word, descending = strings.CutPrefix(string(s), "-")
	return word, descending
}

// ListOptions is what all lists have in common.
type ListOptions struct {
	Sort  Sort      // newest first if empty
	Limit int       // DefaultLimit if zero
	After *Position // from the start if nil
}

// column is how a list is ordered by one word.
type column struct {
	expr string // as it is indexed; "" for the id alone
	cast string // type of the position's key
}

// orders are the words a list can be sorted by.
type orders map[string]column

// list is one list: its statement as it is put together.
type listing struct {
	sql  strings.Builder
	args []any
	sum  uint64
	by   column
	desc bool
	most int
}

// newListing begins the statement of a list. Everything that makes it another
// list (filters) is to be added with where.
func newListing(t tenant.ID, opt ListOptions, sorts orders, words []Sort, selectSQL string) (*listing, error) {
	l := &listing{most: opt.Limit, args: make([]any, 0, 8)}
	if opt.Sort == "" {
		opt.Sort = "-created"
	}
	word, desc := opt.Sort.split()
	by, ok := sorts[word]
	if !ok {
		return nil, fault.BadField("sort", "must be one of %s, or one of them with a minus in front for descending", list(words))
	}
	if l.most == 0 {
		l.most = DefaultLimit
	}
	if l.most < 1 || l.most > MaxLimit {
		return nil, fault.BadField("limit", "must be 1 to %d", MaxLimit)
	}
	l.by, l.desc = by, desc
	l.sql.Grow(512)
	l.sql.WriteString(selectSQL)
	l.sql.WriteString(` WHERE tenant_id = $1`)
	l.args = append(l.args, t)
	l.note(t.String())
	l.note(string(opt.Sort))
	return l, nil
}

// note makes part of what List tells apart.
func (l *listing) note(s string) {
	h := fnv.New64a()
	_, _ = h.Write(strconv.AppendUint(nil, l.sum, 16))
	_, _ = h.Write([]byte{0})
	_, _ = h.Write([]byte(s))
	l.sum = h.Sum64()
}

// where adds a condition. ? stands for the value; text is the value as the
// position remembers it.
func (l *listing) where(condition string, value any, text string) {
	l.args = append(l.args, value)
	l.sql.WriteString(` AND `)
	l.sql.WriteString(strings.Replace(condition, "?", "$"+strconv.Itoa(len(l.args)), 1))
	l.note(condition)
	l.note(text)
}

// finish adds the place to begin at, order and limit.
func (l *listing) finish(after *Position) error {
	cmp, dir := " > ", " ASC"
	if l.desc {
		cmp, dir = " < ", " DESC"
	}
	if after != nil {
		if after.List != l.sum {
			return fault.BadField("cursor", "belongs to another list: it goes with the tenant, sort and filters it was made with")
		}
		l.args = append(l.args, after.ID)
		id := "$" + strconv.Itoa(len(l.args))
		if l.by.expr == "" {
			l.sql.WriteString(` AND id` + cmp + id)
		} else {
			key, err := parseKey(l.by.cast, after.Key)
			if err != nil {
				return err
			}
			l.args = append(l.args, key)
			l.sql.WriteString(` AND (` + l.by.expr + `, id)` + cmp + `($` + strconv.Itoa(len(l.args)) + `::` + l.by.cast + `, ` + id + `)`)
		}
	}
	l.sql.WriteString(` ORDER BY `)
	if l.by.expr != "" {
		l.sql.WriteString(l.by.expr + dir + `, `)
	}
	l.sql.WriteString(`id` + dir)
	// One more than asked for tells whether there is a next page.
	l.args = append(l.args, l.most+1)
	l.sql.WriteString(` LIMIT $` + strconv.Itoa(len(l.args)))
	return nil
}

// noDate sorts tasks without a due date behind all others.
const noDate = "infinity"

// parseKey reads a position's key. A caller may have made it up: what does not
// parse is refused here, not by the database.
func parseKey(cast, key string) (any, error) {
	bad := fault.BadField("cursor", "must be the next_cursor of an earlier answer of this list, unchanged")
	switch cast {
	case "timestamptz":
		us, err := strconv.ParseInt(key, 10, 64)
		if err != nil || us < 0 || us > 253402300800000000 { // year 10000
			return nil, bad
		}
		return time.UnixMicro(us).UTC(), nil
	case "smallint":
		n, err := strconv.ParseInt(key, 10, 16)
		if err != nil {
			return nil, bad
		}
		return int16(n), nil
	case "date":
		if key == noDate {
			return infinity, nil
		}
		d, err := ParseDate(key)
		if err != nil {
			return nil, bad
		}
		return d, nil
	default:
		if strings.IndexByte(key, 0) >= 0 {
			return nil, bad
		}
		return key, nil
	}
}

// pageOf cuts the extra row off and says where the next page begins.
func pageOf[T any](l *listing, rows []T, keyOf func(*T) (string, ID)) Page[T] {
	if len(rows) <= l.most {
		return Page[T]{Items: rows}
	}
	rows = rows[:l.most]
	key, id := keyOf(&rows[l.most-1])
	return Page[T]{Items: rows, Next: &Position{List: l.sum, Key: key, ID: id}}
}
