//! The seed daemon: a node without containers that fetches blobs from their registries when nodes ask for them.
//!
//! * `demand`: what it is asked for, and what it does about that
//! * `indexing`: indexes of the layers that it has
//! * `ledger`: what it has taken on, over restarts
//! * `keeping`: completed blobs in a storage besides the local disk
//!
//! It serves pieces over the piece wire as any node does, from the first one on, and keeps what it has: complete blobs
//! until `store.quota` or `store.free_floor` make it drop the least recently used, partial ones to go on with after a
//! restart. It has no mirror and no snapshotter, and asks no other seed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use lapwing_discovery::seed;
use lapwing_p2p::membership::Role as Member;
use lapwing_plugins::registry::Registries;
use lapwing_plugins::storage;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin};
use crate::config::Config;
use crate::dashboard::{self, Dashboard};
use crate::layers::build::Builder;
use crate::membership::Membership;
use crate::node::{self, Role, cannot_listen, pins, state::NodeState};
use crate::preheat::Preheat;
use crate::traces::{Recorder, Traces};

mod demand;
mod failures;
mod indexing;
mod keeping;
mod ledger;
mod metrics;

use demand::Demand;
use indexing::Indexing;
use keeping::Keeping;
use ledger::Ledger;
use metrics::SeedMetrics;

/// Runs until `shutdown`.
pub(crate) async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    anyhow::ensure!(
        !config.tracker.addresses.is_empty(),
        "configuration key tracker.addresses: nodes find a seed through a tracker; name at least one"
    );
    let root = node::prepare_root(&config.root)?;
    let mut admin = Admin::default();
    let address = config.seed.listen;
    let listener = TcpListener::bind(address).await.with_context(|| cannot_listen("seed.listen", address))?;
    let seed_port = listener.local_addr()?.port();
    let registries = Registries::new(config.registries.clone())?;
    let ledger = Ledger::open(&root.join("seed"))?;
    let metrics = SeedMetrics::register(admin.lapwing());
    let keeping = storage::open(&config.seed.storage)?.map(|storage| Keeping::new(storage, metrics.clone()));
    if let Some(keeping) = keeping.clone() {
        tokio::spawn(async move { keeping.greet().await });
    }
    let membership = Membership::open(&config, &[Member::Seed], admin.lapwing()).await?;
    let recorder = Recorder { role: "seed", peer: Some(membership.identity.id()), config: &config };
    let traces = Traces::start(&recorder, admin.lapwing())?;
    let calls = membership.calls()?;
    let node = node::start_swarm(&config, &membership, &mut admin, Role::Seed { port: seed_port }).await?;
    let builder = Arc::new(Builder::new(Arc::clone(&node), Box::new(|_, _| {})));
    let indexing = Indexing::new(builder, config.lazy.build_indexes);
    let (of, fetches) = (Arc::clone(&registries), config.seed.fetches);
    let demand = Demand::new(Arc::clone(&node), of, ledger, fetches, keeping, indexing, metrics);
    Preheat::start(Arc::clone(&demand) as _, &node, &registries, &config, &mut admin, &shutdown).await?;
    demand.resume();

    let mut serving = JoinSet::new();
    let stop = shutdown.clone();
    serving.spawn(async move { Ok(seed::serve(listener, demand, calls, stop.cancelled_owned()).await?) });
    let told = Arc::clone(&node);
    admin.state = Some(Box::new(move || serde_json::to_value(NodeState::blobs_of(&told)).unwrap_or_default()));
    admin.limited = Some(Arc::clone(&node));
    admin.api = admin.api.merge(pins::routes(Arc::clone(node.store())));
    let (shown, quota) = (Arc::clone(&node), config.store.quota.0);
    let part: dashboard::Part = Box::new(move || {
        dashboard::node::state(&shown, NodeState::blobs_of(&shown), None, (quota > 0).then_some(quota))
    });
    let shown = Dashboard::new("seed", vec![("node", part)]);
    admin.api = admin.api.merge(dashboard::routes(shown));
    let ready = Arc::clone(&admin.ready);
    let listen = config.admin.listen;
    admin::bind(listen, admin, shutdown.clone().cancelled_owned())
        .await
        .with_context(|| cannot_listen("admin.listen", listen))?;
    ready.store(true, Ordering::Release);
    tracing::info!(peer = %node.id(), service = %address, wire = %node.local_addr(), "seed is ready");

    node::served(serving, &shutdown).await?;
    node.shutdown().await;
    Traces::finish(traces).await;
    Ok(())
}
