// Command bench measures Kiln beside its peers: the same work, on the same daemon,
// in turns, in one run. It prints a table of medians and writes them to
// .run/bench.json.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/attack"
)

// longest bounds a whole run.
const longest = 45 * time.Minute

func main() {
	only := flag.String("only", "", "run the benchmarks whose name contains `NAME`")
	name := flag.String("attack", "", "be the client that makes the attack with this name, which the benchmarks start")
	var target attack.Target
	flag.StringVar(&target.Addr, "addr", "", "the builder that is attacked")
	flag.StringVar(&target.Base, "base", "", "an image that the attack may use")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	work := func() error { return run(ctx, *only) }
	if *name != "" {
		work = func() error { return attackAs(ctx, *name, &target) }
	}
	err := work()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// row is one result, as .run/bench.json holds it.
type row struct {
	// Name of the benchmark.
	Name string `json:"name"`
	// Unit of Ours and PeerValue.
	Unit string `json:"unit"`
	// Ours is Kiln's median.
	Ours float64 `json:"ours"`
	// Peer is the name of what is measured beside it.
	Peer string `json:"peer"`
	// PeerValue is the peer's median.
	PeerValue float64 `json:"peer_value"`
	// Ratio is Ours / PeerValue.
	Ratio float64 `json:"ratio"`
	// N is how often each was measured.
	N int `json:"n"`
	// P95 and PeerP95 are the 95th percentiles, where single calls are measured.
	P95     float64 `json:"p95,omitempty"`
	PeerP95 float64 `json:"peer_p95,omitempty"`
	// AddedMS is Ours - PeerValue in milliseconds, where that is the point.
	AddedMS *float64 `json:"added_ms,omitempty"`

	// limit says in words what the figure should be. Empty: nothing is said.
	limit string
}

func run(ctx context.Context, only string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	var chosen []experiment
	var names []string
	for _, b := range experiments() {
		names = append(names, b.label())
		if strings.Contains(b.label(), only) {
			chosen = append(chosen, b)
		}
	}
	if len(chosen) == 0 {
		return fmt.Errorf("no benchmark is named %q; there are %s", only, strings.Join(names, ", "))
	}
	fmt.Println("Starting a registry, a buildkitd and a builder")
	s, err := startStage(ctx)
	if s != nil {
		defer func() { err = errors.Join(err, s.lab.Close()) }()
	}
	if err != nil {
		return err
	}
	var rows []row
	var failed error
	for _, b := range chosen {
		fmt.Println(b.label())
		r, err := b.run(ctx, s)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", b.label(), err))
			fmt.Println("  failed:", err)
			continue // what the others measure is not lost for it
		}
		rows = append(rows, r...)
	}
	printTable(os.Stdout, rows)
	return errors.Join(failed, write(rows))
}

func printTable(w io.Writer, rows []row) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nname\tours\tp95\tpeer\tpeer's\tp95\tratio\tadded\tn\twanted")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%.1f %s\t%s\t%s\t%.1f %s\t%s\t%.3f\t%+.1f %s\t%d\t%s\n",
			r.Name, r.Ours, r.Unit, percentile(r.P95), r.Peer, r.PeerValue, r.Unit, percentile(r.PeerP95), r.Ratio, r.Ours-r.PeerValue, r.Unit, r.N, r.limit)
	}
	_ = t.Flush()
}

func percentile(value float64) string {
	if value == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f", value)
}

func write(rows []row) error {
	root, err := lab.RepoRoot()
	if err != nil {
		return err
	}
	data, err := json.MarshalIndent(rows, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Join(root, ".run"), 0o755)
	}
	path := filepath.Join(root, ".run", "bench.json")
	if err == nil {
		err = os.WriteFile(path, append(data, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("writing the results: %w", err)
	}
	fmt.Println("\nwritten to", path)
	return nil
}
