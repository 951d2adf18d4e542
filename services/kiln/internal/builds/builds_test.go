package builds

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/kilnbuild/kiln/pkg/human"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/testkit"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

var (
	pipe     = table.Terminal{}
	terminal = table.Terminal{Width: 100, Colour: true}
)

// The table of builds for a program, for a terminal, and for a narrow one.
func TestListIsAligned(t *testing.T) {
	all := []*builderv1.BuildRecord{aQueued(), aRunning(), aSucceeded(), aFailed(t)}
	for name, term := range map[string]table.Terminal{"ls.txt": pipe, "ls-terminal.txt": terminal, "ls-narrow.txt": {Width: 72}} {
		got := text(t, func(w *strings.Builder) error { return writeBuilds(w, term, all, now) })
		testkit.Golden(t, name, got)
		for line := range strings.Lines(got) {
			if visible := utf8.RuneCountInString(uncoloured.Replace(line)) - 1; term.Width > 0 && visible > term.Width {
				t.Errorf("%s: a line of %d columns: %q", name, visible, line)
			}
		}
	}
}

var uncoloured = strings.NewReplacer("\x1b[0m", "", "\x1b[1m", "", "\x1b[2m", "", "\x1b[31m", "", "\x1b[32m", "", "\x1b[33m", "", "\x1b[36m", "")

func TestShow(t *testing.T) {
	for name, b := range map[string]*builderv1.BuildRecord{
		"show-queued.txt": aQueued(), "show-running.txt": aRunning(), "show-succeeded.txt": aSucceeded(), "show-failed.txt": aFailed(t),
	} {
		testkit.Golden(t, name, text(t, func(w *strings.Builder) error { return writeBuild(w, pipe, b, now) }))
	}
	testkit.Golden(t, "show-terminal.txt", text(t, func(w *strings.Builder) error { return writeBuild(w, terminal, aFailed(t), now) }))
}

// JSON is one line, the same each time, in the contract's names.
func TestJSON(t *testing.T) {
	lines := map[string]bool{}
	for range 20 {
		lines[text(t, func(w *strings.Builder) error { return show.JSON(w, aSucceeded()) })] = true
	}
	if len(lines) != 1 {
		t.Fatalf("%d different lines", len(lines))
	}
	for line := range lines {
		testkit.Golden(t, "record.json", line)
	}
}

func TestShortenedIDs(t *testing.T) {
	all := []*builderv1.BuildRecord{aQueued(), aSucceeded(), aFailed(t)}
	for range maxShown {
		more := aSucceeded()
		more.Id = fmt.Sprint("4f3-", len(all))
		all = append(all, more)
	}
	for prefix, want := range map[string]string{
		"0e5": aQueued().GetId(), "4f3c": aSucceeded().GetId(), "4f3": "and 2 more", "4f3-": "4f3-3, 4f3-4, 4f3-5, 4f3-6", "x": "no build",
	} {
		b, err := match(all, prefix)
		if b.GetId() != want && (err == nil || !strings.Contains(fault.Line(err), want)) {
			t.Errorf("%s: %v, %v; want %s", prefix, b.GetId(), err, want)
		}
	}
}

func TestFilterOfFlags(t *testing.T) {
	tests := []struct {
		options lsOptions
		want    string
	}{
		{lsOptions{}, ""},
		{lsOptions{states: []string{"failed"}}, "(state = FAILED)"},
		{lsOptions{states: []string{"queued", "Timed_out"}, project: "web"}, `(state = QUEUED OR state = TIMED_OUT) AND project = "web"`},
		{lsOptions{tag: `a"b`, filter: "origin = API OR daemon = \"x\""}, `tag:"a\"b" AND (origin = API OR daemon = "x")`},
		{lsOptions{since: "90m"}, `create_time >= "2026-11-25T10:30:00Z"`},
		{lsOptions{since: "7d"}, `create_time >= "2026-11-18T12:00:00Z"`},
		{lsOptions{since: "2026-11-01T08:00:00+02:00"}, `create_time >= "2026-11-01T06:00:00Z"`},
	}
	for _, test := range tests {
		if got, err := test.options.expression(now); err != nil || got != test.want {
			t.Errorf("%+v: %s, %v; want %s", test.options, got, err, test.want)
		}
	}
	for _, bad := range []string{"yesterday", "-5m", "7w", "5"} {
		if _, err := parseSince(bad, now); err == nil {
			t.Errorf("--since %s is accepted", bad)
		}
	}
}

