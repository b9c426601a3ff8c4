package planner_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/migration/planner"
	"github.com/coditect/platform/shared/tenant"
)

func at(t *testing.T, s string) time.Time {
	t.Helper()
	v, err := time.Parse(time.RFC3339, s)
	require.NoError(t, err)
	return v
}

func ptr[T any](v T) *T { return &v }

func TestRulesOfTheDirectory(t *testing.T) {
	one := planner.Tenant{ID: tenant.NewID(), Created: at(t, "2026-11-01T12:00:00Z"), Plan: "free"}
	position := 100 * planner.Position(one.ID)
	for name, c := range map[string]struct {
		rules planner.Rules
		want  string
	}{
		"no rule":            {planner.Rules{}, ""},
		"excluded":           {planner.Rules{Exclude: []tenant.ID{tenant.NewID(), one.ID}}, planner.Excluded},
		"others excluded":    {planner.Rules{Exclude: []tenant.ID{tenant.NewID()}}, ""},
		"new, at the moment": {planner.Rules{NewSince: one.Created}, ""},
		"too old":            {planner.Rules{NewSince: one.Created.Add(time.Nanosecond)}, planner.NotNew},
		"one of its plans":   {planner.Rules{Plans: []string{"team", "free"}}, ""},
		"another plan":       {planner.Rules{Plans: []string{"team", "fre"}}, planner.OtherPlan},
		"everybody":          {planner.Rules{Percent: 100}, ""},
		"just inside":        {planner.Rules{Percent: position + 1e-9}, ""},
		"just outside":       {planner.Rules{Percent: position}, planner.NotInPercentage},
		"all must hold":      {planner.Rules{NewSince: one.Created, Plans: []string{"team"}}, planner.OtherPlan},
		"exclusion is first": {planner.Rules{NewSince: one.Created, Exclude: []tenant.ID{one.ID}}, planner.Excluded},
	} {
		v := c.rules.Directory(one)
		require.Equal(t, c.want, v.LeftOut, name)
		require.Equal(t, c.rules.Any() && name != "others excluded", v.Reason != "", "%s: %q", name, v.Reason)
	}
	require.Equal(t, `created 2026-11-01 12:00 UTC, on plan "free"`, planner.Rules{NewSince: one.Created, Plans: []string{"free"}}.Directory(one).Reason)
}

func TestRulesOfTheInside(t *testing.T) {
	now := at(t, "2026-11-11T00:00:00Z")
	tenDays := now.Add(-10 * 24 * time.Hour)
	for name, c := range map[string]struct {
		rules planner.Rules
		of    planner.Tenant
		want  string
	}{
		"as large as allowed":       {planner.Rules{MaxBytes: 100}, planner.Tenant{Bytes: 100}, ""},
		"too large":                 {planner.Rules{MaxBytes: 100}, planner.Tenant{Bytes: 101}, planner.TooLarge},
		"as active as allowed":      {planner.Rules{MaxActivity: ptr(int64(5))}, planner.Tenant{Activity: planner.Activity{Changes: 50, Since: tenDays}}, ""},
		"too active":                {planner.Rules{MaxActivity: ptr(int64(5))}, planner.Tenant{Activity: planner.Activity{Changes: 51, Since: tenDays}}, planner.TooActive},
		"nobody writes":             {planner.Rules{MaxActivity: ptr(int64(0))}, planner.Tenant{Activity: planner.Activity{Since: tenDays}}, ""},
		"one write is no silence":   {planner.Rules{MaxActivity: ptr(int64(0))}, planner.Tenant{Activity: planner.Activity{Changes: 1, Since: tenDays}}, planner.TooActive},
		"counted for too short":     {planner.Rules{MaxActivity: ptr(int64(5))}, planner.Tenant{Activity: planner.Activity{Since: now.Add(-24*time.Hour + 1)}}, planner.ActivityUnknown},
		"cannot be told":            {planner.Rules{MaxActivity: ptr(int64(5))}, planner.Tenant{Activity: planner.Activity{Since: tenDays, Unknown: "x"}}, planner.ActivityUnknown},
		"not asked, need not known": {planner.Rules{MaxBytes: 100}, planner.Tenant{Activity: planner.Activity{Unknown: "x"}}, ""},
	} {
		v := c.rules.Inside(c.of, now)
		require.Equal(t, c.want, v.LeftOut, name)
		require.NotEmpty(t, v.Reason, name)
	}
}

