package usage

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

// Daemon is what is asked of a daemon here.
type Daemon interface {
	// Name is unique among the daemons.
	Name() string
	// Records lists the records of its cache as they are now.
	Records(ctx context.Context) ([]cache.Record, error)
}

// OfDaemon is what the cache of one daemon holds, or why that is not known.
type OfDaemon struct {
	Daemon string
	Snapshot
	Err error
}

// listTimeout is how long a daemon may take to list its cache. BuildKit takes
// 15 ms for 2,000 records whose sizes it knows; for those that it does not know
// it walks the disk.
const listTimeout = 45 * time.Second

// atOnce is how many daemons are asked at the same time.
const atOnce = 16

// Collector asks daemons what their caches hold.
type Collector struct {
	daemons []Daemon // by name
}

// NewCollector returns a collector over the daemons, whose names differ.
func NewCollector[D Daemon](daemons []D) *Collector {
	c := &Collector{}
	for _, d := range daemons {
		c.daemons = append(c.daemons, d)
	}
	slices.SortFunc(c.daemons, func(a, b Daemon) int { return strings.Compare(a.Name(), b.Name()) })
	return c
}

// Collect asks the daemons of these names, or all of them when there is none,
// and answers by name. A daemon that does not answer has Err set; when none
// answers, that is an error.
func (c *Collector) Collect(ctx context.Context, names []string) ([]OfDaemon, error) {
	daemons, err := c.choose(names)
	if err != nil {
		return nil, err
	}
	all := make([]OfDaemon, len(daemons))
	slots := make(chan struct{}, atOnce)
	var wait sync.WaitGroup
	for i, d := range daemons {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			all[i] = ask(ctx, d)
		})
	}
	wait.Wait()
	return all, allFailed(all)
}

func ask(ctx context.Context, d Daemon) OfDaemon {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	records, err := d.Records(ctx)
	if err != nil {
		return OfDaemon{Daemon: d.Name(), Err: err}
	}
	return OfDaemon{Daemon: d.Name(), Snapshot: Summarize(records, time.Now())}
}

func (c *Collector) choose(names []string) ([]Daemon, error) {
	if len(names) == 0 {
		return c.daemons, nil
	}
	for _, name := range names {
		if !slices.ContainsFunc(c.daemons, func(d Daemon) bool { return d.Name() == name }) {
			return nil, fault.New(fault.NotFound, "NOT_FOUND", fmt.Sprintf("there is no daemon %q", name),
				"name one of "+strings.Join(c.names(), ", ")+", or none for all")
		}
	}
	return slices.DeleteFunc(slices.Clone(c.daemons), func(d Daemon) bool { return !slices.Contains(names, d.Name()) }), nil
}

func (c *Collector) names() []string {
	var names []string
	for _, d := range c.daemons {
		names = append(names, d.Name())
	}
	return names
}

// allFailed is the first error when every daemon has one.
func allFailed(all []OfDaemon) error {
	if len(all) == 0 || slices.ContainsFunc(all, func(one OfDaemon) bool { return one.Err == nil }) {
		return nil
	}
	return all[0].Err
}
