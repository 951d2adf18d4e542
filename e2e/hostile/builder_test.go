// Package hostile_test attacks a builder as a client that means harm would, and holds
// that its memory and disk stay bounded and that a well-behaved client beside it builds.
package hostile_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/attack"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

const (
	// maxMemory is the most resident memory that the builder may come to, in bytes.
	maxMemory = 512 << 20
	// contextQuota, eventQuota and artifactQuota bound what the builder stores, in bytes.
	contextQuota, eventQuota, artifactQuota = 64 << 20, 64 << 20, 64 << 20
	// maxDisk is the most that its state may come to: the quotas, and the same again for
	// what the database keeps beside its records.
	maxDisk = 2 * (contextQuota + eventQuota + artifactQuota)
	// attackFor is how long each attack goes on.
	attackFor = 6 * time.Second
)

// target is a stack under attack.
type target struct {
	*lab.Stack
	base string
	api  builderv1.BuilderServiceClient
}

func newTarget(t *testing.T) *target {
	t.Helper()
	l := labtest.New(t)
	ctx := labtest.Context(t, 3*time.Minute)
	s := &target{}
	s.Stack = labtest.Must(l.StartStack(ctx, lab.StackOptions{Builder: &configv1.BuilderConfig{
		MaxRunningBuilds: 8,
		MaxBuildTime:     durationpb.New(time.Minute),
		Contexts:         &configv1.ContextsConfig{KeepBytes: contextQuota, MaxBytes: contextQuota / 2},
		Retention: &configv1.RetentionConfig{
			BuildBytes: eventQuota, ArtifactBytes: artifactQuota, Interval: durationpb.New(time.Second),
		},
	}}))(t)
	s.base = labtest.Must(image.PushBase(ctx, s.Registry.Addr))(t)
	s.api = builderv1.NewBuilderServiceClient(s.dial(t))
	return s
}

func (s *target) dial(t *testing.T, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn := labtest.Must(lab.Dial(s.Builder.Addr, opts...))(t)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// behave builds as a well-behaved client does.
func (s *target) behave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	spec := attack.Inline("FROM " + s.base + "\nRUN echo " + strconv.FormatInt(time.Now().UnixNano(), 36) + " >/x\n")
	spec.Project = "well-behaved"
	stream, err := s.api.Build(ctx, &builderv1.BuildRequest{Spec: spec})
	if err != nil {
		return err
	}
	var outcome *builderv1.Outcome
	for {
		res, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if o := res.GetEvent().GetOutcome(); o != nil {
			outcome = o
		}
	}
	if outcome.GetState() != builderv1.BuildState_BUILD_STATE_SUCCEEDED {
		return fmt.Errorf("the build ended %v", outcome)
	}
	return nil
}

// memory is a field of the builder's status in bytes, such as VmHWM, its peak.
func (s *target) memory(t *testing.T, field string) int64 {
	t.Helper()
	text := labtest.Must(os.ReadFile(fmt.Sprintf("/proc/%d/status", s.Builder.PID())))(t)
	for line := range bytes.Lines(text) {
		if name, value, ok := strings.Cut(string(line), ":"); ok && name == field {
			kib := labtest.Must(strconv.ParseInt(strings.Fields(value)[0], 10, 64))(t)
			return kib << 10
		}
	}
	t.Fatalf("no %s in the status of the builder", field)
	return 0
}

// resetPeak makes the peak of the builder's memory what it has now.
func (s *target) resetPeak(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", s.Builder.PID()), []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
}

func (s *target) descriptors(t *testing.T) int {
	t.Helper()
	return len(labtest.Must(os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.Builder.PID())))(t))
}

// disk is the size of the builder's state, in bytes.
func (s *target) disk() (total int64) {
	_ = filepath.WalkDir(s.Builder.State, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // it went meanwhile
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
			total += info.Size()
		}
		return nil
	})
	return total
}

// TestBuilder_StaysBoundedUnderAttack attacks the builder in each way, and builds beside it.
func TestBuilder_StaysBoundedUnderAttack(t *testing.T) {
	s := newTarget(t)
	if err := s.behave(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := s.descriptors(t)
	for _, a := range attack.All {
		t.Run(a.Name, func(t *testing.T) {
			s.resetPeak(t)
			ctx, cancel := context.WithTimeout(t.Context(), attackFor)
			defer cancel()
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				if err := a.Run(ctx, &attack.Target{Addr: s.Builder.Addr, Base: s.base}); err != nil {
					t.Error(err)
				}
			}()
			var built atomic.Int32
			var mostDisk int64
			for ctx.Err() == nil {
				// As long as the attack goes on; the last one may outlast it.
				if err := s.behave(t.Context()); err != nil {
					t.Errorf("a well-behaved client: %v", err)
					break
				}
				built.Add(1)
				mostDisk = max(mostDisk, s.disk())
			}
			<-ended
			peak := s.memory(t, "VmHWM")
			t.Logf("%d builds beside it, at most %d MiB of memory and %d MiB on disk", built.Load(), peak>>20, mostDisk>>20)
			if peak > maxMemory {
				t.Errorf("the builder came to %d MiB, want at most %d", peak>>20, maxMemory>>20)
			}
			if mostDisk > maxDisk {
				t.Errorf("its state came to %d MiB, want at most %d", mostDisk>>20, maxDisk>>20)
			}
			if built.Load() == 0 {
				t.Error("nothing was built beside it")
			}
		})
	}
	labtest.Eventually(t, 30*time.Second, "its descriptors are closed", func() bool { return s.descriptors(t) <= before+8 })
	if err := s.behave(t.Context()); err != nil {
		t.Errorf("after all attacks: %v", err)
	}
	if log := s.Builder.Output(); strings.Contains(log, "panic") || strings.Contains(log, "goroutine ") {
		t.Error("the builder's log tells of a panic")
	}
}
