package grpcapi

import (
	"bytes"
	"context"
	"errors"
	"net"
	"testing"

	"google.golang.org/grpc/peer"

	"github.com/kilnbuild/kiln/pkg/fault"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

func from(ip string) context.Context {
	at := func(port int) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: port} }
	return peer.NewContext(context.Background(), &peer.Peer{Addr: at(40000), LocalAddr: at(50051)})
}

func withSecret(value string) *builderv1.BuildSpec {
	return &builderv1.BuildSpec{
		Context:    &builderv1.Context{Kind: &builderv1.Context_Inline{Inline: &builderv1.InlineContext{}}},
		Dockerfile: &builderv1.Dockerfile{Source: &builderv1.Dockerfile_Inline{Inline: "FROM scratch"}},
		Secrets:    []*builderv1.Secret{{Id: "tok", Value: []byte(value)}},
	}
}

// Secrets that came in plain text over a network are refused; what is stored of a
// request has none, and does not tell one value from another.
func TestSecretsOfARequest(t *testing.T) {
	var s Server
	_, err := s.submission(from("192.0.2.7"), withSecret("value"), "")
	if known, ok := errors.AsType[*fault.Error](err); !ok || known.Reason != "INSECURE_TRANSPORT" {
		t.Errorf("over a network: %v", err)
	}
	first, err := s.submission(from("127.0.0.1"), withSecret("value-one"), "")
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.submission(from("127.0.0.1"), withSecret("value-two"), "")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(first.Request, []byte("value-one")) || !bytes.Contains(first.Request, []byte("tok")) {
		t.Errorf("what is stored: %q", first.Request)
	}
	if first.Fingerprint != second.Fingerprint || string(first.Spec.Secrets[0].Value) != "value-one" {
		t.Errorf("fingerprints %s and %s", first.Fingerprint, second.Fingerprint)
	}
	back, err := withSecrets(first.Request, []*builderv1.Secret{{Id: "tok", Value: []byte("again")}}, nil)
	if err != nil || string(back.GetSecrets()[0].GetValue()) != "again" {
		t.Errorf("given back: %v, %v", back, err)
	}
}
