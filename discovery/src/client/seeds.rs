//! Asking seeds: who they are, which is responsible for a blob, and who takes its place.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{
    Discovery as _, Holder, Holding, IndexStand, PreheatRequest, Preheated, SeedRefusal, SeedRequest,
};
use lapwing_p2p::identity::PeerId;
use lapwing_p2p::swarm::Priority;
use lapwing_p2p::tls::{Expected, Tls};
use tokio::time::{Instant, timeout};
use tonic::transport::{Channel, Endpoint};

use super::TrackerClient;
use super::answers;
use crate::limits::{
    CONNECT_TIMEOUT, FIND_HEDGE, MAX_SEED_REASON_BYTES, MAX_SEED_REPLY_BYTES, MAX_SEEDS_TRIED, SEED_DEADLINE,
    SEED_LISTING_AGE, SEED_SUSPICION,
};
use crate::proto;
use crate::seed::fetch_reply::{Accepted, Outcome, Reason};
use crate::seed::{FetchRequest, IndexState, Seed, SeedServiceClient, Urgency, order, shortened};
use crate::traced;
use crate::transport;

/// What is known of the seeds of this node's group.
#[derive(Default)]
pub(super) struct Seeds {
    listing: Mutex<Listing>,
    /// One asks the tracker, and the others make do with the last answer.
    refreshing: AtomicBool,
    channels: Mutex<HashMap<(SocketAddr, PeerId), SeedServiceClient<Channel>>>,
    /// Seeds that did not answer, and until when they are passed over.
    suspects: Mutex<HashMap<PeerId, Instant>>,
}

#[derive(Default)]
struct Listing {
    seeds: Vec<Seed>,
    at: Option<Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is a single step: nothing is left half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What came of asking one seed.
enum Asked {
    Takes(Accepted),
    /// No other seed would do it either.
    Refuses(String),
    /// Another may.
    Busy(String),
    /// It did not answer: another may, now and in a moment.
    Failed(String),
}

impl Seeds {
    fn suspect(&self, peer: PeerId) {
        let mut suspects = lock(&self.suspects);
        let now = Instant::now();
        suspects.retain(|_, until| *until > now);
        suspects.insert(peer, now + SEED_SUSPICION);
    }

    fn is_suspect(&self, peer: &PeerId) -> bool {
        lock(&self.suspects).get(peer).is_some_and(|until| *until > Instant::now())
    }

    fn client(&self, seed: &Seed, tls: Option<&Tls>) -> SeedServiceClient<Channel> {
        let address = seed.service();
        let mut channels = lock(&self.channels);
        let connect = || {
            // An address of the form that SocketAddr prints is always an authority.
            let endpoint = Endpoint::from_shared(format!("http://{address}"));
            let endpoint = endpoint.unwrap_or_else(|_| Endpoint::from_static("http://0.0.0.0:0"));
            let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
            let channel = transport::channel(&endpoint, tls, Expected::Peer(seed.peer));
            SeedServiceClient::new(channel).max_decoding_message_size(MAX_SEED_REPLY_BYTES)
        };
        channels.entry((address, seed.peer)).or_insert_with(connect).clone()
    }

    fn listed(&self, seeds: Vec<Seed>) {
        let there: Vec<(SocketAddr, PeerId)> = seeds.iter().map(|seed| (seed.service(), seed.peer)).collect();
        lock(&self.channels).retain(|seed, _| there.contains(seed));
        *lock(&self.listing) = Listing { seeds, at: Some(Instant::now()) };
    }

    async fn ask(&self, seed: &Seed, message: FetchRequest, tls: Option<&Tls>) -> Asked {
        let mut client = self.client(seed, tls);
        let outcome = match timeout(SEED_DEADLINE, client.fetch(traced::call(message))).await {
            Ok(Ok(reply)) => reply.into_inner().outcome,
            Ok(Err(status)) if status.code() == tonic::Code::InvalidArgument => {
                return Asked::Refuses(status.message().to_owned());
            }
            Ok(Err(status)) => return Asked::Failed(status.to_string()),
            Err(_) => return Asked::Failed(format!("no answer within {SEED_DEADLINE:?}")),
        };
        match outcome {
            Some(Outcome::Accepted(accepted)) => Asked::Takes(accepted),
            Some(Outcome::Refused(refused)) => {
                let is_busy = refused.reason() == Reason::Busy;
                let text = shortened(refused.text, MAX_SEED_REASON_BYTES);
                if is_busy { Asked::Busy(text) } else { Asked::Refuses(text) }
            }
            None => Asked::Failed("an empty answer".to_owned()),
        }
    }
}

impl TrackerClient {
    /// The seeds that live, as the tracker said last.
    async fn live_seeds(&self) -> Vec<Seed> {
        let seeds = &self.seeds;
        let (known, fresh) = {
            let listing = lock(&seeds.listing);
            let fresh = listing.at.is_some_and(|at| at.elapsed() < SEED_LISTING_AGE);
            (listing.at.map(|_| listing.seeds.clone()), fresh)
        };
        if let Some(known) = &known
            && (fresh || seeds.refreshing.swap(true, Ordering::AcqRel))
        {
            return known.clone();
        }
        let ask = |link: Arc<super::Link>| {
            let request = proto::SeedsRequest { caller: Some(self.shared.caller.clone()) };
            async move { link.client().seeds(request).await }
        };
        let observe = Arc::new(|link: Arc<super::Link>, reply: proto::SeedsReply| {
            link.observe(reply.registration, reply.pause_ms);
        });
        let links = self.shared.links().all().to_vec();
        let reply = self.shared.ask(links, FIND_HEDGE, ask, observe).await;
        seeds.refreshing.store(false, Ordering::Release);
        match reply {
            Ok((link, reply)) => {
                link.observe(reply.registration, reply.pause_ms);
                let found = answers::seeds(&reply, self.shared.config.node, link.is_local);
                seeds.listed(found.clone());
                found
            }
            // A tracker that is down, or too old to know of seeds: those that lived may still.
            Err(error) => {
                tracing::debug!(%error, "no listing of seeds");
                seeds.listed(known.clone().unwrap_or_default());
                known.unwrap_or_default()
            }
        }
    }

