package config_test

import (
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/pkg/config"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

const people = `# What stays.
rules:
  - name: mounts
    match: {types: [exec_cache_mount, RECORD_TYPE_REGULAR], min_age: 2d}
    keep: {bytes: 1.5TB, age: "7d"}
  - name: size
    keep:
      bytes: "100GiB"   # a comment with 100GiB
      free_disk: {low_bytes: 10GB, high_bytes: 20000000000}
      scope: fleet
budget: {time: 90s, bytes: 0}
`

func TestDecodeReadsWhatPeopleWrite(t *testing.T) {
	p := &cachemanagerv1.Policy{}
	doc, err := config.Decode("policy", people, p)
	if err != nil {
		t.Fatal(err)
	}
	mounts, size := p.GetRules()[0], p.GetRules()[1]
	if mounts.GetMatch().GetTypes()[0] != cachemanagerv1.RecordType_RECORD_TYPE_EXEC_CACHE_MOUNT || mounts.GetMatch().GetMinAge().AsDuration() != 48*time.Hour ||
		mounts.GetKeep().GetBytes() != 1_500_000_000_000 || mounts.GetKeep().GetAge().AsDuration() != 168*time.Hour {
		t.Errorf("%v", mounts)
	}
	if size.GetKeep().GetBytes() != 100<<30 || size.GetKeep().GetFreeDisk().GetLowBytes() != 1e10 || size.GetKeep().GetScope() != cachemanagerv1.Scope_SCOPE_FLEET {
		t.Errorf("%v", size)
	}
	if got := doc.Place("rules[1].keep.bytes"); got != "policy:8:14" {
		t.Errorf("the size stands at %s", got)
	}
}

func TestDecodeSaysWhereItIsWrong(t *testing.T) {
	for text, want := range map[string]string{
		"rules:\n- name: a\n  keep: {bytes: 100GBB}\n":              `policy:3:17: "100GBB" is not a size`,
		"rules:\n- name: a\n  keep:\n    bytes: -5GB\n":             `policy:4:12: "-5GB" is not a size`,
		"rules:\n- name: a\n  keep:\n    bytes: -5\n":               "policy:4:12: rules[0].keep.bytes",
		"rules:\n- name: a\n  match: {types: [volumes]}\n":          "policy:3:19",
		"rules:\n- name: a\n  keeps: {}\n":                          "policy:3:3",
		"rules:\n- name: a\n  keep: {age: fortnight}\n":             "policy:3:15",
		"rules:\n- name: A B\n":                                     "policy:2:9: rules[0].name",
		"rules: [\n":                                                "policy: line 1",
		"rules:\n- name: a\n  keep: {bytes: 99999999999999TB}\n":    "policy:3:17",
		"rules:\n- name: a\n  keep: {bytes: 1, records: \"9GB\"}\n": "policy:3:29",
	} {
		_, err := config.Decode("policy", text, &cachemanagerv1.Policy{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngot  %v\nwant %s", text, err, want)
		}
	}
}

// Sizes are read wherever settings come from.
func TestLoadReadsSizes(t *testing.T) {
	cfg := &configv1.CacheManagerConfig{}
	if err := config.Load(cfg, config.Options{Set: []string{"keep_bytes=20GB"}}); err != nil || cfg.GetKeepBytes() != 20e9 {
		t.Errorf("%v, %v", cfg, err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(people)
	f.Add("rules: [{name: a, keep: {bytes: '1GB', age: 1d}}]")
	f.Add("rules:\r\n- keep:\r\n    bytes: >\r\n      1GB\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		_, _ = config.Decode("policy", text, &cachemanagerv1.Policy{}) // without a panic
	})
}
