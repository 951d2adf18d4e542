// Package certs is `kiln certs`: a private authority for the certificates by which Kiln's
// parts and their callers know one another.
package certs

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/pkg/human"
	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

const day = 24 * time.Hour

// Command is `kiln certs`.
func Command() *cobra.Command {
	s := &store{}
	cmd := &cobra.Command{
		Use:   "certs",
		Short: "Keep a private authority, for the certificates of Kiln's parts and their callers",
		Long: `Keeps a private authority in a directory: ca.crt, which all parts trust, and ca.key, which
nobody but you may read; and beside them what it has signed, in NAME.crt and NAME.key.

Kiln's services read their certificates again when the files change: to rotate them takes no
restart, and calls that are under way go on. buildkitd and the registry read theirs at their start only.`,
		Example: `  kiln certs init
  kiln certs issue builder --host builder.example.org --host localhost
  kiln certs issue ci --uri spiffe://example.org/ci
  kiln certs rotate --within 720h
  kiln certs ls`,
		Args: cobra.NoArgs,
	}
	cmd.PersistentFlags().StringVar(&s.dir, "dir", cmp.Or(os.Getenv("KILN_CERTS_DIR"), defaultDir()), "`directory` of the authority (or KILN_CERTS_DIR)")
	cmd.AddCommand(initCommand(s), issueCommand(s), rotateCommand(s), listCommand(s))
	return cmd
}

func defaultDir() string {
	if os.Geteuid() == 0 {
		return "/etc/kiln/certs"
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "certs"
	}
	return filepath.Join(dir, "kiln", "certs")
}

func initCommand(s *store) *cobra.Command {
	var name string
	var days int
	cmd := &cobra.Command{
		Use:     "init",
		Short:   "Make the authority",
		Example: `  kiln certs init --dir /etc/kiln/certs`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := positive(days); err != nil {
				return err
			}
			cmd.SilenceUsage = true
			if err := s.init(name, time.Duration(days)*day); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s is for all; keep %s to yourself\n", s.cert(authorityName), s.key(authorityName))
			return err
		},
	}
	cmd.Flags().StringVar(&name, "name", "Kiln authority", "`name` of the authority")
	cmd.Flags().IntVar(&days, "days", 3650, "how long it signs")
	return cmd
}

func positive(days int) error {
	if days < 1 || days > 36500 {
		return fmt.Errorf("--days is %d; use 1 to 36500", days)
	}
	return nil
}

func issueCommand(s *store) *cobra.Command {
	var of subject
	var days int
	var force bool
	cmd := &cobra.Command{
		Use:   "issue NAME",
		Short: "Sign a certificate",
		Long: `Signs a certificate and writes it, with a new key, to NAME.crt and NAME.key. With --host it is
that of a server, who may be a caller, too; without, that of a caller only. A caller is known by
its first --uri or, without one, by NAME: that is what rules of access name.`,
		Example: `  kiln certs issue builder --host builder.example.org --host 127.0.0.1
  kiln certs issue ci --uri spiffe://example.org/ci --days 30`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := positive(days); err != nil {
				return err
			}
			cmd.SilenceUsage = true
			of.name = args[0]
			if err := s.issue(of, time.Duration(days)*day, force); err != nil {
				return err
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), s.cert(of.name), s.key(of.name))
			return err
		},
	}
	cmd.Flags().StringArrayVar(&of.hosts, "host", nil, "`name` or IP address of the server (repeatable)")
	cmd.Flags().StringArrayVar(&of.uris, "uri", nil, "URI `name` of the caller, like spiffe://example.org/ci (repeatable)")
	cmd.Flags().IntVar(&days, "days", 90, "how long it holds")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "replace one that is there")
	return cmd
}

func rotateCommand(s *store) *cobra.Command {
	within := nearness{within: defaultWithin}
	var ca bool
	cmd := &cobra.Command{
		Use:   "rotate [NAME...]",
		Short: "Renew certificates: those named, or those that end soon",
		Long: `Renews certificates, with new keys and for the same names: those named or, without names,
those that end within a time, if two thirds of their life are over, too. It says who must be restarted to use
what was renewed. With --ca it makes a new authority and signs everything anew;
ca.crt holds the older ones, too, until they end, so that who has not got the new one yet is
still trusted: bring ca.crt to all hosts first, then the certificates.`,
		Example: `  kiln certs rotate
  kiln certs rotate builder
  kiln certs rotate --ca`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cmd.SilenceUsage = true
			var renewed []string
			var err error
			within.asked = cmd.Flags().Changed("within")
			if ca {
				renewed, err = s.rotateAuthority(cmd.Context())
			} else {
				renewed, err = s.rotate(args, within)
			}
			for _, name := range renewed {
				if _, err := fmt.Fprintln(cmd.OutOrStdout(), "renewed", s.cert(name)); err != nil {
					return err
				}
			}
			if err == nil && len(renewed) == 0 && !ca {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "none ends within %s\n", human.Span(within.within))
			}
			if err == nil {
				_, err = fmt.Fprint(cmd.OutOrStdout(), s.restarts(renewed, ca))
			}
			return err
		},
	}
	cmd.Flags().DurationVar(&within.within, "within", defaultWithin, "without names: renew what ends within this `time`, also of a short life")
	cmd.Flags().BoolVar(&ca, "ca", false, "renew the authority, and with it everything")
	return cmd
}

func listCommand(s *store) *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Short:   "List the certificates and when they end",
		Example: `  kiln certs ls`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SilenceUsage = true
			all, err := s.list()
			if err != nil {
				return err
			}
			return writeList(cmd.OutOrStdout(), all)
		},
	}
}

func writeList(out io.Writer, all []listed) error {
	t := table.Table{Header: []string{"NAME", "ENDS", "HOSTS", "CALLER"}, GiveWay: 2}
	for _, l := range all {
		of := subjectOf(l.name, l.cert)
		style := table.Plain
		switch left := time.Until(l.cert.NotAfter); {
		case left < 0:
			style = table.Red
		case nearness{within: defaultWithin}.holds(l.cert):
			style = table.Yellow
		}
		caller := strings.Join(of.uris, " ")
		if !l.cert.IsCA && caller == "" {
			caller = l.cert.Subject.CommonName
		}
		t.Add(table.Cell{Text: l.name, Style: table.Bold}, table.Cell{Text: l.cert.NotAfter.UTC().Format(time.DateOnly), Style: style},
			table.Cell{Text: strings.Join(of.hosts, " ")}, table.Cell{Text: caller})
	}
	return t.Write(out, table.TerminalOf(out))
}
