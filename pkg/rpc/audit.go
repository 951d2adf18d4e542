package rpc

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/kilnbuild/kiln/pkg/auth"
)

// audit notes each call that changes something: who, from where, what, about what, and how
// it ended. Of the request it has names only, no contents.
type audit struct {
	log  *slog.Logger
	file *rotated // nil: the log
}

// newAudit notes in a file, or in the log.
func newAudit(service, file string, log *slog.Logger) (*audit, error) {
	if file == "" {
		return &audit{log: log.With("audit", true)}, nil
	}
	w := &rotated{path: file}
	if err := w.open(); err != nil {
		return nil, err
	}
	return &audit{log: slog.New(slog.NewJSONHandler(w, nil)).With("service", service), file: w}, nil
}

func (a *audit) close() error {
	if a == nil || a.file == nil {
		return nil
	}
	return a.file.Close()
}

func (a *audit) note(ctx context.Context, method string, id auth.Identity, start time.Time, request any, st *status.Status) {
	if !mutates(method) {
		return
	}
	attrs := []slog.Attr{
		slog.String("method", method), slog.String("identity", id.String()), slog.String("code", st.Code().String()), slog.Duration("duration", time.Since(start)),
	}
	if from, ok := peer.FromContext(ctx); ok && from.Addr != nil {
		attrs = append(attrs, slog.String("peer", from.Addr.String()))
	}
	for _, detail := range st.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			attrs = append(attrs, slog.String("reason", info.GetReason()))
		}
	}
	if m, ok := request.(proto.Message); ok && st.Code() != codes.InvalidArgument { // which may hold anything
		attrs = append(attrs, about(m.ProtoReflect(), "")...)
	}
	a.log.LogAttrs(ctx, slog.LevelInfo, "call that changes something", attrs...)
}

// named are the fields of requests that say what a call is about. None of them is secret.
var named = []protoreflect.Name{
	"project", "build_id", "request_id", "run_id", "daemon", "plan_digest", "lease_id", "reference", "directory", "force", "holder", "id",
}

// about are such fields of a request, and of its spec.
func about(m protoreflect.Message, prefix string) (attrs []slog.Attr) {
	fields := m.Descriptor().Fields()
	for _, name := range named {
		field := fields.ByName(name)
		if field == nil || field.IsList() || field.IsMap() || field.Message() != nil || !m.Has(field) {
			continue
		}
		attrs = append(attrs, slog.Any(prefix+string(name), m.Get(field).Interface()))
	}
	if spec := fields.ByName("spec"); prefix == "" && spec != nil && spec.Message() != nil && m.Has(spec) {
		attrs = append(attrs, about(m.Get(spec).Message(), "spec.")...)
	}
	return attrs
}

// passedOn are the methods of BuildKit's that change something.
var passedOn = []string{
	"/moby.buildkit.v1.Control/Solve", "/moby.buildkit.v1.Control/Prune", "/moby.buildkit.v1.Control/UpdateBuildHistory",
}

var mutating sync.Map // of methods, whether they change something

// mutates reports whether a method may change something: by its contract where that is ours.
func mutates(method string) bool {
	if known, ok := mutating.Load(method); ok {
		return known == true
	}
	if !ours(method) {
		return slices.Contains(passedOn, method)
	}
	desc := methodOf(method)
	if desc == nil {
		return false // there is none to call
	}
	options, _ := desc.Options().(*descriptorpb.MethodOptions)
	does := options.GetIdempotencyLevel() != descriptorpb.MethodOptions_NO_SIDE_EFFECTS
	mutating.Store(method, does)
	return does
}

// methodOf is a method of a contract; nil when it is of none.
func methodOf(full string) protoreflect.MethodDescriptor {
	service, name, _ := strings.Cut(strings.TrimPrefix(full, "/"), "/")
	desc, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		return nil
	}
	of, ok := desc.(protoreflect.ServiceDescriptor)
	if !ok {
		return nil
	}
	return of.Methods().ByName(protoreflect.Name(name))
}

// rotated is a file that is appended to, also after it was renamed: then it is made anew.
type rotated struct {
	path string

	mu   sync.Mutex
	file *os.File
}

func (r *rotated) open() error {
	file, err := os.OpenFile(r.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if r.file != nil {
		_ = r.file.Close() // Each line was written with a call of its own.
	}
	r.file = file
	return nil
}

// Write writes one line.
func (r *rotated) Write(line []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	there, err := os.Stat(r.path)
	if is, statErr := r.file.Stat(); err != nil || statErr != nil || !os.SameFile(there, is) {
		if err := r.open(); err != nil {
			return 0, err
		}
	}
	return r.file.Write(line)
}

// Close closes the file, if it is open.
func (r *rotated) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.file.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}
