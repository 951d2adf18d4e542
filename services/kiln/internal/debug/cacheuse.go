package debug

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// step is how a step of a build ended.
type step struct {
	digest, name, err string
	state             builderv1.StepState
	order             int
}

// cacheUseCheck says of the last build of a project, or of one that is named, which step was
// the first that ran, and why it was not in the cache.
func (o *options) cacheUseCheck(ctx context.Context) []Finding {
	conn, err := o.conn.Connect()
	if err != nil {
		return unknown("%v", err)
	}
	defer func() { _ = conn.Close() }() // nothing is left to lose
	api := builderv1.NewBuilderServiceClient(conn)
	now, before, err := o.twoBuilds(ctx, api)
	switch {
	case err != nil:
		return unknown("the builds cannot be looked at: %v", o.conn.Explain(err))
	case now == nil:
		return unknown("%s", o.noBuild())
	}
	steps, err := stepsOf(ctx, api, now.GetId())
	if err != nil {
		return unknown("the build %s cannot be looked at: %v", now.GetId(), o.conn.Explain(err))
	}
	all := missingCaches(now, steps)
	ran := firstThatRan(steps)
	what := fmt.Sprintf("build %.8s of %s", now.GetId(), now.GetProject())
	if ran == nil {
		return append(all, ok("%s took all of its steps from the cache", what)...)
	}
	if before == nil {
		return append(all, ok("%s is the first of its project: its steps ran", what)...)
	}
	earlier, err := stepsOf(ctx, api, before.GetId())
	if err != nil {
		return append(all, unknown("the build %s cannot be looked at: %v", before.GetId(), o.conn.Explain(err))...)
	}
	f := why(*ran, earlier, before)
	f.Message = what + ": " + f.Message
	return append(all, f)
}

// noBuild says which build was asked about and is not among those that succeeded.
func (o *options) noBuild() string {
	switch {
	case o.build != "":
		return fmt.Sprintf("no build %s has succeeded: `kiln builds show %[1]s` says how it ended", o.build)
	case o.project != "":
		return fmt.Sprintf("project %s has no build that succeeded", o.project)
	default:
		return "there is no build yet that succeeded"
	}
}

// twoBuilds are the build that is asked about and the one of its project before it.
func (o *options) twoBuilds(ctx context.Context, api builderv1.BuilderServiceClient) (now, before *builderv1.BuildRecord, err error) {
	filter := "state = SUCCEEDED"
	if o.project != "" {
		filter += fmt.Sprintf(" AND project = %q", o.project)
	}
	list, err := api.ListBuilds(ctx, &builderv1.ListBuildsRequest{Filter: filter, OrderBy: "create_time desc", PageSize: 200})
	if err != nil {
		return nil, nil, err
	}
	for _, b := range list.GetBuilds() {
		switch {
		case now == nil && strings.HasPrefix(b.GetId(), o.build):
			now = b
		case now != nil && b.GetProject() == now.GetProject():
			return now, b, nil
		}
	}
	return now, nil, nil
}

// stepsOf are the steps of a build as they ended, in the order in which they were first seen.
func stepsOf(ctx context.Context, api builderv1.BuilderServiceClient, id string) ([]step, error) {
	stream, err := api.WatchBuild(ctx, &builderv1.WatchBuildRequest{BuildId: id, FromSequence: 1})
	if err != nil {
		return nil, err
	}
	byDigest := map[string]*step{}
	for {
		res, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		e := res.GetEvent().GetStep()
		if e == nil || e.GetState() == builderv1.StepState_STEP_STATE_PROGRESS {
			continue
		}
		s := byDigest[e.GetDigest()]
		if s == nil {
			s = &step{digest: e.GetDigest(), name: e.GetName(), order: len(byDigest)}
			byDigest[e.GetDigest()] = s
		}
		s.state, s.err = e.GetState(), e.GetError()
	}
	all := make([]step, 0, len(byDigest))
	for _, s := range byDigest {
		all = append(all, *s)
	}
	slices.SortFunc(all, func(a, b step) int { return a.order - b.order })
	return all, nil
}

