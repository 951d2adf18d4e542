package wire

import (
	"strings"

	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/quarantine"
)

// EntryProto writes something in quarantine.
func EntryProto(e quarantine.Entry) *janitorv1.QuarantineEntry {
	return &janitorv1.QuarantineEntry{
		Id: e.ID, RunId: e.Run, QuarantineTime: stamp(e.At), PurgeTime: stamp(e.Purge),
		Reason: janitorv1.VerdictReason(janitorv1.VerdictReason_value[reasonPrefix+strings.ToUpper(string(e.Reason))]),
		Item: &janitorv1.Item{
			Repository: e.Repository, Kind: janitorv1.ItemKind(janitorv1.ItemKind_value[itemPrefix+strings.ToUpper(string(e.Kind))]), Digest: e.Digest, Tags: e.Tags,
			ManifestKind: kindProto(e.Of), SizeBytes: e.Bytes, PushTime: stamp(e.Pushed),
		},
	}
}

// EntriesProto adds up things in quarantine.
func EntriesProto(all []quarantine.Entry) *janitorv1.Amount {
	var a plan.Amount
	manifests := map[string]bool{}
	for _, e := range all {
		if e.Kind == plan.Manifest {
			a.Manifests++
			manifests[e.Digest] = true
		}
	}
	for _, e := range all {
		switch e.Kind {
		case plan.Blob:
			a.Bytes += e.Bytes
			if !manifests[e.Digest] {
				a.Blobs++
			}
		case plan.Upload:
			a.Uploads++
			a.Bytes += e.Bytes
		case plan.Manifest, plan.Link:
		}
	}
	return AmountProto(a)
}
