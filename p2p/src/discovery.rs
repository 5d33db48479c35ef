//! The contract with discovery: who has a blob, and who may fetch what from its origin.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use futures_core::future::BoxFuture;

use crate::digest::Digest;
use crate::identity::PeerId;
use crate::layout::PieceIndex;
use crate::limits::{MAX_LAYER_INDEX_LENGTH, MAX_METAINFO_LENGTH, MAX_PROFILE_LENGTH, MAX_REFERENT_LENGTH};
use crate::origin::Locator;
use crate::swarm::Priority;

/// How much of a blob a peer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Holding {
    /// Some pieces, and it is getting more.
    Partial,
    /// All of it, verified against the digest.
    Complete,
}

/// A peer that takes part in the swarm of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Who.
    pub peer: PeerId,
    /// Where its piece wire listens, as the tracker saw it.
    pub address: SocketAddr,
    /// What it holds.
    pub holding: Holding,
    /// Whether it is a seed: a node that keeps blobs for others.
    pub seed: bool,
    /// Whether it stands in another zone: what comes from there crosses the border, and is fetched under an import lease.
    pub far: bool,
}

impl Holder {
    /// A holder that is neither a seed nor far.
    pub const fn new(peer: PeerId, address: SocketAddr, holding: Holding) -> Self {
        Self { peer, address, holding, seed: false, far: false }
    }
}

/// What a [`Statement`] says of its subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StatementKind {
    /// The object is the [`Metainfo`](crate::verify::Metainfo) of the subject.
    Metainfo,
    /// The object is the layer index of the subject (format version 1).
    LayerIndex,
    /// The object is what the subject, which is a [name](Digest::name), stood for when the origin was asked.
    Referent,
    /// The object is a profile of the image whose chain id the subject is: what its containers read when they start. A hint:
    /// nodes see different things, so that many objects of one subject may be right.
    Profile,
    /// The object, which is no blob, is a proof that a client was granted a right; the subject, which is a
    /// [name](Digest::name), is what to. It concerns who holds the secret that both were made with, and nobody else can
    /// read or make it.
    Right,
}

impl StatementKind {
    /// Whether its subjects are names of a time that passes: what was stated long ago is of no use to anybody.
    pub const fn is_passing(self) -> bool {
        matches!(self, Self::Referent | Self::Right)
    }

    /// Longest object of that kind, in bytes.
    pub const fn max_length(self) -> u64 {
        match self {
            Self::Metainfo => MAX_METAINFO_LENGTH as u64,
            Self::LayerIndex => MAX_LAYER_INDEX_LENGTH,
            Self::Referent => MAX_REFERENT_LENGTH,
            Self::Profile => MAX_PROFILE_LENGTH,
            Self::Right => 1,
        }
    }
}

/// "The object derived from this blob is that blob": said by a node that verified the subject and derived it.
///
/// Derivation is deterministic, so that independent nodes agree, and the object is an ordinary blob of the swarm that
/// verifies by its own digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Statement {
    /// The blob spoken of.
    pub subject: Digest,
    /// How the object derives from it.
    pub kind: StatementKind,
    /// Digest of the derived object.
    pub object: Digest,
    /// Its length in bytes, at least one and at most [`StatementKind::max_length`].
    pub length: u64,
}

impl Statement {
    /// Whether an object of that kind can have that length.
    pub const fn is_possible(&self) -> bool {
        self.length > 0 && self.length <= self.kind.max_length()
    }
}

/// A [`Statement`] and how many distinct nodes made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vote {
    /// What was said.
    pub statement: Statement,
    /// By how many.
    pub nodes: u32,
}

/// How many nodes besides the asker hold all of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Replicas {
    /// In the asker's zone.
    pub zone: u32,
    /// In all zones.
    pub all: u32,
}

/// Where cloud machines find their credentials over IPv6; the IPv4 one is link-local.
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Whether somebody else's word may send this node to an address: a tracker or a peer may lie. Loopback addresses are taken
/// from who is on this machine only.
pub fn may_dial(address: IpAddr, teller_is_local: bool) -> bool {
    let never = address.is_unspecified()
        || address.is_multicast()
        || match address {
            IpAddr::V4(ip) => ip.is_broadcast() || ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local() || ip == METADATA_V6,
        };
    !never && (teller_is_local || !address.is_loopback())
}

