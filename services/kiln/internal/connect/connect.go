// Package connect is how the commands reach Kiln's services: one set of flags, and
// one wording of what goes wrong.
package connect

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/proto/client"
	"github.com/kilnbuild/kiln/services/kiln/internal/profile"
)

// Service is one of Kiln's services.
type Service int

// The services.
const (
	Builder Service = iota
	CacheManager
	Janitor
)

// names returns the name of a service, its flag and its variable.
func (s Service) names() (name, flag, variable string) {
	switch s {
	case CacheManager:
		return "cache manager", "cache-manager", "KILN_CACHE_MANAGER"
	case Janitor:
		return "janitor", "janitor", "KILN_JANITOR"
	case Builder:
	}
	return "builder", "builder", "KILN_BUILDER"
}

// in returns what a profile says of the service.
func (s Service) in(p *profile.Profile) profile.Service {
	switch s {
	case CacheManager:
		return p.CacheManager
	case Janitor:
		return p.Janitor
	case Builder:
	}
	return p.Builder
}

// patience is how long a command follows a builder that does not answer: a
// restart takes less.
const patience = 30 * time.Second

// Flags say where a service is, and how to reach it.
type Flags struct {
	// To is what is reached. The zero value is a builder.
	To Service
	// Profile is the name or the path of the profile that the rest comes from. Empty:
	// see profile.Select.
	Profile string
	// Address is host:port or unix:///path. Empty until Resolve: the profile's.
	Address string
	// CA is the file with the authorities of its certificate. Empty, when
	// any of the others is set: those of the system.
	CA string
	// Cert and Key are the files of the caller's certificate. Empty: none.
	Cert, Key string
	// ServerName is the name in its certificate. Empty: the host of Address.
	ServerName string
	// Token is the file with a token that is shown in place of a certificate. Empty: none.
	Token string
	// Insecure allows plain text to another host.
	Insecure bool

	given *Flags // as they were before Resolve; nil: as they are
}

// FromEnv adds a flag whose default is the value of an environment variable. The help names the
// variable, and not its value, which is no default.
func FromEnv(flags *pflag.FlagSet, value *string, flag, variable, usage string) {
	flags.StringVar(value, flag, os.Getenv(variable), usage)
	flags.Lookup(flag).DefValue = ""
}

// Add adds the flags to those of a command.
func (f *Flags) Add(flags *pflag.FlagSet) {
	name, flag, variable := f.To.names()
	AddProfile(flags, &f.Profile)
	FromEnv(flags, &f.Address, flag, variable,
		fmt.Sprintf("`address` of the %s, host:port or unix:///path (or %s; default: the profile's)", name, variable))
	f.addCredentials(flags, name)
}

// AddAddress adds the flag with the address of a service that is called beside
// another one, whose flags have the credentials.
func AddAddress(flags *pflag.FlagSet, to Service, address *string) {
	name, flag, variable := to.names()
	FromEnv(flags, address, flag, variable, fmt.Sprintf("`address` of the %s (or %s; default: the profile's)", name, variable))
}

// AddProfile adds --profile to the flags of a command.
func AddProfile(flags *pflag.FlagSet, name *string) {
	FromEnv(flags, name, "profile", "KILN_PROFILE",
		"`name` or path of the profile with addresses and credentials (or KILN_PROFILE; default: the running kiln up, else /etc/kiln/profile.yaml)")
}

func (f *Flags) addCredentials(flags *pflag.FlagSet, name string) {
	FromEnv(flags, &f.CA, "tls-ca", "KILN_TLS_CA", "`file` with the authorities of the "+name+"'s certificate (or KILN_TLS_CA; default: the system's)")
	FromEnv(flags, &f.Cert, "tls-cert", "KILN_TLS_CERT", "`file` with your certificate (or KILN_TLS_CERT)")
	FromEnv(flags, &f.Key, "tls-key", "KILN_TLS_KEY", "`file` with its private key (or KILN_TLS_KEY)")
	FromEnv(flags, &f.ServerName, "tls-server-name", "KILN_TLS_SERVER_NAME", "`name` in the "+name+"'s certificate (or KILN_TLS_SERVER_NAME; default: the "+name+"'s host)")
	FromEnv(flags, &f.Token, "token-file", "KILN_TOKEN_FILE", "`file` with your token, in place of a certificate (or KILN_TOKEN_FILE)")
	help := "allow plain text to a " + name + " on another host"
	if f.To == Builder {
		help += "; it refuses secrets then"
	}
	flags.BoolVar(&f.Insecure, "insecure", false, help)
}

// TLS reports whether the connection is by TLS: when any of its flags is set.
func (f *Flags) TLS() bool { return f.CA+f.Cert+f.Key+f.ServerName != "" }

// Dial makes a client of the builder. Options win over the flags.
func (f *Flags) Dial(opts ...client.Option) (*client.Client, error) {
	if err := f.Resolve(); err != nil {
		return nil, err
	}
	c, err := client.Dial(f.Address, append(f.options(), opts...)...)
	return c, f.explainDial(err)
}

