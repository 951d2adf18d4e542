package buildkit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/moby/buildkit/sourcepolicy/policysession"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit/outcome"
	"github.com/kilnbuild/kiln/services/builder/internal/guard"
)

// Guard says which hosts sources may come from. See package guard, which is it.
type Guard interface {
	// CheckURL judges a URL without looking its host up.
	CheckURL(raw string) error
	// CheckResolved judges a URL and all addresses of its host.
	CheckResolved(ctx context.Context, raw string) error
	// Client fetches from what is allowed, and follows redirects only there.
	Client(timeout time.Duration) *http.Client
	// Dial connects to a host that is allowed, at an address that is.
	Dial(ctx context.Context, network, address string) (net.Conn, error)
}

// sourcePolicy answers a daemon that asks, before it reads a source of one solve,
// whether it may. What the daemon then reads by itself, at an address that it looks
// up again, is held to what the builder saw: an HTTP source to its content, an ssh
// host to its key.
type sourcePolicy struct {
	guard   Guard
	secrets map[string][]byte      // as the daemon uses them to authenticate
	images  func(ref string) error // judges an image that is read; nil: all may be

	mu       sync.Mutex
	verdicts map[string]*verdict // by source: a daemon asks about each several times
	first    *fault.Error        // of the refusals
}

// verdict is what was found out about a source.
type verdict struct {
	once  sync.Once
	attrs map[string]string // that the source must have besides its own
	err   error
}

// newSourcePolicy is the policy of one solve with these secrets.
func newSourcePolicy(g Guard, secrets ...build.Secret) *sourcePolicy {
	p := &sourcePolicy{guard: g, secrets: make(map[string][]byte), verdicts: make(map[string]*verdict)}
	for _, secret := range secrets {
		p.secrets[secret.ID] = secret.Value
	}
	return p
}

// attachable is what a daemon asks, for client.SolveOpt.SourcePolicyProvider.
func (p *sourcePolicy) attachable() session.Attachable {
	return policysession.NewPolicyProvider(p.check)
}

// denied is why the first source was refused; nil when none was. The daemon words
// its error by itself and keeps nothing of the reason.
func (p *sourcePolicy) denied() *fault.Error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.first
}

// explain is the error of a failed solve, or what the policy knows better, which is a
// *fault.Error.
func (p *sourcePolicy) explain(err error) error {
	if f := p.denied(); f != nil {
		return f
	}
	switch text := err.Error(); {
	case strings.Contains(text, guard.Refusal): // By the egress proxy, as git tells it.
		return fault.Wrap(errors.New(outcome.Message(err)), fault.PermissionDenied, "POLICY_DENIED", "a host that the daemon was led to is refused",
			"take the source from another host, and its submodules too")
	case strings.Contains(text, "digest mismatch") && p.pinned():
		return fault.Wrap(errors.New(outcome.Message(err)), fault.FailedPrecondition, "DIGEST_MISMATCH",
			"an HTTP source gave the daemon other content than the builder, or than its checksum says",
			"take it from a URL whose content stays, or fetch what changes with each request in a RUN step")
	}
	return err
}

// pinned says whether an HTTP source was held to a digest.
func (p *sourcePolicy) pinned() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key := range p.verdicts {
		if strings.Contains(key, pb.AttrHTTPChecksum) {
			return true
		}
	}
	return false
}

func (p *sourcePolicy) check(ctx context.Context, req *policysession.CheckPolicyRequest) (*policysession.DecisionResponse, *gatewaypb.ResolveSourceMetaRequest, error) {
	source := req.GetSource().GetSource()
	v := p.verdict(source)
	v.once.Do(func() { v.attrs, v.err = p.judge(ctx, source) })
	switch {
	case ctx.Err() != nil:
		return nil, nil, ctx.Err()
	case v.err != nil:
		p.refuse(v.err)
		no := &policysession.DecisionResponse{Action: spb.PolicyAction_DENY, DenyMessages: []*policysession.DenyMessage{{Message: v.err.Error()}}}
		return no, nil, nil //nolint:nilerr // The decision is the answer.
	case len(v.attrs) > 0:
		update := &pb.SourceOp{Identifier: source.GetIdentifier(), Attrs: make(map[string]string)}
		maps.Copy(update.Attrs, source.GetAttrs())
		maps.Copy(update.Attrs, v.attrs)
		p.verdict(update).once.Do(func() {}) // The daemon asks about it next.
		return &policysession.DecisionResponse{Action: spb.PolicyAction_CONVERT, Update: update}, nil, nil
	default:
		return &policysession.DecisionResponse{Action: spb.PolicyAction_ALLOW}, nil, nil
	}
}

func (p *sourcePolicy) verdict(source *pb.SourceOp) *verdict {
	key := fmt.Sprint(source.GetIdentifier(), source.GetAttrs()) // fmt sorts maps
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.verdicts[key] == nil {
		p.verdicts[key] = new(verdict)
	}
	return p.verdicts[key]
}

func (p *sourcePolicy) refuse(err error) {
	f, ok := errors.AsType[*fault.Error](err)
	if !ok {
		f = fault.Wrap(err, fault.Internal, "", "a source of the build was not judged", "build again")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.first == nil {
		p.first = f
	}
}

// judge says what a source must have besides its own attributes to be read, or why
// it must not be read.
func (p *sourcePolicy) judge(ctx context.Context, source *pb.SourceOp) (map[string]string, error) {
	scheme, ref, _ := strings.Cut(source.GetIdentifier(), "://")
	switch scheme {
	case "docker-image", "docker-image+blob":
		if p.images == nil {
			return nil, nil // images are the registries' business
		}
		return nil, p.images(ref)
	case "oci-layout", "oci-layout+blob", "local":
		return nil, nil // the builder's own
	case "http", "https":
		return p.judgeHTTP(ctx, source)
	case "git":
		return p.judgeGit(ctx, source)
	default:
		return nil, fault.New(fault.PermissionDenied, "POLICY_DENIED",
			fmt.Sprintf("the builder's policy does not know sources of the kind %q", scheme), "use an image, a git repository or an HTTP URL")
	}
}
