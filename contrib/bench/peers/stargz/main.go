// Serves stargz-snapshotter's library to containerd, with the defaults that its command has.
//
//	stargz <directory> <socket> <registry that speaks plain HTTP>
package main

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/stargz-snapshotter/service"
	"github.com/containerd/stargz-snapshotter/service/resolver"
	"google.golang.org/grpc"
)

func serve(arguments []string) error {
	if len(arguments) != 3 {
		return fmt.Errorf("usage: stargz <directory> <socket> <registry>")
	}
	directory, socket, registry := arguments[0], arguments[1], arguments[2]
	mirror := resolver.MirrorConfig{Host: registry, Insecure: true}
	config := service.Config{ResolverConfig: service.ResolverConfig{
		Host: map[string]resolver.HostConfig{registry: {Mirrors: []resolver.MirrorConfig{mirror}}},
	}}
	snapshotter, err := service.NewStargzSnapshotterService(context.Background(), directory, &config)
	if err != nil {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	snapshots.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	return server.Serve(listener)
}

func main() {
	if err := serve(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "stargz:", err)
		os.Exit(1)
	}
}
