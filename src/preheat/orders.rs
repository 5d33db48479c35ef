//! Orders: what jobs for all nodes, or some, give to the tracker, and what this node does about those of others.
//!
//! A node fetches what a member of its group ordered as if it had been told so by its own administrator (`preheat.accept`): only from registries
//! of its own list, with its own credentials, some blobs at a time, and says so to the trackers where it cannot.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Order, OrderRequest};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::jobs::{Event, JobId};
use super::limits::{MAX_ORDERS_AT_ONCE, MAX_ORDERS_WAITING, ORDER_PATIENCE};
use super::machine::Wish;
use super::{Preheat, To};
use crate::bench;

/// Shortest and longest pause before an order is repeated: well within the time that trackers keep it.
const REPEAT: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(5));

impl Preheat {
    /// Has the nodes that `to` means fetch a blob, and waits for them.
    /// `certain`: an index that is asked for must be known to others in the end; else only the nodes can tell whether the blob is a layer.
    pub(super) async fn by_nodes(
        &self,
        job: JobId,
        wish: &Wish,
        to: To,
        index: bool,
        certain: bool,
    ) -> Result<(), String> {
        let Wish { digest, length, .. } = *wish;
        let nodes = if let To::Nodes(nodes) = to { Some(nodes) } else { None };
        let order = Order { digest, length, locator: wish.locator(), index, trial: None };
        let request = OrderRequest { order, job: job.0, nodes, over: false };
        let (mut pause, mut moved) = (REPEAT.0, Instant::now());
        let mut before = (0, 0);
        loop {
            match self.node.discovery().order(request.clone()).await {
                Ok(stand) => {
                    let (targets, ended) = (stand.nodes, stand.complete + stand.failed);
                    if (stand.complete, stand.failed) != before {
                        before = (stand.complete, stand.failed);
                        moved = Instant::now();
                    }
                    let have = length / u64::from(targets.max(1)) * u64::from(stand.complete);
                    self.tell(Event::Progress { job, digest, length, have });
                    if targets == 0 && moved.elapsed() > super::PATIENCE {
                        return Err("the tracker knows no node of this group that could take it".to_owned());
                    }
                    if targets > 0 && ended >= targets {
                        if stand.failed > 0 {
                            return Err(format!(
                                "{} of {targets} nodes do not have it: {}",
                                stand.failed, stand.reason
                            ));
                        }
                        break;
                    }
                    if moved.elapsed() > ORDER_PATIENCE {
                        return Err(format!("{} of {targets} nodes have it, and no more for long", stand.complete));
                    }
                }
                Err(error) if moved.elapsed() > super::PATIENCE => return Err(error.to_string()),
                Err(error) => tracing::debug!(%digest, %error, "the tracker does not take an order now"),
            }
            sleep(pause).await;
            pause = (pause * 3 / 2).min(REPEAT.1);
        }
        if index && certain {
            self.tell(Event::Indexing { job, digest });
            self.index_known(digest).await?;
        }
        Ok(())
    }

    /// Carries out the orders of others until `shutdown`.
    pub(super) async fn obey(self: Arc<Self>, shutdown: CancellationToken) {
        let known: Arc<Mutex<HashSet<Digest>>> = Arc::default();
        let places = Arc::new(Semaphore::new(MAX_ORDERS_AT_ONCE));
        loop {
            let order = tokio::select! {
                () = shutdown.cancelled() => return,
                order = self.node.discovery().next_order() => order,
            };
            let digest = order.digest;
            {
                // Several trackers tell of the same.
                let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
                if known.len() >= MAX_ORDERS_WAITING || !known.insert(digest) {
                    continue;
                }
            }
            let (this, places, known) = (Arc::clone(&self), Arc::clone(&places), Arc::clone(&known));
            let work = async move {
                if let Some(trial) = order.trial {
                    let bring = async { this.machine.fetch(this.wish(&order)?).await };
                    bench::part::take_part(&this.node, &order, trial, &places, bring).await;
                    known.lock().unwrap_or_else(PoisonError::into_inner).remove(&digest);
                    return;
                }
                // The semaphore is never closed.
                let place = places.acquire().await;
                if let Err(reason) = this.follow(order).await {
                    tracing::warn!(%digest, reason, "an order to preheat is not carried out");
                    if let Err(error) = this.node.discovery().order_failed(digest, reason).await {
                        tracing::debug!(%digest, %error, "nobody was told that an order is not carried out");
                    }
                }
                drop(place);
                known.lock().unwrap_or_else(PoisonError::into_inner).remove(&digest);
            };
            let shutdown = shutdown.clone();
            tokio::spawn(async move { shutdown.run_until_cancelled_owned(work).await });
        }
    }

    /// Says to each order that it is not carried out here, so that nobody waits for this node.
    pub(super) async fn decline(self: Arc<Self>) {
        loop {
            let order = self.node.discovery().next_order().await;
            let digest = order.digest;
            let reason = "this node takes no orders (preheat.accept)".to_owned();
            if let Some(trial) = order.trial {
                bench::part::decline(&self.node, &order, trial, reason.clone()).await;
            }
            if let Err(error) = self.node.discovery().order_failed(digest, reason).await {
                tracing::debug!(%digest, %error, "nobody was told that this node takes no orders");
            }
        }
    }

    async fn follow(&self, order: Order) -> Result<(), String> {
        let wish = self.wish(&order)?;
        let Wish { digest, registry, repo, .. } = &wish;
        tracing::info!(%digest, %registry, %repo, "preheating what the group ordered");
        self.machine.fetch(wish.clone()).await?;
        if order.index {
            self.machine.index(wish).await?;
        }
        Ok(())
    }

    /// An order, if it is one that this node may carry out.
    fn wish(&self, order: &Order) -> Result<Wish, String> {
        let Order { digest, length, locator, .. } = order;
        let registry = locator.namespace.parse().map_err(|error| format!("{error}"))?;
        if !self.registries.is_listed(&registry) {
            return Err(super::Refused::NotListed(registry).to_string());
        }
        let repo = locator.repository.parse().map_err(|error| format!("{error}"))?;
        Ok(Wish { registry, repo, digest: *digest, length: *length })
    }
}
