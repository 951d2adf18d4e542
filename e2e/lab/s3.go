package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// S3 is a server of S3 whose objects are files.
type S3 struct {
	*Process
	// Addr is host:port.
	Addr string
	// Bucket is the name of its bucket, and Dir the directory with its objects.
	Bucket, Dir string
}

// The credentials of the lab's servers of S3.
const (
	s3AccessKey = "lab"
	s3SecretKey = "of no use elsewhere" //nolint:gosec // as it says
)

// StartS3 runs a server of S3 with one bucket, and waits until it listens.
func (l *Lab) StartS3(ctx context.Context) (*S3, error) {
	path, err := Bin("versitygw")
	if err != nil {
		return nil, err
	}
	root, err := l.subdir("s3")
	if err != nil {
		return nil, err
	}
	s := &S3{Bucket: "registry", Dir: filepath.Join(root, "registry")}
	if s.Addr, err = FreeAddr(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	s.Process, err = l.Run(Command{
		Name: filepath.Base(root), Path: path, Args: []string{"--port", s.Addr, "--quiet", "posix", root},
		Env: append(OTLPEnv("", ""), "ROOT_ACCESS_KEY="+s3AccessKey, "ROOT_SECRET_KEY="+s3SecretKey),
	})
	if err != nil {
		return nil, err
	}
	return s, poll(ctx, s.Process, "waiting for the server of S3", func(ctx context.Context) error {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.Addr)
		if err != nil {
			return fmt.Errorf("lab: %w", err)
		}
		return conn.Close()
	})
}

// yaml is what a registry's configuration says of it, below `storage`.
func (s *S3) yaml() string {
	return fmt.Sprintf("  s3:\n    accesskey: %s\n    secretkey: %s\n    region: us-east-1\n    regionendpoint: http://%s\n    forcepathstyle: true\n    bucket: %s\n  redirect:\n    disable: true\n",
		s3AccessKey, s3SecretKey, s.Addr, s.Bucket)
}
