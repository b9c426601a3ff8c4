package organisation

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

const maxName = 200

func checkName(name string) error {
	if n := utf8.RuneCountInString(name); n < 1 || n > maxName || strings.TrimSpace(name) != name || strings.ContainsFunc(name, unicode.IsControl) {
		return fault.BadField("name", "must have 1 to %d characters, none of them a control character, and neither begin nor end with a space", maxName)
	}
	return nil
}

const minSlug, maxSlug = 3, 63

// slugForm is a DNS label in lower case without two hyphens in a row, so that a
// slug can be a host name and never looks like punycode.
var slugForm = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)

// reserved slugs are names that addresses of the platform use or may use.
var reserved = func() map[string]bool {
	m := map[string]bool{}
	for _, s := range strings.Fields(`about abuse access account accounts admin administrator api app apps assets auth autoconfig autodiscover
		billing blog blue careers cdn coditect console contact dashboard demo dev dns docs domain domains email example ftp git green health
		help host hostmaster hydra imap info internal invite jobs legal localhost login logout mail metrics migrations mx news noreply ns
		ns1 ns2 oauth openapi operator operators organisation organisations organization organizations owner ping platform pop postmaster
		pricing privacy production projects public register root router sales security settings setup shop signup smtp ssl staff staging
		static status store stripe support sweep system team teams tenant tenants terms test user users webmaster webhook webhooks wpad
		www www1 www2`) {
		m[s] = true
	}
	return m
}()

func checkSlug(slug string) error {
	switch {
	case len(slug) < minSlug || len(slug) > maxSlug || !slugForm.MatchString(slug):
		return fault.BadField("slug", "must have %d to %d characters: lower-case letters a to z, digits, and single hyphens between them", minSlug, maxSlug)
	case reserved[slug]:
		return fault.BadField("slug", "must not be %q: the platform uses this name", slug)
	}
	return nil
}

// slugOf derives a slug from a name; "" when too little of it is left.
func slugOf(name string) string {
	var b strings.Builder
	gap := false
	for _, r := range strings.ToLower(name) {
		if 'a' <= r && r <= 'z' || '0' <= r && r <= '9' {
			if gap && b.Len() > 0 {
				b.WriteByte('-')
			}
			gap = false
			b.WriteRune(r)
		} else {
			gap = true
		}
		if b.Len() >= maxSlug-10 { // leaves room for what makes it unique
			break
		}
	}
	if b.Len() < minSlug {
		return ""
	}
	return b.String()
}

// domains maps what people type (case, other scripts) to the ASCII form, and
// refuses what DNS does not take.
var domains = idna.New(idna.MapForLookup(), idna.Transitional(false), idna.StrictDomainName(true), idna.VerifyDNSLength(true),
	idna.BidiRule(), idna.CheckJoiners(true), idna.CheckHyphens(true))

func checkDomain(name string) (string, error) {
	bad := fault.BadField("name", `must be a host name of two or more labels such as "app.example.com", without a port, a path or a final dot`)
	if len(name) > 253 || strings.HasSuffix(name, ".") {
		return "", bad
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return "", bad
	}
	ascii, err := domains.ToASCII(name)
	if err != nil || len(ascii) > 253-len(challengeLabel)-1 {
		return "", bad
	}
	labels := strings.Split(ascii, ".")
	last := labels[len(labels)-1]
	if _, err := strconv.Atoi(last); err == nil || len(labels) < 2 || len(last) < 2 {
		return "", bad
	}
	return ascii, nil
}

// HomePolicy chooses the home of new tenants.
type HomePolicy struct{ greenPercent int }

// ParseHomePolicy reads "blue", "green" or a percentage of green such as "25%".
func ParseHomePolicy(s string) (HomePolicy, error) {
	switch s {
	case string(tenant.Blue):
		return HomePolicy{0}, nil
	case string(tenant.Green):
		return HomePolicy{100}, nil
	}
	digits, isPercent := strings.CutSuffix(s, "%")
	if n, err := strconv.Atoi(digits); err == nil && isPercent && 0 <= n && n <= 100 {
		return HomePolicy{n}, nil
	}
	return HomePolicy{}, fmt.Errorf(`must be blue, green, or a percentage of green from 0%% to 100%%, and is %q`, s)
}

// EnvDecode implements go-envconfig's decoder.
func (p *HomePolicy) EnvDecode(s string) error {
	parsed, err := ParseHomePolicy(s)
	if err != nil {
		return fmt.Errorf("CODITECT_NEW_TENANT_HOME %w", err)
	}
	*p = parsed
	return nil
}

// Choose is a function of the id alone, so that nothing has to remember it and
// a sign-up that is repeated with its id chooses the same.
func (p HomePolicy) Choose(id tenant.ID) tenant.Home {
	h := fnv.New64a()
	_, _ = h.Write(id[:])
	if int(h.Sum64()%100) < p.greenPercent {
		return tenant.Green
	}
	return tenant.Blue
}

// mayChange refuses to change a tenant that is not in use.
func mayChange(o Organisation, caller Caller) error {
	switch o.Status {
	case tenant.Active:
		return nil
	case tenant.Suspended:
		if caller.Operator {
			return nil
		}
		return errSuspended()
	case tenant.Provisioning:
		return errProvisioning()
	case tenant.Deleting:
		return errDeleting()
	default:
		return errNotFound()
	}
}
