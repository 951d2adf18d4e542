package pagetoken_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/pagetoken"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
)

type place struct {
	Last string
	At   int64
}

func as(name string) context.Context {
	return auth.NewContext(context.Background(), auth.Identity{Name: name})
}

func query(ctx context.Context, t *testing.T, tokens *pagetoken.Tokens, req pagetoken.Paged) pagetoken.List {
	t.Helper()
	l, err := tokens.Query(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func isNotOfTheList(t *testing.T, what string, err error) {
	t.Helper()
	f, ok := errors.AsType[*fault.Error](err)
	if !ok || f.Kind != fault.InvalidArgument || f.Field != "page_token" {
		t.Errorf("%s: %v, want INVALID_ARGUMENT of page_token", what, err)
	}
}

// A token is opaque, comes back as it was, and is of one key, method, query and caller.
func TestTokens_AreOfOneListAndCaller(t *testing.T) {
	tokens := pagetoken.EphemeralTokens()
	want := place{"payroll-secret", 42}
	first := &builderv1.ListBuildsRequest{Filter: `project = "web"`, OrderBy: "project", PageSize: 10}
	token := query(as("ci"), t, tokens, first).Token(want)
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || bytes.Contains(raw, []byte("payroll")) {
		t.Errorf("the token %q tells what it holds: %v", raw, err)
	}
	next := func(change func(*builderv1.ListBuildsRequest)) *builderv1.ListBuildsRequest {
		req := proto.CloneOf(first)
		req.PageToken = token
		change(req)
		return req
	}
	for name, same := range map[string]*builderv1.ListBuildsRequest{
		"the same":     next(func(*builderv1.ListBuildsRequest) {}),
		"another size": next(func(r *builderv1.ListBuildsRequest) { r.PageSize = 99 }),
	} {
		var got place
		if err := query(as("ci"), t, tokens, same).Read(&got); err != nil || got != want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	var got place
	for name, other := range map[string]pagetoken.List{
		"another caller": query(as("eve"), t, tokens, next(func(*builderv1.ListBuildsRequest) {})),
		"no caller":      query(context.Background(), t, tokens, next(func(*builderv1.ListBuildsRequest) {})),
		"another filter": query(as("ci"), t, tokens, next(func(r *builderv1.ListBuildsRequest) { r.Filter = "" })),
		"another order":  query(as("ci"), t, tokens, next(func(r *builderv1.ListBuildsRequest) { r.OrderBy = "" })),
		"another method": query(as("ci"), t, tokens, &janitorv1.ListRunsRequest{PageToken: token, Filter: first.GetFilter()}),
		"another key":    query(as("ci"), t, pagetoken.EphemeralTokens(), next(func(*builderv1.ListBuildsRequest) {})),
		"kept":           tokens.Kept(as("ci"), next(func(*builderv1.ListBuildsRequest) {})),
	} {
		isNotOfTheList(t, name, other.Read(&got))
	}
}

// No byte of a token can be changed, left out or added.
func TestTokens_RefuseTampering(t *testing.T) {
	tokens := pagetoken.EphemeralTokens()
	token := query(as("ci"), t, tokens, &builderv1.ListBuildsRequest{}).Token(place{"web", 1})
	forged := []string{"x", " " + token, token + "A", token[1:], token[:len(token)-1], "bnVsbA", "e30", "MTA"}
	for i := range token {
		for _, c := range []byte("A_") {
			if token[i] != c {
				forged = append(forged, token[:i]+string(c)+token[i+1:])
			}
		}
	}
	for _, text := range forged {
		var got place
		isNotOfTheList(t, fmt.Sprintf("%q", text), query(as("ci"), t, tokens, &builderv1.ListBuildsRequest{PageToken: text}).Read(&got))
	}
}

// The token of a kept plan goes on with it whatever else the request says, for the same
// caller and method only.
func TestTokens_KeptIgnoresOtherFields(t *testing.T) {
	tokens := pagetoken.EphemeralTokens()
	token := tokens.Kept(as("ci"), &janitorv1.PlanRunRequest{Repositories: []string{"a"}}).Token(7)
	var from int
	if err := tokens.Kept(as("ci"), &janitorv1.PlanRunRequest{PageToken: token}).Read(&from); err != nil || from != 7 {
		t.Errorf("%d, %v", from, err)
	}
	isNotOfTheList(t, "another caller", tokens.Kept(as("eve"), &janitorv1.PlanRunRequest{PageToken: token}).Read(&from))
	isNotOfTheList(t, "another service", tokens.Kept(as("ci"), &cachemanagerv1.PlanPruneRequest{PageToken: token}).Read(&from))
}

func TestTokens_NeedAKey(t *testing.T) {
	if _, err := pagetoken.NewTokens([]byte("short")); err == nil {
		t.Error("a short key is taken")
	}
}
