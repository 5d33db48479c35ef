#!/bin/sh
# Builds the images that tests and demo pull, or those that are named, once, into the cache outside the tree, and prints where they are.
set -eu
cd "$(dirname "$0")/../.."
exec cargo run --quiet --package lapwing-lab --bin lapwing-lab-images -- "$@"
