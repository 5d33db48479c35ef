//! The tracker daemon: discovery for a cluster.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use lapwing_discovery::piccolo::{self, Piccolo};
use lapwing_discovery::server::{self, Access, Keeping, Tracker};
use lapwing_p2p::membership::Role;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin};
use crate::config::Config;
use crate::dashboard::{self, Dashboard};
use crate::limits::{HEAD_TIMEOUT, MAX_AGENT_CONNECTIONS};
use crate::listening::{self, Bounds};
use crate::membership::Membership;
use crate::node::{cannot_listen, prepare_root};
use crate::traces::{Recorder, Traces};

pub(crate) mod view;

/// How long answers to Piccolo's agents may go on after the shutdown began.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Runs until `shutdown`.
pub(crate) async fn run(config: &Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut admin = Admin::default();
    let tracker = new(config)?;
    tracker.metrics().register(&mut admin.metrics);
    admin.api = admin.api.merge(view::routes(tracker.clone()));
    let shown = Dashboard::new("tracker", vec![dashboard_part(tracker.clone())]);
    admin.api = admin.api.merge(dashboard::routes(shown));
    if config.identity.has_authority() {
        prepare_root(&config.root)?;
    }
    let membership = Membership::open(config, &[Role::Tracker], admin.lapwing()).await?;
    membership.warn(config);
    let recorder = Recorder { role: "tracker", peer: None, config };
    let traces = Traces::start(&recorder, admin.lapwing())?;
    let serving = start(config, tracker.clone(), &membership, shutdown.clone()).await?;
    admin.ready.store(true, Ordering::Release);
    let listen = config.admin.listen;
    admin::bind(listen, admin, shutdown.cancelled_owned())
        .await
        .with_context(|| cannot_listen("admin.listen", listen))?;
    let served = serving.await?;
    Traces::finish(traces).await;
    served
}

/// What the dashboard shows of it.
pub(crate) fn dashboard_part(tracker: Tracker) -> (&'static str, dashboard::Part) {
    ("tracker", Box::new(move || dashboard::tracker::state(&tracker)))
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
    membership: &Membership,
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
    let access = Access { tls: membership.calls()?, authority: membership.authority() };
    Ok(tokio::spawn(async move {
        let stop = shutdown.clone().cancelled_owned();
        let nodes = async {
            let served = tokio::select! {
                served = server::serve_members(listener, tracker.clone(), access, stop) => served,
                () = keeping.keep(&tracker) => Ok(()),
            };
            keeping.write_aside(&tracker).await;
            served.context("the tracker's listener ended")
        };
        let agents = async {
            let Some((listener, piccolo)) = agents else { return Ok(()) };
            let bounds = Bounds {
                connections: MAX_AGENT_CONNECTIONS,
                head: HEAD_TIMEOUT,
                last: LAST_ANSWERS,
                is_patient: false,
            };
            let router = piccolo::router(piccolo.clone());
            tokio::select! {
                () = listening::serve(listener, router, bounds, shutdown.cancelled_owned()) => Ok(()),
                () = piccolo::keep_time(piccolo) => Ok(()),
            }
        };
        tokio::try_join!(nodes, agents).map(|_| ())
    }))
}
