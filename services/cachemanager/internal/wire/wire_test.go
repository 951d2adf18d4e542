package wire

import (
	"testing"

	"google.golang.org/protobuf/proto"

	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
)

// What a later version has stored is read, whatever its enums have become.
func TestDecode_TakesEnumsOfALaterVersion(t *testing.T) {
	body, err := proto.Marshal(&cachemanagerv1.Run{
		Id: "r", State: 99, Trigger: 98, Caches: []*cachemanagerv1.CacheRun{{State: 97}},
	})
	if err != nil {
		t.Fatal(err)
	}
	r, err := DecodeRun(body)
	if err != nil || r.ID != "r" || len(r.Caches) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	again := RunProto(r)
	if again.GetState() != cachemanagerv1.RunState_RUN_STATE_UNSPECIFIED {
		t.Errorf("%v", again)
	}
	body, err = proto.Marshal(&cachemanagerv1.Verdict{
		Action: 99, Reason: 98, Certainty: 97, Record: &cachemanagerv1.Record{Id: "x", Type: 96},
	})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := DecodeVerdict(body); err != nil || v.Record.ID != "x" || v.Remove {
		t.Errorf("%+v, %v", v, err)
	}
	body, err = proto.Marshal(&cachemanagerv1.Policy{Rules: []*cachemanagerv1.Rule{{
		Name: "x", Match: &cachemanagerv1.Match{Types: []cachemanagerv1.RecordType{96}}, Keep: &cachemanagerv1.Keep{Scope: 95},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	if p, err := DecodePolicy(body); err != nil || len(p.Rules) != 1 {
		t.Errorf("%+v, %v", p, err)
	}
}
