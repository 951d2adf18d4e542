package connect

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/kiln/internal/profile"
)

// For returns the flags for another service, at an address, with the credentials
// that were given for this one. An empty address is that of the profile in use.
func (f *Flags) For(service Service, address string) *Flags {
	other := *f.asGiven()
	other.To, other.Address, other.given = service, address, nil
	if p, err := f.InUse(); err == nil { // If not, Resolve says so.
		other.Profile = cmp.Or(p.Path, p.Name)
	}
	return &other
}

// Args returns the flags that were given, as they are written after a command: "" or " --janitor host:1". A
// command that a message tells reaches the same service with them.
func (f *Flags) Args() string {
	given := f.asGiven()
	_, flag, _ := f.To.names()
	var text strings.Builder
	for _, one := range []struct{ name, value string }{
		{"profile", given.Profile}, {flag, given.Address}, {"tls-ca", given.CA}, {"tls-cert", given.Cert}, {"tls-key", given.Key},
		{"tls-server-name", given.ServerName}, {"token-file", given.Token},
	} {
		if one.value != "" {
			_, _ = text.WriteString(" --" + one.name + " " + word(one.value)) // A Builder takes all.
		}
	}
	if given.Insecure {
		_, _ = text.WriteString(" --insecure")
	}
	return text.String()
}

// word quotes a value for a shell, if need be.
func word(value string) string {
	if plain.MatchString(value) {
		return value
	}
	return "'" + strings.ReplaceAll(value, "'", `'\''`) + "'"
}

var plain = regexp.MustCompile(`^[a-zA-Z0-9@%+=:,./_-]+$`)

func (f *Flags) asGiven() *Flags {
	if f.given != nil {
		return f.given
	}
	return f
}

// InUse returns the profile that the service belongs to. For an address that was
// given that is the running `kiln up` at that address, if there is one.
func (f *Flags) InUse() (*profile.Profile, error) {
	given := f.asGiven()
	if given.Address == "" || given.Profile != "" {
		return profile.Select(given.Profile)
	}
	for _, p := range profile.Running() {
		if f.To.in(p).Address == given.Address {
			return p, nil
		}
	}
	p, err := profile.Select("")
	if err != nil {
		return profile.Defaults(), nil //nolint:nilerr // The address was given: no profile is needed.
	}
	return p, nil
}

// Resolve fills in what no flag and no variable names from the profile. The
// credentials of a profile go to the address that stands beside them and to no
// other: an address that was given takes those of the profile in use, or of a
// running `kiln up`, only when it is the same.
func (f *Flags) Resolve() error {
	if f.given == nil {
		given := *f
		f.given = &given
	}
	p, err := f.InUse()
	if f.Address != "" && err != nil {
		return nil //nolint:nilerr // An address alone needs no profile.
	}
	if err != nil {
		return err
	}
	s := f.To.in(p)
	if f.Address != "" && f.Address != s.Address {
		return nil
	}
	if s.Address == "" {
		name, flag, variable := f.To.names()
		return fault.New(fault.FailedPrecondition, "", fmt.Sprintf("profile %s (%s) has no address of the %s", p.Name, p.Path, name),
			fmt.Sprintf("add it there, or use --%s or %s", flag, variable))
	}
	f.Address = s.Address
	f.credentials(s)
	return nil
}

// credentials takes those of a profile, except what was given. A given certificate
// or token is the caller's identity: then the profile's is not used.
func (f *Flags) credentials(s profile.Service) {
	if f.Cert+f.Key+f.Token == "" {
		f.Cert, f.Key, f.Token = s.CertFile, s.KeyFile, s.TokenFile
	}
	if f.CA == "" {
		f.CA = s.CAFile
	}
	if f.ServerName == "" {
		f.ServerName = s.ServerName
	}
	f.Insecure = f.Insecure || s.Insecure
}
