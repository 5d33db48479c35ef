//! Roles that are nodes: who has the blob, and who pulls it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use lapwing_discovery::client::{ClientConfig, TrackerClient};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::StatementKind;
use lapwing_p2p::identity::Identity;
use lapwing_p2p::layout::{PieceIndex, PieceLayout};
use lapwing_p2p::metrics::Metrics;
use lapwing_p2p::node::{Node, NodeConfig, Security};
use lapwing_p2p::store::{ChunkStore, StoreConfig};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{Wire, cpu_of, say, wait_for_end};

/// The pieces of a blob that cannot be compressed.
fn pieces(layout: PieceLayout) -> impl Iterator<Item = (PieceIndex, Vec<u8>)> {
    let mut random = fastrand::Rng::with_seed(7);
    (0..layout.piece_count()).map(PieceIndex).map(move |piece| {
        let range = layout.range(piece);
        let mut bytes = vec![0; (range.end - range.start) as usize];
        random.fill(&mut bytes);
        (piece, bytes)
    })
}

/// Makes a store with one blob.
pub(crate) fn fill(root: &Path, length: u64) -> anyhow::Result<()> {
    std::fs::create_dir_all(root)?;
    let layout = PieceLayout::new(length)?;
    let mut hash = Sha256::new();
    pieces(layout).for_each(|(_, bytes)| hash.update(&bytes));
    let digest = Digest::from_bytes(hash.finalize().into());
    let store = ChunkStore::open(root, StoreConfig::default())?;
    let pin = store.open_pinned(&digest, length)?;
    for (piece, bytes) in pieces(layout) {
        pin.blob().write_piece(piece, &bytes)?;
    }
    pin.blob().verify()?;
    let hex = digest.to_string().replace("sha256:", "");
    let data = root.join("blobs/sha256").join(&hex[..2]).join(&hex).join("data");
    anyhow::ensure!(data.is_file(), "{} is not there", data.display());
    say(&json!({ "digest": digest.to_string(), "data": data }))
}

/// Gives a blob from as many nodes as there are directories `root/0`, `root/1` and so on.
pub(crate) fn seed(root: &Path, tracker: &str, wire: Wire, nodes: usize) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let mut seeds = Vec::new();
        for number in 0..nodes {
            let node = start(&root.join(number.to_string()), tracker, wire).await?;
            for blob in node.store().list() {
                let stored = node.store().get(&blob.digest).context("listed, but not there")?;
                if let Some(metainfo) = stored.metainfo() {
                    node.publish(StatementKind::Metainfo, blob.digest, metainfo.encode().into()).await?;
                }
            }
            seeds.push(node);
        }
        let first = seeds.first().context("no nodes")?;
        say(&json!({ "address": first.local_addr().to_string(), "peer": first.id().to_string() }))?;
        tokio::task::spawn_blocking(wait_for_end).await?
    })
}

/// Pulls a blob, whole and verified.
pub(crate) fn pull(root: &Path, tracker: &str, wire: Wire, digest: Digest, length: u64) -> anyhow::Result<()> {
    std::fs::create_dir_all(root)?;
    runtime()?.block_on(async {
        let node = start(root, tracker, wire).await?;
        let (started, cpu) = (Instant::now(), cpu_of(std::process::id())?);
        let blob = node.open(digest, length, None)?;
        blob.verified().await?;
        let (seconds, cpu) = (started.elapsed(), cpu_of(std::process::id())? - cpu);
        anyhow::ensure!(blob.sources().bytes_from_peers == length, "not all of it came from the peer");
        say(&json!({ "seconds": seconds.as_secs_f64(), "cpu_s": cpu.as_secs_f64() }))
    })
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

async fn start(root: &Path, tracker: &str, wire: Wire) -> anyhow::Result<Arc<Node>> {
    let store = ChunkStore::open(root, StoreConfig::default())?;
    let identity = Arc::new(Identity::generate()?);
    let port = free_port()?;
    let discovery = TrackerClient::new(ClientConfig {
        // Those who speak otherwise do not find each other.
        group: wire.name().to_owned(),
        piece_port: port,
        ..ClientConfig::new(vec![tracker.to_owned()], identity.id())
    })?;
    let mut config = NodeConfig::new(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), identity);
    config.security = if wire == Wire::Plaintext { Security::Plaintext } else { Security::Keys };
    Ok(Node::start(config, store, discovery, Arc::new(Metrics::default())).await?)
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
