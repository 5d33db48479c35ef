//! What an operator may set of a node.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::identity::Identity;
use crate::membership::Credentials;
use crate::rate::{Limits, Rates};

/// How the piece wire is protected.
#[derive(Debug, Clone)]
pub enum Security {
    /// Not at all. Costs less CPU, and is for networks whose hosts are all trusted.
    Plaintext,
    /// By TLS between keys: nobody can read, change or pass for a peer that discovery named, and everybody can be a peer.
    Keys,
    /// By TLS between members of a cluster: nobody else is a peer.
    Members(Arc<Credentials>),
}

/// Settings of a [`Node`](super::Node).
#[derive(Clone)]
pub struct NodeConfig {
    /// Where the piece wire listens; port 0 for any free one.
    pub listen: SocketAddr,
    /// This node's key. Keep it over restarts: piece statements made with it stay good.
    pub identity: Arc<Identity>,
    /// How peers prove who they are; alike on all nodes. Default [`Security::Keys`].
    pub security: Security,
    /// Whether pieces of blobs that compress well are sent compressed to peers that take it. Default true.
    pub compression: bool,
    /// TCP congestion control of the piece wire, by the kernel's name; empty for the system's default. Default `cubic`: an
    /// uplink goes from peer to peer with each piece, and BBR begins each time at the rate that it last saw there, which after
    /// a few control frames is next to nothing (measured: uplinks 5 % idle).
    pub congestion_control: Cow<'static, str>,
    /// How long a read waits for its next piece. Default 60 s.
    pub read_deadline: Duration,
    /// How many peers are sent pieces at the same time. Default 2: more make the first complete copy late.
    pub upload_slots: u32,
    /// Most peers that one blob trades with. Default 16; 8 suffice, 4 cost a percent.
    pub max_peers_per_blob: usize,
    /// Most connections of the piece wire, both directions. Default 512.
    pub max_connections: usize,
    /// Most origin transfers at once, over all blobs, while no tracker answers. Default 2.
    pub origin_streams_without_tracker: u32,
    /// How long a peer that sent wrong pieces is refused. Default 10 min.
    pub ban: Duration,
    /// How many nodes must state a blob's metainfo until a piece that contradicts it is its sender's fault. What fewer
    /// state is used as long as nothing speaks against it. Default 2.
    pub metainfo_quorum: u32,
    /// How many nodes must state a layer index until it is used. Default 1: the background proof finds a wrong one out.
    pub index_quorum: u32,
    /// How many nodes must say what a name stands for until that is believed.
    pub referent_quorum: u32,
    /// Speed limits at the start; [`Node::set_limits`](super::Node::set_limits) changes them. Default none.
    pub limits: Limits,
    /// The group whose nodes this node asks, and answers, while no tracker can be asked. Default `default`.
    pub group: Cow<'static, str>,
    /// Whether the seeds that discovery knows are asked to fetch blobs before the origin is. Default true; false for a seed.
    pub ask_seeds: bool,
}

const NONE: Rates = Rates { node: 0, per_blob: 0, per_peer: 0 };

impl NodeConfig {
    /// The defaults, on that address, in that name.
    pub const fn new(listen: SocketAddr, identity: Arc<Identity>) -> Self {
        Self {
            listen,
            identity,
            security: Security::Keys,
            compression: true,
            congestion_control: Cow::Borrowed("cubic"),
            read_deadline: Duration::from_secs(60),
            upload_slots: 2,
            max_peers_per_blob: 16,
            max_connections: 512,
            origin_streams_without_tracker: 2,
            ban: Duration::from_secs(600),
            metainfo_quorum: 2,
            index_quorum: 1,
            referent_quorum: 1,
            limits: Limits { upload: NONE, download: NONE, origin: NONE },
            group: Cow::Borrowed("default"),
            ask_seeds: true,
        }
    }
}
