// Package token is `kiln token`: tokens by which callers are known that have no certificate.
package token

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/pkg/config"
	"github.com/kilnbuild/kiln/pkg/fault"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/wholefile"
)

// Command is `kiln token`.
func Command() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "token",
		Short:   "Make tokens, for callers that have no certificate",
		Example: `  kiln token new ci --file /etc/kiln/tokens.yaml >ci.token`,
		Args:    cobra.NoArgs,
	}
	cmd.AddCommand(newCommand())
	return cmd
}

func newCommand() *cobra.Command {
	var file string
	var days int
	cmd := &cobra.Command{
		Use:   "new IDENTITY",
		Short: "Make a token of a caller",
		Long: `Makes a token and prints it, once: it is kept nowhere. Its hash goes into the file that the
services' server.tokens_file names, which they read again when it changes. The caller is known
by IDENTITY: that is what rules of access name. To take a token back, remove its line.`,
		Example: `  kiln token new ci --file /etc/kiln/tokens.yaml >ci.token
  kiln builds ls --token-file ci.token --builder builder.example.org:50051 --tls-ca ca.crt`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if days < 0 || days > 36500 {
				return fmt.Errorf("--days is %d; use 0, for ever, to 36500", days)
			}
			cmd.SilenceUsage = true
			secret, line, err := newToken(args[0], days)
			if err != nil {
				return err
			}
			if file == "" {
				_, err = fmt.Fprintf(cmd.ErrOrStderr(), "into server.tokens_file:\ntokens:\n%s", line)
			} else {
				err = add(file, line)
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), secret)
			return err
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "`file` that the hash is added to, which is made if it is not there (default: print it)")
	cmd.Flags().IntVar(&days, "days", 90, "how long it holds; 0: for ever")
	return cmd
}

// newToken makes a token, and the line of it for the file.
func newToken(identity string, days int) (secret, line string, err error) {
	var random [32]byte
	if _, err := rand.Read(random[:]); err != nil {
		return "", "", err
	}
	secret = "kiln_" + base64.RawURLEncoding.EncodeToString(random[:])
	sum := sha256.Sum256([]byte(secret))
	line = fmt.Sprintf("  - {identity: %q, sha256: %s", identity, hex.EncodeToString(sum[:]))
	if days > 0 {
		line += ", expire_time: " + time.Now().Add(time.Duration(days)*24*time.Hour).UTC().Format(time.RFC3339)
	}
	return secret, line + "}\n", nil
}

// add adds a line to a file of tokens.
func add(file, line string) error {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		text, err = []byte("# Callers by their tokens' hashes; see kiln token --help.\ntokens:\n"), nil
	}
	if err != nil {
		return err
	}
	whole := string(text)
	if !strings.HasSuffix(whole, "\n") {
		whole += "\n"
	}
	whole += line
	if _, err := config.Decode(file, whole, &configv1.TokenFile{}); err != nil {
		return fault.Wrap(err, fault.InvalidArgument, "", "the token cannot be added", "write tokens as a list below `tokens:`, the last thing in the file, or leave out --file and add the line yourself")
	}
	return wholefile.Replace(file, []byte(whole), 0o600)
}
