//! What goes into the scheduler and what comes out of it.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use super::Priority;
use crate::bitfield::Bitfield;
use crate::digest::Digest;
use crate::discovery::{Holder, Holding, LeaseReply, LeaseRequest, Settlement};
use crate::identity::PeerId;
use crate::layout::{PieceIndex, PieceLayout};
use crate::origin::OriginError;

/// Names something that wants pieces, until it is taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WantId(pub u64);

/// Names one transfer from an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransferId(pub u64);

/// Who gave a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PieceSource {
    /// Another node.
    Peer(PeerId),
    /// The origin, through this node.
    Origin,
}

/// Discovery's answer, as far as the scheduler needs it.
#[derive(Debug, Clone)]
pub struct FoundPeers {
    /// Who has it, nearest first.
    pub holders: Vec<Holder>,
    /// Whether pieces from peers can be checked before the whole is here, as far as is known.
    pub verifiable: bool,
    /// Whether the hashes of all pieces are on their way, so that it pays to wait for [`Event::Verifiable`].
    pub metainfo_pending: bool,
}

/// Something happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A blob is open; `have` are its pieces in the store.
    Opened {
        /// Which.
        digest: Digest,
        /// How it is cut.
        layout: PieceLayout,
        /// What is here.
        have: Bitfield,
        /// Whether the whole matched its digest.
        verified: bool,
    },
    /// Nobody here holds the blob open any more. Ignored while something of it is under way.
    Closed(Digest),
    /// The blob has an origin now, or one with fresher credentials.
    OriginKnown(Digest),
    /// Somebody wants pieces.
    Want {
        /// Of this blob.
        digest: Digest,
        /// Named so.
        id: WantId,
        /// These pieces.
        pieces: Range<u32>,
        /// How urgently.
        priority: Priority,
    },
    /// Nobody wants that any more.
    Unwant {
        /// The blob.
        digest: Digest,
        /// The want.
        id: WantId,
    },
    /// A connection is up.
    PeerUp(PeerId),
    /// A connection is gone.
    PeerDown(PeerId),
    /// A peer could not be reached.
    DialFailed(PeerId),
    /// A peer takes part in a blob that is open here.
    Hello {
        /// Who.
        peer: PeerId,
        /// In which.
        digest: Digest,
        /// What it serves.
        have: Bitfield,
    },
    /// A peer got more pieces.
    Have {
        /// Who.
        peer: PeerId,
        /// Of which blob.
        digest: Digest,
        /// Which.
        pieces: Vec<PieceIndex>,
    },
    /// A peer does not give that.
    NotHere {
        /// Who.
        peer: PeerId,
        /// The blob.
        digest: Digest,
        /// The piece, or none for all of the blob.
        piece: Option<PieceIndex>,
    },
    /// A peer wants a piece.
    Request {
        /// Who.
        peer: PeerId,
        /// Of which blob.
        digest: Digest,
        /// Which.
        piece: PieceIndex,
        /// Whether a read is blocked on it.
        urgent: bool,
    },
    /// A peer no longer wants a piece.
    Cancel {
        /// Who.
        peer: PeerId,
        /// Of which blob.
        digest: Digest,
        /// Which.
        piece: PieceIndex,
    },
    /// A peer has an upload slot that nobody asks for.
    Free {
        /// Who.
        peer: PeerId,
        /// For which blob.
        digest: Digest,
    },
    /// An [`Action::Upload`] has left, or failed.
    Sent {
        /// To whom.
        peer: PeerId,
    },
    /// A piece was checked and stored.
    Stored {
        /// Of which blob.
        digest: Digest,
        /// Which.
        piece: PieceIndex,
        /// Who gave it.
        source: PieceSource,
    },
    /// A peer sent a piece that does not match.
    Bad {
        /// Who.
        peer: PeerId,
        /// Of which blob.
        digest: Digest,
        /// Which.
        piece: PieceIndex,
    },
    /// A peer sent a piece that nobody trusted vouches for, or that could not be stored.
    Unusable {
        /// Who.
        peer: PeerId,
        /// Of which blob.
        digest: Digest,
        /// Which.
        piece: PieceIndex,
    },
    /// Discovery should be asked again soon: it may know more of who may vouch for pieces.
    FindAgain(Digest),
    /// Discovery answered, or did not.
    Found {
        /// About which blob.
        digest: Digest,
        /// What.
        found: Option<FoundPeers>,
    },
    /// Somebody else than discovery names peers: that says nothing of whether discovery lives.
    Told {
        /// Of which blob.
        digest: Digest,
        /// Whom.
        told: FoundPeers,
    },
    /// Answer to [`Action::AskSeed`].
    SeedAnswered {
        /// The blob.
        digest: Digest,
        /// The seed that has it or fetches it now; none if no seed does.
        seed: Option<Holder>,
    },
    /// Whether pieces from peers can be checked; the metainfo came or will not come.
    Verifiable {
        /// Of which blob.
        digest: Digest,
        /// Whether.
        verifiable: bool,
    },
    /// Answer to [`Action::Lease`]; none when discovery failed.
    Leased {
        /// The blob.
        digest: Digest,
        /// What it said.
        reply: Option<LeaseReply>,
    },
    /// The origin began to answer.
    FirstByte {
        /// The blob.
        digest: Digest,
        /// The transfer.
        transfer: TransferId,
    },
    /// A transfer has ended. Its pieces were reported by [`Event::Stored`] before.
    TransferEnded {
        /// The blob.
        digest: Digest,
        /// The transfer.
        transfer: TransferId,
        /// How.
        outcome: Result<(), OriginError>,
    },
    /// The whole blob matched its digest.
    Verified(Digest),
    /// The whole blob did not match; these pieces were dropped.
    Dropped {
        /// The blob.
        digest: Digest,
        /// The pieces.
        pieces: Vec<PieceIndex>,
        /// Whether from now on only the origin is asked.
        origin_only: bool,
    },
    /// Time has passed.
    Tick,
}

