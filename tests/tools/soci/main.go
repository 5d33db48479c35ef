// Writes the zTOC of a layer by soci-snapshotter's own library, as `soci create` does for each layer of an image.
//
//	soci-ztoc <gzip|uncompressed> <span size> <layer> <output>
package main

import (
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/awslabs/soci-snapshotter/ztoc"
)

func write(arguments []string) error {
	if len(arguments) != 4 {
		return fmt.Errorf("usage: soci-ztoc <gzip|uncompressed> <span size> <layer> <output>")
	}
	span, err := strconv.ParseInt(arguments[1], 10, 64)
	if err != nil {
		return err
	}
	built, err := ztoc.NewBuilder("lapwing's tests").BuildZtoc(arguments[2], span, ztoc.WithCompression(arguments[0]))
	if err != nil {
		return err
	}
	bytes, _, err := ztoc.Marshal(built)
	if err != nil {
		return err
	}
	output, err := os.Create(arguments[3])
	if err != nil {
		return err
	}
	if _, err := io.Copy(output, bytes); err != nil {
		return err
	}
	return output.Close()
}

func main() {
	if err := write(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "soci-ztoc:", err)
		os.Exit(1)
	}
}
