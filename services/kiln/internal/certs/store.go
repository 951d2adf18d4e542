package certs

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/kiln/internal/wholefile"
)

// store is a directory with an authority, in ca.crt and ca.key, and what it has signed, each in
// NAME.crt and NAME.key.
type store struct{ dir string }

const authorityName = "ca"

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$`)

func (s store) cert(name string) string { return filepath.Join(s.dir, name+".crt") }
func (s store) key(name string) string  { return filepath.Join(s.dir, name+".key") }

// init makes the authority.
func (s store) init(name string, life time.Duration) error {
	if _, err := os.Stat(s.key(authorityName)); !errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.AlreadyExists, "", "there is an authority in "+s.dir, "issue from it, renew it with `kiln certs rotate --ca`, or name another directory with --dir")
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return err
	}
	made, err := newAuthority(name, life)
	if err != nil {
		return err
	}
	return s.putAuthority(made)
}

// putAuthority writes an authority, and before it those that are still to be trusted.
func (s store) putAuthority(a *authority, older ...*x509.Certificate) error {
	key, err := encodeKey(a.key)
	if err != nil {
		return err
	}
	text := encodeCert(a.cert.Raw)
	for _, cert := range older {
		text = append(text, encodeCert(cert.Raw)...)
	}
	return s.put(authorityName, text, key)
}

func (s store) authority() (*authority, error) {
	a, err := readAuthority(s.cert(authorityName), s.key(authorityName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "", "there is no authority in "+s.dir, "make one with `kiln certs init`, or name its directory with --dir")
	}
	return a, err
}

// issue signs a certificate and writes it.
func (s store) issue(of subject, life time.Duration, replace bool) error {
	if !validName.MatchString(of.name) || of.name == authorityName {
		return fault.Invalid("NAME", of.name, "is not the name of a certificate", "use letters, digits, dots and dashes, like builder; not ca")
	}
	if _, err := os.Stat(s.cert(of.name)); err == nil && !replace {
		return fault.New(fault.AlreadyExists, "", s.cert(of.name)+" is there", "renew it with `kiln certs rotate "+of.name+"`, or replace it with --force")
	}
	a, err := s.authority()
	if err != nil {
		return err
	}
	cert, key, err := a.issue(of, life)
	if err != nil {
		return err
	}
	return s.put(of.name, cert, key)
}

// put writes a certificate and its key, each whole. Who reads them between the two finds a
// pair that does not fit, and keeps the one it had.
func (s store) put(name string, cert, key []byte) error {
	for _, file := range []struct {
		path string
		text []byte
		mode os.FileMode
	}{{s.key(name), key, 0o600}, {s.cert(name), cert, 0o644}} {
		if err := wholefile.Replace(file.path, file.text, file.mode); err != nil {
			return fault.Wrap(err, fault.FailedPrecondition, "", "the certificate cannot be written", "run it as the owner of "+s.dir+", or name another directory with --dir")
		}
	}
	return nil
}

// listed is a certificate of the directory.
type listed struct {
	name string
	cert *x509.Certificate
}

// list are all certificates, the authority first.
func (s store) list() (all []listed, err error) {
	files, err := filepath.Glob(s.cert("*"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		certs, err := readCerts(file)
		if err != nil {
			return nil, err
		}
		name := strings.TrimSuffix(filepath.Base(file), ".crt")
		for _, cert := range certs {
			all = append(all, listed{name, cert})
			if name != authorityName {
				break
			}
		}
	}
	if len(all) == 0 {
		return nil, fault.New(fault.NotFound, "", "there is no certificate in "+s.dir, "make an authority with `kiln certs init`, or name its directory with --dir")
	}
	slices.SortStableFunc(all, func(a, b listed) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.name, b.name))
	})
	return all, nil
}

func rank(l listed) int {
	if l.name == authorityName {
		return 0
	}
	return 1
}

// subjectOf is who a certificate is for.
func subjectOf(name string, cert *x509.Certificate) subject {
	of := subject{name: name, hosts: slices.Clone(cert.DNSNames)}
	for _, ip := range cert.IPAddresses {
		of.hosts = append(of.hosts, ip.String())
	}
	for _, uri := range cert.URIs {
		of.uris = append(of.uris, uri.String())
	}
	return of
}

// defaultWithin is when the end of a certificate is near.
const defaultWithin = 30 * day

// nearness is when the end of a certificate is near: within a time and, unless that was asked for, when two
// thirds of its life are over, too. One that holds for a week would else be renewed each day.
type nearness struct {
	within time.Duration
	asked  bool
}

func (n nearness) holds(cert *x509.Certificate) bool {
	left := time.Until(cert.NotAfter)
	return left < n.within && (n.asked || left < cert.NotAfter.Sub(cert.NotBefore)/3)
}

// restarts says who uses a renewed certificate after a restart only; nothing when nobody does.
func (s store) restarts(renewed []string, ca bool) string {
	const units = "sudo systemctl restart buildkit, or kiln-registry"
	all, err := s.list()
	if err != nil {
		return ""
	}
	var names []string
	for _, l := range all {
		if slices.Contains(renewed, l.name) && len(subjectOf(l.name, l.cert).hosts) > 0 {
			names = append(names, l.name)
		}
	}
	switch {
	case ca:
		return "buildkitd and the registry read ca.crt and their certificates at their start only: restart them (" + units + ")\n"
	case len(names) > 0:
		return "buildkitd and the registry read their certificates at their start only: if one of them uses " + strings.Join(names, " or ") +
			", restart it (" + units + ")\n"
	}
	return ""
}

// rotate renews certificates: the named ones or, without names, those whose end is near.
// It returns which it has renewed.
func (s store) rotate(names []string, near nearness) (renewed []string, err error) {
	all, err := s.list()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if !slices.ContainsFunc(all, func(l listed) bool { return l.name == name && name != authorityName }) {
			return nil, fault.New(fault.NotFound, "", "there is no certificate "+name+" in "+s.dir, "list them with `kiln certs ls`")
		}
	}
	for _, l := range all {
		wanted := slices.Contains(names, l.name) || len(names) == 0 && near.holds(l.cert)
		if l.name == authorityName || !wanted {
			continue
		}
		life := l.cert.NotAfter.Sub(l.cert.NotBefore) - skew
		if err := s.issue(subjectOf(l.name, l.cert), life, true); err != nil {
			return renewed, fmt.Errorf("%s: %w", l.name, err)
		}
		renewed = append(renewed, l.name)
	}
	return renewed, nil
}

// settle is how long services on this host may take to see that ca.crt has changed: they look
// at most once a second.
const settle = 1500 * time.Millisecond

// rotateAuthority makes a new authority, which is trusted beside the older ones that have not
// ended, and signs everything anew.
func (s store) rotateAuthority(ctx context.Context) (renewed []string, err error) {
	old, err := s.authority()
	if err != nil {
		return nil, err
	}
	older, err := readCerts(s.cert(authorityName))
	if err != nil {
		return nil, err
	}
	made, err := newAuthority(old.cert.Subject.CommonName, old.cert.NotAfter.Sub(old.cert.NotBefore)-skew)
	if err != nil {
		return nil, err
	}
	trusted := slices.DeleteFunc(older, func(c *x509.Certificate) bool { return time.Now().After(c.NotAfter) })
	if err := s.putAuthority(made, trusted...); err != nil {
		return nil, err
	}
	select {
	case <-time.After(settle):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	all, err := s.list()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, l := range all {
		if l.name != authorityName {
			names = append(names, l.name)
		}
	}
	if len(names) == 0 {
		return nil, nil
	}
	return s.rotate(names, nearness{})
}
