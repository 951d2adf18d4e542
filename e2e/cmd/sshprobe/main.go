// Command sshprobe runs in a step of a test's build. It asks the agent at
// SSH_AUTH_SOCK for its keys, has each sign, checks the signature, and tries what an
// agent of a build must refuse.
package main

import (
	"crypto/rand"
	"fmt"
	"net"
	"os"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

func main() {
	if err := probe(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func probe() error {
	conn, err := net.Dial("unix", os.Getenv("SSH_AUTH_SOCK"))
	if err != nil {
		return err
	}
	defer conn.Close()
	client := agent.NewClient(conn)
	keys, err := client.List()
	if err != nil {
		return err
	}
	challenge := []byte(rand.Text())
	for _, key := range keys {
		var flags agent.SignatureFlags
		if key.Type() == ssh.KeyAlgoRSA {
			flags = agent.SignatureFlagRsaSha512
		}
		signature, err := client.SignWithFlags(key, challenge, flags)
		if err != nil {
			return err
		}
		if err := key.Verify(challenge, signature); err != nil {
			return err
		}
		fmt.Println("signed", ssh.FingerprintSHA256(key), signature.Format)
	}
	if client.RemoveAll() == nil || client.Lock([]byte("x")) == nil {
		return fmt.Errorf("the agent can be changed")
	}
	return nil
}
