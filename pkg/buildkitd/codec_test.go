package buildkitd

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// registered returns the codec that gRPC uses where no other was chosen, as in BuildKit's sessions.
func registered(t *testing.T) encoding.CodecV2 {
	t.Helper()
	codec := encoding.GetCodecV2("proto")
	if codec == nil {
		t.Fatal("no codec is registered")
	}
	return codec
}

func encode(t *testing.T, m proto.Message) mem.BufferSlice {
	t.Helper()
	data, err := registered(t).Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestCodec_KeepsStringsThatAreNotUTF8(t *testing.T) {
	want := &controlapi.SolveRequest{FrontendAttrs: map[string]string{"build-arg:NAME": "caf\xe9"}}
	var got controlapi.SolveRequest
	if err := registered(t).Unmarshal(encode(t, want), &got); err != nil {
		t.Fatal(err)
	}
	if value := got.GetFrontendAttrs()["build-arg:NAME"]; value != "caf\xe9" {
		t.Errorf("the argument came as %q", value)
	}
}

// BuildKit's own codec merges into a message that is used again.
func TestCodec_ResetsMessages(t *testing.T) {
	want := &controlapi.SolveRequest{Session: "new"}
	used := &controlapi.SolveRequest{Ref: "old", FrontendAttrs: map[string]string{"old": "1"}}
	if err := registered(t).Unmarshal(encode(t, want), used); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, used, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

// The strings of Kiln's own contracts are UTF-8.
func TestCodec_ChecksMessagesThatAreNotBuildKits(t *testing.T) {
	if _, err := registered(t).Marshal(&configv1.DaemonConfig{Name: "caf\xe9"}); err == nil {
		t.Error("a message of Kiln was encoded with a string that is not UTF-8")
	}
	if err := registered(t).Unmarshal(mem.BufferSlice{mem.SliceBuffer("\x0a\x04caf\xe9")}, new(configv1.DaemonConfig)); err == nil {
		t.Error("a message of Kiln was decoded with a string that is not UTF-8")
	}
}

func TestCodec_RefusesWhatIsNoMessage(t *testing.T) {
	if _, err := registered(t).Marshal("text"); err == nil {
		t.Error("a string was encoded")
	}
	if err := registered(t).Unmarshal(nil, new(string)); err == nil {
		t.Error("a string was decoded")
	}
}
