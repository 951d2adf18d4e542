// Package image makes the base image of the lab from the machine's own static
// busybox, pushes it, and reads images back from a registry.
package image

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// BaseName is the repository and tag of the base image in a registry.
const BaseName = "base/busybox:1"

// epoch is the time of every file, so that the image has the same digest each time.
var epoch = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

// PushBase assembles the base image for this machine's platform, pushes it to a
// registry (host:port, plain HTTP) and returns its reference.
func PushBase(ctx context.Context, registry string) (string, error) {
	img, err := Base(ctx)
	if err != nil {
		return "", err
	}
	ref, err := name.ParseReference(registry+"/"+BaseName, name.Insecure)
	if err != nil {
		return "", fmt.Errorf("image: %w", err)
	}
	if err := remote.Write(ref, img, remote.WithContext(ctx)); err != nil {
		return "", fmt.Errorf("image: pushing %s: %w", ref, err)
	}
	return ref.String(), nil
}

// Base assembles an image of one layer: a static /bin/busybox, a link to it for
// each of its applets, /etc/passwd and /etc/group, and a /tmp.
func Base(ctx context.Context) (v1.Image, error) {
	binary, applets, err := busybox(ctx)
	if err != nil {
		return nil, err
	}
	data, err := layerTar(binary, applets)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	}, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), layer)
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", runtime.GOARCH
	cfg.Created = v1.Time{Time: epoch}
	cfg.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cfg.Config.Cmd = []string{"sh"}
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	return img, nil
}

// busybox finds a static busybox on this machine and asks it for its applets.
func busybox(ctx context.Context) (binary []byte, applets []string, err error) {
	for _, candidate := range []string{"/bin/busybox", "/usr/bin/busybox", "/bin/busybox.static", "/usr/lib/busybox/busybox-static"} {
		if !isStatic(candidate) {
			continue
		}
		if binary, err = os.ReadFile(candidate); err != nil {
			return nil, nil, fmt.Errorf("image: %w", err)
		}
		out, err := exec.CommandContext(ctx, candidate, "--list").Output()
		if err != nil {
			return nil, nil, fmt.Errorf("image: %s --list: %w", candidate, err)
		}
		return binary, strings.Fields(string(out)), nil
	}
	return nil, nil, errors.New("image: no static busybox on this machine: run `make tools`, or install the package busybox-static")
}

func isStatic(file string) bool {
	f, err := elf.Open(file)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return false
		}
	}
	return true
}

func layerTar(binary []byte, applets []string) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	add := func(h tar.Header, content []byte) error {
		h.ModTime, h.Size, h.Format = epoch, int64(len(content)), tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			return fmt.Errorf("image: %w", err)
		}
		if _, err := w.Write(content); err != nil {
			return fmt.Errorf("image: %w", err)
		}
		return nil
	}
	var errs []error
	for _, dir := range []string{"bin", "etc", "root", "usr", "usr/bin", "var"} {
		errs = append(errs, add(tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}, nil))
	}
	errs = append(errs,
		add(tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, nil),
		add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644},
			[]byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")),
		add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\nnogroup:x:65534:\n")),
		add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, binary))
	for _, applet := range applets {
		if applet != "busybox" && applet == path.Base(applet) {
			errs = append(errs, add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "/bin/busybox", Mode: int64(fs.ModePerm)}, nil))
		}
	}
	errs = append(errs, w.Close())
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