/// What discovery knows of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// Peers to ask, nearest first, without the asker; bounded.
    pub holders: Vec<Holder>,
    /// Statements about the blob, most votes first.
    pub votes: Vec<Vote>,
    /// The peers that hold or held an origin lease of this blob: whose piece statements count.
    pub lessees: Vec<PeerId>,
}

/// What a lease allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum LeaseKind {
    /// To fetch the run from the origin.
    #[default]
    Origin,
    /// To fetch the whole blob from an origin that serves no ranges, as the only one.
    Whole,
    /// To ask peers of another zone for the run.
    Import,
}

/// The right to fetch a run of pieces from the origin, or over a zone's border.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Names the lease in [`Discovery::settle`].
    pub id: u64,
    /// First piece of the run.
    pub first: PieceIndex,
    /// Number of pieces, at least one.
    pub count: u32,
    /// How long it holds unless extended by finishing; after that somebody else may get it.
    pub term: Duration,
    /// From where.
    pub kind: LeaseKind,
}

impl Lease {
    /// A lease of a run of the origin's.
    pub const fn new(id: u64, first: PieceIndex, count: u32, term: Duration) -> Self {
        Self { id, first, count, term, kind: LeaseKind::Origin }
    }
}

/// Answer to a request for a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseReply {
    /// Fetch these, then settle.
    Granted(Lease),
    /// Nothing now: all that is wanted is with others, enough streams are under way, or the origin asked for a pause (then
    /// it is longer than seconds). Ask again after the pause.
    Wait(Duration),
    /// Every piece has been fetched by somebody: trade.
    Exhausted,
}

/// A request for the right to fetch from the origin, or over a zone's border.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRequest {
    /// The blob.
    pub digest: Digest,
    /// Its length in bytes (fixes the pieces).
    pub length: u64,
    /// Whose streams and pauses it shares: [`Origin::site`](crate::origin::Origin::site) of its origin; empty if it has none.
    /// The scheduler leaves it empty, who carries the request out fills it in.
    pub site: String,
    /// The pieces that the asker lacks and no peer of its zone offers it, as runs `first..end`, ascending; at most
    /// [`MAX_RUNS`](crate::limits::MAX_RUNS).
    pub missing: Vec<std::ops::Range<u32>>,
    /// Pieces that a read is waiting for: granted first, beyond the stream limit. Same form as `missing`, may be empty.
    pub urgent: Vec<std::ops::Range<u32>>,
    /// Those of `missing` that a peer of another zone offers. Same form.
    pub importable: Vec<std::ops::Range<u32>>,
    /// Pieces that the asker lacks though peers offer them, the rarest first, at most [`MAX_RUNS`](crate::limits::MAX_RUNS):
    /// where further copies are allowed, these are fetched again.
    pub rare: Vec<PieceIndex>,
    /// How long the rest of the blob will take at the present rate, if that is known: further copies must pay.
    pub remaining: Option<Duration>,
    /// How many pieces the asker brought in that no peer has taken from it yet.
    pub unshared: u32,
    /// Peers that discovery named and that give this node nothing of the blob: out of reach, refused here, or without it.
    /// What only these have may be leased again. At most [`MAX_USELESS`](crate::limits::MAX_USELESS).
    pub useless: Vec<PeerId>,
}

impl LeaseRequest {
    /// A request for nothing yet.
    pub const fn new(digest: Digest, length: u64) -> Self {
        Self {
            digest,
            length,
            site: String::new(),
            missing: Vec::new(),
            urgent: Vec::new(),
            importable: Vec::new(),
            rare: Vec::new(),
            remaining: None,
            unshared: 0,
            useless: Vec::new(),
        }
    }
}

/// What an origin did besides delivering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It asked for a pause: nobody is to ask it meanwhile.
    Busy(Duration),
    /// It serves no ranges.
    NoRanges,
    /// It does not give this node the blob, and asking again will not help.
    Refused,
    /// It did not deliver, this time.
    Unavailable,
}

/// How a lease ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settlement {
    /// [`Lease::id`].
    pub lease: u64,
    /// The blob.
    pub digest: Digest,
    /// How many pieces of the run, from its first, were fetched and are served now. The rest is free again.
    pub fetched: u32,
    /// How long the origin took to its first byte, where it gave one.
    pub first_byte: Option<Duration>,
    /// What went wrong.
    pub trouble: Option<Trouble>,
}

