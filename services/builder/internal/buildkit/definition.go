package buildkit

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/protolimit"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit/graph"
)

// addDefinition takes a graph in place of a frontend.
func (j *job) addDefinition() error {
	if j.spec.SourceDateEpoch != nil {
		// BuildKit knows it as an argument of the Dockerfile, and looks there also
		// when there is none.
		j.opt.FrontendAttrs["build-arg:SOURCE_DATE_EPOCH"] = strconv.FormatInt(*j.spec.SourceDateEpoch, 10)
	}
	if err := j.addAttestations(); err != nil || len(j.spec.Definition) == 0 {
		return err
	}
	var def pb.Definition
	if err := protolimit.Unmarshal(j.spec.Definition, &def, protolimit.Default); err != nil {
		return badGraph(err)
	}
	if len(def.Def) == 0 {
		return badDefinition("has no operations", "marshal a state that is not scratch alone")
	}
	check := func(op *pb.Op) error { return checkSource(op.GetSource().GetIdentifier()) }
	if err := graph.Walk(&def, graph.Default, check); err != nil {
		return badGraph(err)
	}
	j.def = new(llb.Definition)
	j.def.FromPB(&def)
	return nil
}

// badGraph gives an error of reading the graph its field.
func badGraph(err error) error {
	if own, ok := errors.AsType[*fault.Error](err); ok {
		return inField("spec.definition", own)
	}
	return badDefinition("is not a pb.Definition: "+err.Error(), "send what llb.Definition.ToPB returns, as protobuf bytes")
}

// checkSource refuses what only a client with files of its own can give.
func checkSource(identifier string) error {
	scheme, _, _ := strings.Cut(identifier, "://")
	switch scheme {
	case "local", "oci-layout", "oci-layout+blob":
		return badDefinition(fmt.Sprintf("reads %q, which the builder does not have", identifier),
			"put the files into the graph (llb.Mkfile), or read them from an image, a repository or a URL")
	}
	return nil
}

func badDefinition(message, remedy string) error {
	return fault.Invalid("spec.definition", "", message, remedy)
}

// addSourcePolicy has the daemon ask for each source that it reads, and gives it
// the caller's rules besides.
func (j *job) addSourcePolicy() error {
	j.sources = newSourcePolicy(j.daemon.opts.Guard, j.spec.Secrets...)
	j.opt.SourcePolicyProvider = j.sources.attachable()
	if len(j.spec.SourcePolicy) == 0 {
		return nil
	}
	rules := new(spb.Policy)
	if err := json.Unmarshal(j.spec.SourcePolicy, rules); err != nil {
		return fault.Invalid("spec.source_policy_json", "", "is not a source policy of BuildKit: "+err.Error(),
			`write it like {"rules": [{"action": "DENY", "selector": {"identifier": "docker-image://docker.io/*"}}]}`)
	}
	j.opt.SourcePolicy = rules
	return nil
}
