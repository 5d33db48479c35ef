//! Questions to discovery, and the metainfo that its answers lead to.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::timeout;

use super::Node;
use super::blob::{Blob, lock};
use crate::digest::Digest;
use crate::discovery::{DiscoveryError, Found, Holder, LeaseReply, LeaseRequest, SeedRequest, StatementKind, Vote};
use crate::identity::PeerId;
use crate::limits::MAX_METAINFO_LENGTH;
use crate::swarm::{Event, FoundPeers, Priority};
use crate::timeline::Track;
use crate::trace::{Span, SpanKind};
use crate::verify::Metainfo;

/// Discovery promises to answer within seconds; after that it counts as silent.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause after discovery refused a lease.
const REFUSED_PAUSE: Duration = Duration::from_secs(2);
/// How long pieces are not asked for while the metainfo is, if lessees could vouch for some of them.
const METAINFO_FIRST: Duration = Duration::from_secs(2);
/// How long the metainfo may take to come.
const METAINFO_PATIENCE: Duration = Duration::from_secs(10);
/// Different metainfo tried of what votes name.
const MAX_CANDIDATES: usize = 3;

/// Metainfo that somebody states.
struct Candidate {
    object: Digest,
    length: u64,
    /// Whether enough nodes agree on it.
    firm: bool,
}

/// Somebody named those peers.
const fn named(digest: Digest, peers: FoundPeers, by_peer: bool) -> Event {
    if by_peer { Event::Told { digest, told: peers } } else { Event::Found { digest, found: Some(peers) } }
}

/// What a span says of the answer to a request for a lease.
fn tell_lease(step: &mut Span, reply: Option<&LeaseReply>) {
    let outcome = match reply {
        Some(LeaseReply::Granted(lease)) => {
            step.count("lapwing.pieces", lease.count.into());
            "granted"
        }
        Some(LeaseReply::Wait(_)) => "wait",
        Some(LeaseReply::Exhausted) => "exhausted",
        None => return step.fail("no answer"),
    };
    step.set("lapwing.outcome", outcome);
}

impl Node {
    pub(super) async fn find(self: Arc<Self>, blob: Arc<Blob>) {
        let digest = blob.digest;
        let asking = blob.timeline().span(Track::Find);
        let mut step = blob.step("tracker.find", SpanKind::Client);
        let found = step.around(timeout(PATIENCE, self.discovery.find(digest))).await;
        match &found {
            Ok(Ok(found)) => step.count("lapwing.holders", found.holders.len() as u64),
            _ => step.fail("no answer"),
        }
        drop((asking, step));
        let found = match found {
            Ok(Ok(found)) => found,
            Ok(Err(error @ DiscoveryError::Refused { .. })) => {
                // It lives, and refuses all nodes alike: that is no reason for all of them to ask the origin.
                tracing::debug!(%digest, %error, "discovery names nobody");
                Found::default()
            }
            Ok(Err(error)) => {
                tracing::debug!(%digest, %error, "discovery does not answer");
                return self.find_without_discovery(digest);
            }
            Err(_) => return self.find_without_discovery(digest),
        };
        self.take_up(blob, found, false).await;
    }

    /// The scheduler goes on as if nobody had it; what peers know comes on top.
    fn find_without_discovery(self: &Arc<Self>, digest: Digest) {
        self.drive(Event::Found { digest, found: None });
        self.ask_peers(digest);
    }

