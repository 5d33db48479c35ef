// Serves soci-snapshotter's library to containerd, with its own configuration file.
//
//	soci <directory> <socket> <configuration>
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"github.com/awslabs/soci-snapshotter/config"
	"github.com/awslabs/soci-snapshotter/fs"
	"github.com/awslabs/soci-snapshotter/metadata"
	"github.com/awslabs/soci-snapshotter/service"
	"github.com/awslabs/soci-snapshotter/ztoc"
	"github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	bolt "go.etcd.io/bbolt"
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
	// Tables of contents are unpacked into one database, as by default.
	db, err := bolt.Open(filepath.Join(arguments[0], "metadata.db"), 0600, &bolt.Options{
		NoFreelistSync: true, InitialMmapSize: 64 << 20, FreelistType: bolt.FreelistMapType,
	})
	if err != nil {
		return err
	}
	store := func(reader *io.SectionReader, toc ztoc.TOC, options ...metadata.Option) (metadata.Reader, error) {
		return metadata.NewReader(db, reader, toc, options...)
	}
	snapshotter, err := service.NewSociSnapshotterService(context.Background(), arguments[0], &settings.ServiceConfig,
		service.WithFilesystemOptions(fs.WithMetadataStore(store)))
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