impl Event {
    /// The blob that it is about.
    pub(super) const fn digest(&self) -> Option<Digest> {
        match self {
            Self::Opened { digest, .. }
            | Self::Closed(digest)
            | Self::OriginKnown(digest)
            | Self::Want { digest, .. }
            | Self::Unwant { digest, .. }
            | Self::Hello { digest, .. }
            | Self::Have { digest, .. }
            | Self::NotHere { digest, .. }
            | Self::Request { digest, .. }
            | Self::Cancel { digest, .. }
            | Self::Free { digest, .. }
            | Self::Stored { digest, .. }
            | Self::Bad { digest, .. }
            | Self::Unusable { digest, .. }
            | Self::FindAgain(digest)
            | Self::Found { digest, .. }
            | Self::Told { digest, .. }
            | Self::SeedAnswered { digest, .. }
            | Self::Verifiable { digest, .. }
            | Self::Leased { digest, .. }
            | Self::FirstByte { digest, .. }
            | Self::TransferEnded { digest, .. }
            | Self::Verified(digest)
            | Self::Dropped { digest, .. } => Some(*digest),
            Self::PeerUp(_) | Self::PeerDown(_) | Self::DialFailed(_) | Self::Sent { .. } | Self::Tick => None,
        }
    }
}

/// Why a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// Nothing to trade.
    Idle,
    /// It sent wrong pieces too often.
    Banned,
}

/// Something is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Connect to a peer.
    Dial {
        /// Whom.
        peer: PeerId,
        /// Where.
        address: SocketAddr,
    },
    /// Close a connection.
    Close {
        /// To whom.
        peer: PeerId,
        /// Why.
        reason: CloseReason,
    },
    /// Tell a peer that this node takes part in a blob.
    SayHello {
        /// Whom.
        peer: PeerId,
        /// In which.
        digest: Digest,
        /// What is here.
        have: Bitfield,
    },
    /// Tell a peer of new pieces.
    SayHave {
        /// Whom.
        peer: PeerId,
        /// Of which blob.
        digest: Digest,
        /// Which.
        pieces: Vec<PieceIndex>,
    },
    /// Refuse.
    SayNotHere {
        /// Whom.
        peer: PeerId,
        /// The blob.
        digest: Digest,
        /// The piece, or none for all of the blob.
        piece: Option<PieceIndex>,
    },
    /// Ask a peer for a piece.
    Request {
        /// Whom.
        peer: PeerId,
        /// Of which blob.
        digest: Digest,
        /// Which.
        piece: PieceIndex,
        /// Whether a read is blocked on it.
        urgent: bool,
        /// Whether it was asked of another before.
        hedge: bool,
    },
    /// Take a request back.
    Cancel {
        /// From whom.
        peer: PeerId,
        /// Of which blob.
        digest: Digest,
        /// Which.
        piece: PieceIndex,
    },
    /// Tell a peer that an upload slot is free for it.
    SayFree {
        /// Whom.
        peer: PeerId,
        /// Of which blob there is something for it.
        digest: Digest,
    },
    /// Send a piece, then report [`Event::Sent`].
    Upload {
        /// To whom.
        peer: PeerId,
        /// Of which blob.
        digest: Digest,
        /// Which.
        piece: PieceIndex,
    },
    /// Ask discovery who has a blob.
    Find(Digest),
    /// Let a seed fetch the blob.
    AskSeed {
        /// Which.
        digest: Digest,
        /// How urgently pieces of it are wanted here.
        urgency: Priority,
        /// A seed that had taken it and is out of reach now.
        failed: Option<PeerId>,
    },
    /// Tell discovery what is here.
    Announce {
        /// Of which blob.
        digest: Digest,
        /// How much.
        holding: Holding,
    },
    /// Ask discovery for a lease.
    Lease(LeaseRequest),
    /// Give a lease back.
    Settle(Settlement),
    /// Fetch a run of pieces from the origin in one transfer.
    Transfer {
        /// Of which blob.
        digest: Digest,
        /// Named so.
        transfer: TransferId,
        /// Which.
        pieces: Range<u32>,
        /// Not before that much time has passed.
        delay: Duration,
        /// Whether a lease allows it.
        leased: bool,
    },
    /// Readers that wait for pieces of this blob wait in vain.
    Fail {
        /// The blob.
        digest: Digest,
        /// What its origin says.
        error: OriginError,
    },
    /// A peer was banned.
    Banned(PeerId),
    /// Tell discovery that a peer cannot be reached, has gone while it owed pieces, or gives wrong ones.
    Report(PeerId),
}
