package show_test

import (
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/kilnbuild/kiln/services/kiln/internal/show"
)

func TestAddDuration_TakesDays(t *testing.T) {
	for text, want := range map[string]time.Duration{"7d": 168 * time.Hour, "0": 0, "90m": 90 * time.Minute, "1h30m": 90 * time.Minute} {
		var got time.Duration
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		show.AddDuration(flags, &got, "in", "")
		if err := flags.Parse([]string{"--in", text}); err != nil || got != want {
			t.Errorf("%s: %s, %v", text, got, err)
		}
	}
	for _, text := range []string{"7", "d", "-1d", "1d12h", "123456d"} {
		var got time.Duration
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		show.AddDuration(flags, &got, "in", "")
		if err := flags.Parse([]string{"--in", text}); err == nil {
			t.Errorf("%s: %s", text, got)
		}
	}
}

func TestCheckPlan_TakesWholeDigests(t *testing.T) {
	for text, right := range map[string]bool{
		"": true, "sha256:" + strings.Repeat("a", 64): true, "abc": false, "sha256:1f3c": false, strings.Repeat("a", 64): false,
	} {
		if err := show.CheckPlan(text, "kiln cache plan"); (err == nil) != right {
			t.Errorf("%s: %v", text, err)
		}
	}
}
