//! Discovery for a node without trackers: there is nobody else.

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{self, BoxFuture};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{
    Discovery, DiscoveryError, Found, Holding, Lease, LeaseReply, LeaseRequest, Settlement, Statement,
};
use lapwing_p2p::layout::PieceIndex;

/// Pieces granted at once: enough that a lease is one long transfer.
const RUN: u32 = 64;
const TERM: Duration = Duration::from_secs(600);

/// Finds nobody and grants every lease.
pub(super) struct Solitary;

impl Discovery for Solitary {
    fn find(&self, _: Digest) -> BoxFuture<'_, Result<Found, DiscoveryError>> {
        future::ready(Ok(Found::default())).boxed()
    }

    fn announce(&self, _: Digest, _: Option<Holding>) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        future::ready(Ok(())).boxed()
    }

    fn state(&self, _: Statement) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        future::ready(Ok(())).boxed()
    }

    fn lease(&self, request: LeaseRequest) -> BoxFuture<'_, Result<LeaseReply, DiscoveryError>> {
        let run = request.urgent.first().or(request.missing.first());
        let reply = run.map_or(LeaseReply::Exhausted, |run| {
            LeaseReply::Granted(Lease::new(0, PieceIndex(run.start), (run.end - run.start).min(RUN), TERM))
        });
        future::ready(Ok(reply)).boxed()
    }

    fn leave(&self) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        future::ready(Ok(())).boxed()
    }

    fn settle(&self, _: Settlement) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        future::ready(Ok(())).boxed()
    }
}
