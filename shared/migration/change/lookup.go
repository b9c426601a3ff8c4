package change

import (
	"fmt"
	"strings"
)

// ByKeyAlone are statements after which, until the transaction ends, the planner reads rows in the order of a key by an
// index that has this order, and joins by looking up. Where it knows nothing of a tenant, it takes it to have a row or two:
// any index that begins with the tenant would do, a sort would cost nothing, and keys would be joined to the tenant's
// rows each with each.
func ByKeyAlone() []string {
	out := []string{"seqscan", "bitmapscan", "sort", "incremental_sort", "hashjoin", "mergejoin"}
	for i, other := range out {
		out[i] = "SET LOCAL enable_" + other + " = off"
	}
	return out
}

// ByKeys is what follows FROM in a query of the rows with some keys, which are given as arrays of text, one for each of a
// key's columns. It looks up key after key, by the key's index if [ByKeyAlone] was said before. The source is a table and
// WHERE, with a condition on something else that ends in AND, if there is one; key are the key's columns in it, called by
// the table, with commas between, and types theirs. What is selected of a row that is there, under names of its own, is
// beside coditect_n, its key's number, from 1.
func ByKeys(source, key string, types []string, what string) string {
	arrays := make([]string, len(types))
	for i, typ := range types {
		arrays[i] = fmt.Sprintf("$%d::text[]::%s[]", i+1, typ)
	}
	// What is equal needs no order: the key is between itself and itself.
	return fmt.Sprintf("unnest(%s) WITH ORDINALITY AS coditect_u(%s, coditect_n) CROSS JOIN LATERAL (SELECT %s FROM %s (%s) >= (%[2]s) AND (%[5]s) <= (%[2]s) ORDER BY %[5]s LIMIT 1) coditect_x",
		strings.Join(arrays, ", "), numbered("coditect_k", len(types)), what, source, key)
}
