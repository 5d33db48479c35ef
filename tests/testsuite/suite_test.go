// Package testsuite runs containerd's own conformance suite for snapshotters against a snapshotter behind a socket.
//
// LAPWING_SNAPSHOTTER_CMD is the command that serves it, split at blanks; {root} and {socket} stand for the directory
// and the socket of one case:
//
//	LAPWING_SNAPSHOTTER_CMD="plain-snapshotter --root {root} --socket {socket}" go test -v ./... -args -test.root
//
// Each case has a process of its own, started with a fresh root and stopped by its pid. Needs root, for the mounts.
package testsuite

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/pkg/testutil"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	commandVariable = "LAPWING_SNAPSHOTTER_CMD"
	startTimeout    = 20 * time.Second
	stopTimeout     = 20 * time.Second
	name            = "lapwing"
)

func requirements(t *testing.T) {
	testutil.RequiresRoot(t)
	if os.Getenv(commandVariable) == "" {
		t.Skipf("%s is not set", commandVariable)
	}
}

// start runs the snapshotter for one case and waits until it answers.
func start(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	socket := filepath.Join(root, "s.sock")
	mirror, err := freeAddress()
	if err != nil {
		return nil, nil, err
	}
	fill := strings.NewReplacer("{root}", filepath.Join(root, "state"), "{socket}", socket, "{mirror}", mirror)
	command := commandOf(commandVariable, fill)
	if err := command.Start(); err != nil {
		return nil, nil, err
	}
	exited := make(chan error, 1)
	go func() { exited <- command.Wait() }()
	stop := func() error {
		err := terminate(command, exited)
		if os.Getenv(endVariable) != "" {
			err = errors.Join(err, commandOf(endVariable, fill).Run())
		}
		return err
	}

	if err := answers(socket, exited); err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	end := func() error { return errors.Join(connection.Close(), stop()) }
	snapshotter := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connection), name)
	if os.Getenv(imageVariable) != "" {
		if snapshotter, err = lay(ctx, snapshotter, mirror, root); err != nil {
			return nil, nil, errors.Join(err, end())
		}
	}
	return snapshotter, end, nil
}

func commandOf(variable string, fill *strings.Replacer) *exec.Cmd {
	words := strings.Fields(os.Getenv(variable))
	for i := range words {
		words[i] = fill.Replace(words[i])
	}
	command := exec.Command(words[0], words[1:]...)
	command.Stdout, command.Stderr = os.Stderr, os.Stderr
	return command
}

func answers(socket string, exited <-chan error) error {
	deadline := time.After(startTimeout)
	for {
		connection, err := net.Dial("unix", socket)
		if err == nil {
			return connection.Close()
		}
		select {
		case status := <-exited:
			return fmt.Errorf("the snapshotter ended at its start: %w", status)
		case <-deadline:
			return fmt.Errorf("the snapshotter does not answer on %s: %w", socket, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func terminate(command *exec.Cmd, exited <-chan error) error {
	if err := command.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case err := <-exited:
		return err
	case <-time.After(stopTimeout):
		return errors.Join(fmt.Errorf("the snapshotter did not end on SIGTERM"), command.Process.Kill())
	}
}

// startBelowMetadata puts containerd's own metadata store above the snapshotter, as containerd itself does.
func startBelowMetadata(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	backend, stop, err := start(ctx, root)
	if err != nil {
		return nil, nil, err
	}
	db, err := bolt.Open(filepath.Join(root, "metadata.db"), 0o600, nil)
	if err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	store := metadata.NewDB(db, nil, map[string]snapshots.Snapshotter{name: backend})
	if err := store.Init(ctx); err != nil {
		return nil, nil, errors.Join(err, db.Close(), stop())
	}
	return store.Snapshotter(name), func() error { return errors.Join(db.Close(), stop()) }, nil
}

// The suite renames lower directories unless the name is that of a snapshotter known not to allow it; "overlayfs" is.

func TestSnapshotter(t *testing.T) {
	requirements(t)
	testsuite.SnapshotterSuite(t, "overlayfs", start)
}

func TestSnapshotterBelowMetadata(t *testing.T) {
	requirements(t)
	testsuite.SnapshotterSuite(t, "overlayfs", startBelowMetadata)
}