// 10 % of the tenants are a part of 50 %, today and tomorrow, and they are 10 %.
func TestPercentagesAreNested(t *testing.T) {
	const n = 20_000
	count := map[float64]int{}
	for range n {
		one := planner.Tenant{ID: tenant.NewID()}
		before := false
		for _, p := range []float64{0.5, 10, 50, 99.99, 100} {
			in := planner.Rules{Percent: p}.Directory(one).LeftOut == ""
			require.False(t, before && !in, "%v %% is not a part of the next larger", p)
			if before = in; in {
				count[p]++
			}
		}
	}
	require.InDelta(t, n/200, count[0.5], 50)
	require.InDelta(t, n/10, count[10], 250)
	require.InDelta(t, n/2, count[50], 400)
	require.Equal(t, n, count[100])
	id, err := tenant.ParseID("0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69")
	require.NoError(t, err)
	require.InDelta(t, 0.7888408, planner.Position(id), 1e-6, "operators would find other tenants in the same percentage")
}

func TestWaves(t *testing.T) {
	for name, c := range map[string]struct {
		waves planner.Waves
		ok    bool
	}{
		"default": {planner.DefaultWaves, true}, "one": {planner.OneWave, true}, "fractions": {planner.Waves{0.1, 100}, true},
		"none": {nil, false}, "not all": {planner.Waves{1, 50}, false}, "zero": {planner.Waves{0, 100}, false},
		"down": {planner.Waves{10, 5, 100}, false}, "twice": {planner.Waves{10, 10, 100}, false}, "more than all": {planner.Waves{100, 101}, false},
		"too many": {make(planner.Waves, planner.MaxWaves+1), false},
	} {
		require.Equal(t, c.ok, c.waves.Check() == "", "%s: %s", name, c.waves.Check())
	}
	for n, want := range map[int][]int{0: {0, 0, 0, 0}, 1: {1, 0, 0, 0}, 3: {1, 0, 1, 1}, 100: {1, 9, 40, 50}, 1001: {11, 90, 400, 500}} {
		require.Equal(t, want, planner.DefaultWaves.Split(n), n)
	}
	require.Equal(t, []int{7}, planner.OneWave.Split(7))
}

func TestBudget(t *testing.T) {
	for name, c := range map[string]struct {
		budget        planner.Budget
		failed, begun int64
		exceeded      bool
	}{
		"none":                       {planner.Budget{}, 100, 100, false},
		"as many as allowed":         {planner.Budget{Errors: ptr(int64(2))}, 2, 2, false},
		"one more":                   {planner.Budget{Errors: ptr(int64(2))}, 3, 1000, true},
		"none allowed":               {planner.Budget{Errors: ptr(int64(0))}, 1, 1000, true},
		"share, as allowed":          {planner.Budget{Percent: ptr(5.0)}, 5, 100, false},
		"share, more":                {planner.Budget{Percent: ptr(5.0)}, 6, 100, true},
		"the only one of a wave":     {planner.Budget{Percent: ptr(5.0)}, 1, 1, true},
		"nothing failed, none tried": {planner.Budget{Percent: ptr(0.0)}, 0, 0, false},
		"both, the count":            {planner.Budget{Errors: ptr(int64(1)), Percent: ptr(50.0)}, 2, 100, true},
		"both, the share":            {planner.Budget{Errors: ptr(int64(10)), Percent: ptr(1.0)}, 2, 100, true},
	} {
		require.Equal(t, c.exceeded, c.budget.Exceeded(c.failed, c.begun) != "", name)
	}
}

