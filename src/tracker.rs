//! The tracker daemon: discovery for a cluster.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use lapwing_discovery::server::{self, Tracker};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin};
use crate::config::Config;

/// Runs until `shutdown`.
pub(crate) async fn run(config: &Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut admin = Admin::default();
    let tracker = Tracker::new(&mut admin.metrics);
    let serving = start(config, &tracker, shutdown.clone()).await?;
    let state = Arc::clone(&tracker);
    admin.state = Some(Box::new(move || serde_json::to_value(state.snapshot()).unwrap_or_default()));
    admin.ready.store(true, Ordering::Release);
    let listen = config.admin.listen;
    admin::bind(listen, admin, shutdown.cancelled_owned())
        .await
        .with_context(|| format!("configuration key admin.listen: {listen} cannot be listened on"))?;
    serving.await?
}

/// Listens at `tracker.listen` and serves in a task of its own.
pub(crate) async fn start(
    config: &Config,
    tracker: &Arc<Tracker>,
    shutdown: CancellationToken,
) -> anyhow::Result<tokio::task::JoinHandle<anyhow::Result<()>>> {
    let listen = config.tracker.listen;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("configuration key tracker.listen: {listen} cannot be listened on"))?;
    tracing::info!(%listen, "tracker listens");
    let tracker = Arc::clone(tracker);
    Ok(tokio::spawn(async move {
        server::serve(listener, tracker, shutdown.cancelled_owned()).await.context("the tracker's listener ended")
    }))
}
