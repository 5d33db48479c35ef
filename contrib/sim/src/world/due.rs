//! What is due, where, and what is said between nodes, tracker and origin.

use std::ops::Range;

use lapwing_p2p::bitfield::Bitfield;
use lapwing_p2p::discovery::{Holding, LeaseRequest, Settlement};
use lapwing_p2p::identity::PeerId;
use lapwing_p2p::layout::PieceIndex;
use lapwing_p2p::swarm::{Event, TransferId};

/// A piece of one of the blobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) blob: u16,
    pub(super) piece: u32,
}

/// What one node says to another.
#[derive(Debug)]
pub(super) enum Message {
    Hello(u16, Box<Bitfield>),
    Have(u16, Vec<PieceIndex>),
    Request(Part, bool),
    Cancel(Part),
    NotHere(u16, Option<u32>),
    Free(u16),
}

/// What a node asks of the tracker.
#[derive(Debug)]
pub(super) enum Call {
    Find(u16),
    Announce(u16, Holding),
    Lease(Box<LeaseRequest>),
    Settle(Settlement),
    Report(PeerId),
    Heartbeat,
}

/// What bytes on a link belong to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Load {
    /// A piece that another node sends, right or wrong.
    Piece { from: u32, part: Part, corrupt: bool },
    /// A piece from the origin, perhaps the last one of its transfer.
    Fetched { transfer: TransferId, part: Part, last: bool },
}

/// What is due at a node.
#[derive(Debug)]
pub(super) enum Due {
    Start(u32),
    Tick(u32),
    Message {
        from: u32,
        to: u32,
        message: Message,
    },
    /// Bytes of a piece come to the end of a node's downlink; whether they are its last ones.
    Arrives {
        to: u32,
        bytes: u32,
        load: Load,
        last: bool,
    },
    /// The piece has passed the downlink.
    Complete {
        to: u32,
        load: Load,
    },
    Uplink(u32),
    /// Bytes that a node sent were with `to` later than it expected.
    Late {
        node: u32,
        to: u32,
        expected_ns: u64,
        at_ns: u64,
    },
    /// A peer wants a connection.
    Dialled {
        from: u32,
        to: u32,
    },
    /// A peer has taken a connection.
    Linked {
        node: u32,
        peer: u32,
    },
    LinkDown {
        node: u32,
        peer: u32,
    },
    Answer(u32, Box<Event>),
    Proof {
        node: u32,
        blob: u16,
    },
    Death(u32),
}

/// What is due at the tracker or the origin.
#[derive(Debug)]
pub(super) enum HubDue {
    Call(u32, Call),
    /// A call that nobody answers.
    Failed(u32, Box<Event>),
    OriginLink,
    /// The origin begins to answer.
    Transfer {
        node: u32,
        transfer: TransferId,
        blob: u16,
        pieces: Range<u32>,
    },
    Late {
        to: u32,
        transfer: TransferId,
        expected_ns: u64,
        at_ns: u64,
    },
    Death(u32),
    Tick,
    Outage(bool),
}
