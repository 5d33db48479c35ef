//! The tracker daemon: discovery for a cluster.

use std::sync::atomic::Ordering;

use anyhow::Context as _;
use lapwing_discovery::piccolo::{self, Piccolo};
use lapwing_discovery::server::{self, Keeping, Tracker};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin};
use crate::config::Config;
use crate::node::cannot_listen;

pub(crate) mod view;

/// Runs until `shutdown`.
pub(crate) async fn run(config: &Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut admin = Admin::default();
    let tracker = new(config)?;
    tracker.metrics().register(&mut admin.metrics);
    admin.api = admin.api.merge(view::routes(tracker.clone()));
    let serving = start(config, tracker.clone(), shutdown.clone()).await?;
    admin.ready.store(true, Ordering::Release);
    let listen = config.admin.listen;
    admin::bind(listen, admin, shutdown.cancelled_owned())
        .await
        .with_context(|| cannot_listen("admin.listen", listen))?;
    serving.await?
}

/// A tracker as configured, with its memory or what it shares.
pub(crate) fn new(config: &Config) -> anyhow::Result<Tracker> {
    let tracker = Tracker::with_policy(config.origin.policy());
    let store = lapwing_plugins::tracker_store::open(&config.tracker.store).context("configuration")?;
    Ok(match store {
        Some(store) => tracker.sharing(store, server::wall_clock()),
        None => tracker,
    })
}

/// Listens at `tracker.listen`, and for Piccolo's agents if asked to, and serves in a task of its own.
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
    let agents = match config.tracker.piccolo_listen() {
        Some(listen) => {
            let listener =
                TcpListener::bind(listen).await.with_context(|| cannot_listen("tracker.piccolo_listen", listen))?;
            Some((listener, Piccolo::new(tracker.clone())))
        }
        None => None,
    };
    Ok(tokio::spawn(async move {
        let stop = shutdown.clone().cancelled_owned();
        let nodes = async {
            let served = tokio::select! {
                served = server::serve(listener, tracker.clone(), stop) => served,
                () = keeping.keep(&tracker) => Ok(()),
            };
            keeping.write_aside(&tracker).await;
            served.context("the tracker's listener ended")
        };
        let agents = async {
            let Some((listener, piccolo)) = agents else { return Ok(()) };
            piccolo::serve(listener, piccolo, shutdown.cancelled_owned()).await.context("Piccolo's listener ended")
        };
        tokio::try_join!(nodes, agents).map(|_| ())
    }))
}
