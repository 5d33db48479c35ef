#!/usr/bin/env bash
# Prints docs/reference/formats.md: what the modules that read and write a format say of it.
set -euo pipefail
cd "$(dirname "$0")/../.."

# The comment at the head of a source file as Markdown: links to items of the code become their names, headings go one level down.
format() {
  echo
  echo "## $1"
  echo
  echo "\`$2\`"
  echo
  # shellcheck disable=SC2016 # Nothing of it is to be expanded.
  sed -n '/^\/\/!/!q; s/^\/\/! \{0,1\}//; p' "$2" |
    sed -E -e 's/\[(`[^]`]*`)\]\([^)]*\)/\1/g' -e 's/\[(`[^]`]*`)\]/\1/g' -e 's/\[([^]`]+)\]\([A-Za-z0-9_:]+\)/\1/g' -e '/^\[`?[^]]*`?\]: /d' -e 's/^(#+) /##\1 /'
}

cat <<'END'
# Formats

<!-- Written by contrib/setup/formats.sh from the comments of the code that reads and writes them; a test holds it against them. -->

What Lapwing writes to disks and wires, byte by byte. Everything carries a version; what a version does not know is refused, and made anew or asked for again: nothing of it is the only
copy of anything. gRPC between nodes and trackers: [`tracker.proto`](../../discovery/proto/lapwing/tracker/v1/tracker.proto).
END
format "Layer index" snapshotter/src/index.rs
format "Profile" snapshotter/src/profile.rs
format "Pieces, metainfo" p2p/src/verify.rs
format "Statements of pieces" p2p/src/statement.rs
format "Piece wire" p2p/src/wire.rs
format "Piece wire: handshake" p2p/src/wire/handshake.rs
format "Piece wire: who has a blob" p2p/src/wire/telling.rs
format "Certificates" p2p/src/membership.rs
format "Chunk store" p2p/src/store.rs
format "Chunk store: which pieces are here" p2p/src/store/bitmap.rs
format "Chunk store: what happened" p2p/src/store/journal.rs
format "What derives from a blob" p2p/src/node/derived/line.rs
format "Layers that are mounted lazily: their own files" snapshotter/src/lazy/cache.rs
format "Mounts that outlive the node" snapshotter/src/fuse/record.rs
format "Snapshots" snapshotter/src/graph.rs
format "Rights that others saw granted" src/rights.rs
format "Seeds: object storage" plugins/src/storage.rs
format "Seeds: what was asked for" src/seed/ledger.rs
format "Trackers: dump" discovery/src/registry/dump.rs
format "Trackers: a node in a shared store" discovery/src/store/record.rs
format "Trackers: Redis" plugins/src/tracker_store/redis.rs
format "Trackers: MySQL and MariaDB" plugins/src/tracker_store/mysql.rs
