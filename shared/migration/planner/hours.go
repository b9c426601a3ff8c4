package planner

import (
	"fmt"
	"strings"
	"time"
	_ "time/tzdata" // a container may have no time zones of its own
)

// Hours are the hours of each day in which a run may begin to move tenants. The zero value
// allows all.
type Hours struct {
	from, to int // minutes of the local day; to < from: past midnight
	zone     *time.Location
}

const hoursForm = "must look like 22:00-06:00@Europe/Berlin: from, to and a time zone"

// ParseHours reads "22:00-06:00@Europe/Berlin". Without a zone the hours are UTC's; "" allows all.
func ParseHours(s string) (Hours, error) {
	if s == "" {
		return Hours{}, nil
	}
	span, zone, named := strings.Cut(s, "@")
	if !named {
		zone = "UTC"
	}
	from, to, ok := strings.Cut(span, "-")
	if !ok || zone == "" || zone == "Local" {
		return Hours{}, fmt.Errorf("%s, and is %q", hoursForm, s)
	}
	h := Hours{}
	var err error
	for _, end := range []struct {
		text   string
		minute *int
	}{{from, &h.from}, {to, &h.to}} {
		t, err := time.Parse("15:04", end.text)
		if err != nil || len(end.text) != 5 {
			return Hours{}, fmt.Errorf("%s, and is %q", hoursForm, s)
		}
		*end.minute = t.Hour()*60 + t.Minute()
	}
	if h.from == h.to {
		return Hours{}, fmt.Errorf("must not begin and end at the same minute; leave them out to allow all hours")
	}
	if h.zone, err = time.LoadLocation(zone); err != nil {
		return Hours{}, fmt.Errorf("must name a time zone such as Europe/Berlin; %q is not known", zone)
	}
	return h, nil
}

// Always reports whether all hours are allowed.
func (h Hours) Always() bool { return h.zone == nil }

// String is the inverse of ParseHours.
func (h Hours) String() string {
	if h.Always() {
		return ""
	}
	return fmt.Sprintf("%02d:%02d-%02d:%02d@%s", h.from/60, h.from%60, h.to/60, h.to%60, h.zone)
}

// MarshalText makes hours a JSON string.
func (h Hours) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads what ParseHours does.
func (h *Hours) UnmarshalText(b []byte) (err error) {
	*h, err = ParseHours(string(b))
	return err
}

// Open reports whether t is within the hours.
func (h Hours) Open(t time.Time) bool {
	if h.Always() {
		return true
	}
	local := t.In(h.zone)
	m := local.Hour()*60 + local.Minute()
	if h.from < h.to {
		return h.from <= m && m < h.to
	}
	return m >= h.from || m < h.to
}

// Next returns t when it is within the hours, else when they open next.
func (h Hours) Next(t time.Time) time.Time { return h.until(t, true) }

// until walks minutes until the hours are open or not: that is right on days of 23 and of 25
// hours without a thought, and a day has few minutes.
func (h Hours) until(t time.Time, open bool) time.Time {
	const enough = 2 * 24 * 60 // an opening that a change of the clocks skips comes a day later
	for range enough {
		if h.Open(t) == open {
			return t
		}
		t = t.Truncate(time.Minute).Add(time.Minute)
	}
	return t
}

// farAway bounds how far an end is looked for.
const farAway = 10 * 365 * 24 * time.Hour

// After returns when work that takes d is done, when it begins at t and rests outside of the
// hours. What would take longer than ten years of them ends then.
func (h Hours) After(t time.Time, d time.Duration) time.Time {
	if h.Always() {
		return t.Add(d)
	}
	for end := t.Add(farAway); t.Before(end); {
		t = h.Next(t)
		closing := h.until(t, false)
		if open := closing.Sub(t); d > open {
			d, t = d-open, closing
			continue
		}
		return t.Add(d)
	}
	return t
}