    /// Asks the responsible seed, and others in its place, to fetch a blob.
    pub(super) async fn have_seed_fetch(&self, request: &SeedRequest) -> Option<Holder> {
        if self.shared.config.seed_port != 0 {
            return None;
        }
        if let Some(failed) = request.failed {
            self.seeds.suspect(failed);
            // What it had leased is free the sooner.
            if let Err(error) = self.report(failed).await {
                tracing::debug!(peer = %failed, %error, "a seed that is gone cannot be reported");
            }
        }
        let SeedRequest { digest, length, locator, urgency, .. } = request;
        let urgency = if *urgency == Priority::Background { Urgency::Background } else { Urgency::WaitedFor };
        let message = FetchRequest {
            digest: digest.as_bytes().to_vec(),
            length: *length,
            registry: locator.namespace.clone(),
            repository: locator.repository.clone(),
            urgency: urgency.into(),
            index: false,
            follows: false,
        };
        match self.find_seed(*digest, &message).await {
            Ok((seed, accepted)) => {
                let holding = if accepted.complete { Holding::Complete } else { Holding::Partial };
                Some(Holder { seed: true, ..Holder::new(seed.peer, seed.piece_wire(), holding) })
            }
            Err(refusal) => {
                tracing::debug!(%digest, %refusal, "no seed takes a blob");
                None
            }
        }
    }

    /// Asks the responsible seed, and others in its place, to have a blob before anybody wants it.
    pub(super) async fn have_seed_preheat(&self, request: &PreheatRequest) -> Result<Preheated, SeedRefusal> {
        if self.shared.config.seed_port != 0 {
            return Err(SeedRefusal::Nobody("a seed asks no other".to_owned()));
        }
        let message = FetchRequest {
            digest: request.digest.as_bytes().to_vec(),
            length: request.length,
            registry: request.locator.namespace.clone(),
            repository: request.locator.repository.clone(),
            urgency: Urgency::WaitedFor.into(),
            index: request.index,
            follows: true,
        };
        let (seed, accepted) = self.find_seed(request.digest, &message).await?;
        let index = match accepted.index() {
            IndexState::Unspecified => IndexStand::NotAsked,
            IndexState::Building => IndexStand::Building,
            IndexState::There => IndexStand::There,
            IndexState::None => IndexStand::Impossible(shortened(accepted.index_error.clone(), MAX_SEED_REASON_BYTES)),
        };
        let have = if accepted.complete { request.length } else { accepted.have.min(request.length) };
        Ok(Preheated { peer: seed.peer, complete: accepted.complete, have, index })
    }

    /// The seed that takes a blob on, and what it says.
    async fn find_seed(&self, digest: Digest, message: &FetchRequest) -> Result<(Seed, Accepted), SeedRefusal> {
        let live = self.live_seeds().await;
        let candidates = order(&digest, &live).into_iter().filter(|seed| !self.seeds.is_suspect(&seed.peer));
        let mut refusal = SeedRefusal::Nobody("none is known".to_owned());
        for seed in candidates.take(MAX_SEEDS_TRIED) {
            let peer = seed.peer;
            match self.seeds.ask(&seed, message.clone(), self.shared.config.tls.as_ref()).await {
                Asked::Takes(accepted) => return Ok((seed, accepted)),
                Asked::Refuses(reason) => {
                    tracing::debug!(%digest, %peer, reason, "seed refuses a blob");
                    return Err(SeedRefusal::Refused(reason));
                }
                Asked::Busy(reason) => {
                    tracing::debug!(%digest, %peer, reason, "seed is busy: another is asked");
                    refusal = SeedRefusal::Busy(reason);
                }
                Asked::Failed(reason) => {
                    tracing::info!(%digest, %peer, reason, "seed does not take a blob: another is asked");
                    self.seeds.suspect(peer);
                    if !matches!(refusal, SeedRefusal::Busy(_)) {
                        refusal = SeedRefusal::Nobody(reason);
                    }
                }
            }
        }
        Err(refusal)
    }
}
