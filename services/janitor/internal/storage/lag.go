package storage

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// attributeTimeout is for how long NFS and SMB remember directories where their mount does not say
// (nfs(5), "acdirmax"; mount.cifs(8), "actimeo").
const (
	nfsTimeout = time.Minute
	smbTimeout = time.Second
)

// Lag is for how long it may take until this host sees what another has written: file systems of a
// network remember what was in directories.
func (s *Storage) Lag() time.Duration { return s.files.lag() }

func (d *disk) lag() time.Duration {
	d.lagged.Do(func() {
		text, err := os.ReadFile("/proc/self/mountinfo")
		root, absolute := filepath.Abs(d.root)
		if err == nil && absolute == nil {
			d.lags = lagOf(string(text), root)
		}
	})
	return d.lags
}

// lagOf reads from a mountinfo (proc_pid_mountinfo(5)) for how long directories are remembered of the
// file system that a path is on.
func lagOf(mountinfo, path string) time.Duration {
	point, kind, options := "", "", ""
	for line := range strings.Lines(mountinfo) {
		mount, super, is := strings.Cut(line, " - ")
		fields, behind := strings.Fields(mount), strings.Fields(super)
		if !is || len(fields) < 6 || len(behind) < 3 {
			continue
		}
		at := unescape(fields[4])
		if (path == at || at == "/" || strings.HasPrefix(path, at+"/")) && len(at) >= len(point) {
			point, kind, options = at, behind[0], fields[5]+","+behind[2]
		}
	}
	switch kind {
	case "nfs", "nfs4":
		return remembered(options, nfsTimeout, "acdirmax", "actimeo")
	case "cifs", "smb3":
		return remembered(options, smbTimeout, "acdirmax", "actimeo")
	}
	return 0
}

// remembered is the time of the options of a mount, in seconds.
func remembered(options string, otherwise time.Duration, names ...string) time.Duration {
	for option := range strings.SplitSeq(options, ",") {
		name, value, _ := strings.Cut(option, "=")
		if name == "noac" {
			return 0
		}
		for _, one := range names {
			if seconds, err := strconv.Atoi(value); name == one && err == nil {
				otherwise = time.Duration(seconds) * time.Second
			}
		}
	}
	return otherwise
}

// unescape reads the octal escapes of a mount point.
func unescape(text string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(text)
}