func TestHours(t *testing.T) {
	for _, bad := range []string{"22-06", "22:00-06:00@", "22:00-06:00@Nowhere/City", "22:00-06:00@Local", "24:00-06:00", "22:0-06:00", "22:00", "22:00-22:00@UTC", "@UTC"} {
		_, err := planner.ParseHours(bad)
		require.Error(t, err, bad)
	}
	for hours, c := range map[string]map[string]string{ // a moment, and when the hours are open from then on
		"": {"2026-11-23T12:00:00Z": "2026-11-23T12:00:00Z"},
		"09:00-17:00": {
			"2026-11-23T08:59:59Z": "2026-11-23T09:00:00Z", "2026-11-23T09:00:00Z": "2026-11-23T09:00:00Z",
			"2026-11-23T16:59:59Z": "2026-11-23T16:59:59Z", "2026-11-23T17:00:00Z": "2026-11-24T09:00:00Z"},
		"22:00-06:00@Europe/Berlin": { // UTC+1 in winter, UTC+2 in summer
			"2026-11-23T20:59:59Z": "2026-11-23T21:00:00Z", "2026-11-23T21:00:00Z": "2026-11-23T21:00:00Z", "2026-11-23T23:30:00Z": "2026-11-23T23:30:00Z",
			"2026-11-24T04:59:59Z": "2026-11-24T04:59:59Z", "2026-11-24T05:00:00Z": "2026-11-24T21:00:00Z", "2026-07-01T12:00:00Z": "2026-07-01T20:00:00Z"},
		"02:30-04:00@Europe/Berlin": { // 02:30 does not exist on 2026-03-29, and twice on 2026-10-25
			"2026-03-29T00:00:00Z": "2026-03-29T01:00:00Z", "2026-10-25T00:00:00Z": "2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z": "2026-10-25T01:30:00Z"},
		"02:00-02:30@Europe/Berlin": {"2026-03-28T12:00:00Z": "2026-03-30T00:00:00Z"}, // skipped for a day
	} {
		h, err := planner.ParseHours(hours)
		require.NoError(t, err, hours)
		for moment, want := range c {
			require.Equal(t, want, h.Next(at(t, moment)).UTC().Format(time.RFC3339), "%s at %s", hours, moment)
			require.Equal(t, moment == want, h.Open(at(t, moment)), "%s at %s", hours, moment)
		}
		again, err := planner.ParseHours(h.String())
		require.NoError(t, err)
		require.Equal(t, h, again)
	}
	h, err := planner.ParseHours("22:00-02:00@UTC")
	require.NoError(t, err)
	for d, want := range map[time.Duration]string{
		time.Hour: "2026-11-23T23:00:00Z", 4 * time.Hour: "2026-11-24T02:00:00Z", 5 * time.Hour: "2026-11-24T23:00:00Z", 13 * time.Hour: "2026-11-26T23:00:00Z"} {
		require.Equal(t, want, h.After(at(t, "2026-11-23T12:00:00Z"), d).Format(time.RFC3339), d)
	}
	require.Equal(t, 2036, h.After(at(t, "2026-11-23T12:00:00Z"), 100_000*time.Hour).Year(), "an end that is too far is not looked for for ever")
}

func TestHoursAreText(t *testing.T) {
	type holder struct {
		Hours planner.Hours `json:"hours,omitzero"`
	}
	for _, s := range []string{`{}`, `{"hours":"22:00-06:00@Europe/Berlin"}`} {
		var in holder
		require.NoError(t, json.Unmarshal([]byte(s), &in))
		out, err := json.Marshal(in)
		require.NoError(t, err)
		require.Equal(t, s, string(out))
	}
}

