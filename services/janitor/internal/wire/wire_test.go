package wire_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/janitor/internal/wire"
)

// A rule that is disabled is a part of the policy that was written: what is read has it.
func TestReadPolicy_KeepsDisabledRules(t *testing.T) {
	p, err := wire.ReadPolicy("text", "rules:\n- {name: a, disabled: true, protect: true}\n- {name: b, keep: {age: 48h}}\n")
	if err != nil || len(p.Rules) != 2 || !p.Rules[0].Disabled {
		t.Errorf("%+v, %v", p.Rules, err)
	}
}

// What a newer version has stored can be read: its enums may have values that this one lacks.
func TestDecode_ValuesOfANewerVersion(t *testing.T) {
	body, err := proto.Marshal(&janitorv1.Run{Id: "r", State: 99, Trigger: 99, Reach: 99, Progress: &janitorv1.RunProgress{Phase: 99}})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := wire.DecodeRun(body); err != nil || r.ID != "r" || r.State != "99" {
		t.Errorf("%+v, %v", r, err)
	}
	body, err = proto.Marshal(&janitorv1.Verdict{Item: &janitorv1.Item{Kind: 99, ManifestKind: 99}, Reason: 99, Action: 99})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := wire.DecodeVerdict(body); err != nil || v.Reason != "99" {
		t.Errorf("%+v, %v", v, err)
	}
}
