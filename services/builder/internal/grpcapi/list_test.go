package grpcapi_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/pkg/fault"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	errorsv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/errors/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// add stores a build, which has ended when its record says so.
func (r rig) add(t testing.TB, rec build.Record) {
	t.Helper()
	queued := rec
	queued.State, queued.Ended, queued.Outcome = build.Queued, time.Time{}, nil
	if _, _, err := r.store.Create(t.Context(), queued, nil); err != nil {
		t.Fatal(err)
	}
	if rec.State.Final() {
		if err := r.store.Commit(t.Context(), rec, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// list reads all pages of a list: the ids of each.
func (r rig) list(t testing.TB, req *builderv1.ListBuildsRequest) (pages [][]string) {
	t.Helper()
	req = proto.CloneOf(req)
	for {
		res, err := r.client.ListBuilds(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if size := proto.Size(res); size > 4<<20 {
			t.Errorf("a page has %d bytes, more than clients take by default", size)
		}
		var ids []string
		for _, b := range res.GetBuilds() {
			ids = append(ids, b.GetId())
		}
		pages = append(pages, ids)
		if req.PageToken = res.GetNextPageToken(); req.PageToken == "" {
			return pages
		}
	}
}

// A caller's pages are those of a builder that has only the builds that its rules allow:
// as many, cut at the same places, whatever the filter and the order.
func TestListBuilds_AsIfOthersWereNotThere(t *testing.T) {
	rule := &configv1.AccessRule{Identities: []string{"*"}, Methods: []string{"*"}, Projects: []string{"web", "team-*"}}
	limited, alone := newRig(t, rule), newRig(t)
	projects := []string{"web", "team-a", "team-b", "payroll", "web2", "team", "merger-with-acme"}
	for i := range 60 {
		project := projects[i*i%len(projects)]
		rec := build.Record{
			ID: fmt.Sprintf("id%02d", i), Project: project, State: build.Queued, Created: time.Unix(int64(1_700_000_000+i%7), 0),
			Origin: build.OriginAPI, Tags: []string{"registry.example.org/" + project + "/app:1"}, Caller: "spiffe://x/" + project,
		}
		if i%3 == 0 {
			rec.State, rec.Ended = build.Succeeded, time.Unix(int64(1_700_000_100+i), 0)
		}
		limited.add(t, rec)
		if project == "web" || strings.HasPrefix(project, "team-") {
			alone.add(t, rec)
		}
	}
	filters := []string{
		"", `tag:"registry.example.org/merger"`, `tag:"registry.example.org/"`, `NOT project = "web"`, `project != "team-a"`,
		`project = "payroll" OR project = "web"`, `caller:"spiffe://x/pay"`, "state = SUCCEEDED", `create_time > "2023-11-14T22:13:21Z"`,
		`NOT (tag:"registry.example.org/payroll" OR project = "web2")`,
	}
	orders := []string{"", "project", "project desc, create_time", "state, end_time desc", "end_time"}
	rapid.Check(t, func(rt *rapid.T) {
		req := &builderv1.ListBuildsRequest{
			Filter: rapid.SampledFrom(filters).Draw(rt, "filter"), OrderBy: rapid.SampledFrom(orders).Draw(rt, "order"),
			PageSize: rapid.Int32Range(1, 30).Draw(rt, "size"),
		}
		got, want := limited.list(t, req), alone.list(t, req)
		if !slices.EqualFunc(got, want, slices.Equal) {
			rt.Fatalf("%v: pages\n%v, want\n%v", req, got, want)
		}
	})
}

// A page token tells nothing, and serves its list only.
func TestListBuilds_TokensAreSealed(t *testing.T) {
	r := newRig(t, onlyWeb)
	for i, project := range []string{"payroll-secret", "web", "merger-with-acme", "web"} {
		r.add(t, build.Record{ID: fmt.Sprint(i), Project: project, State: build.Queued, Created: time.Now()})
	}
	res := must(r.client.ListBuilds(within(t), &builderv1.ListBuildsRequest{PageSize: 1, OrderBy: "project"}))(t)
	token := res.GetNextPageToken()
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || bytes.Contains(raw, []byte("web")) || token == "" || len(token) > 512 {
		t.Errorf("token %q holds %q, %v", token, raw, err)
	}
	plain := base64.RawURLEncoding.EncodeToString([]byte(`{"Of":"","Place":["a",0]}`))
	for name, req := range map[string]*builderv1.ListBuildsRequest{
		"another order":  {PageToken: token},
		"another filter": {PageToken: token, OrderBy: "project", Filter: "state = QUEUED"},
		"changed":        {PageToken: token[:20] + "AA" + token[22:], OrderBy: "project"},
		"made up":        {PageToken: plain, OrderBy: "project"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.client.ListBuilds(within(t), req)
			code(t, err, codes.InvalidArgument)
		})
	}
}

// Whatever builds ended with, a page is read by a client with the limits that gRPC has
// by default; what is left out of it, GetBuild has.
func TestListBuilds_PagesFitTheMessageLimit(t *testing.T) {
	r := newRig(t)
	many := make([]string, 150)
	for i := range many {
		many[i] = fmt.Sprintf("registry.example.org/app:%04d", i)
	}
	const builds = 850 // as many as have no room in one page
	for i := range builds {
		failure := &build.Failure{
			Kind: fault.FailedPrecondition, Reason: "STEP_FAILED", Message: strings.Repeat("m", 50<<10), Class: build.User,
			LogTail: []string{strings.Repeat("l", 4096)},
			Details: []build.Detail{{TypeURL: "type.googleapis.com/errdefs.Source", Value: bytes.Repeat([]byte("d"), 60<<10)}},
		}
		r.add(t, build.Record{
			ID: fmt.Sprint(i), Project: "web", State: build.Failed, Created: time.Now(), Ended: time.Now(), Tags: many,
			Outcome: &build.Outcome{State: build.Failed, Failure: failure},
		})
	}
	total := 0
	for _, page := range r.list(t, &builderv1.ListBuildsRequest{PageSize: 1000, Filter: "state = FAILED"}) {
		total += len(page)
	}
	if total != builds {
		t.Errorf("%d builds in all pages", total)
	}
	page := must(r.client.ListBuilds(within(t), &builderv1.ListBuildsRequest{PageSize: 1}))(t)
	whole := must(r.client.GetBuild(within(t), &builderv1.GetBuildRequest{BuildId: fmt.Sprint(builds - 1)}))(t).GetBuild()
	listed := page.GetBuilds()[0]
	if len(listed.GetTags()) != 100 || len(whole.GetTags()) != len(many) {
		t.Errorf("%d tags in the list, %d in the record", len(listed.GetTags()), len(whole.GetTags()))
	}
	short, long := failureOf(t, listed), failureOf(t, whole)
	if len(short.GetLogTail())+len(short.GetDaemonDetails()) != 0 || len(long.GetLogTail()) != 1 || len(long.GetDaemonDetails()) != 1 {
		t.Errorf("listed with %.100v, the record has %.100v", short, long)
	}
	if short.GetReason() != long.GetReason() || listed.GetOutcome().GetError().GetMessage() != whole.GetOutcome().GetError().GetMessage() {
		t.Errorf("listed with reason %s and another message", short.GetReason())
	}
}

func failureOf(t *testing.T, b *builderv1.BuildRecord) *errorsv1.BuildFailure {
	t.Helper()
	failure := &errorsv1.BuildFailure{}
	for _, detail := range b.GetOutcome().GetError().GetDetails() {
		if detail.MessageIs(failure) {
			if err := detail.UnmarshalTo(failure); err != nil {
				t.Fatal(err)
			}
		}
	}
	return failure
}
