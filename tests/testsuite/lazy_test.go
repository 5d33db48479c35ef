package testsuite

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// With LAPWING_SUITE_IMAGE ("registry/repository:tag") every chain of snapshots of a case begins with this image's layers, which the
// snapshotter mounts lazily: what a case prepares or views without a parent gets the uppermost of them for one, and is told of none.
// The case expects to find an empty directory, so the layers must leave nothing.
//
// LAPWING_SUITE_FILESYSTEM is the type of filesystem that they must be mounted as. {mirror} in the command stands for the address at
// which the node is to serve its mirror, and LAPWING_SUITE_END is run after it, with the same replacements.
const (
	imageVariable      = "LAPWING_SUITE_IMAGE"
	filesystemVariable = "LAPWING_SUITE_FILESYSTEM"
	endVariable        = "LAPWING_SUITE_END"
	claimTimeout       = 60 * time.Second
	targetLabel        = "containerd.io/snapshot.ref"
	maxAnswer          = 16 << 20
)

// onLazyLayers is a snapshotter whose snapshots without a parent have the last of layers.
type onLazyLayers struct {
	snapshots.Snapshotter
	layers []string
}

func (s *onLazyLayers) below(parent string) string {
	if parent == "" {
		return s.layers[len(s.layers)-1]
	}
	return parent
}

func (s *onLazyLayers) shown(info snapshots.Info) snapshots.Info {
	if slices.Contains(s.layers, info.Parent) {
		info.Parent = ""
	}
	return info
}

func (s *onLazyLayers) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.Snapshotter.Prepare(ctx, key, s.below(parent), opts...)
}

func (s *onLazyLayers) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.Snapshotter.View(ctx, key, s.below(parent), opts...)
}

func (s *onLazyLayers) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	info, err := s.Snapshotter.Stat(ctx, key)
	return s.shown(info), err
}

func (s *onLazyLayers) Update(ctx context.Context, info snapshots.Info, fields ...string) (snapshots.Info, error) {
	info, err := s.Snapshotter.Update(ctx, info, fields...)
	return s.shown(info), err
}

func (s *onLazyLayers) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	top := s.below("")
	asked := make([]string, len(filters))
	for i, filter := range filters {
		filter = strings.ReplaceAll(filter, `parent!=""`, fmt.Sprintf(`parent!="",parent!=%q`, top))
		asked[i] = strings.ReplaceAll(filter, `parent==""`, fmt.Sprintf(`parent==%q`, top))
	}
	return s.Snapshotter.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
		if slices.Contains(s.layers, info.Name) {
			return nil
		}
		return fn(ctx, s.shown(info))
	}, asked...)
}

// freeAddress is one of loopback at which nobody listens.
func freeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

// lay has the image's layers fetched through the mirror, as a client does, and claims them until they are lazy.
func lay(ctx context.Context, backend snapshots.Snapshotter, mirror, root string) (snapshots.Snapshotter, error) {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	if err := listens(ctx, mirror); err != nil {
		return nil, err
	}
	chain, err := fetch(ctx, mirror, os.Getenv(imageVariable))
	if err != nil {
		return nil, err
	}
	var layers []string
	for _, id := range chain {
		parent := ""
		if len(layers) > 0 {
			parent = layers[len(layers)-1]
		}
		name, err := claim(ctx, backend, id, parent)
		if err != nil {
			return nil, fmt.Errorf("layer with chain id %s: %w", id, err)
		}
		layers = append(layers, name)
	}
	return &onLazyLayers{backend, layers}, areMounted(root, len(layers))
}

// listens waits for the mirror, which a node starts after its snapshotter.
func listens(ctx context.Context, mirror string) error {
	for {
		connection, err := net.Dial("tcp", mirror)
		if err == nil {
			return connection.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("nobody listens at the mirror's address: %w", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func claim(ctx context.Context, backend snapshots.Snapshotter, id, parent string) (string, error) {
	target := snapshots.WithLabels(map[string]string{targetLabel: id})
	for attempt := 0; ; attempt++ {
		key := fmt.Sprintf("claim-%d", attempt)
		_, err := backend.Prepare(ctx, key, parent, target)
		if errdefs.IsAlreadyExists(err) {
			break
		}
		if err == nil {
			err = backend.Remove(ctx, key)
		}
		if err != nil {
			return "", err
		}
		select {
		case <-ctx.Done():
			return "", errors.New("it is not mounted lazily")
		case <-time.After(50 * time.Millisecond):
		}
	}
	var name string
	found := func(_ context.Context, info snapshots.Info) error {
		name = info.Name
		return nil
	}
	if err := backend.Walk(ctx, found, fmt.Sprintf("labels.%q==%s,parent==%q", targetLabel, id, parent)); err != nil {
		return "", err
	}
	if name == "" {
		return "", errors.New("what was claimed is not listed")
	}
	return name, nil
}

// areMounted says whether that many layers are mounted below root as what they have to be.
func areMounted(root string, layers int) error {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	found := 0
	for _, line := range strings.Split(string(table), "\n") {
		mount, filesystem, _ := strings.Cut(line, " - ")
		fields := strings.Fields(mount)
		isOurs := len(fields) > 4 && strings.HasPrefix(fields[4], root) && strings.Contains(fields[4], "/snapshots/")
		if isOurs && strings.HasPrefix(filesystem, os.Getenv(filesystemVariable)) {
			found++
		}
	}
	if found != layers {
		return fmt.Errorf("%d of %d layers are mounted as %s:\n%s", found, layers, os.Getenv(filesystemVariable), table)
	}
	return nil
}

// fetch has all of an image pass through the mirror, and gives its layers' chain ids (OCI image specification, "Layer ChainID").
func fetch(ctx context.Context, mirror, image string) ([]string, error) {
	registry, rest, _ := strings.Cut(image, "/")
	repository, tag, _ := strings.Cut(rest, ":")
	get := func(path string) ([]byte, error) {
		url := fmt.Sprintf("http://%s/v2/%s/%s?ns=%s", mirror, repository, path, registry)
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return nil, err
		}
		request.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json")
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			return nil, err
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
		if err == nil && answer.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s: %s", url, answer.Status, body)
		}
		return body, err
	}
	type descriptor struct{ Digest string }
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	body, err := get("manifests/" + tag)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(body, &manifest); err != nil {
		return nil, err
	}
	if body, err = get("blobs/" + manifest.Config.Digest); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(body, &config); err != nil {
		return nil, err
	}
	var chain []string
	for number, layer := range manifest.Layers {
		if _, err := get("blobs/" + layer.Digest); err != nil {
			return nil, err
		}
		id := config.RootFS.DiffIDs[number]
		if number > 0 {
			id = fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(chain[number-1]+" "+id)))
		}
		chain = append(chain, id)
	}
	return chain, nil
}
