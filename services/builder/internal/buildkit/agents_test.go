package buildkit

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/moby/buildkit/session/sshforward"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"google.golang.org/grpc"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
)

// broken is an agent with a defect.
type broken struct{ agent.ExtendedAgent }

func (broken) List() ([]*agent.Key, error)                        { panic("a defect") }
func (broken) Sign(ssh.PublicKey, []byte) (*ssh.Signature, error) { panic("a defect") }

// step is the end of a step that asks for the keys of an agent.
type step struct {
	grpc.ServerStream
	ctx  context.Context //nolint:containedctx // of the stream
	asks chan []byte
}

func (s *step) Context() context.Context { return s.ctx }

func (s *step) SendMsg(any) error { return nil }

func (s *step) RecvMsg(m any) error {
	select {
	case data := <-s.asks:
		m.(*sshforward.BytesMessage).Data = data //nolint:forcetypeassert // it is of this stream
		return nil
	case <-s.ctx.Done():
		return io.EOF
	}
}

func (s *step) Send(m *sshforward.BytesMessage) error { return s.SendMsg(m) }

func (s *step) Recv() (*sshforward.BytesMessage, error) {
	m := &sshforward.BytesMessage{}
	return m, s.RecvMsg(m)
}

// A defect in the code that answers a step's SSH agent ends that call, and is reported; the
// builder goes on.
func TestForwardAgent_PanicEndsTheCallAlone(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	reported := make(chan *lifecycle.PanicError, 1)
	ctx = lifecycle.WithReporter(ctx, func(_ context.Context, p *lifecycle.PanicError) { reported <- p })
	s := &step{ctx: ctx, asks: make(chan []byte, 1)}
	s.asks <- []byte{0, 0, 0, 1, 11} // SSH_AGENTC_REQUEST_IDENTITIES
	ended := make(chan error, 1)
	go func() { ended <- agents{sshforward.DefaultID: broken{}}.ForwardAgent(s) }()
	select {
	case p := <-reported:
		if p.Value != "a defect" || len(p.Stack) == 0 {
			t.Errorf("reported %v", p)
		}
	case <-ctx.Done():
		t.Fatal("nothing is reported")
	}
	cancel()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
}
