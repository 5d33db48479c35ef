//! What `lapwing nodes` and `lapwing find` ask of the tracker on its admin listener: `GET /api/v1/tracker`,
//! `/api/v1/nodes` and `/api/v1/holders/<digest>`. Answers are rows of one moment; nothing is changed by asking.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use lapwing_discovery::limits::UNREPORTED_SILENCE;
use lapwing_discovery::registry::{BlobView, Member, MemberFilter, Place};
use lapwing_discovery::server::Tracker;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::Holding;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Rows that are shown unless another number is asked for.
pub(crate) const DEFAULT_ROWS: usize = 100;

/// The tracker as a whole.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct TrackerState {
    /// Nodes that are registered, in all groups.
    pub nodes: usize,
    /// Blobs of all groups.
    pub blobs: usize,
    /// Pairs of a blob and a node that holds some or all of it.
    pub holders: usize,
    /// Each group by itself.
    pub groups: Vec<GroupState>,
    /// Calls per second by method, over the last seconds.
    pub calls_per_second: BTreeMap<String, f64>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct GroupState {
    /// Its name; empty for the group that has none.
    pub group: String,
    /// Nodes that are registered.
    pub nodes: usize,
    /// Blobs that some node of it holds, or states something of.
    pub blobs: usize,
}

/// Some of the nodes.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct NodesState {
    pub tracker: TrackerState,
    /// How many there are of the kind that was asked for.
    pub total: usize,
    /// How many of these come before the first one here.
    pub skipped: usize,
    /// At most as many as were asked for.
    pub nodes: Vec<MemberState>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct MemberState {
    /// Digest of its public key.
    pub peer: String,
    /// Address and port of its piece wire.
    pub address: String,
    /// The group that it belongs to.
    pub group: String,
    /// As it calls its zone itself; may be empty.
    pub zone: String,
    /// As it calls its rack itself; may be empty.
    pub rack: String,
    /// Blobs that it holds, whole or in part.
    pub blobs: usize,
    /// Since the tracker last heard of it.
    pub silence_seconds: u64,
    /// `live`, `silent` (missed heartbeats), or `reported` (others say that it fails, and nobody is sent to it).
    pub state: String,
}

/// One blob in one group.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct BlobHolders {
    /// The blob.
    pub digest: String,
    /// Groups of nodes know nothing of each other.
    pub group: String,
    /// How many nodes hold some or all of it.
    pub total: usize,
    /// How many of these hold all of it.
    pub complete: u32,
    /// The nearest of them.
    pub holders: Vec<HolderState>,
    /// Who fetches which pieces of it from the origin now.
    pub leases: Vec<LeaseState>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct HolderState {
    #[serde(flatten)]
    pub node: MemberState,
    /// Whether it has all of the blob.
    pub complete: bool,
    /// Whether askers are sent to it now.
    pub serves: bool,
}

/// Pieces that a node fetches from the origin.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct LeaseState {
    /// The leaseholder.
    pub peer: String,
    /// Empty if the node is not registered any more.
    pub address: String,
    /// Number of the first of them.
    pub first_piece: u32,
    /// How many.
    pub pieces: u32,
    /// Since the lease was given.
    pub age_seconds: f64,
}

/// What `/api/v1/nodes` may be asked.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct NodesQuery {
    /// Only nodes of this group.
    pub group: Option<String>,
    /// Only nodes of this zone.
    pub zone: Option<String>,
    /// Rows that are left out at the beginning.
    pub skip: usize,
    /// Most rows that are shown; 100 unless it is said.
    pub limit: Option<usize>,
}

/// What `/api/v1/holders/<digest>` may be asked: which group, and nearest to what.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct HoldersQuery {
    /// Only holders of this group.
    pub group: Option<String>,
    /// Zone of who would ask; the nearest to it come first.
    pub zone: Option<String>,
    /// Its rack.
    pub rack: Option<String>,
    /// Its address.
    pub near: Option<IpAddr>,
    /// Most holders that are shown of each group; 100 unless it is said.
    pub limit: Option<usize>,
}

pub(crate) fn routes(tracker: Tracker) -> Router {
    Router::new()
        .route("/api/v1/tracker", get(overview))
        .route("/api/v1/nodes", get(nodes))
        .route("/api/v1/holders/{digest}", get(holders))
        .with_state(tracker)
}

async fn overview(State(tracker): State<Tracker>) -> Json<TrackerState> {
    Json(state(&tracker))
}

async fn nodes(State(tracker): State<Tracker>, Query(query): Query<NodesQuery>) -> Json<NodesState> {
    let NodesQuery { group, zone, skip, limit } = query;
    let filter = MemberFilter { group, zone, skip, limit: limit.unwrap_or(DEFAULT_ROWS) };
    let members = tracker.members(&filter);
    Json(NodesState {
        tracker: state(&tracker),
        total: members.total,
        skipped: skip.min(members.total),
        nodes: members.rows.into_iter().map(member).collect(),
    })
}

async fn holders(
    State(tracker): State<Tracker>,
    Path(text): Path<String>,
    Query(query): Query<HoldersQuery>,
) -> Response {
    let Ok(digest) = text.parse::<Digest>() else {
        let shown: String = text.chars().take(80).collect();
        let reason = format!("{shown:?} is not a digest; expected sha256: and 64 hexadecimal digits\n");
        return (StatusCode::BAD_REQUEST, reason).into_response();
    };
    let from = Place {
        zone: query.zone.unwrap_or_default().into(),
        rack: query.rack.unwrap_or_default().into(),
        address: query.near.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
    };
    let limit = query.limit.unwrap_or(DEFAULT_ROWS);
    let found = tracker.holders_of(digest, query.group.as_deref(), &from, limit);
    Json(found.into_iter().map(|view| blob(digest, view)).collect::<Vec<_>>()).into_response()
}

pub(crate) fn state(tracker: &Tracker) -> TrackerState {
    let counts = tracker.counts();
    let groups = tracker.group_counts().into_iter();
    TrackerState {
        nodes: counts.nodes,
        blobs: counts.blobs,
        holders: counts.holders,
        groups: groups.map(|of| GroupState { group: of.group, nodes: of.nodes, blobs: of.blobs }).collect(),
        calls_per_second: tracker.rates().into_iter().map(|(method, rate)| (method.to_owned(), rate)).collect(),
    }
}

pub(crate) fn member(member: Member) -> MemberState {
    let state = match (member.set_aside, member.silence >= UNREPORTED_SILENCE) {
        (true, _) => "reported",
        (false, true) => "silent",
        (false, false) => "live",
    };
    MemberState {
        peer: member.peer.to_string(),
        address: member.address.to_string(),
        group: member.group,
        zone: member.zone,
        rack: member.rack,
        blobs: member.blobs,
        silence_seconds: member.silence.as_secs(),
        state: state.to_owned(),
    }
}

pub(crate) fn blob(digest: Digest, view: BlobView) -> BlobHolders {
    let holders = view.holders.into_iter().map(|holder| HolderState {
        node: member(holder.node),
        complete: holder.holding == Holding::Complete,
        serves: holder.serves,
    });
    let leases = view.leases.into_iter().map(|lease| LeaseState {
        peer: lease.peer.to_string(),
        address: lease.address.map(|address| address.to_string()).unwrap_or_default(),
        first_piece: lease.pieces.start,
        pieces: lease.pieces.end - lease.pieces.start,
        age_seconds: lease.age.as_secs_f64(),
    });
    BlobHolders {
        digest: digest.to_string(),
        group: view.group,
        total: view.total,
        complete: view.complete,
        holders: holders.collect(),
        leases: leases.collect(),
    }
}
