package protolimit_test

import (
	"bytes"
	"math"
	"runtime"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/protolimit"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// allocated returns the bytes that f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// emptyOutputs is a BuildSpec of 16 MiB of empty outputs: 1.2 GB once decoded.
func emptyOutputs() []byte {
	number := (&builderv1.BuildSpec{}).ProtoReflect().Descriptor().Fields().ByName("outputs").Number()
	return bytes.Repeat(protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), nil), 5<<20)
}

func TestUnmarshal_RefusesAmplificationBeforeItAllocates(t *testing.T) {
	raw := emptyOutputs()
	var err error
	used := allocated(func() { err = protolimit.Unmarshal(raw, &builderv1.BuildSpec{}, protolimit.Default) })
	if fault.KindOf(err) != fault.ResourceExhausted {
		t.Errorf("%v", err)
	}
	if used > 1<<20 {
		t.Errorf("allocated %d bytes for a message that is refused", used)
	}
}

func TestCheck_BoundsDepth(t *testing.T) {
	value := structpb.NewNullValue()
	for range 100 {
		value = structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{value}})
	}
	raw, err := proto.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	if err := protolimit.Unmarshal(raw, &structpb.Value{}, protolimit.Default); fault.KindOf(err) != fault.ResourceExhausted {
		t.Errorf("%v", err)
	}
	if err := protolimit.Unmarshal(raw, &structpb.Value{}, protolimit.Limits{Elements: 1000, Depth: 300}); err != nil {
		t.Error(err)
	}
}

func TestCheck_CountsMapsListsAndMessages(t *testing.T) {
	spec := &builderv1.BuildSpec{
		Project: "web", BuildArgs: map[string]string{"a": "1", "b": "2"}, Platforms: []string{"linux/amd64"},
		Frontend: &builderv1.Frontend{Attributes: map[string]string{"k": "v"}},
	}
	raw, err := proto.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	n, err := protolimit.Check(raw, spec.ProtoReflect().Descriptor(), protolimit.Default)
	if err != nil || n != 5 {
		t.Errorf("%d elements, %v; want 2 + 1 + 1 + 1", n, err)
	}
}

// FuzzCheck holds that Check never panics and never refuses by itself what protobuf
// decodes.
func FuzzCheck(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0x0a, 0x03, 'w', 'e', 'b'})
	f.Add(emptyOutputs()[:64])
	f.Fuzz(func(t *testing.T, raw []byte) {
		spec := &builderv1.BuildSpec{}
		_, err := protolimit.Check(raw, spec.ProtoReflect().Descriptor(), protolimit.Limits{Elements: math.MaxInt, Depth: math.MaxInt})
		if err != nil && proto.Unmarshal(raw, spec) == nil {
			t.Errorf("protobuf decodes %x, and Check says %v", raw, err)
		}
	})
}
