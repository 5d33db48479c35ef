//! What the page shows of a tracker: its nodes by zone, and who has what of the blobs under way.

use std::net::Ipv4Addr;

use lapwing_discovery::registry::{MemberFilter, Place};
use lapwing_discovery::server::Tracker;
use serde_json::{Value, json};

use crate::tracker::view;

/// Nodes on the map.
const MAX_NODES: usize = 400;
/// Blobs under way that are shown.
const MAX_BLOBS: usize = 24;
/// Holders of each.
const MAX_HOLDERS: usize = 400;

/// The state of a tracker.
pub(crate) fn state(tracker: &Tracker) -> Value {
    let members = tracker.members(&MemberFilter { limit: MAX_NODES, ..MemberFilter::default() });
    let from = Place { zone: "".into(), rack: "".into(), address: Ipv4Addr::UNSPECIFIED.into() };
    let blobs = tracker.under_way(MAX_BLOBS).into_iter().flat_map(|(group, digest)| {
        let views = tracker.holders_of(digest, Some(&group), &from, MAX_HOLDERS);
        views.into_iter().map(move |found| {
            let found = view::blob(digest, found);
            let holders = found.holders.iter().map(|holder| json!([holder.node.peer, holder.complete]));
            let leases = found.leases.iter().map(|lease| {
                json!({"peer": lease.peer, "first": lease.first_piece, "pieces": lease.pieces, "age_seconds": lease.age_seconds})
            });
            json!({
                "digest": found.digest,
                "group": found.group,
                "total": found.total,
                "complete": found.complete,
                "holders": holders.collect::<Vec<_>>(),
                "leases": leases.collect::<Vec<_>>(),
            })
        })
    });
    let blobs: Vec<_> = blobs.collect();
    json!({
        "tracker": view::state(tracker),
        "total": members.total,
        "nodes": members.rows.into_iter().map(view::member).collect::<Vec<_>>(),
        "blobs": blobs,
    })
}
