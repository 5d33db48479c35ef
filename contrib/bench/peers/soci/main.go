// Serves soci-snapshotter's library to containerd, with its own configuration file.
//
//	soci <directory> <socket> <configuration>
package main

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/awslabs/soci-snapshotter/config"
	"github.com/awslabs/soci-snapshotter/service"
	"github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"google.golang.org/grpc"
)

func serve(arguments []string) error {
	if len(arguments) != 3 {
		return fmt.Errorf("usage: soci <directory> <socket> <configuration>")
	}
	settings, err := config.NewConfigFromToml(arguments[2])
	if err != nil {
		return err
	}
	snapshotter, err := service.NewSociSnapshotterService(context.Background(), arguments[0], &settings.ServiceConfig)
	if err != nil {
		return err
	}
	listener, err := net.Listen("unix", arguments[1])
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	snapshots.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	return server.Serve(listener)
}

func main() {
	if err := serve(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "soci:", err)
		os.Exit(1)
	}
}
