package buildkit

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/session/sshforward"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// addSession lends the build its secrets and keys, over the solve's own session
// and from memory.
func (j *job) addSession() error {
	if len(j.spec.Secrets)+len(j.spec.SSHKeys) > 0 && j.daemon.plain {
		insecure := fault.New(fault.FailedPrecondition, "INSECURE_TRANSPORT",
			fmt.Sprintf("the build has secrets, and the builder speaks plain text to buildkitd %q over a network", j.daemon.name),
			"set tls of that daemon in the builder's configuration")
		insecure.Field = "spec.secrets"
		return insecure
	}
	if logins := j.daemon.opts.Logins; len(logins) > 0 {
		j.users = newUsers(logins)
		j.sources.images = j.users.reads
		j.opt.Session = append(j.opt.Session, j.users)
	}
	if len(j.spec.Secrets) > 0 {
		values := make(map[string][]byte, len(j.spec.Secrets))
		for _, secret := range j.spec.Secrets {
			values[secret.ID] = secret.Value
		}
		j.opt.Session = append(j.opt.Session, secretsprovider.FromMap(values))
	}
	if len(j.spec.SSHKeys) > 0 {
		agents, err := newAgents(j.spec.SSHKeys)
		if err != nil {
			return err
		}
		j.opt.Session = append(j.opt.Session, agents)
	}
	return nil
}

// agents are SSH agents by id, each of one key, that sign and do nothing else.
type agents map[string]agent.Agent

func newAgents(keys []build.SSHKey) (agents, error) {
	all := make(agents, len(keys))
	for i, key := range keys {
		private, err := ssh.ParseRawPrivateKey(key.PEM)
		ring, _ := agent.NewKeyring().(agent.ExtendedAgent) // RSA keys sign by SHA-2 only through it
		if err == nil {
			err = ring.Add(agent.AddedKey{PrivateKey: private})
		}
		if err != nil { // which may quote the key
			return nil, fault.Invalid(fmt.Sprintf("spec.ssh_keys[%d].private_key", i), "", "is not a key that an SSH agent can hold",
				"send the content of a file that ssh-keygen wrote")
		}
		all[key.ID] = signing{ring}
	}
	return all, nil
}

// Register implements session.Attachable.
func (a agents) Register(server *grpc.Server) { sshforward.RegisterSSHServer(server, a) }

// CheckAgent implements sshforward.SSHServer.
func (a agents) CheckAgent(_ context.Context, req *sshforward.CheckAgentRequest) (*sshforward.CheckAgentResponse, error) {
	if _, err := a.byID(req.GetID()); err != nil {
		return nil, err
	}
	return &sshforward.CheckAgentResponse{}, nil
}

// ForwardAgent implements sshforward.SSHServer.
func (a agents) ForwardAgent(stream sshforward.SSH_ForwardAgentServer) error {
	var id string
	if named := metadata.ValueFromIncomingContext(stream.Context(), sshforward.KeySSHID); len(named) > 0 {
		id = named[0]
	}
	wanted, err := a.byID(id)
	if err != nil {
		return err
	}
	ours, theirs := net.Pipe()
	served := make(chan struct{})
	lifecycle.Go(stream.Context(), func(context.Context) { // a step sends what the agent reads
		defer close(served)
		defer func() { _ = ours.Close() }()
		_ = agent.ServeAgent(wanted, ours) // it ends with its connection
	})
	err = sshforward.Copy(stream.Context(), theirs, stream, nil)
	_ = theirs.Close()
	<-served
	return err
}

func (a agents) byID(id string) (agent.Agent, error) {
	if id == "" {
		id = sshforward.DefaultID
	}
	found, ok := a[id]
	if !ok {
		return nil, fmt.Errorf("the request has no SSH key with the id %q", id)
	}
	return found, nil
}

// signing is an agent that a RUN step can use and not change.
type signing struct{ agent.ExtendedAgent }

var errReadOnly = errors.New("the agent of a build only lists and signs")

// Add implements agent.Agent.
func (signing) Add(agent.AddedKey) error { return errReadOnly }

// Remove implements agent.Agent.
func (signing) Remove(ssh.PublicKey) error { return errReadOnly }

// RemoveAll implements agent.Agent.
func (signing) RemoveAll() error { return errReadOnly }

// Lock implements agent.Agent.
func (signing) Lock([]byte) error { return errReadOnly }

// Unlock implements agent.Agent.
func (signing) Unlock([]byte) error { return errReadOnly }

// Extension implements agent.ExtendedAgent.
func (signing) Extension(string, []byte) ([]byte, error) { return nil, agent.ErrExtensionUnsupported }
