package gateway

// BuildKit's services, as buildkitd serves them.
const (
	controlMethods = "/moby.buildkit.v1.Control/"
	bridgeMethods  = "/moby.buildkit.v1.frontend.LLBBridge/"
	contentMethods = "/containerd.services.content.v1.Content/"
	traceMethods   = "/opentelemetry.proto.collector.trace.v1.TraceService/"

	methodSolve   = controlMethods + "Solve"
	methodStatus  = controlMethods + "Status"
	methodHistory = controlMethods + "ListenBuildHistory"
	methodPing    = bridgeMethods + "Ping"
	methodReturn  = bridgeMethods + "Return"
	methodInfo    = contentMethods + "Info"
	methodRead    = contentMethods + "Read"
)

// method handles one method.
type method func(*Gateway, *call) error

// methods says how each method of BuildKit's services is handled. A method that is
// not here is not served.
var methods = map[string]method{
	// Builds and sessions: the call names its route.
	methodSolve:                (*Gateway).solve,
	methodStatus:               (*Gateway).status,
	controlMethods + "Session": (*Gateway).session,

	// The frontend of a build that its client runs: the metadata name the route.
	methodPing:                           light(answer),
	bridgeMethods + "Inputs":             light(answer),
	bridgeMethods + "Warn":               light(answer),
	bridgeMethods + "ReleaseContainer":   light(answer),
	bridgeMethods + "Solve":              work(checked),
	bridgeMethods + "ResolveImageConfig": work(checked),
	bridgeMethods + "ResolveSourceMeta":  work(checked),
	bridgeMethods + "Evaluate":           work(answer),
	bridgeMethods + "ReadFile":           work(answer),
	bridgeMethods + "ReadDir":            work(answer),
	bridgeMethods + "StatFile":           work(answer),
	bridgeMethods + "NewContainer":       work(checked),
	bridgeMethods + "ReadFileContainer":  work(answer),
	bridgeMethods + "ReadDirContainer":   work(answer),
	bridgeMethods + "StatFileContainer":  work(answer),
	bridgeMethods + "ExecProcess":        work(exec),
	methodReturn:                         work(answer),

	// What clients ask before a build: it is the same for all.
	controlMethods + "ListWorkers": (*Gateway).plain,
	controlMethods + "Info":        (*Gateway).plain,

	// What builds left: callers see their own.
	methodHistory:                         (*Gateway).history,
	controlMethods + "UpdateBuildHistory": (*Gateway).updateHistory,
	methodInfo:                            (*Gateway).blobInfo,
	methodRead:                            (*Gateway).readBlob,

	// The daemon as a whole: for its administrators.
	controlMethods + "DiskUsage":    administrative((*Gateway).plain),
	controlMethods + "Prune":        administrative((*Gateway).stream),
	contentMethods + "List":         administrative((*Gateway).stream),
	contentMethods + "Status":       administrative((*Gateway).plain),
	contentMethods + "ListStatuses": administrative((*Gateway).plain),
	contentMethods + "Update":       administrative((*Gateway).plain),
	contentMethods + "Delete":       administrative((*Gateway).plain),
	contentMethods + "Abort":        administrative((*Gateway).plain),
	contentMethods + "Write":        administrative((*Gateway).duplex),

	traceMethods + "Export": (*Gateway).spans,
}