    /// Uses what discovery, or a peer in its place, says.
    pub(super) async fn take_up(self: Arc<Self>, blob: Arc<Blob>, found: Found, told_by_peer: bool) {
        let digest = blob.digest;
        blob.timeline().place(&found.holders);
        let (news, needs_no_word) = {
            let mut trust = lock(&blob.trust);
            self.agreed(&found, digest).for_each(|object| trust.confirm(&object));
            (trust.add_lessees(&found.lessees), trust.needs_no_word())
        };
        let candidates = if needs_no_word { Vec::new() } else { self.candidates(&blob, &found) };
        let loads = !candidates.is_empty() && !blob.loading_metainfo.swap(true, Ordering::AcqRel);
        let can_verify = lock(&blob.trust).can_verify();
        let peers = FoundPeers {
            holders: found.holders.clone(),
            // With discovery at hand who may vouch for a piece is known when the piece has come; a peer names nobody who may.
            // Who has proven the blob sends pieces that only metainfo can judge: who begins gets that first.
            verifiable: match told_by_peer {
                true => can_verify,
                false => candidates.is_empty() || (can_verify && blob.stored.have().count() > 0),
            },
            metainfo_pending: !candidates.is_empty(),
        };
        self.drive(named(digest, peers, told_by_peer));
        if news {
            self.judge_aside(&blob).await;
        }
        if loads {
            let loading = self.load_metainfo(&blob, candidates, &found.holders, told_by_peer);
            tokio::pin!(loading);
            if timeout(METAINFO_FIRST, &mut loading).await.is_err() {
                if lock(&blob.trust).can_verify() {
                    self.tell_verifiable(&blob);
                }
                loading.await;
            }
            blob.loading_metainfo.store(false, Ordering::Release);
        }
    }

    /// Takes up metainfo that others have made, if discovery knows of any.
    pub(super) async fn find_metainfo(self: &Arc<Self>, blob: &Arc<Blob>) {
        let Ok(Ok(found)) = timeout(PATIENCE, self.discovery.find(blob.digest)).await else { return };
        let candidates = self.candidates(blob, &found);
        if !candidates.is_empty() && !blob.loading_metainfo.swap(true, Ordering::AcqRel) {
            self.load_metainfo(blob, candidates, &found.holders, false).await;
            blob.loading_metainfo.store(false, Ordering::Release);
        }
    }

    /// Fetches the metainfo through the swarm, as any blob, and checks that it speaks of this one.
    async fn load_metainfo(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        candidates: Vec<Candidate>,
        holders: &[Holder],
        told_by_peer: bool,
    ) {
        let digest = blob.digest;
        let _loading = blob.timeline().span(Track::Metainfo);
        for Candidate { object, length, firm } in candidates {
            let Ok(encoded) = self.open(object, length, None) else { continue };
            let _followed = encoded.follow(blob.followed().map(|followed| followed.context()));
            // Who has the blob has its metainfo: no need to ask discovery first.
            let peers = FoundPeers { holders: holders.to_vec(), verifiable: true, metainfo_pending: false };
            self.drive(named(object, peers, told_by_peer));
            let read = timeout(METAINFO_PATIENCE, encoded.read(0..length, Priority::Fault)).await;
            let Ok(Ok(bytes)) = read else {
                tracing::debug!(%digest, %object, "metainfo does not come");
                continue;
            };
            let accepted = match Metainfo::decode(&bytes) {
                Ok(metainfo) => lock(&blob.trust).set_metainfo(metainfo, firm),
                Err(_) => false,
            };
            if accepted {
                break;
            }
            tracing::warn!(%digest, %object, "what is stated to be the metainfo of this blob is not");
        }
        self.tell_verifiable(blob);
        self.judge_aside(blob).await;
    }

    pub(super) fn tell_verifiable(self: &Arc<Self>, blob: &Blob) {
        // In a statement of its own: `trust` must be free again before the node's lock is taken.
        let verifiable = lock(&blob.trust).can_verify();
        self.drive(Event::Verifiable { digest: blob.digest, verifiable });
    }