impl Settlement {
    /// The end of a lease without more to tell.
    pub const fn new(lease: u64, digest: Digest, fetched: u32) -> Self {
        Self { lease, digest, fetched, first_byte: None, trouble: None }
    }
}

/// A request that a seed fetch a blob from its origin and serve it while it comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedRequest {
    /// The blob.
    pub digest: Digest,
    /// Its length in bytes.
    pub length: u64,
    /// Where it was published.
    pub locator: Locator,
    /// How urgently the asker wants it.
    pub urgency: Priority,
    /// A seed that had taken it and cannot be reached: another is to be asked.
    pub failed: Option<PeerId>,
}

/// A request that the seeds have a blob before anybody pulls it. Repeated until it is complete, it tells how far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreheatRequest {
    /// The blob.
    pub digest: Digest,
    /// Its length in bytes.
    pub length: u64,
    /// Where it was published.
    pub locator: Locator,
    /// Whether it is a layer whose index shall be built and stated.
    pub index: bool,
}

/// How a seed stands with a blob that it was asked to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preheated {
    /// The seed.
    pub peer: PeerId,
    /// Whether it has all of it.
    pub complete: bool,
    /// How much it has, in bytes; 0 if it does not say.
    pub have: u64,
    /// How it is with the index.
    pub index: IndexStand,
}

/// How a seed stands with the index of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IndexStand {
    /// Nobody asked for it, or the seed does not know of it.
    NotAsked,
    /// The layer is not there yet, or its index is being built.
    Building,
    /// It is there, and stated.
    There,
    /// There will be none, for this reason.
    Impossible(String),
}

/// Why no seed takes a blob on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeedRefusal {
    /// None lives, or none answers: it may be otherwise in a while.
    #[error("no seed of this group answers: {0}")]
    Nobody(String),
    /// All have enough to do: one will have time.
    #[error("the seeds are busy: {0}")]
    Busy(String),
    /// It may not be shared, is not there, or may not be had: asking again will not help.
    #[error("a seed refuses: {0}")]
    Refused(String),
}

/// A blob that nodes of a group are asked to fetch before anybody pulls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The blob.
    pub digest: Digest,
    /// Its length in bytes.
    pub length: u64,
    /// Where it was published: looked up in each node's own configuration, never dialled as it stands.
    pub locator: Locator,
    /// Whether it is a layer whose index shall be built and stated.
    pub index: bool,
    /// It is fetched to see how long that takes.
    pub trial: Option<Trial>,
}

/// A measurement: nodes fetch what is ordered at one moment, and tell how it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trial {
    /// Names it, together with the blob.
    pub job: u64,
    /// How long from now everybody begins.
    pub begins_in: Duration,
    /// Whether nodes remove, once it is over, what it brought them.
    pub remove: bool,
}

/// What a node tells of a [`Trial`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrialReport {
    /// Who.
    pub peer: PeerId,
    /// Where, as the tracker saw it.
    pub address: IpAddr,
    /// Its zone; empty when unknown.
    pub zone: String,
    /// For whoever measures; trackers do not read it. At most [`MAX_TRIAL_REPORT_BYTES`](crate::limits::MAX_TRIAL_REPORT_BYTES).
    pub report: Vec<u8>,
}

/// An order, as it is given. It stands while it is repeated, which also tells how far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderRequest {
    /// What.
    pub order: Order,
    /// Orders of one job are for the same nodes.
    pub job: u64,
    /// For so many nodes of the group; none: for all.
    pub nodes: Option<u32>,
    /// The trial that it is for is over.
    pub over: bool,
}

/// How far an order is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OrderStand {
    /// Live nodes that it is for; seeds are none of them.
    pub nodes: u32,
    /// Those that have all of the blob.
    pub complete: u32,
    /// Those that said that they cannot have it.
    pub failed: u32,
    /// What one of these said.
    pub reason: String,
}

