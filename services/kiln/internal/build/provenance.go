package build

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	slsa1 "github.com/in-toto/in-toto-golang/in_toto/slsa_provenance/v1"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	provenance "github.com/moby/buildkit/solver/llbsolver/provenance/types"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// addProvenance adds the build's provenance to what --metadata-file gets, as docker
// buildx does: from the daemon's record of the build. BUILDX_METADATA_PROVENANCE is
// min, max or disabled.
func (s *solving) addProvenance(ctx context.Context, c *client.Client) error {
	mode := os.Getenv("BUILDX_METADATA_PROVENANCE")
	switch mode {
	case "disabled", "false", "0":
		return nil
	}
	stream, err := c.ControlClient().ListenBuildHistory(ctx, &controlapi.BuildHistoryRequest{Ref: s.ref, EarlyExit: true})
	if err != nil {
		return fmt.Errorf("reading the provenance for --metadata-file: %w", err)
	}
	store := proxy.NewContentStore(c.ContentClient())
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the provenance for --metadata-file: %w", err)
		}
		results := map[string]*controlapi.BuildResultInfo{}
		for platform, result := range event.GetRecord().GetResults() {
			results["buildx.build.provenance/"+platform] = result
		}
		if result := event.GetRecord().GetResult(); result != nil && len(results) == 0 {
			results["buildx.build.provenance"] = result
		}
		for key, result := range results {
			text, err := provenanceOf(ctx, store, result, mode == "max")
			if err != nil {
				return fmt.Errorf("reading the provenance for --metadata-file: %w", err)
			}
			if text != "" {
				s.response[key] = text
			}
		}
	}
}

// provenanceOf is the provenance of one result, as JSON in base64. Empty: it has
// none.
func provenanceOf(ctx context.Context, store content.Store, result *controlapi.BuildResultInfo, whole bool) (string, error) {
	for _, a := range result.GetAttestations() {
		kind := a.GetAnnotations()["in-toto.io/predicate-type"]
		if a.GetMediaType() != "application/vnd.in-toto+json" || !strings.HasPrefix(kind, "https://slsa.dev/provenance/") {
			continue
		}
		text, err := content.ReadBlob(ctx, store, ocispecs.Descriptor{
			MediaType: a.GetMediaType(), Digest: digest.Digest(a.GetDigest()), Size: a.GetSize(), Annotations: a.GetAnnotations(),
		})
		if err != nil {
			return "", err
		}
		predicate := &provenance.ProvenancePredicateSLSA02{}
		if kind == slsa1.PredicateSLSAProvenance {
			newer := &provenance.ProvenancePredicateSLSA1{}
			if err = json.Unmarshal(text, newer); err == nil {
				predicate = newer.ConvertToSLSA02()
			}
		} else {
			err = json.Unmarshal(text, predicate)
		}
		if err != nil {
			return "", err
		}
		if !whole {
			predicate.BuildConfig, predicate.Metadata = nil, nil
		}
		text, err = json.Marshal(predicate)
		return base64.StdEncoding.EncodeToString(text), err
	}
	return "", nil
}
