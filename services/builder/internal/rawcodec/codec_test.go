package rawcodec

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
)

func encode(t testing.TB, v any) []byte {
	t.Helper()
	data, err := (Codec{}).Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data.Materialize()
}

func decode(t testing.TB, raw []byte, v any) {
	t.Helper()
	if err := (Codec{}).Unmarshal(mem.BufferSlice{mem.SliceBuffer(raw)}, v); err != nil {
		t.Fatal(err)
	}
}

// A message that goes through as a Frame is to the letter what came, also what
// this version of BuildKit's contracts does not know.
func FuzzFramePassesBytes(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(encode(f, &controlapi.SolveRequest{Ref: "ref", Session: "session"}))
	f.Add([]byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, raw []byte) {
		var through Frame
		decode(t, raw, &through)
		// What is read of it must neither panic nor touch it.
		_ = proto.Unmarshal(through.Data.Materialize(), &controlapi.SolveRequest{})
		_ = proto.Unmarshal(through.Data.Materialize(), &controlapi.StatusResponse{})
		if got := encode(t, &through); string(got) != string(raw) {
			t.Errorf("%x became %x", raw, got)
		}
	})
}

// BuildKit's own codec, which is global in every process that links its client,
// merges into messages that are used again; ours resets them.
func TestCodecResetsMessages(t *testing.T) {
	used := &controlapi.SolveRequest{Ref: "old", FrontendAttrs: map[string]string{"old": "1"}}
	want := &controlapi.SolveRequest{Session: "new"}
	decode(t, encode(t, want), used)
	if diff := cmp.Diff(want, used, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if _, err := (Codec{}).Marshal("text"); err == nil {
		t.Error("a string was encoded")
	}
	if err := (Codec{}).Unmarshal(nil, new(string)); err == nil {
		t.Error("a string was decoded")
	}
}