/// Discovery, as the swarm sees it: soft state, kept by trackers.
///
/// Contract:
/// * Every call ends within a few seconds; an error means "go on without" (last known peers, then the origin).
/// * `announce` is idempotent and takes effect for other askers within a second.
/// * Of one piece at most one live lease of the origin exists at a time, and one import lease in each zone.
pub trait Discovery: Send + Sync + 'static {
    /// Who has `digest`, and what is stated of it.
    fn find(&self, digest: Digest) -> BoxFuture<'_, Result<Found, DiscoveryError>>;

    /// Tells what this node holds now of a blob; `None` withdraws it.
    fn announce(&self, digest: Digest, holding: Option<Holding>) -> BoxFuture<'_, Result<(), DiscoveryError>>;

    /// Makes a statement in this node's name.
    fn state(&self, statement: Statement) -> BoxFuture<'_, Result<(), DiscoveryError>>;

    /// Asks for a run of pieces to fetch from the origin.
    fn lease(&self, request: LeaseRequest) -> BoxFuture<'_, Result<LeaseReply, DiscoveryError>>;

    /// Ends a lease.
    fn settle(&self, settlement: Settlement) -> BoxFuture<'_, Result<(), DiscoveryError>>;

    /// How many nodes besides this one hold all of each of these blobs, at most
    /// [`MAX_REPLICA_QUESTIONS`](crate::limits::MAX_REPLICA_QUESTIONS), in their order. A discovery that does not count
    /// gives an empty answer.
    fn replicas<'a>(&'a self, _digests: &'a [Digest]) -> BoxFuture<'a, Result<Vec<Replicas>, DiscoveryError>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    /// Lets a seed fetch a blob, and names the one that has it or works on it now. All nodes of a cluster choose the same
    /// of several seeds that live. A cluster without seeds has none for any blob.
    fn ask_seed(&self, _request: SeedRequest) -> BoxFuture<'_, Result<Option<Holder>, DiscoveryError>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Lets the seed that nodes will ask for a blob fetch it ahead of them. A cluster without seeds refuses.
    fn preheat_seed(&self, _request: PreheatRequest) -> BoxFuture<'_, Result<Preheated, SeedRefusal>> {
        Box::pin(std::future::ready(Err(SeedRefusal::Nobody("there is none".to_owned()))))
    }

    /// Orders a blob for nodes of this group, or repeats that it is wanted; to be repeated every few seconds.
    fn order(&self, _request: OrderRequest) -> BoxFuture<'_, Result<OrderStand, DiscoveryError>> {
        let (tracker, reason) = ("(none)".to_owned(), "without a tracker there are no other nodes".to_owned());
        Box::pin(std::future::ready(Err(DiscoveryError::Unreachable { tracker, reason })))
    }

    /// Waits for an order of another node that this one is to carry out. Told once; several trackers may tell of the same.
    fn next_order(&self) -> BoxFuture<'_, Order> {
        Box::pin(std::future::pending())
    }

    /// An order cannot be carried out here.
    fn order_failed(&self, _digest: Digest, _reason: String) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Tells how a trial goes here, anew each time; to be repeated every few seconds until the answer, whether the trial is over, is yes.
    fn tell_trial(&self, _digest: Digest, _job: u64, _report: Vec<u8>) -> BoxFuture<'_, Result<bool, DiscoveryError>> {
        Box::pin(std::future::ready(Ok(true)))
    }

    /// What nodes told of a trial; nothing of one that nobody knows.
    fn trial_reports(&self, _digest: Digest, _job: u64) -> BoxFuture<'_, Result<Vec<TrialReport>, DiscoveryError>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    /// Tells that `peer` did not answer, or answered wrongly, so that it is not named again for now. A discovery that keeps
    /// no account of failures takes no notice.
    fn report(&self, _peer: PeerId) -> BoxFuture<'_, Result<(), DiscoveryError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// The trackers that are asked, with what the last failure of one that is given up for now was. A discovery without any
    /// names none.
    fn trackers(&self) -> Vec<(String, Option<String>)> {
        Vec::new()
    }

    /// Takes back all that this node told, before it ends. The last call.
    fn leave(&self) -> BoxFuture<'_, Result<(), DiscoveryError>>;
}

/// Discovery gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiscoveryError {
    /// No tracker answered.
    #[error("tracker {tracker} did not answer: {reason}")]
    Unreachable {
        /// Its address as configured.
        tracker: String,
        /// What happened.
        reason: String,
    },
    /// The tracker refused the request.
    #[error("tracker {tracker} refused: {reason}")]
    Refused {
        /// Its address as configured.
        tracker: String,
        /// What it said.
        reason: String,
    },
}
