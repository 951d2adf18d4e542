package caches

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/pkg/fault"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

type pinOptions struct {
	caches      []string
	types       []string
	description string
	projects    []string
	reason      string
	ttl         time.Duration
	format      string
}

func pinCommand(conn *connect.Flags) *cobra.Command {
	o := &pinOptions{}
	cmd := &cobra.Command{
		Use:   "pin [RECORD]",
		Short: "Keep a record, or all that match, from every prune",
		Long: `Keeps a record, with all that it is made upon, from every run of the policy until it is
unpinned or the time is over; or, with flags in place of a record, all records that
match, also those to come.

A pin keeps a record from the cache manager's runs, and from nothing else: a build with --no-cache starts
with empty cache mounts, also where they are pinned, and later builds use the new ones. BuildKit's own
garbage collection and buildctl prune do not know pins.`,
		Example: `  kiln cache pin p0qk2m3ab --cache local --reason "base of all"
  kiln cache pin --type exec_cache_mount --description '/root/.m2' --ttl 720h`,
		Args: cobra.MaximumNArgs(1),
		RunE: runE(conn, func(ctx context.Context, c *call, args []string) error { return c.pin(ctx, o, args) }),
	}
	addCaches(cmd, &o.caches)
	cmd.Flags().StringSliceVar(&o.types, "type", nil, "records of these `types`: "+strings.Join(typeWords(), ", "))
	cmd.Flags().StringVar(&o.description, "description", "", "records whose description fits this regular `expression`")
	cmd.Flags().StringSliceVar(&o.projects, "project", nil, "records that these `projects` have used")
	cmd.Flags().StringVar(&o.reason, "reason", "", "`why`, for those who wonder later")
	show.AddDuration(cmd.Flags(), &o.ttl, "ttl", "how long; 0: until it is unpinned")
	show.AddFormat(cmd, &o.format, "text or json")
	show.Choice(cmd, "type", typeWords())
	return cmd
}

// typeWords are the names of the types, as people write them.
func typeWords() []string {
	var all []string
	for _, name := range cachemanagerv1.RecordType_name {
		if name != cachemanagerv1.RecordType_RECORD_TYPE_UNSPECIFIED.String() {
			all = append(all, strings.ToLower(strings.TrimPrefix(name, "RECORD_TYPE_")))
		}
	}
	slices.Sort(all)
	return all
}

func (c *call) pin(ctx context.Context, o *pinOptions, args []string) error {
	req := &cachemanagerv1.PinRequest{Reason: o.reason}
	if o.ttl > 0 {
		req.Ttl = durationpb.New(o.ttl)
	}
	matches := len(o.types)+len(o.projects) > 0 || o.description != ""
	switch {
	case len(args) == 1 && matches:
		return fault.New(fault.InvalidArgument, "", "a record and flags that match others are both named", "name a record, or flags, not both")
	case len(args) == 1:
		ref, err := c.cacheOf(ctx, o.caches)
		if err != nil {
			return err
		}
		req.Target = &cachemanagerv1.PinRequest_Record{Record: &cachemanagerv1.RecordRef{Cache: ref, Id: args[0]}}
	case matches:
		m := &cachemanagerv1.Match{Description: o.description, Projects: o.projects}
		for _, name := range o.types {
			m.Types = append(m.Types, cachemanagerv1.RecordType(cachemanagerv1.RecordType_value["RECORD_TYPE_"+strings.ToUpper(name)]))
		}
		for _, ref := range refs(o.caches) {
			if ref.GetDirectory() != "" {
				m.Directories = append(m.Directories, ref.GetDirectory())
			} else {
				m.Daemons = append(m.Daemons, ref.GetDaemon())
			}
		}
		req.Target = &cachemanagerv1.PinRequest_Match{Match: m}
	default:
		return fault.New(fault.InvalidArgument, "", "nothing is named to be kept", "name a record (kiln cache ls shows them), or --type, --description or --project")
	}
	res, err := c.api.Pin(ctx, req)
	if err != nil {
		return err
	}
	if o.format == "json" {
		return show.JSON(c.out, res.GetPin())
	}
	_, err = fmt.Fprintln(c.out, res.GetPin().GetId())
	return err
}