// importing begins the name of the step that reads a cache from elsewhere.
const importing = "importing cache manifest from "

// missingCaches are the caches that the build was to read and could not.
func missingCaches(b *builderv1.BuildRecord, steps []step) (all []Finding) {
	for _, s := range steps {
		ref, is := strings.CutPrefix(s.name, importing)
		if !is || s.state != builderv1.StepState_STEP_STATE_FAILED {
			continue
		}
		all = append(all, Finding{
			State: Warn, Message: fmt.Sprintf("build %.8s was to read the cache %s, which is not there", b.GetId(), ref), Evidence: []string{s.err},
			Remedy: fmt.Sprintf("look for it with `kiln janitor usage` and `kiln janitor quarantine ls`; the first build of a project or scope finds none, and `kiln build-registry --project %s` writes it", b.GetProject()),
		})
	}
	return all
}

// firstThatRan is the first step of a Dockerfile that was not in the cache, nil when all were.
func firstThatRan(steps []step) *step {
	number := func(name string) string { // "[build 2/3]" of "[build 2/3] RUN make"
		inside, _, found := strings.Cut(strings.TrimPrefix(name, "["), "] ")
		if !found || !strings.HasPrefix(name, "[") || !strings.Contains(inside, "/") {
			return ""
		}
		return inside
	}
	ran := slices.DeleteFunc(slices.Clone(steps), func(s step) bool {
		// FROM is there each time, whether anything was pulled or not.
		return number(s.name) == "" || s.state != builderv1.StepState_STEP_STATE_DONE || strings.Contains(s.name, "] FROM ")
	})
	if len(ran) == 0 {
		return nil
	}
	slices.SortStableFunc(ran, func(a, b step) int { return strings.Compare(number(a.name), number(b.name)) })
	return &ran[0]
}

// why a step ran though there was a build before.
func why(ran step, earlier []step, before *builderv1.BuildRecord) Finding {
	f := Finding{State: OK, Evidence: []string{"ran: " + ran.name}}
	prefix, _, _ := strings.Cut(ran.name, "] ")
	same, place := -1, -1
	for i, s := range earlier {
		if s.digest == ran.digest {
			same = i
		}
		if strings.HasPrefix(s.name, prefix+"] ") {
			place = i
		}
	}
	instruction := ran.name[min(len(ran.name), len(prefix)+2):]
	copies := strings.HasPrefix(instruction, "COPY") || strings.HasPrefix(instruction, "ADD")
	switch {
	case same < 0 && place >= 0 && earlier[place].name != ran.name:
		f.Message = fmt.Sprintf("the cache was not used from %q on: that line of the Dockerfile has changed", ran.name)
		f.Evidence = append(f.Evidence, "before: "+earlier[place].name)
		f.Remedy = "put lines that change often below those that take long"
	case copies:
		f.Message = fmt.Sprintf("the cache was not used from %q on: the files that it copies have changed", ran.name)
		f.Remedy = "name what does not belong to the build in .dockerignore, and copy lists of dependencies before the sources"
	case same < 0:
		f.Message = fmt.Sprintf("the cache was not used from %q on: what it is made upon, or a build argument that it sees, has changed", ran.name)
		f.Remedy = "pin base images by digest, and put ARG below the steps that do not need it"
	default:
		f.State = Warn
		f.Message = fmt.Sprintf("%q ran again though nothing of it has changed: its result is no longer in the cache", ran.name)
		f.Evidence = append(f.Evidence, fmt.Sprintf("build %.8s had it at %s", before.GetId(), before.GetEndTime().AsTime().Format("2006-01-02 15:04:05")))
		f.Remedy = "see what was pruned, and by which rule, with `kiln cache runs`; keep more with keep_age and keep_bytes of the cache manager, or pin it with `kiln cache pin`"
	}
	return f
}
