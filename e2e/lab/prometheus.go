package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// Prometheus is a real one, that scrapes every second and follows rules.
type Prometheus struct {
	*Process
	// Addr is host:port of its API.
	Addr string
}

// StartPrometheus starts one that scrapes addresses, by the names of their jobs, and reads
// the files of rules.
func (l *Lab) StartPrometheus(ctx context.Context, jobs map[string]string, rules []string) (*Prometheus, error) {
	dir, err := l.subdir("prometheus")
	if err != nil {
		return nil, err
	}
	var config strings.Builder
	config.WriteString("global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files:\n")
	for _, file := range rules {
		fmt.Fprintf(&config, "  - %q\n", file)
	}
	config.WriteString("scrape_configs:\n")
	for job, address := range jobs {
		fmt.Fprintf(&config, "  - {job_name: %q, static_configs: [{targets: [%q]}]}\n", job, address)
	}
	file := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(file, []byte(config.String()), 0o600); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	p := &Prometheus{}
	if p.Addr, err = FreeAddr(); err != nil {
		return nil, err
	}
	p.Process, err = l.Run(Command{Name: "prometheus", Path: "/usr/bin/env", Args: []string{
		"prometheus", "--config.file=" + file, "--storage.tsdb.path=" + filepath.Join(dir, "data"), "--web.listen-address=" + p.Addr,
	}})
	if err != nil {
		return nil, err
	}
	return p, poll(ctx, p.Process, "waiting for Prometheus", func(ctx context.Context) error { return getOK(ctx, "http://"+p.Addr+"/-/ready") })
}

// Query is the number of series that an expression gives.
func (p *Prometheus) Query(ctx context.Context, expr string) (int, error) {
	var res struct {
		Status, Error string
		Data          struct{ Result []json.RawMessage }
	}
	if err := p.get(ctx, "/api/v1/query?query="+url.QueryEscape(expr), &res); err != nil {
		return 0, err
	}
	if res.Status != "success" {
		return 0, fmt.Errorf("lab: %s: %s", expr, res.Error)
	}
	return len(res.Data.Result), nil
}

// Rule is one of its rules.
type Rule struct{ Name, Health, LastError, State string }

// Rules are all rules and how they stand.
func (p *Prometheus) Rules(ctx context.Context) (all []Rule, err error) {
	var res struct {
		Data struct{ Groups []struct{ Rules []Rule } }
	}
	err = p.get(ctx, "/api/v1/rules", &res)
	for _, g := range res.Data.Groups {
		all = append(all, g.Rules...)
	}
	return all, err
}

func (p *Prometheus) get(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.Addr+path, nil)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	req.Close = true
	res, err := (&http.Client{Timeout: startTimeout}).Do(req)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(res.Body, 16<<20))
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return json.Unmarshal(text, into)
}
