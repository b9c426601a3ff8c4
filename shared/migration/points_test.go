//go:build !soak

package migration_test

// everything: go through all crash points, not a sample of them.
const everything = false
