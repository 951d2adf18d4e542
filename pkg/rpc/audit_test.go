package rpc

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

const solve = "/moby.buildkit.v1.Control/Solve"

// audited is an audit log in a file, and what it has.
func audited(t *testing.T, cfg *configv1.ServerConfig) (*audit, func() []map[string]any) {
	t.Helper()
	if cfg.AuditFile == "" {
		cfg.AuditFile = filepath.Join(t.TempDir(), "audit.log")
	}
	a, err := newAudit("test", cfg, telemetry.Discard())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.close() })
	return a, func() (lines []map[string]any) {
		raw, err := os.ReadFile(cfg.AuditFile)
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(raw) {
			var entry map[string]any
			if err := json.Unmarshal(line, &entry); err != nil {
				t.Fatalf("%v in %s", err, line)
			}
			lines = append(lines, entry)
		}
		return lines
	}
}

func TestAudit_NamesWhatAHandlerTells(t *testing.T) {
	a, lines := audited(t, &configv1.ServerConfig{})
	ctx, noted := a.entryOf(t.Context(), solve, auth.Identity{Name: "ci"})
	if err := Audit(ctx, slog.String("ref", "r1"), slog.String("project", "web")); err != nil {
		t.Fatal(err)
	}
	if got := lines(); len(got) != 1 || got[0]["event"] != "begin" || got[0]["ref"] != "r1" || got[0]["identity"] != "ci" {
		t.Errorf("while the call goes on: %v", got)
	}
	noted.end(ctx, nil, status.New(codes.OK, ""))
	if got := lines(); len(got) != 2 || got[1]["event"] != "end" || got[1]["project"] != "web" || got[1]["code"] != "OK" {
		t.Errorf("when it has ended: %v", got)
	}
}

func TestAudit_HasRefusedCallsThatChangeNothing(t *testing.T) {
	a, lines := audited(t, &configv1.ServerConfig{})
	for code, want := range map[codes.Code]int{codes.OK: 0, codes.NotFound: 0, codes.PermissionDenied: 1, codes.Unauthenticated: 1} {
		before := len(lines())
		ctx, noted := a.entryOf(t.Context(), builderv1.BuilderService_ListBuilds_FullMethodName, auth.Identity{})
		noted.end(ctx, &builderv1.ListBuildsRequest{}, status.New(code, ""))
		if got := len(lines()) - before; got != want {
			t.Errorf("%s: %d entries, want %d", code, got, want)
		}
	}
}

// Who may do nothing cannot fill the disk with the names in a request.
func TestAudit_BoundsTheNamesOfCallsThatAreRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.log")
	a, lines := audited(t, &configv1.ServerConfig{AuditFile: file})
	ctx, noted := a.entryOf(t.Context(), builderv1.BuilderService_GetBuild_FullMethodName, auth.Identity{})
	noted.end(ctx, &builderv1.GetBuildRequest{BuildId: strings.Repeat("x", 1<<20)}, status.New(codes.Unauthenticated, ""))
	if info, err := os.Stat(file); err != nil || info.Size() > 2*maxNamed || len(lines()) != 1 {
		t.Errorf("%d entries of %d bytes, %v", len(lines()), info.Size(), err)
	}
}

// full is an audit log on a disk that has no room.
func full(t *testing.T, required bool) (*audit, *bytes.Buffer) {
	t.Helper()
	var text bytes.Buffer
	tel := telemetry.Discard()
	tel.Logger = slog.New(slog.NewTextHandler(&text, nil))
	a, err := newAudit("test", &configv1.ServerConfig{AuditFile: "/dev/full", AuditRequired: required}, tel)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.close() })
	return a, &text
}

func TestAudit_ReportsEntriesThatCannotBeWritten(t *testing.T) {
	for required, want := range map[bool]fault.Kind{false: fault.Internal, true: fault.Unavailable} {
		a, text := full(t, required)
		ctx, noted := a.entryOf(t.Context(), solve, auth.Identity{Name: "ci"})
		err := Audit(ctx, slog.String("ref", "r1"))
		if (err != nil) != required || err != nil && fault.KindOf(err) != want {
			t.Errorf("required %t: %v", required, err)
		}
		noted.end(ctx, nil, status.New(codes.OK, ""))
		if n := strings.Count(text.String(), "the audit log cannot be written"); n != 2 {
			t.Errorf("required %t: %d of 2 failures are logged", required, n)
		}
	}
}

// With audit_required, no change is served that is not noted first.
func TestAudit_RequiredIsWrittenBeforeTheCall(t *testing.T) {
	for _, required := range []bool{false, true} {
		a, _ := full(t, required)
		g := &guard{audit: a, access: &access{authorize: auth.FromRules(nil, true)}, limits: limitsOf(nil), log: a.log}
		served := false
		ctx, _ := a.entryOf(t.Context(), builderv1.BuilderService_CancelBuild_FullMethodName, auth.Identity{})
		_, err := g.innerUnary(ctx, &builderv1.CancelBuildRequest{BuildId: "b"}, &grpc.UnaryServerInfo{FullMethod: builderv1.BuilderService_CancelBuild_FullMethodName},
			func(context.Context, any) (any, error) { served = true; return nil, nil })
		if served == required || (err != nil) != required {
			t.Errorf("required %t: served %t, %v", required, served, err)
		}
	}
}
