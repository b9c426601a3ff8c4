package main

import (
	"bufio"
	"cmp"
	"context"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/coditect/platform/shared/citus/localpg"
)

// statementTime is what one kind of statement took, of all sessions together.
type statementTime struct {
	Server string  `json:"server"`
	What   string  `json:"what"`
	Calls  int     `json:"calls"`
	Total  float64 `json:"total_ms"`
	Each   float64 `json:"each_ms"`
}

// logStatements makes the servers log each statement of the migrator's new sessions
// with its duration. It costs time: not for figures that are to be kept.
func (p *platform) logStatements(ctx context.Context) error {
	for _, s := range []*localpg.Server{p.blue, p.green} {
		if err := exec(ctx, s.DSN("postgres", "postgres"), `ALTER ROLE coditect_migrator SET log_min_duration_statement = 0`); err != nil {
			return err
		}
	}
	return nil
}

var (
	duration = regexp.MustCompile(`coditect_migrator@\S+ LOG: +duration: ([0-9.]+) ms +(?:statement|execute [^:]*|bind [^:]*|parse [^:]*): (.*)`)
	literals = regexp.MustCompile(`'[^']*'|\b\d+\b|\bt(enant)?_?[0-9a-f]{5,}\b`)
	spaces   = regexp.MustCompile(`\s+`)
)

// statements reads the servers' logs: the kinds of statements that took longest in all.
func (p *platform) statements(most int) ([]statementTime, error) {
	sum := map[[2]string]*statementTime{}
	for name, s := range map[string]*localpg.Server{"blue": p.blue, "green": p.green} {
		file, err := os.Open(s.LogFile())
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(file)
		lines.Buffer(nil, 64<<20) // a statement over hundreds of schemas is one line
		for lines.Scan() {
			m := duration.FindStringSubmatch(lines.Text())
			if m == nil {
				continue
			}
			ms, err := strconv.ParseFloat(m[1], 64)
			if err != nil {
				continue
			}
			what := spaces.ReplaceAllString(literals.ReplaceAllString(strings.TrimSpace(m[2][:min(len(m[2]), 400)]), "?"), " ")
			what = what[:min(len(what), 90)]
			key := [2]string{name, what}
			if sum[key] == nil {
				sum[key] = &statementTime{Server: name, What: strings.ToValidUTF8(what, "")}
			}
			sum[key].Calls++
			sum[key].Total += ms
		}
		err = lines.Err()
		_ = file.Close()
		if err != nil {
			return nil, err
		}
	}
	var out []statementTime
	for _, v := range sum {
		v.Each, v.Total = round(v.Total/float64(v.Calls), 3), round(v.Total, 1)
		out = append(out, *v)
	}
	slices.SortFunc(out, func(a, b statementTime) int { return cmp.Compare(b.Total, a.Total) })
	return out[:min(most, len(out))], nil
}
