package e2e_test

import (
	"testing"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	"github.com/kilnbuild/kiln/pkg/cachescope"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// Builds of one project that differ in platform, target or image do not write over one
// another's cache: each finds all its steps on a daemon that has forgotten them.
func TestCacheScope_TellsBuildsOfAProjectApart(t *testing.T) {
	s := ownStack(t, lab.StackOptions{})
	text := "FROM --platform=$BUILDPLATFORM " + s.base + " AS base\nARG TARGETARCH\nRUN echo $TARGETARCH " + unique() + " >/a\n" +
		"FROM base AS test\nRUN cat /a >/test\nFROM base AS prod\nRUN cat /a >/prod\n"
	with := func(project string, change func(*builderv1.BuildSpec)) *builderv1.BuildSpec {
		spec := dockerfile(text)
		spec.Project, spec.Cache = project, registryCache()
		change(spec)
		return spec
	}
	platform := func(p string) *builderv1.BuildSpec {
		return with("platforms", func(b *builderv1.BuildSpec) { b.Platforms = []string{p} })
	}
	target := func(name string) *builderv1.BuildSpec {
		return with("targets", func(b *builderv1.BuildSpec) { b.Target = name })
	}
	web := func(repository, content string) *builderv1.BuildSpec {
		spec := inline(map[string]string{"Dockerfile": "FROM " + s.base + "\nCOPY app /app\nRUN sha256sum /app >/sum\n", "app": content}, s.ref(repository))
		spec.Project, spec.Cache = "web", registryCache()
		return spec
	}
	for name, pair := range map[string][2]*builderv1.BuildSpec{
		"platforms":       {platform("linux/amd64"), platform("linux/arm64")},
		"targets":         {target("test"), target("prod")},
		"a/web and b/web": {web("a/web", unique()), web("b/web", unique())},
	} {
		t.Run(name, func(t *testing.T) {
			for _, spec := range pair {
				s.succeed(t, spec)
				s.forget(t)
			}
			for _, spec := range pair {
				if r := s.succeed(t, spec); len(r.ran()) > 0 {
					t.Errorf("%q ran on the empty daemon, want all cached", r.ran())
				}
				s.forget(t)
			}
		})
	}
	labtest.Must(image.Descriptor(t.Context(), s.Registry.Addr+"/cache/platforms:linux-arm64"))(t)
	labtest.Must(image.Descriptor(t.Context(), s.Registry.Addr+"/cache/web:"+cachescope.Build{Image: "b/web"}.Name()))(t)
}

// A build whose own scope has nothing reads what another target of its project wrote.
func TestCacheScope_ReadsTheOthersOfTheProject(t *testing.T) {
	s := ownStack(t, lab.StackOptions{})
	spec := dockerfile("FROM " + s.base + " AS base\nRUN echo " + unique() + " >/a\nFROM base AS test\nRUN cat /a >/test\nFROM base AS prod\nRUN cat /a >/prod\n")
	spec.Project, spec.Cache, spec.Target = "others", registryCache(), "test"
	s.succeed(t, spec)
	s.forget(t)
	spec.Target = "prod"
	if ran := s.succeed(t, spec).ran(); len(ran) != 1 {
		t.Errorf("%q ran, want the step of prod alone", ran)
	}
}
