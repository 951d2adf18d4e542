package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// audit notes each call that changes something, and each call that is refused: who,
// from where, what, about what, and how it ended. A call with a stream is noted when it
// is known what it is about, and again when it has ended. Of a request the audit log
// has names only, no contents.
type audit struct {
	handler  slog.Handler
	log      *slog.Logger
	file     *rotated // nil: the log
	required bool     // calls that cannot be noted are refused
	failures metric.Int64Counter
}

// newAudit notes in a file, or in the log.
func newAudit(service string, cfg *configv1.ServerConfig, tel *telemetry.Telemetry) (*audit, error) {
	meter := tel.Meter.Meter("github.com/kilnbuild/kiln/pkg/rpc")
	failures, err := meter.Int64Counter("kiln.audit.failures", metric.WithUnit("{entry}"),
		metric.WithDescription("Entries that could not be written to the audit log"))
	if err != nil {
		return nil, fmt.Errorf("making a metric: %w", err)
	}
	failures.Add(context.Background(), 0) // an alert sees the first failure as an increase
	a := &audit{log: tel.Logger, required: cfg.GetAuditRequired(), failures: failures}
	if cfg.GetAuditFile() == "" {
		a.handler = tel.Logger.With("audit", true).Handler()
		return a, nil
	}
	a.file = &rotated{path: cfg.GetAuditFile()}
	if err := a.file.open(); err != nil {
		return nil, err
	}
	a.handler = slog.NewJSONHandler(a.file, nil).WithAttrs([]slog.Attr{slog.String("service", service)})
	return a, nil
}

func (a *audit) close() error {
	if a == nil || a.file == nil {
		return nil
	}
	return a.file.Close()
}

// maxNamed bounds each name in an entry: the request of a call that is refused was not
// checked, and is as long as its caller likes.
const maxNamed = 1024

// write writes an entry. One that cannot be written is logged and counted; the error
// is an UNAVAILABLE fault when the audit log is required.
func (a *audit) write(ctx context.Context, attrs []slog.Attr) error {
	record := slog.NewRecord(time.Now(), slog.LevelInfo, "call that changes something", 0)
	for _, attr := range attrs {
		if attr.Value.Kind() == slog.KindString {
			attr.Value = slog.StringValue(clip(attr.Value.String(), maxNamed))
		}
		record.AddAttrs(attr)
	}
	err := a.handler.Handle(ctx, record)
	if err == nil {
		return nil
	}
	a.failures.Add(ctx, 1)
	a.log.ErrorContext(ctx, "the audit log cannot be written", "error", err)
	if !a.required {
		return nil
	}
	return fault.Wrap(err, fault.Unavailable, "DISK_FULL",
		"the server's audit log cannot be written, and it serves no changes without it",
		"free disk where server.audit_file is, or set server.audit_required to false")
}

// entry is what the audit log has of one call.
type entry struct {
	audit  *audit
	method string
	id     auth.Identity
	start  time.Time

	mu    sync.Mutex
	about []slog.Attr
	begun bool
}

type entryKey struct{}

// entryOf returns ctx with the entry of a call.
func (a *audit) entryOf(ctx context.Context, method string, id auth.Identity) (context.Context, *entry) {
	e := &entry{audit: a, method: method, id: id, start: time.Now()}
	return context.WithValue(ctx, entryKey{}, e), e
}

// Audit tells the audit log what the call of ctx is about, for a handler of methods
// whose requests the server does not read. The values must be names and no secrets.
// The error says that the call must not go on: the audit log is required and cannot
// be written.
func Audit(ctx context.Context, attrs ...slog.Attr) error {
	e, ok := ctx.Value(entryKey{}).(*entry)
	if !ok {
		return nil
	}
	e.mu.Lock()
	e.about = append(e.about, attrs...)
	e.mu.Unlock()
	return e.begin(ctx, nil)
}

// begin notes that a call begins that changes something, once. request may be nil.
func (e *entry) begin(ctx context.Context, request any) error {
	if !mutates(e.method) {
		return nil
	}
	e.mu.Lock()
	if e.begun {
		e.mu.Unlock()
		return nil
	}
	e.begun = true
	e.mu.Unlock()
	return e.audit.write(ctx, append(e.attrs(ctx, "begin"), e.names(request)...))
}

// end notes how a call ended that changes something, or that was refused.
func (e *entry) end(ctx context.Context, request any, st *status.Status) {
	refused := st.Code() == codes.PermissionDenied || st.Code() == codes.Unauthenticated
	if !mutates(e.method) && !refused {
		return
	}
	attrs := append(e.attrs(ctx, "end"),
		slog.String("code", st.Code().String()), slog.Duration("duration", time.Since(e.start)))
	for _, detail := range st.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			attrs = append(attrs, slog.String("reason", info.GetReason()))
		}
	}
	if st.Code() == codes.InvalidArgument { // the request may hold anything
		request = nil
	}
	_ = e.audit.write(ctx, append(attrs, e.names(request)...)) // the call has ended; the error is logged and counted
}

// attrs are those of each entry.
func (e *entry) attrs(ctx context.Context, event string) []slog.Attr {
	attrs := []slog.Attr{
		slog.String("event", event), slog.String("method", e.method), slog.String("identity", e.id.String()),
	}
	if from, ok := peer.FromContext(ctx); ok && from.Addr != nil {
		attrs = append(attrs, slog.String("peer", from.Addr.String()))
	}
	return attrs
}

// names say what the call is about.
func (e *entry) names(request any) []slog.Attr {
	e.mu.Lock()
	attrs := slices.Clone(e.about)
	e.mu.Unlock()
	if m, ok := request.(proto.Message); ok {
		attrs = append(attrs, about(m.ProtoReflect(), "")...)
	}
	return attrs
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
	"/containerd.services.content.v1.Content/Update", "/containerd.services.content.v1.Content/Delete",
	"/containerd.services.content.v1.Content/Write", "/containerd.services.content.v1.Content/Abort",
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
