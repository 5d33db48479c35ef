//! The snapshotter alone, without lazy mounts: an ordinary overlayfs snapshotter for containerd.
//!
//! ```text
//! plain-snapshotter --root /var/lib/plain --socket /run/plain.sock
//!
//! # /etc/containerd/config.toml
//! [proxy_plugins.plain]
//!   type = "snapshot"
//!   address = "/run/plain.sock"
//! ```

use std::path::PathBuf;

use lapwing_snapshotter::service::{SnapshotMetrics, Snapshotter, SnapshotterConfig, Socket};
use tokio::signal::unix::{SignalKind, signal};

fn arguments() -> Result<(PathBuf, PathBuf), String> {
    let (mut root, mut socket) = (None, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().map(PathBuf::from);
        match name.as_str() {
            "--root" => root = value,
            "--socket" => socket = value,
            other => return Err(format!("unknown argument {other:?}")),
        }
    }
    root.zip(socket).ok_or_else(|| "usage: plain-snapshotter --root DIRECTORY --socket PATH".to_owned())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (root, socket) = arguments()?;
    let snapshotter = Snapshotter::open(SnapshotterConfig::new(root), None, SnapshotMetrics::default())?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    Ok(Socket::bind(&socket)?.serve(snapshotter, None, shutdown).await?)
}
