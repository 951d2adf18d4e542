package build

import (
	"encoding/csv"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
)

// parseAttests reads --attest, --provenance and --sbom: parameters by type, empty
// for a type that is switched off. The first of a type counts.
func (o *options) parseAttests() error {
	flags := slices.Clone(o.attestFlags)
	for kind, value := range map[string]string{"provenance": o.provenance, "sbom": o.sbom} {
		if value == "" {
			continue
		}
		if on, err := strconv.ParseBool(value); err == nil {
			value = fmt.Sprintf("disabled=%t", !on)
		}
		flags = append(flags, "type="+kind+","+value)
	}
	o.attests = map[string]string{}
	for _, text := range flags {
		attrs, err := csvFlag("attest", text)
		if err != nil {
			return err
		}
		kind := attrs["type"]
		if kind == "" {
			return fmt.Errorf("--attest %q has no type; write it like type=sbom or type=provenance,mode=max", text)
		}
		if _, known := o.attests[kind]; known {
			continue
		}
		off := false
		if value, set := attrs["disabled"]; set {
			if off, err = strconv.ParseBool(value); err != nil {
				return fmt.Errorf("--attest %q: disabled is %q; use true or false", text, value)
			}
		}
		delete(attrs, "disabled")
		o.attests[kind] = ""
		if !off {
			o.attests[kind] = joinCSV(attrs)
		}
	}
	return nil
}

// joinCSV is the inverse of csvFlag.
func joinCSV(attrs map[string]string) string {
	var fields []string
	for _, key := range slices.Sorted(maps.Keys(attrs)) {
		fields = append(fields, key+"="+attrs[key])
	}
	var out strings.Builder
	w := csv.NewWriter(&out)
	_ = w.Write(fields) // A strings.Builder takes all.
	w.Flush()
	return strings.TrimSuffix(out.String(), "\n")
}

// setAttests says in BuildKit's terms which attestations the image gets. As docker
// buildx does, a build in Docker's form gets a small provenance unless it is
// switched off.
func (o *options) setAttests(attrs map[string]string) error {
	for kind, value := range o.attests {
		if value != "" {
			attrs["attest:"+kind] = value
		}
	}
	if _, set := o.attests["provenance"]; set || !o.dockerForm {
		return nil
	}
	const variable = "BUILDX_NO_DEFAULT_ATTESTATIONS"
	if value := os.Getenv(variable); value != "" {
		off, err := strconv.ParseBool(value)
		if err != nil {
			return fmt.Errorf("%s is %q; use true or false", variable, value)
		}
		if off {
			return nil
		}
	}
	attrs["attest:provenance"] = "mode=min,inline-only=true"
	return nil
}

// annotationKind is the part of an annotation before the colon: a kind and
// perhaps a platform in brackets.
var annotationKind = regexp.MustCompile(`^([a-z-]+)(?:\[([A-Za-z0-9_/-]+)\])?$`)

// parseAnnotations reads --annotation [KIND[PLATFORM],…:]KEY=VALUE into attributes
// of the image exporters.
func parseAnnotations(flags []string) (map[string]string, error) {
	all := map[string]string{}
	for _, text := range flags {
		if text == "" {
			continue
		}
		name, value, ok := strings.Cut(text, "=")
		if !ok {
			return nil, fmt.Errorf("--annotation is %q; write it like KEY=VALUE or index:KEY=VALUE", text)
		}
		kinds, key, ok := strings.Cut(name, ":")
		if !ok {
			all[exptypes.AnnotationKey{Key: name}.String()] = value
			continue
		}
		for kind := range strings.SplitSeq(kinds, ",") {
			parsed, err := annotationKey(kind, key)
			if err != nil {
				return nil, fmt.Errorf("--annotation %q: %w", text, err)
			}
			all[parsed.String()] = value
		}
	}
	return all, nil
}

func annotationKey(kind, key string) (exptypes.AnnotationKey, error) {
	parts := annotationKind.FindStringSubmatch(kind)
	if parts == nil {
		return exptypes.AnnotationKey{}, fmt.Errorf("%q is not KIND or KIND[PLATFORM]", kind)
	}
	out := exptypes.AnnotationKey{Type: parts[1], Key: key}
	switch out.Type {
	case exptypes.AnnotationIndex, exptypes.AnnotationIndexDescriptor, exptypes.AnnotationManifest, exptypes.AnnotationManifestDescriptor:
	default:
		return out, fmt.Errorf("the kind %q is not known; use manifest, index, manifest-descriptor or index-descriptor", out.Type)
	}
	if parts[2] != "" {
		platform, err := platforms.Parse(parts[2])
		if err != nil {
			return out, fmt.Errorf("%q is not a platform; write it like linux/amd64", parts[2])
		}
		out.Platform = &platform
	}
	return out, nil
}