func TestForecast(t *testing.T) {
	begin := at(t, "2026-11-23T12:00:00Z")
	second := func(n ...int) (out []planner.Load) {
		for _, s := range n {
			out = append(out, planner.Load{Work: time.Duration(s) * time.Second, Rows: 1000})
		}
		return out
	}
	night, err := planner.ParseHours("22:00-06:00@UTC")
	require.NoError(t, err)
	for name, c := range map[string]struct {
		waves  [][]planner.Load
		limits planner.Limits
		begins []string
		ends   []string
	}{
		"one after the other":    {[][]planner.Load{second(10, 20), second(30)}, planner.Limits{Parallel: 1}, []string{"12:00:00", "12:00:30"}, []string{"12:00:30", "12:01:00"}},
		"side by side":           {[][]planner.Load{second(10, 20, 10)}, planner.Limits{Parallel: 2}, []string{"12:00:00"}, []string{"12:00:20"}},
		"the longest batch":      {[][]planner.Load{second(1, 60)}, planner.Limits{Parallel: 100}, []string{"12:00:00"}, []string{"12:01:00"}},
		"rows a second":          {[][]planner.Load{second(1, 1, 1)}, planner.Limits{Parallel: 3, RowsPerSecond: 100}, []string{"12:00:00"}, []string{"12:00:30"}},
		"soak in between":        {[][]planner.Load{second(1), second(1)}, planner.Limits{Parallel: 1, Soak: time.Minute}, []string{"12:00:00", "12:01:01"}, []string{"12:00:01", "12:01:02"}},
		"at night":               {[][]planner.Load{second(1)}, planner.Limits{Parallel: 1, Hours: night}, []string{"22:00:00"}, []string{"22:00:01"}},
		"a wave that is no work": {[][]planner.Load{nil, second(1)}, planner.Limits{Parallel: 1, Soak: time.Minute}, []string{"12:00:00", "12:00:00"}, []string{"12:00:00", "12:00:01"}},
	} {
		var begins, ends []string
		for _, s := range planner.Forecast(begin, c.waves, c.limits) {
			begins, ends = append(begins, s.Begin.Format(time.TimeOnly)), append(ends, s.End.Format(time.TimeOnly))
		}
		require.Equal(t, c.begins, begins, name)
		require.Equal(t, c.ends, ends, name)
	}
}

// Groups of any size that wait when they must: no minute sees more than its rows and one group.
func TestCreditHoldsOverAMinute(t *testing.T) {
	type move struct {
		at   time.Time
		rows int64
	}
	const rate = 1000
	for _, group := range []int64{1, 100, 999, 7000, 50_000} {
		now := at(t, "2026-11-23T12:00:00Z")
		c := planner.Credit{RowsPerSecond: rate}
		var moves []move
		for end := now.Add(10 * time.Minute); now.Before(end); {
			if wait := c.Wait(now); wait > 0 {
				now = now.Add(wait)
				require.Zero(t, c.Wait(now))
			}
			now = now.Add(time.Millisecond) // moving takes hardly any time
			c = c.Spend(group, now)
			moves = append(moves, move{now, group})
		}
		var total, minute int64
		first := 0 // of the minute
		for _, m := range moves {
			total, minute = total+m.rows, minute+m.rows
			for ; m.at.Sub(moves[first].at) >= time.Minute; first++ {
				minute -= moves[first].rows
			}
			if minute > rate*60+group+rate {
				require.LessOrEqual(t, minute, rate*60+group+rate, "groups of %d", group)
			}
		}
		require.GreaterOrEqual(t, total, int64(rate*600*8/10), "the budget is used, by groups of %d", group)
	}
	require.Zero(t, planner.Credit{}.Spend(1<<40, time.Now()).Wait(time.Now()), "no bound")
	late := planner.Credit{RowsPerSecond: rate, At: at(t, "2026-11-23T12:00:00Z")}.Spend(10, at(t, "2026-11-23T13:00:00Z"))
	require.InDelta(t, rate-10, late.Rows, 0.1, "an hour of rest is not made up for")
}
