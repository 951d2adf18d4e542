package connect

import (
	"errors"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/pkg/fault"
)

func parse(t *testing.T, args ...string) *Flags {
	t.Helper()
	f := &Flags{}
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	f.Add(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFlagsAndVariables(t *testing.T) {
	isolate(t)
	if f := resolved(t); f.Address != "127.0.0.1:50051" || f.TLS() {
		t.Errorf("nothing set: %+v", f)
	}
	t.Setenv("KILN_BUILDER", "build.example.org:1")
	t.Setenv("KILN_TLS_CA", "/ca")
	if f := parse(t); f.Address != "build.example.org:1" || f.CA != "/ca" || !f.TLS() {
		t.Errorf("variables: %+v", f)
	}
	if f := parse(t, "--builder", "unix:///s", "--tls-ca", "", "--tls-server-name", "kiln"); f.Address != "unix:///s" || f.CA != "" || f.ServerName != "kiln" || !f.TLS() {
		t.Errorf("flags win: %+v", f)
	}
}

// Plain text to another host is refused with the flags that help.
func TestDialRefusesPlainText(t *testing.T) {
	f := parse(t, "--builder", "build.example.org:1", "--tls-ca", "")
	if _, err := f.Dial(); err == nil || !strings.Contains(fault.Line(err), "--insecure") || strings.Contains(err.Error(), "WithTLS") {
		t.Errorf("%v", err)
	}
	f.Insecure = true
	c, err := f.Dial()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := (&Flags{Address: "127.0.0.1:1", CA: "/nonexistent"}).Dial(); err == nil || strings.Contains(fault.Line(err), "--insecure") {
		t.Errorf("a missing file: %v", err)
	}
}

// Each error is one line with what to do.
func TestExplain(t *testing.T) {
	kiln, err := status.New(codes.NotFound, "no such build").WithDetails(&errdetails.ErrorInfo{
		Domain: "kiln.build", Reason: "NOT_FOUND", Metadata: map[string]string{"remedy": "list the builds"},
	})
	if err != nil {
		t.Fatal(err)
	}
	own := errors.New("a file")
	for want, err := range map[string]error{
		"no such build (list the builds)":                                    kiln.Err(),
		"cannot reach the builder at b:1: nothing listens there (start it":   status.Error(codes.Unavailable, `transport: Error while dialing: rpc error: desc = "connection refused"`),
		"what answers at b:1 is no builder":                                  status.Error(codes.Unimplemented, "unknown service"),
		"the builder at b:1 refuses you: who are you (show who":              status.Error(codes.Unauthenticated, "who are you"),
		"the builder at b:1: it does not answer in time (check":              status.Error(codes.DeadlineExceeded, "context deadline exceeded"),
		"cannot reach the builder at b:1: something new (check that it runs": status.Error(codes.Unavailable, "something new"),
		"the builder at b:1: odd":                                            status.Error(codes.DataLoss, "odd"),
		"a file":                                                             own,
	} {
		if got := fault.Line((&Flags{Address: "b:1"}).Explain(err)); !strings.HasPrefix(got, want) {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
	if err := (&Flags{}).Explain(nil); err != nil {
		t.Errorf("no error: %v", err)
	}
}

func TestExplain_ExplainsEachPartOfAJoin(t *testing.T) {
	isolate(t)
	f := resolved(t)
	refused := status.Error(codes.InvalidArgument, "plan_digest is no digest")
	for name, err := range map[string]error{
		"one": errors.Join(refused, nil), "two": errors.Join(refused, errors.New("closed")), "nested": errors.Join(errors.Join(refused)),
	} {
		got := fault.Line(f.Explain(err))
		if strings.Contains(got, "rpc error") || !strings.Contains(got, "plan_digest is no digest") || name == "two" && !strings.Contains(got, "closed") {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestDial_NamesTheProfileFlagForAName(t *testing.T) {
	f := parse(t, "--builder", "kiln")
	_, err := f.Dial()
	if got := fault.Line(err); !strings.Contains(got, "HOST:PORT") || !strings.Contains(got, "--profile") {
		t.Error(got)
	}
}
