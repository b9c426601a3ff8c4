package localpg

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// account is the OS user the server runs as: nil for the current one.
// PostgreSQL refuses to run as root, so root hands its servers to the user
// `postgres` that the distribution's package makes.
func account() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("localpg: PostgreSQL does not run as root and there is no OS user postgres to run it as: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("localpg: the OS user postgres has the uid %q: %w", u.Uid, err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("localpg: the OS user postgres has the gid %q: %w", u.Gid, err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// CanServe says why a server could not keep its data in dir (which need not exist
// yet): as root, every folder above it must let the user postgres through.
func CanServe(dir string) error {
	cred, err := account()
	if err != nil || cred == nil {
		return err
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	for p := filepath.Dir(abs); ; p = filepath.Dir(p) {
		if info, err := os.Stat(p); err == nil && !mayEnter(info, cred) {
			return fmt.Errorf("localpg: the folder %s does not let the OS user postgres through (mode %v); servers started by root run as that user: choose another folder", p, info.Mode().Perm())
		}
		if p == filepath.Dir(p) {
			return nil
		}
	}
}

func mayEnter(info os.FileInfo, cred *syscall.Credential) bool {
	mode := info.Mode().Perm()
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		if st.Uid == cred.Uid {
			return mode&0o100 != 0
		}
		if st.Gid == cred.Gid {
			return mode&0o010 != 0
		}
	}
	return mode&0o001 != 0
}
