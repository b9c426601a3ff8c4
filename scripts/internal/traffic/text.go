package traffic

import (
	"fmt"
	"strconv"
	"strings"
)

// Prefix begins the text of every row that traffic makes, so that looking them up
// is one query.
const Prefix = "traffic "

// Text is what a row carries: the token says which row it is, the version which
// write. It is at most 50 characters long, what a django label takes.
func Text(token string, version int) string { return fmt.Sprintf("%s%s v%d", Prefix, token, version) }

// Parse is the inverse of Text.
func Parse(text string) (token string, version int, ok bool) {
	rest, ok := strings.CutPrefix(text, Prefix)
	if !ok {
		return "", 0, false
	}
	token, v, ok := strings.Cut(rest, " v")
	if !ok {
		return "", 0, false
	}
	version, err := strconv.Atoi(v)
	return token, version, err == nil
}
