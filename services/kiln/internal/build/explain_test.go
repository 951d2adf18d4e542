package build

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/pkg/fault"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

func TestExplain_AddsTheRemedyOfAMissingSource(t *testing.T) {
	for reason, want := range map[string]string{
		"SOURCE_NOT_FOUND": "secret npmrc: not found (pass it with --secret)", "STEP_FAILED": "secret npmrc: not found",
	} {
		st, err := status.New(codes.NotFound, "secret npmrc: not found").WithDetails(
			&errdetails.ErrorInfo{
				Reason: reason, Domain: "kiln.build", Metadata: map[string]string{"remedy": "pass it with --secret"},
			})
		if err != nil {
			t.Fatal(err)
		}
		rec := &builderv1.BuildRecord{Outcome: &builderv1.Outcome{Error: st.Proto()}}
		got := fault.Line((&options{}).explain(t.Context(), errors.New("failed to solve: secret npmrc: not found"), rec, &bytes.Buffer{}))
		if got != want {
			t.Errorf("%s: %q; want %q", reason, got, want)
		}
	}
}

func TestCheck_ParseErrorIsOneLineAfterItsPlace(t *testing.T) {
	answer := map[string]string{"result.json": `{"buildError":{"message":"unknown instruction: RUNN","location":{"sourceIndex":0,` +
		`"ranges":[{"start":{"line":2},"end":{"line":2}}]}},"sources":[{"filename":"Dockerfile","data":"RlJPTSBzY3JhdGNoClJVTk4gdHJ1ZQo="}]}`}
	var out bytes.Buffer
	err := (&call{name: "lint"}).print(io.Discard, &out, answer, "")
	if err == nil || err.Error() != "unknown instruction: RUNN" {
		t.Errorf("%v", err)
	}
	if !strings.Contains(out.String(), "RUNN true") || strings.Contains(out.String(), "unknown instruction") {
		t.Errorf("%s", out.String())
	}
}
