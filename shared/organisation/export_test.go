package organisation

// CheckDerivedSlug says whether the slug derived from a name would be taken.
func CheckDerivedSlug(name string) error {
	s := slugOf(name)
	if s == "" || reserved[s] {
		return nil
	}
	return checkSlug(s)
}
