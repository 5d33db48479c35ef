//! Seeds: nodes that fetch blobs from their registries on demand, for all.
//!
//! * [`serve`]: the service through which nodes ask a seed to fetch; the fetching itself is a [`Fetcher`]
//! * [`order`]: which of several seeds is asked
//!
//! What a seed is asked for names a registry by its key in the seed's own list: nothing that a caller says is dialled.
//! Nothing here is kept: what a seed has taken on is the [`Fetcher`]'s to remember.

mod proto;
mod rendezvous;
mod service;

use std::net::{IpAddr, SocketAddr};

use futures_util::future::BoxFuture;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::IndexStand;
use lapwing_p2p::identity::PeerId;
use lapwing_p2p::origin::Locator;

pub use self::rendezvous::order;
pub use self::service::{ServeError, serve};

pub(crate) use self::service::shortened;

pub(crate) use self::proto::seed_service_client::SeedServiceClient;
pub(crate) use self::proto::{FetchRequest, IndexState, Urgency, fetch_reply};

/// A live seed, as a tracker names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed {
    /// Its key.
    pub peer: PeerId,
    /// As seen on its connection to the tracker.
    pub address: IpAddr,
    /// Of its piece wire.
    pub piece_port: u16,
    /// Of its service.
    pub seed_port: u16,
}

impl Seed {
    /// Where its service listens.
    pub const fn service(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.seed_port)
    }

    /// Where its piece wire listens.
    pub const fn piece_wire(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.piece_port)
    }
}

/// What a node wants a seed to fetch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// The blob.
    pub digest: Digest,
    /// Its length in bytes, as the node has it.
    pub length: u64,
    /// Where it was published; not checked beyond its length.
    pub locator: Locator,
    /// Whether somebody waits for it.
    pub waited_for: bool,
    /// Whether its index shall be built and stated, also where the seed builds none by itself.
    pub index: bool,
    /// Whether who asks follows the fetch to its end, and is to hear once why the last one was given up.
    pub follows: bool,
}

/// What a seed does for a blob that it is asked for: it has all of it, or fetches it and serves what it has so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Whether it has all of it.
    pub complete: bool,
    /// How much it has, in bytes.
    pub have: u64,
    /// How it is with the index.
    pub index: IndexStand,
}

impl Taken {
    /// It has begun to fetch it.
    pub const FETCHING: Self = Self { complete: false, have: 0, index: IndexStand::NotAsked };

    /// It has all `length` bytes of it.
    pub const fn complete(length: u64) -> Self {
        Self { complete: true, have: length, index: IndexStand::NotAsked }
    }
}

/// Why a seed does not fetch a blob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It has enough to do.
    #[error("the seed fetches {0} blobs at once and no more (seed.fetches)")]
    Busy(usize),
    /// Not a registry whose blobs are shared.
    #[error("registry {0:?} is not listed in the seed's configuration")]
    NotListed(String),
    /// The registry does not let the seed have it.
    #[error("the seed may not have it: {0}")]
    NotAllowed(String),
    /// The registry does not have it so.
    #[error("{0}")]
    NotThere(String),
}

/// What a seed does with requests.
///
/// Contract:
/// * It answers within a second, whatever registries do, and fetches on afterwards whether or not somebody listens.
/// * Of one blob there is one fetch, however many ask for it.
/// * It bounds what it does at once.
pub trait Fetcher: Send + Sync + 'static {
    /// Takes a blob on, or says why not.
    fn fetch(&self, wanted: Wanted) -> BoxFuture<'_, Result<Taken, Refusal>>;
}
