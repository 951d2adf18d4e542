package outcome

import (
	"context"
	"errors"
	"regexp"
	"strings"

	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc/codes"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// BuildKit types some of its errors and words the others. These are its words, and
// those of containerd, runc and git behind it.
var (
	imageNotResolved = regexp.MustCompile(`failed to resolve source metadata for ([^\s:]+(?::\d+)?[^\s]*): `)
	layerNotPulled   = regexp.MustCompile(`failed to copy: .*(?:httpReadSeeker|fetching|failed open)`)
	fileNotFound     = regexp.MustCompile(`failed to (?:calculate checksum of ref|compute cache key)[^"]*"([^"]+)": not found`)
	gitNotRead       = regexp.MustCompile(`failed to fetch remote (\S+)`)
	urlNotRead       = regexp.MustCompile(`invalid response status (\d{3})`)
	urlNotReached    = regexp.MustCompile(`(?:Get|Head) "(https?://[^"]+)": `)
	noDockerfile     = regexp.MustCompile(`failed to read dockerfile: open (\S+): no such file`)
	noTarget         = regexp.MustCompile(`target stage "?([^"\s]+)"? could not be found`)
	noSecret         = regexp.MustCompile(`secret (\S+): not found`)
	noSSHKey         = regexp.MustCompile(`(?:no SSH key "([^"]*)" forwarded|has no SSH key with the id \\*"([^"\\]+))`)

	digestsDiffer = regexp.MustCompile(`digest mismatch|expected checksum to match|does not match expected checksum|checksum mismatch`)
	epochUnread   = regexp.MustCompile(`(?i)invalid source[-_]date[-_]epoch`)
	valueUnread   = regexp.MustCompile(`strconv\.Parse\w+: parsing `)
	notUTF8       = regexp.MustCompile(`string field contains invalid UTF-8`)
	patternUnread = regexp.MustCompile(`syntax error in pattern|illegal exclusion pattern`)

	denied = regexp.MustCompile(`(?i)\b(?:401|403)\b|unauthorized|forbidden|authorization failed|access denied|insufficient_scope|authentication required|authentication failed|could not read username|permission denied \(publickey`)
	absent = regexp.MustCompile(`(?i)\b404\b|not found|name unknown|manifest unknown|no such host|could not resolve host`)
	away   = regexp.MustCompile(`(?i)connection refused|connection reset|no route to host|network is unreachable|i/o timeout|timeout exceeded|timed out|tls handshake|server misbehaving|temporary failure|unexpected eof|: eof|broken pipe|couldn't connect|failed to connect|\b50[0-9]\b|bad gateway|service unavailable|gateway time-?out|internal server error|too many requests|\b429\b|server gave http response to https client`)
	byRule = regexp.MustCompile(`(?i)not allowed by (?:policy|build daemon configuration)|denied by policy|(?:network\.host|security\.insecure|device\S*) is not allowed|requested by the build but not allowed|is not an allowed gateway source`)
	full   = regexp.MustCompile(`(?i)no space left on device|disk quota exceeded|insufficient storage`)
)

// cause is what is known of an error, and the failure that it is becoming.
type cause struct {
	*build.Failure
	err  error
	text string
	code codes.Code
}

// kinds are the kinds of failures; each fills the failure in when it is that. They
// are tried in this order: what BuildKit types before what it only words, what is
// certain before what is likely.
var kinds = []func(*cause) bool{
	ended, notGranted, diskFull, stepFailed, dockerfileMissing, secretMissing, imageUnread, fileMissing, targetMissing,
	digestDiffers, exportFailed, linkLeads, gitUnread, urlUnread, daemonGone, patternWrong, textNotUTF8, requestWrong, knownText, dockerfileWrong,
}

// classify gives the failure its kind, reason, class and remedy.
func classify(f *build.Failure, err error) {
	c := &cause{Failure: f, err: err, text: err.Error(), code: grpcerrors.Code(err)}
	for _, is := range kinds {
		if is(c) {
			return
		}
	}
	c.set(kindOf(c.code), "INTERNAL", build.Infrastructure, "read the message; it is buildkitd's own")
}

// set fills the failure in and returns true.
func (c *cause) set(kind fault.Kind, reason string, class build.Class, remedy string) bool {
	c.Kind, c.Reason, c.Class, c.Remedy = kind, reason, class, remedy
	return true
}

// names reports whether the text matches, and takes what it names as the reference.
func (c *cause) names(re *regexp.Regexp) bool {
	m := re.FindStringSubmatch(c.text)
	for _, name := range m[min(len(m), 1):] {
		if name != "" {
			c.Reference = strings.TrimSuffix(name, ":")
		}
	}
	return m != nil
}

func ended(c *cause) bool {
	switch {
	case errors.Is(c.err, context.Canceled) || c.code == codes.Canceled:
		return c.set(fault.Canceled, "CANCELLED", build.ByCancel, "build again")
	case errors.Is(c.err, context.DeadlineExceeded) || c.code == codes.DeadlineExceeded:
		return c.set(fault.DeadlineExceeded, "TIMED_OUT", build.ByTimeout, "give the build more time")
	}
	return false
}

func notGranted(c *cause) bool {
	return c.ExitCode == nil && byRule.MatchString(c.text) &&
		c.set(fault.PermissionDenied, "POLICY_DENIED", build.Policy,
			"leave out what the message names, or ask the operator to allow it in buildkitd's configuration or in the source policy of the request")
}

func diskFull(c *cause) bool {
	// A RUN step that found the disk full says so itself, in its last lines.
	text := c.text
	if c.ExitCode != nil {
		text = strings.Join(c.LogTail, "\n")
	}
	if !full.MatchString(text) {
		return false
	}
	if !full.MatchString(c.Message) {
		c.Message = "no space left on device: " + c.Message
	}
	return c.set(fault.ResourceExhausted, "DISK_FULL", build.Infrastructure, "free disk on the host that the message names, the daemon's as a rule, or lower the cache policy, and build again")
}

func stepFailed(c *cause) bool {
	return c.ExitCode != nil &&
		c.set(fault.FailedPrecondition, "STEP_FAILED", build.User, "read the last lines of the step's log and mend the command at that line of the Dockerfile")
}

func dockerfileMissing(c *cause) bool {
	return c.names(noDockerfile) &&
		c.set(fault.NotFound, "SOURCE_NOT_FOUND", build.User, "put a Dockerfile there, or name another with --file (dockerfile.path or dockerfile.inline in the API)")
}

func secretMissing(c *cause) bool {
	return (c.names(noSecret) || c.names(noSSHKey)) &&
		c.set(fault.NotFound, "SOURCE_NOT_FOUND", build.User, "pass it by the id that the step names: --secret id=ID,src=FILE or --ssh ID (secrets and ssh_keys in the API)")
}

func imageUnread(c *cause) bool {
	return (c.names(imageNotResolved) || !isExport(c.Step) && layerNotPulled.MatchString(c.text)) &&
		c.unread("the registry of the image", "REGISTRY_UNAVAILABLE", "check the name and tag of the image")
}

// unread tells apart why something on the network could not be read.
func (c *cause) unread(host, whenAway, check string) bool {
	switch {
	case denied.MatchString(c.text):
		return c.set(fault.PermissionDenied, "SOURCE_DENIED", build.User, check+", and give the daemon the credentials of its host")
	case absent.MatchString(c.text) && !away.MatchString(c.text):
		return c.set(fault.NotFound, "SOURCE_NOT_FOUND", build.User, check+", and that it can be reached from the daemon")
	case away.MatchString(c.text):
		return c.set(fault.Unavailable, whenAway, build.Infrastructure, "check that "+host+" answers the daemon, and build again")
	default:
		return c.set(fault.NotFound, "SOURCE_NOT_FOUND", build.User, check+", and that it can be reached from the daemon")
	}
}

func fileMissing(c *cause) bool {
	return c.names(fileNotFound) &&
		c.set(fault.NotFound, "SOURCE_NOT_FOUND", build.User, "check the path: it is relative to the context, and .dockerignore may leave it out")
}

func targetMissing(c *cause) bool {
	return c.names(noTarget) &&
		c.set(fault.InvalidArgument, "DOCKERFILE_INVALID", build.User, "name a stage of the Dockerfile with target")
}

// exportFailed tells a push from the export of a cache, and a registry that is away
// from one that refuses.
func exportFailed(c *cause) bool {
	if !isExport(c.Step) {
		return false
	}
	what := "exporting the result"
	switch {
	case strings.HasPrefix(c.Step, "exporting cache"), strings.HasPrefix(c.Step, "preparing build cache"):
		what = "exporting the cache"
	case strings.Contains(c.text, "failed to push"):
		what = "pushing the image"
	}
	c.Message = what + " failed: " + c.Message
	switch {
	case denied.MatchString(c.text):
		return c.set(fault.PermissionDenied, "EXPORT_FAILED", build.User, "give the daemon credentials that may write there, or name another repository")
	case away.MatchString(c.text):
		return c.set(fault.Unavailable, "REGISTRY_UNAVAILABLE", build.Infrastructure, "check that the registry answers the daemon, and build again")
	case strings.Contains(c.text, "docker load:"):
		return c.set(fault.FailedPrecondition, "EXPORT_FAILED", build.User, "start the Docker Engine that is to load the image, or use --push or --output")
	default:
		if says, _ := inCorpus(c.text); says == saysUser {
			return c.set(fault.InvalidArgument, "EXPORT_FAILED", build.User, "change the output as the message says")
		}
		return c.set(kindOf(c.code), "EXPORT_FAILED", build.Infrastructure, "check that the registry can be reached from the daemon, has room, and lets it write")
	}
}

func linkLeads(c *cause) bool {
	if !strings.Contains(c.text, "path escapes from parent") {
		return false
	}
	c.Message = "a symbolic link of the context is absolute or leads out of it: " + c.Message
	return c.set(fault.FailedPrecondition, "SOURCE_NOT_FOUND", build.User, "make the link relative and lead inside the context, or build the directory with kiln build")
}

func gitUnread(c *cause) bool {
	return (strings.Contains(c.Step, "load git") || c.names(gitNotRead)) &&
		c.unread("the host of the repository", "SOURCE_NOT_FOUND", "check the URL and ref of the repository")
}

func urlUnread(c *cause) bool {
	return (urlNotRead.MatchString(c.text) || c.names(urlNotReached)) &&
		c.unread("the host of the URL", "SOURCE_NOT_FOUND", "check the URL")
}

func digestDiffers(c *cause) bool {
	return digestsDiffer.MatchString(c.text) &&
		c.set(fault.FailedPrecondition, "DIGEST_MISMATCH", build.User, "compare the checksum in the Dockerfile or the request with what the source serves now")
}

func patternWrong(c *cause) bool {
	return patternUnread.MatchString(c.text) &&
		c.set(fault.InvalidArgument, "DOCKERFILE_INVALID", build.User, "correct the pattern in .dockerignore or in the instruction that the message names")
}

// textNotUTF8 tells text in another encoding: BuildKit cannot put it into a step.
func textNotUTF8(c *cause) bool {
	return notUTF8.MatchString(c.text) &&
		c.set(fault.InvalidArgument, "DOCKERFILE_INVALID", build.User,
			"save the Dockerfile in UTF-8, and give its steps UTF-8 build arguments; text in another encoding can stand in a file of the context")
}

// requestWrong tells values that cannot be read: they stand in the request, or in what
// a client adds to it.
func requestWrong(c *cause) bool {
	return (epochUnread.MatchString(c.text) || valueUnread.MatchString(c.text) || c.code == codes.InvalidArgument && c.Location == nil) &&
		c.set(fault.InvalidArgument, "INVALID_FIELD", build.User, changeRequest)
}

const changeRequest = "change the option, build argument or attribute that the message names"

// knownText tells errors by the corpus of BuildKit's texts.
func knownText(c *cause) bool {
	says, dir := inCorpus(c.text)
	switch {
	case says == saysPolicy:
		return c.set(fault.PermissionDenied, "POLICY_DENIED", build.Policy, "ask the operator of the daemon to allow what the message names, or leave it out")
	case says == saysInfra:
		return c.set(kindOf(c.code), "INTERNAL", build.Infrastructure, "read the message; it is buildkitd's own")
	case says == saysUser && (c.Location != nil || strings.Contains(dir, "/frontend/dockerfile")):
		return c.set(fault.InvalidArgument, "DOCKERFILE_INVALID", build.User, "correct the Dockerfile as the message says")
	case says == saysUser:
		return c.set(fault.InvalidArgument, "INVALID_FIELD", build.User, changeRequest)
	}
	return false
}

func dockerfileWrong(c *cause) bool {
	return (strings.Contains(c.text, "dockerfile parse error") || c.Location != nil) &&
		c.set(fault.InvalidArgument, "DOCKERFILE_INVALID", build.User, "mend the Dockerfile at the line that is named")
}

func daemonGone(c *cause) bool {
	if c.code != codes.Unavailable && !strings.Contains(c.text, "no active session") {
		return false
	}
	c.Message = "the connection to buildkitd broke: " + innermost(c.Message)
	return c.set(fault.Unavailable, "DAEMON_UNAVAILABLE", build.Infrastructure, "check that buildkitd runs, and build again")
}

// innermost is the last of the causes that gRPC strings together.
func innermost(text string) string {
	if at := strings.LastIndex(text, "desc = "); at >= 0 {
		text = text[at+len("desc = "):]
	}
	return strings.Trim(text, `"`)
}

func kindOf(code codes.Code) fault.Kind {
	switch code {
	case codes.InvalidArgument:
		return fault.InvalidArgument
	case codes.NotFound:
		return fault.NotFound
	case codes.PermissionDenied:
		return fault.PermissionDenied
	case codes.Unauthenticated:
		return fault.Unauthenticated
	case codes.FailedPrecondition:
		return fault.FailedPrecondition
	case codes.Unavailable:
		return fault.Unavailable
	default:
		return fault.Internal
	}
}
