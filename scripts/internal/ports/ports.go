// Package ports finds free loopback ports and says who has a taken one.
package ports

import (
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Free returns preferred when nothing listens there, and any free port
// otherwise. Another program may take it before it is used: who starts a server
// there tries again.
func Free(preferred int) (int, error) {
	if preferred != 0 && IsFree(preferred) {
		return preferred, nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("no free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// IsFree reports whether the loopback port can be listened on.
func IsFree(port int) bool {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}
	_ = l.Close()
	return true
}

// Taken describes who has a port: "taken by python3 (process 4711)". Programs of
// other users cannot be looked into; then it says only that the port is taken.
func Taken(port int) string {
	pid, name := owner(port)
	if pid == 0 {
		return "taken by another program"
	}
	return fmt.Sprintf("taken by %s (process %d)", name, pid)
}

// owner finds the process that listens on port, by the socket's inode.
func owner(port int) (pid int, name string) {
	inodes := map[string]bool{}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		for _, inode := range listeners(table, port) {
			inodes["socket:["+inode+"]"] = true
		}
	}
	if len(inodes) == 0 {
		return 0, ""
	}
	descriptors, _ := filepath.Glob("/proc/[0-9]*/fd/*") // the only error is a bad pattern
	for _, fd := range descriptors {
		if target, err := os.Readlink(fd); err != nil || !inodes[target] {
			continue
		}
		parts := strings.Split(fd, "/") // "", proc, PID, fd, N
		comm, err := os.ReadFile("/proc/" + parts[2] + "/comm")
		if err != nil {
			continue
		}
		if pid, err = strconv.Atoi(parts[2]); err == nil {
			return pid, strings.TrimSpace(string(comm))
		}
	}
	return 0, ""
}

// listeners returns the inodes of the sockets that listen on port.
func listeners(table string, port int) []string {
	b, err := os.ReadFile(table)
	if err != nil {
		return nil
	}
	var found []string
	for _, line := range strings.Split(string(b), "\n") {
		f := strings.Fields(line) // sl local_address rem_address st … inode
		if len(f) < 10 || f[3] != "0A" {
			continue
		}
		_, hexPort, _ := strings.Cut(f[1], ":")
		raw, err := hex.DecodeString(hexPort)
		if err == nil && len(raw) == 2 && int(raw[0])<<8|int(raw[1]) == port {
			found = append(found, f[9])
		}
	}
	return found
}
