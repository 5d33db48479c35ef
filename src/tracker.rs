//! The tracker daemon: discovery for a cluster.

use std::sync::atomic::Ordering;

use anyhow::Context as _;
use lapwing_discovery::server::{self, Keeping, Tracker};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin};
use crate::config::Config;
use crate::node::cannot_listen;

/// Runs until `shutdown`.
pub(crate) async fn run(config: &Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut admin = Admin::default();
    let tracker = Tracker::with_policy(config.origin.policy());
    tracker.metrics().register(&mut admin.metrics);
    let serving = start(config, tracker.clone(), shutdown.clone()).await?;
    admin.ready.store(true, Ordering::Release);
    let listen = config.admin.listen;
    admin::bind(listen, admin, shutdown.cancelled_owned())
        .await
        .with_context(|| cannot_listen("admin.listen", listen))?;
    serving.await?
}

/// Listens at `tracker.listen` and serves in a task of its own.
pub(crate) async fn start(
    config: &Config,
    tracker: Tracker,
    shutdown: CancellationToken,
) -> anyhow::Result<tokio::task::JoinHandle<anyhow::Result<()>>> {
    let keeping = Keeping::new(config.root.join("tracker/holders"));
    let (kept, empty) = (keeping.clone(), tracker.clone());
    tokio::task::spawn_blocking(move || kept.restore(&empty)).await?;
    let listen = config.tracker.listen;
    let listener = TcpListener::bind(listen).await.with_context(|| cannot_listen("tracker.listen", listen))?;
    Ok(tokio::spawn(async move {
        let served = tokio::select! {
            served = server::serve(listener, tracker.clone(), shutdown.cancelled_owned()) => served,
            () = keeping.keep(&tracker) => Ok(()),
        };
        keeping.write_aside(&tracker).await;
        served.context("the tracker's listener ended")
    }))
}
