package e2e_test

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// Projects build at the same time on one daemon, and somebody builds beside Kiln: the
// cache manager says whose records are whose, of which images they are a part and what
// builds found in the cache, also after a restart, and rules by project go by that.
func TestS4_UsageByProjectAndImage(t *testing.T) {
	s := ownStack(t, lab.StackOptions{})
	cfg := manual()
	m := startCacheManager(t, s.lab, cfg, nil, s.Buildkitd)
	builder := labtest.Must(s.lab.StartBuilder(labtest.Context(t, time.Minute), lab.BuilderConfig(&configv1.BuilderConfig{
		AllowedRoots: []string{s.src}, CacheManager: &configv1.CacheManagerClient{Address: m.Addr},
	}, s.Buildkitd.Addr, s.Registry.Addr), lab.ServiceOptions{}))(t)
	api := labtest.Must(dial(s.lab, builder.Addr))(t)
	build := func(project, text, tag string) {
		spec := dockerfile("FROM " + s.base + "\nRUN sleep 0.2 && echo both >/both\n" + text)
		spec.Project = project
		if tag != "" {
			spec.Outputs = push(tag)
		}
		if r := readBuild(labtest.Context(t, time.Minute), api, spec); r.err != nil || r.outcome.GetState() != builderv1.BuildState_BUILD_STATE_SUCCEEDED {
			t.Error(r.err, r.outcome)
		}
	}
	image := s.Registry.Addr + "/web:1"
	var group sync.WaitGroup
	for _, project := range []string{"web", "app", "api"} {
		tag := ""
		if project == "web" {
			tag = image
		}
		group.Go(func() {
			build(project, fmt.Sprintf("ENV P=%[1]s\nRUN --mount=type=cache,target=/%[1]s echo \"$P\" >/p && sleep 0.3\nRUN sleep 0.1 && echo of %[1]s >/of\n", project), tag)
		})
	}
	group.Go(func() {
		src := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + "\nRUN sleep 0.3 && echo nobody >/nobody\n"})
		labtest.Must(lab.Exec(labtest.Context(t, time.Minute), buildctl(t, s.Buildkitd.Addr, src)))(t)
	})
	group.Wait()
	build("web", "RUN echo again >/again\n", "")
	// owners are the projects of the records whose descriptions contain a text.
	owners := func(text string) (all []string) {
		for _, r := range m.records(t) {
			if strings.Contains(r.GetDescription(), text) {
				all = append(all, strings.Join(r.GetProjects(), "+"))
			}
		}
		return slices.Compact(slices.Sorted(slices.Values(all)))
	}
	// A listing shows what was reported a second before it, and builds are reported in the
	// order of their ends.
	labtest.Eventually(t, 20*time.Second, "the last build's record to be its project's", func() bool { return slices.Equal(owners("echo again"), []string{"web"}) })
	check := func() {
		t.Helper()
		for text, want := range map[string]string{
			"echo both": "api+app+web", "pulled from " + s.base: "api+app+web", "echo of web": "web", "echo of app": "app",
			"mount /web": "web", "mount /api": "api", "echo nobody": "", "echo again": "web", `mount / from exec /bin/sh -c echo "$P"`: "api,app,web",
		} {
			if got := strings.Join(owners(text), ","); got != want {
				t.Errorf("%q is of %q, want %q", text, got, want)
			}
		}
	}
	check()
	usage := labtest.Must(m.api.GetUsage(labtest.Context(t, time.Minute), &cachemanagerv1.GetUsageRequest{}))(t).GetUsage()
	byProject := map[string]*cachemanagerv1.ProjectUsage{}
	for _, p := range usage.GetProjects() {
		byProject[p.GetProject()] = p
	}
	web := byProject["web"]
	// Of web's two builds: three steps and their base, then two and their base, of which two were there.
	if len(byProject) != 4 || web.GetTotalSteps() != 7 || web.GetCachedSteps() < 2 || web.GetTotal().GetSizeBytes() <= byProject["app"].GetTotal().GetSizeBytes() ||
		byProject[""].GetTotal().GetRecords() == 0 {
		t.Errorf("%v", usage.GetProjects())
	}
	if images := usage.GetCaches()[0].GetImages(); len(images) != 1 || images[0].GetImage() != image || images[0].GetTotal().GetRecords() < 4 {
		t.Errorf("%v", images)
	}

	// As an operator sees it.
	kiln := func(args ...string) string {
		t.Helper()
		return labtest.Must(lab.Exec(labtest.Context(t, time.Minute), lab.Command{
			Path: labtest.Must(lab.Bin("kiln"))(t), Args: append([]string{"cache", "du"}, args...), Env: []string{"KILN_CACHE_MANAGER=" + m.Addr},
		}))(t).Stdout
	}
	if out := kiln("--by", "project"); !regexp.MustCompile(`(?m)^web +\d+ .* of 7 \(`).MatchString(out) || !strings.Contains(out, "(not known)") {
		t.Error(out)
	}
	if out := kiln("--by", "image"); !strings.Contains(out, image) {
		t.Error(out)
	}

	// It is known after a restart too.
	labtest.Must(0, m.Kill())(t)
	labtest.Must(0, m.Start(labtest.Context(t, time.Minute)))(t)
	check()

	// A rule for one project takes what that one uses.
	_, verdicts := m.plan(t, &cachemanagerv1.Policy{Rules: []*cachemanagerv1.Rule{
		{Name: "of-app", Match: &cachemanagerv1.Match{Projects: []string{"app"}}, Keep: &cachemanagerv1.Keep{Records: ptr(int64(0))}},
	}})
	going := 0
	for _, v := range verdicts {
		if v.GetAction() == cachemanagerv1.VerdictAction_VERDICT_ACTION_REMOVE {
			going++
			if !slices.Contains(v.GetRecord().GetProjects(), "app") {
				t.Errorf("%v goes", v.GetRecord())
			}
		}
	}
	if going < 2 {
		t.Errorf("%d records go", going)
	}
}