    /// Lets a seed fetch the blob, if its origin is one that seeds can have, too.
    pub(super) async fn ask_seed(self: Arc<Self>, blob: Arc<Blob>, urgency: Priority, failed: Option<PeerId>) {
        let digest = blob.digest;
        let asking = blob.timeline().span(Track::Find);
        let locator = lock(&blob.origins).current().and_then(|origin| origin.locator());
        let seed = match locator {
            Some(locator) => {
                let request = SeedRequest { digest, length: blob.layout.length(), locator, urgency, failed };
                let step = blob.step("seed.ask", SpanKind::Client);
                step.around(timeout(PATIENCE, self.discovery.ask_seed(request))).await.unwrap_or(Ok(None))
            }
            None => Ok(None),
        };
        let seed = seed.unwrap_or_else(|error| {
            tracing::debug!(%digest, %error, "no seed can be asked");
            None
        });
        drop(asking);
        if let Some(seed) = &seed {
            blob.timeline().place(&[Holder { seed: true, ..*seed }]);
            tracing::debug!(%digest, peer = %seed.peer, "a seed fetches the blob");
            lock(&blob.trust).add_lessees(&[seed.peer]);
        }
        self.drive(Event::SeedAnswered { digest, seed });
        self.judge_aside(&blob).await;
    }

    pub(super) async fn ask_lease(self: Arc<Self>, mut request: LeaseRequest) {
        let digest = request.digest;
        let blob = self.open_blob(&digest);
        let timeline = blob.as_ref().map(|blob| blob.timeline());
        let asking = timeline.as_ref().map(|timeline| timeline.span(Track::Lease));
        let mut step = blob.as_ref().map_or(Span::NONE, |blob| blob.step("tracker.lease", SpanKind::Client));
        let origin = blob.and_then(|blob| lock(&blob.origins).current());
        request.site = origin.map(|origin| origin.site()).unwrap_or_default();
        let reply = match step.around(timeout(PATIENCE, self.discovery.lease(request))).await {
            Ok(Ok(reply)) => Some(reply),
            Ok(Err(error @ DiscoveryError::Refused { .. })) => {
                tracing::debug!(%digest, %error, "discovery refuses to lease");
                Some(LeaseReply::Wait(REFUSED_PAUSE))
            }
            Ok(Err(error)) => {
                tracing::debug!(%digest, %error, "discovery gives no lease");
                None
            }
            Err(_) => None,
        };
        tell_lease(&mut step, reply.as_ref());
        drop((asking, step));
        if let (Some(timeline), Some(LeaseReply::Wait(pause))) = (&timeline, &reply) {
            timeline.pause(*pause);
        }
        if let Some(LeaseReply::Granted(lease)) = &reply {
            tracing::debug!(%digest, first = lease.first.0, count = lease.count, "lease granted");
        }
        self.drive(Event::Leased { digest, reply });
    }
}

impl Node {
    /// The metainfo that votes name, most votes first.
    fn candidates(&self, blob: &Blob, found: &Found) -> Vec<Candidate> {
        let trust = lock(&blob.trust);
        let usable = found.votes.iter().filter(|vote| {
            let stated = &vote.statement;
            stated.kind == StatementKind::Metainfo
                && stated.subject == blob.digest
                && stated.length <= MAX_METAINFO_LENGTH as u64
                && stated.object != blob.digest
                && !trust.is_refuted(&stated.object)
        });
        let candidate = |vote: &Vote| Candidate {
            object: vote.statement.object,
            length: vote.statement.length,
            firm: self.is_firm(vote),
        };
        usable.map(candidate).take(MAX_CANDIDATES).collect()
    }

    /// Metainfo of `subject` that enough nodes agree on.
    fn agreed(&self, found: &Found, subject: Digest) -> impl Iterator<Item = Digest> {
        let metainfo =
            move |vote: &&Vote| vote.statement.kind == StatementKind::Metainfo && vote.statement.subject == subject;
        found.votes.iter().filter(metainfo).filter(|vote| self.is_firm(vote)).map(|vote| vote.statement.object)
    }

    const fn is_firm(&self, vote: &Vote) -> bool {
        vote.nodes >= self.config.metainfo_quorum
    }
}
