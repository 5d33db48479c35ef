//! Leases from several trackers: asked of the owners of a blob in their order, and ended where they were granted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{DiscoveryError, LeaseReply, LeaseRequest, Settlement};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::asking::Spare;
use super::link::Link;
use super::{Shared, TrackerClient, answers, lock};
use crate::limits::{LEASE_HEDGE, MAX_REMEMBERED_LEASES};
use crate::proto::lease_reply::Outcome;
use crate::{proto, traced, wire};

/// Which tracker granted which lease. What is forgotten is settled with all trackers.
#[derive(Default)]
pub(super) struct Granted(HashMap<u64, (Arc<Link>, Instant)>);

impl Granted {
    fn note(&mut self, now: Instant, lease: u64, term: Duration, link: Arc<Link>) {
        if self.0.len() >= MAX_REMEMBERED_LEASES {
            self.0.retain(|_, (_, until)| *until > now);
        }
        if self.0.len() < MAX_REMEMBERED_LEASES {
            self.0.insert(lease, (link, now + 2 * term));
        }
    }

    fn take(&mut self, lease: u64) -> Option<Arc<Link>> {
        self.0.remove(&lease).map(|(link, _)| link)
    }
}

impl TrackerClient {
    pub(super) async fn ask_lease(&self, request: LeaseRequest) -> Result<LeaseReply, DiscoveryError> {
        let ask = |link: Arc<Link>| {
            let message = traced::call(wire::lease::request_message(self.shared.caller.clone(), &request));
            async move { link.client().lease(message).await }
        };
        let order = self.shared.links().order(&request.digest);
        let spare = give_back(Arc::clone(&self.shared), request.digest);
        let (link, reply) = self.shared.ask(order, LEASE_HEDGE, ask, Arc::clone(&spare)).await?;
        link.observe(reply.registration, reply.pause_ms);
        let Some(leased) = answers::leased(&reply, &request) else {
            let reason = format!("its answer to a lease of {} is none to what was asked", request.digest);
            return Err(DiscoveryError::Refused { tracker: link.tracker.clone(), reason });
        };
        if let LeaseReply::Granted(lease) = &leased {
            lock(&self.shared.granted).note(Instant::now(), lease.id, lease.term, link);
        }
        Ok(leased)
    }

    pub(super) async fn end_lease(&self, settlement: Settlement) -> Result<(), DiscoveryError> {
        let granted = lock(&self.shared.granted).take(settlement.lease);
        if let Some(link) = granted {
            return self.shared.settle_at(&link, &settlement).await;
        }
        let tell = move |link: Arc<Link>| {
            let request = wire::lease::settlement_message(self.shared.caller.clone(), &settlement);
            async move { Ok(link.client().settle(request).await?.map(|reply| (reply.registration, reply.pause_ms))) }
        };
        self.shared.tell(tell).await
    }
}

impl Shared {
    async fn settle_at(&self, link: &Link, settlement: &Settlement) -> Result<(), DiscoveryError> {
        link.check_open()?;
        let request = wire::lease::settlement_message(self.caller.clone(), settlement);
        let reply = link.call(self.config.deadline, async { link.client().settle(request).await }).await?;
        link.observe(reply.registration, reply.pause_ms);
        Ok(())
    }
}

/// Ends a lease that was granted when nobody waited for it any more: its pieces are free again.
fn give_back(shared: Arc<Shared>, digest: Digest) -> Spare<proto::LeaseReply> {
    Arc::new(move |link, reply| {
        link.observe(reply.registration, reply.pause_ms);
        let Some(Outcome::Grant(grant)) = reply.outcome else { return };
        // Without a runtime the process is about to end, and the lease with its term.
        let Ok(runtime) = Handle::try_current() else { return };
        let shared = Arc::clone(&shared);
        runtime.spawn(async move {
            tracing::debug!(%digest, tracker = link.tracker, "a lease is given back: another tracker granted one before");
            if let Err(error) = shared.settle_at(&link, &Settlement::new(grant.lease, digest, 0)).await {
                tracing::debug!(%digest, %error, "a lease cannot be given back");
            }
        });
    })
}