// cacheOf is the cache that is named, or the only one that there is.
func (c *call) cacheOf(ctx context.Context, names []string) (*cachemanagerv1.CacheRef, error) {
	if len(names) == 1 {
		return refs(names)[0], nil
	}
	res, err := c.api.GetUsage(ctx, &cachemanagerv1.GetUsageRequest{Caches: refs(names)})
	if err != nil {
		return nil, err
	}
	if all := res.GetUsage().GetCaches(); len(names) == 0 && len(all) == 1 {
		return all[0].GetCache(), nil
	}
	return nil, fault.New(fault.InvalidArgument, "", "a record is of one cache, and there are several", "name the cache with --cache")
}

func unpinCommand(conn *connect.Flags) *cobra.Command {
	return &cobra.Command{
		Use:     "unpin ID…",
		Short:   "Remove pins",
		Long:    "Removes pins. What they kept goes when the policy says so.",
		Example: "  kiln cache unpin 4f3c1a2e-…",
		Args:    cobra.MinimumNArgs(1),
		RunE: runE(conn, func(ctx context.Context, c *call, args []string) error {
			for _, id := range args {
				if _, err := c.api.Unpin(ctx, &cachemanagerv1.UnpinRequest{PinId: id}); err != nil {
					return err
				}
				if _, err := fmt.Fprintln(c.out, id); err != nil {
					return err
				}
			}
			return nil
		}),
	}
}

func pinsCommand(conn *connect.Flags) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "pins",
		Short: "List the pins, newest first",
		Long: `Lists the pins, newest first, with how many records each keeps now. A pin by record keeps nothing
once its record is gone, for example because the daemon's own garbage collection or
buildctl prune removed it.`,
		Example: "  kiln cache pins",
		Args:    cobra.NoArgs,
		RunE: runE(conn, func(ctx context.Context, c *call, _ []string) error {
			var all []*cachemanagerv1.Pin
			req := &cachemanagerv1.ListPinsRequest{PageSize: show.LargestPage}
			for {
				res, err := c.api.ListPins(ctx, req)
				if err != nil {
					return err
				}
				all = append(all, res.GetPins()...)
				if req.PageToken = res.GetNextPageToken(); req.PageToken == "" {
					break
				}
			}
			if format == "json" {
				return show.JSONLines(c.out, all)
			}
			return writePins(c.out, c.term, all, c.now)
		}),
	}
	show.AddFormat(cmd, &format, "text, or json: one object a line")
	return cmd
}

func writePins(w io.Writer, term table.Terminal, pins []*cachemanagerv1.Pin, now time.Time) error {
	t := table.Table{Header: []string{"PIN", "KEEPS", "NOW", "SET", "BY", "UNTIL", "WHY"}, GiveWay: 1}
	for _, p := range pins {
		until := "unpinned"
		if p.GetExpireTime() != nil {
			until = p.GetExpireTime().AsTime().Local().Format(time.DateTime)
		}
		t.Add(table.Cell{Text: p.GetId(), Style: table.Bold}, table.Cell{Text: keeps(p)}, held(p), table.Cell{Text: show.Ago(p.GetCreateTime(), now)},
			table.Cell{Text: p.GetCreatedBy()}, table.Cell{Text: until}, table.Cell{Text: p.GetReason()})
	}
	return t.Write(w, term)
}

// held says how many records a pin keeps now.
func held(p *cachemanagerv1.Pin) table.Cell {
	switch n := p.GetHeldRecords(); {
	case p.HeldRecords == nil:
		return table.Cell{Text: "not known: away"}
	case n == 0 && p.GetRecord() != nil:
		return table.Cell{Text: "nothing: gone", Style: table.Yellow}
	case n == 0:
		return table.Cell{Text: "nothing", Style: table.Yellow}
	case n == 1:
		return table.Cell{Text: "1 record"}
	default:
		return table.Cell{Text: fmt.Sprintf("%d records", n)}
	}
}

// keeps says what a pin keeps.
func keeps(p *cachemanagerv1.Pin) string {
	if r := p.GetRecord(); r != nil {
		return fmt.Sprintf("record %s on %s", r.GetId(), place(r.GetCache()))
	}
	var all []string
	m := p.GetMatch()
	for _, t := range m.GetTypes() {
		all = append(all, typeWord(t))
	}
	if m.GetDescription() != "" {
		all = append(all, fmt.Sprintf("description %q", m.GetDescription()))
	}
	for _, p := range m.GetProjects() {
		all = append(all, "project "+p)
	}
	for _, name := range slices.Concat(m.GetDaemons(), m.GetDirectories()) {
		all = append(all, "on "+name)
	}
	return "all: " + strings.Join(all, ", ")
}
