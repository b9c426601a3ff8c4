//go:build !soak

package migrationstep_test

// everything: go through all points, not a sample of them.
const everything = false

// backPoints are a sample of where a rollback dies; the soak goes through all of them.
var backPoints = []string{"changes applied in blue", "gate shut", "flipped back"}
