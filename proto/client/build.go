package client

import (
	"cmp"
	"context"
	"crypto/rand"
	"time"

	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// BuildOption is an option of Start and Build.
type BuildOption func(*buildSettings)

type buildSettings struct {
	requestID string
	detach    bool
}

// RequestID names the build: as long as the builder keeps its record, the same
// id in the same project is the same build, also for a caller that has crashed
// and come back. At most 128 bytes. Default: 128 random bits.
func RequestID(id string) BuildOption { return func(s *buildSettings) { s.requestID = id } }

// Detach lets the build of Build go on when its context ends.
func Detach() BuildOption { return func(s *buildSettings) { s.detach = true } }

func buildSettingsOf(opts []BuildOption) buildSettings {
	var s buildSettings
	for _, opt := range opts {
		opt(&s)
	}
	if s.requestID == "" {
		s.requestID = rand.Text()
	}
	return s
}

// Start starts a build that goes on by itself, and returns its record. It tries
// again while the builder is away or full; no second build comes of that. The
// request id that counts is the record's.
func (c *Client) Start(ctx context.Context, spec *builderv1.BuildSpec, opts ...BuildOption) (*builderv1.BuildRecord, error) {
	return c.start(ctx, ctx, spec, buildSettingsOf(opts).requestID)
}

// start makes each call under callCtx, and tries again until ctx ends.
func (c *Client) start(ctx, callCtx context.Context, spec *builderv1.BuildSpec, requestID string) (*builderv1.BuildRecord, error) {
	var res *builderv1.StartBuildResponse
	err := c.again(ctx, func() (bool, error) {
		var err error
		res, err = c.api.StartBuild(callCtx, &builderv1.StartBuildRequest{Spec: spec, RequestId: requestID})
		return false, err
	})
	return res.GetBuild(), err
}

// Retry starts a new build from the request of one that has ended, and returns
// its record: see Start. Secrets are not kept, so they are part of req. A request
// id is made when req has none.
func (c *Client) Retry(ctx context.Context, req *builderv1.RetryBuildRequest) (*builderv1.BuildRecord, error) {
	again := &builderv1.RetryBuildRequest{
		BuildId: req.GetBuildId(), Secrets: req.GetSecrets(), SshKeys: req.GetSshKeys(), RequestId: cmp.Or(req.GetRequestId(), rand.Text()),
	}
	var res *builderv1.RetryBuildResponse
	err := c.again(ctx, func() (bool, error) {
		var err error
		res, err = c.api.RetryBuild(ctx, again)
		return false, err
	})
	return res.GetBuild(), err
}

// cancelTimeout bounds what Build does after its context has ended.
const cancelTimeout = 10 * time.Second

// Build starts a build and watches it to its end: see Start and Watch. Unless
// Detach is given, the build is cancelled when Build returns before its end,
// because ctx ended or fn returned an error.
func (c *Client) Build(ctx context.Context, spec *builderv1.BuildSpec, fn func(*builderv1.BuildEvent) error, opts ...BuildOption) (*builderv1.Outcome, error) {
	s := buildSettingsOf(opts)
	// The answer that says which build was started is waited for, also when ctx ends
	// meanwhile: a build whose id nobody knows could not be cancelled.
	startCtx, cancel := outlive(ctx, cancelTimeout)
	defer cancel()
	record, err := c.start(ctx, startCtx, spec, s.requestID)
	if err != nil {
		return nil, err
	}
	outcome, err := c.Watch(ctx, record.GetId(), 0, fn)
	if outcome == nil && !s.detach {
		c.abandon(ctx, record.GetId())
	}
	return outcome, err
}

// abandon cancels a build that nobody waits for any more. That it cannot is no
// news to the caller, who has an error already.
func (c *Client) abandon(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelTimeout)
	defer cancel()
	_ = c.again(ctx, func() (bool, error) {
		_, err := c.api.CancelBuild(ctx, &builderv1.CancelBuildRequest{BuildId: id})
		return false, err
	})
}

// outlive returns a context that ends a while after ctx does.
func outlive(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(d, cancel) })
	return longer, func() {
		stop()
		cancel()
	}
}
