// Package connect is how the commands reach a builder: one set of flags, and one
// wording of what goes wrong.
package connect

import (
	"cmp"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/proto/client"
)

const defaultBuilder = "127.0.0.1:50051"

// patience is how long a command follows a builder that does not answer: a
// restart takes less.
const patience = 30 * time.Second

// Flags say where the builder is, and how to reach it.
type Flags struct {
	// Builder is host:port or unix:///path.
	Builder string
	// CA is the file with the authorities of the builder's certificate. Empty, when
	// any of the others is set: those of the system.
	CA string
	// Cert and Key are the files of the caller's certificate. Empty: none.
	Cert, Key string
	// ServerName is the name in the builder's certificate. Empty: the host of Builder.
	ServerName string
	// Insecure allows plain text to another host.
	Insecure bool
}

// Add adds the flags to those of a command.
func (f *Flags) Add(flags *pflag.FlagSet) {
	flags.StringVar(&f.Builder, "builder", cmp.Or(os.Getenv("KILN_BUILDER"), defaultBuilder), "`address` of the builder, host:port or unix:///path (or KILN_BUILDER)")
	flags.StringVar(&f.CA, "tls-ca", os.Getenv("KILN_TLS_CA"), "`file` with the authorities of the builder's certificate (or KILN_TLS_CA; default: the system's)")
	flags.StringVar(&f.Cert, "tls-cert", os.Getenv("KILN_TLS_CERT"), "`file` with your certificate (or KILN_TLS_CERT)")
	flags.StringVar(&f.Key, "tls-key", os.Getenv("KILN_TLS_KEY"), "`file` with its private key (or KILN_TLS_KEY)")
	flags.StringVar(&f.ServerName, "tls-server-name", os.Getenv("KILN_TLS_SERVER_NAME"), "`name` in the builder's certificate (or KILN_TLS_SERVER_NAME; default: the builder's host)")
	flags.BoolVar(&f.Insecure, "insecure", false, "allow plain text to a builder on another host; it refuses secrets then")
}

// TLS reports whether the connection is by TLS: when any of its flags is set.
func (f *Flags) TLS() bool { return f.CA+f.Cert+f.Key+f.ServerName != "" }

// Dial makes a client of the builder. Options win over the flags.
func (f *Flags) Dial(opts ...client.Option) (*client.Client, error) {
	all := []client.Option{client.WithPatience(patience)}
	if f.TLS() {
		all = append(all, client.WithTLS(f.CA, f.Cert, f.Key, f.ServerName))
	}
	if f.Insecure {
		all = append(all, client.WithInsecure())
	}
	c, err := client.Dial(f.Builder, append(all, opts...)...)
	if err != nil {
		remedy := ""
		if !f.TLS() {
			remedy = "give --tls-ca, --tls-cert and --tls-key, or --insecure in a closed network"
		}
		return nil, fault.Wrap(err, fault.InvalidArgument, "", "the builder's address or certificates", remedy)
	}
	return c, nil
}

// Explain makes the error of a call into what a person reads: what is wrong, and
// what to do. Errors that are not of a call stay as they are.
func (f *Flags) Explain(err error) error {
	st, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	switch {
	case client.Reason(err) != "":
		return fault.New(fault.Internal, client.Reason(err), st.Message(), client.Remedy(err))
	case st.Code() == codes.Unavailable:
		return fault.New(fault.Unavailable, "", fmt.Sprintf("cannot reach the builder at %s: %s", f.Builder, Innermost(st.Message())),
			"check that it runs (`kiln up` starts one) and speaks TLS or not as you do, or name another with --builder")
	case st.Code() == codes.Unimplemented:
		return fault.New(fault.Unimplemented, "", fmt.Sprintf("what answers at %s is no builder, or an older one: %s", f.Builder, st.Message()),
			"name a builder with --builder, or bring it to the version of this command")
	default:
		return fault.New(fault.Internal, "", fmt.Sprintf("the builder at %s: %s", f.Builder, st.Message()), "")
	}
}

// Innermost is the last of the causes that gRPC strings together in a message.
func Innermost(text string) string {
	if at := strings.LastIndex(text, "desc = "); at >= 0 {
		text = text[at+len("desc = "):]
	}
	return strings.Trim(text, `"`)
}
