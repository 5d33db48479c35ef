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
use serde::{Deserialize, Serialize};

/// Rows that are shown unless another number is asked for.
pub(crate) const DEFAULT_ROWS: usize = 100;

/// The tracker as a whole.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TrackerState {
    pub nodes: usize,
    pub blobs: usize,
    /// Pairs of a blob and a node that holds some or all of it.
    pub holders: usize,
    pub groups: Vec<GroupState>,
    /// Calls per second by method, over the last seconds.
    pub calls_per_second: BTreeMap<String, f64>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct GroupState {
    pub group: String,
    pub nodes: usize,
    pub blobs: usize,
}

/// Some of the nodes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NodesState {
    pub tracker: TrackerState,
    /// How many there are of the kind that was asked for.
    pub total: usize,
    /// How many of these come before the first one here.
    pub skipped: usize,
    pub nodes: Vec<MemberState>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MemberState {
    pub peer: String,
    pub address: String,
    pub group: String,
    pub zone: String,
    pub rack: String,
    pub blobs: usize,
    pub silence_seconds: u64,
    /// `live`, `silent` (missed heartbeats), or `reported` (others say that it fails, and nobody is sent to it).
    pub state: String,
}

/// One blob in one group.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BlobHolders {
    pub digest: String,
    pub group: String,
    /// How many nodes hold some or all of it.
    pub total: usize,
    pub complete: u32,
    /// The nearest of them.
    pub holders: Vec<HolderState>,
    pub leases: Vec<LeaseState>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HolderState {
    #[serde(flatten)]
    pub node: MemberState,
    /// Whether it has all of the blob.
    pub complete: bool,
    /// Whether askers are sent to it now.
    pub serves: bool,
}

/// Pieces that a node fetches from the origin.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LeaseState {
    pub peer: String,
    /// Empty if the node is not registered any more.
    pub address: String,
    pub first_piece: u32,
    pub pieces: u32,
    pub age_seconds: f64,
}

/// What `/api/v1/nodes` may be asked.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct NodesQuery {
    pub group: Option<String>,
    pub zone: Option<String>,
    pub skip: usize,
    pub limit: Option<usize>,
}

/// What `/api/v1/holders/<digest>` may be asked: which group, and nearest to what.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct HoldersQuery {
    pub group: Option<String>,
    pub zone: Option<String>,
    pub rack: Option<String>,
    pub near: Option<IpAddr>,
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