// Connect makes a connection to the service.
func (f *Flags) Connect() (*grpc.ClientConn, error) {
	if err := f.Resolve(); err != nil {
		return nil, err
	}
	conn, err := client.Connect(f.Address, f.options()...)
	return conn, f.explainDial(err)
}

// RunE makes what cobra runs: with a connection to the service, and with errors that a
// person can read.
func (f *Flags) RunE(run func(cmd *cobra.Command, conn *grpc.ClientConn, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		cmd.SilenceUsage = true
		conn, err := f.Connect()
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }() // nothing is left to lose
		return f.Explain(run(cmd, conn, args))
	}
}

// Local reports whether the service is on this host.
func (f *Flags) Local() bool { return client.IsLocal(f.Address) }

func (f *Flags) options() []client.Option {
	all := []client.Option{client.WithPatience(patience)}
	if f.TLS() {
		all = append(all, client.WithTLS(f.CA, f.Cert, f.Key, f.ServerName))
	}
	if f.Insecure {
		all = append(all, client.WithInsecure())
	}
	if f.Token != "" {
		all = append(all, client.WithTokenFile(f.Token))
	}
	return all
}

func (f *Flags) explainDial(err error) error {
	if err == nil {
		return nil
	}
	name, flag, _ := f.To.names()
	if !strings.ContainsAny(f.Address, ":/") {
		return fault.New(fault.InvalidArgument, "", fmt.Sprintf("--%s %q is no address", flag, f.Address),
			fmt.Sprintf("--%s takes HOST:PORT or unix:///PATH; --profile takes the name of a profile", flag))
	}
	remedy := ""
	if !f.TLS() {
		remedy = "give --tls-ca, --tls-cert and --tls-key, or --insecure in a closed network"
	}
	if !f.TLS() && !f.Insecure && !f.Local() { // the client's own message names options of its Go package
		return fault.New(fault.InvalidArgument, "", fmt.Sprintf("the %s at %s is on another host, and the connection has no TLS", name, f.Address), remedy)
	}
	return fault.Wrap(err, fault.InvalidArgument, "", "the "+name+"'s address or certificates", remedy)
}

// Explain makes the error of a call into what a person reads: what is wrong, and
// what to do. Errors that are not of a call stay as they are.
func (f *Flags) Explain(err error) error {
	// gRPC takes the text of a whole join for the message of a status in it.
	if joined, ok := err.(interface{ Unwrap() []error }); ok && errors.Join(joined.Unwrap()...).Error() == err.Error() {
		return f.explainAll(joined.Unwrap())
	}
	st, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	name, flag, _ := f.To.names()
	switch {
	case client.Reason(err) != "":
		remedy := client.Remedy(err)
		if strings.HasSuffix(strings.TrimSuffix(st.Message(), ")"), remedy) {
			remedy = "" // the message of a wrong field has it
		}
		return fault.New(fault.Internal, client.Reason(err), st.Message(), remedy)
	case st.Code() == codes.Unavailable:
		d := f.To.diagnose(st.Message())
		if own, expired := f.expired(time.Now()); expired {
			d = own
		}
		return fault.New(fault.Unavailable, "", fmt.Sprintf("cannot reach the %s at %s: %s", name, f.Address, d.what), d.remedy)
	case st.Code() == codes.DeadlineExceeded:
		d := f.To.diagnose("deadline exceeded")
		return fault.New(fault.DeadlineExceeded, "", fmt.Sprintf("the %s at %s: %s", name, f.Address, d.what), d.remedy)
	case st.Code() == codes.Unauthenticated || st.Code() == codes.PermissionDenied:
		return fault.New(fault.PermissionDenied, "", fmt.Sprintf("the %s at %s refuses you: %s", name, f.Address, st.Message()),
			"show who you are with --token-file, or --tls-cert and --tls-key, or a --profile that names them")
	case st.Code() == codes.Unimplemented:
		return fault.New(fault.Unimplemented, "", fmt.Sprintf("what answers at %s is no %s, or an older one: %s", f.Address, name, st.Message()),
			"name a "+name+" with --"+flag+", or bring it to the version of this command")
	default:
		return fault.New(fault.Internal, "", fmt.Sprintf("the %s at %s: %s", name, f.Address, st.Message()), "")
	}
}

func (f *Flags) explainAll(errs []error) error {
	all := make([]error, 0, len(errs))
	for _, err := range errs {
		all = append(all, f.Explain(err))
	}
	if len(all) == 1 {
		return all[0]
	}
	return errors.Join(all...)
}

// OfConnection reports whether an error is of the connection to the service, and not
// of the service.
func OfConnection(err error) bool {
	st, ok := status.FromError(err)
	if !ok || client.Reason(err) != "" {
		return false
	}
	switch st.Code() {
	case codes.Unavailable, codes.Unauthenticated, codes.PermissionDenied, codes.Unimplemented:
		return true
	default:
		return false
	}
}

// Innermost is the last of the causes that gRPC strings together in a message.
func Innermost(text string) string {
	if at := strings.LastIndex(text, "desc = "); at >= 0 {
		text = text[at+len("desc = "):]
	}
	return strings.Trim(text, `"`)
}