func TestWords(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "now", -time.Hour: "now", 59 * time.Second: "59s ago", 3*time.Minute + 59*time.Second: "3m ago", 47 * time.Hour: "47h ago", 49 * time.Hour: "2d ago",
	} {
		if got := show.Ago(timestamppb.New(now.Add(-d)), now); got != want {
			t.Errorf("show.Ago(%s) = %s, want %s", d, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		0: "0ms", 999 * time.Millisecond: "999ms", 1230 * time.Millisecond: "1.2s", 60 * time.Second: "1m", 95 * time.Second: "1m35s", 2*time.Hour + 3*time.Second: "2h0m3s",
	} {
		if got := show.Lasted(d); got != want {
			t.Errorf("show.Lasted(%s) = %s, want %s", d, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1 kB", 12345678: "12.3 MB", 999999: "1 MB", 1 << 40: "1.1 TB"} {
		if got := human.Size(n); got != want {
			t.Errorf("human.Size(%d) = %s, want %s", n, got, want)
		}
	}
}

// A flag that takes some values refuses others in one line, with those it takes.
func TestChoices(t *testing.T) {
	for _, args := range [][]string{
		{"ls", "--state", "failed,broken"}, {"ls", "--format", "yaml"}, {"watch", "x", "--progress", "loud"}, {"retry", "x", "--format", "xml"},
	} {
		cmd := Command()
		cmd.SetArgs(args)
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		if err := cmd.Execute(); err == nil || !strings.Contains(fault.Line(err), "use ") {
			t.Errorf("%v: %v", args, err)
		}
	}
}

// Lines of steps that run side by side are not mixed, and those of other steps
// are left out.
func TestLogsAreWholeLines(t *testing.T) {
	step := func(digest, name string) *builderv1.BuildEvent {
		return &builderv1.BuildEvent{Kind: &builderv1.BuildEvent_Step{Step: &builderv1.StepEvent{Digest: digest, Name: name}}}
	}
	log := func(digest, data string) *builderv1.BuildEvent {
		return &builderv1.BuildEvent{Kind: &builderv1.BuildEvent_Log{Log: &builderv1.LogEvent{StepDigest: digest, Data: []byte(data)}}}
	}
	events := []*builderv1.BuildEvent{
		step("sha256:aa", "[a 1/2] RUN make"), step("sha256:bb", "[b 1/1] RUN test"),
		log("sha256:aa", "one "), log("sha256:bb", "ONE\nTWO"), log("sha256:aa", "line\ntwo\n"), log("sha256:bb", " LINES\n"), log("sha256:aa", "three"),
	}
	for filter, want := range map[string]string{
		"": "ONE\none line\ntwo\nTWO LINES\nthree\n", "RUN make": "one line\ntwo\nthree\n", "sha256:bb": "ONE\nTWO LINES\n", "bb": "ONE\nTWO LINES\n", "none": "",
	} {
		got := text(t, func(w *strings.Builder) error {
			p := &logPrinter{options: &logsOptions{step: filter}, w: w, names: map[string]string{}, partial: map[string][]byte{}}
			for _, event := range events {
				if err := p.take(event); err != nil {
					return err
				}
			}
			return p.flush()
		})
		if got != want {
			t.Errorf("--step %q: %q, want %q", filter, got, want)
		}
	}
}

func TestChooseArtifact(t *testing.T) {
	several := aSucceeded()
	one := proto.CloneOf(several)
	one.Outcome.Outputs = one.GetOutcome().GetOutputs()[:2]
	for _, test := range []struct {
		build *builderv1.BuildRecord
		name  []string
		want  string // of the artifact, or in the error
	}{
		{several, []string{"files.tar"}, "files.tar"}, {one, nil, "image.tar"}, {several, nil, "image.tar, files.tar"},
		{several, []string{"x"}, "image.tar, files.tar"}, {aRunning(), nil, "has not ended"}, {aFailed(t), nil, "kept no artifacts"},
	} {
		a, err := choose(test.build, test.name)
		if a.GetArtifact() != test.want && (err == nil || !strings.Contains(fault.Line(err), test.want)) {
			t.Errorf("%v of %s: %v, %v; want %s", test.name, test.build.GetId(), a.GetArtifact(), err, test.want)
		}
	}
}
