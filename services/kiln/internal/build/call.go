package build

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/moby/buildkit/client"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/frontend/subrequests"
	"github.com/moby/buildkit/frontend/subrequests/lint"
	"github.com/moby/buildkit/frontend/subrequests/outline"
	"github.com/moby/buildkit/frontend/subrequests/targets"
	"github.com/moby/buildkit/solver/pb"
	"github.com/tonistiigi/go-csvvalue"

	"github.com/kilnbuild/kiln/pkg/service"
)

// call is a question to the frontend in place of a build: --call.
type call struct {
	name         string
	format       string
	ignoreStatus bool
}

// parseCall reads --call NAME[,format=FORMAT][,ignorestatus=BOOL]. Nil: it asks for a
// build.
func parseCall(text string) (*call, error) {
	if text == "" {
		return nil, nil //nolint:nilnil // There is none.
	}
	fields, err := csvvalue.Fields(text, nil)
	if err != nil {
		return nil, fmt.Errorf("--call %q: %w", text, err)
	}
	c := &call{}
	for _, field := range fields {
		key, value, ok := strings.Cut(field, "=")
		switch {
		case !ok && c.name == "":
			c.name = field
		case key == "format" && ok:
			c.format = value
		case key == "ignorestatus" && ok:
			if c.ignoreStatus, err = strconv.ParseBool(value); err != nil {
				return nil, fmt.Errorf("--call %q: ignorestatus is %q; use true or false", text, value)
			}
		default:
			return nil, fmt.Errorf("--call %q: %q is not known; write it like check, outline, targets or outline,format=json", text, field)
		}
	}
	switch c.name {
	case "", "build":
		return nil, nil //nolint:nilnil // A build.
	case "check":
		c.name = "lint"
	}
	return c, nil
}

// ask has the frontend answer the question.
func (c *call) ask(ctx context.Context, cl *client.Client, opt client.SolveOpt, statuses chan *client.SolveStatus) (map[string]string, error) {
	answer := map[string]string{}
	addFrontendCaps(opt.FrontendAttrs, "moby.buildkit.frontend.subrequests+forward")
	opt.FrontendAttrs["requestid"] = "frontend." + c.name
	opt.Internal, opt.Exports, opt.CacheExports = true, nil, nil
	frontend, attrs := opt.Frontend, opt.FrontendAttrs
	opt.Frontend, opt.FrontendAttrs = "", nil
	_, err := cl.Build(ctx, opt, "kiln", func(ctx context.Context, gc gateway.Client) (*gateway.Result, error) {
		res, err := gc.Solve(ctx, gateway.SolveRequest{Frontend: frontend, FrontendOpt: attrs})
		if err != nil {
			return nil, err
		}
		for key, value := range res.Metadata {
			answer[key] = string(value)
		}
		return res, nil
	}, statuses)
	return answer, err
}

// print writes an answer as docker buildx does. A check that found errors ends the
// command with the frontend's status.
func (c *call) print(out, errOut io.Writer, answer map[string]string, dockerfile string) error {
	text := func(printer func([]byte, io.Writer) error) error {
		if c.format == "json" {
			_, err := fmt.Fprintln(out, answer["result.json"])
			return err
		}
		return printer([]byte(answer["result.json"]), out)
	}
	var err error
	switch c.name {
	case "outline":
		err = text(outline.PrintOutline)
	case "targets":
		err = text(targets.PrintTargets)
	case "subrequests.describe":
		err = text(subrequests.PrintDescribe)
	case "lint":
		err = c.printLint(out, errOut, answer, dockerfile)
	default:
		if c.format == "json" {
			_, err = fmt.Fprintln(out, answer["result.json"])
		} else {
			_, err = fmt.Fprint(out, answer["result.txt"])
		}
	}
	if err != nil {
		return err
	}
	if code, err := strconv.Atoi(answer["result.statuscode"]); err == nil && code != 0 && !c.ignoreStatus {
		return &service.Exit{Code: code, Err: errors.New("the check found problems in the Dockerfile")}
	}
	return nil
}

func (c *call) printLint(out, errOut io.Writer, answer map[string]string, dockerfile string) error {
	if c.format == "json" {
		_, err := fmt.Fprintln(out, answer["result.json"])
		return err
	}
	var found lint.LintResults
	if text := answer["result.json"]; text != "" {
		if err := json.Unmarshal([]byte(text), &found); err != nil {
			return fmt.Errorf("the frontend's answer: %w", err)
		}
	}
	// The frontend knows the file by the name that it was sent by.
	rename := func(info *pb.SourceInfo) *pb.SourceInfo {
		if info == nil || dockerfile == "" {
			return info
		}
		return &pb.SourceInfo{Filename: dockerfile, Data: info.GetData(), Definition: info.GetDefinition(), Language: info.GetLanguage()}
	}
	switch n := len(found.Warnings); n {
	case 0:
	case 1:
		_, _ = fmt.Fprintln(out, "Check complete, 1 warning has been found!")
	default:
		_, _ = fmt.Fprintf(out, "Check complete, %d warnings have been found!\n", n)
	}
	if err := found.PrintTo(out, rename); err != nil {
		return err
	}
	if found.Error != nil {
		var text bytes.Buffer
		if len(found.Warnings) > 0 {
			_, _ = fmt.Fprintln(out)
		}
		found.PrintErrorTo(&text, rename)
		// The message is the error, which is one line. The place goes before it.
		message, place, _ := strings.Cut(text.String(), "\n")
		_, _ = fmt.Fprint(errOut, place)
		return errors.New(message)
	}
	if len(found.Warnings) == 0 {
		_, err := fmt.Fprintln(out, "Check complete, no warnings found.")
		return err
	}
	return nil
}
