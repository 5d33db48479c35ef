//! A store that stands still, dies, and comes back, perhaps empty.

use std::time::Duration;

use lapwing_lab::Database;
use lapwing_p2p::digest::Digest;

use crate::conformance::both_know;
use crate::rig::{COMPLETE, GONE, Rig, Served, until};

async fn until_store_is(trackers: [&Served; 2], up: &str) {
    for tracker in trackers {
        until("trackers notice how the store is", || async {
            tracker.metric("lapwing_tracker_store_up").as_deref() == Some(up)
        })
        .await;
    }
}

/// Runs all of it.
pub(crate) async fn run(rig: &Rig, server: &mut Database) {
    let (a, b) = rig.pair().await;
    let (group, digest, other) = (rig.group(), Digest::of(b"layer"), Digest::of(b"other layer"));
    let (one, two) = (a.node(&group, 1).await, b.node(&group, 2).await);
    one.announce(digest, COMPLETE).await;
    one.announce(other, COMPLETE).await;
    two.announce(digest, COMPLETE).await;
    both_know([&a, &b], &group, digest, &[1, 2]).await;
    both_know([&a, &b], &group, other, &[1]).await;
    until_store_is([&a, &b], "1").await;

    // It accepts, and never answers.
    let pid = rustix::process::Pid::from_raw(server.process().pid() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let three = a.node(&group, 3).await;
    three.announce(digest, COMPLETE).await;
    assert_eq!(three.find(digest).await.len(), 2, "a store that stands still keeps nobody waiting");
    until_store_is([&a, &b], "0").await;
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    until_store_is([&a, &b], "1").await;
    both_know([&a, &b], &group, digest, &[1, 2, 3]).await;

    server.process().kill9().unwrap();
    until_store_is([&a, &b], "0").await;
    let asker = a.node(&group, 9).await;
    assert_eq!(asker.find(digest).await.len(), 3, "what is known stays known");
    let four = b.node(&group, 4).await;
    four.announce(digest, COMPLETE).await;
    one.announce(other, GONE).await;
    assert_eq!(four.find(digest).await.len(), 3, "news of its own nodes count");
    assert_eq!(asker.find(other).await, []);
    assert!(asker.is_granted(Digest::of(b"new layer")).await, "leases go on");

    server.restart().unwrap();
    until_store_is([&a, &b], "1").await;
    // No node says anything again.
    both_know([&a, &b], &group, digest, &[1, 2, 3, 4]).await;
    both_know([&a, &b], &group, other, &[]).await;
    let fresh = rig.tracker().await;
    both_know([&fresh, &b], &group, digest, &[1, 2, 3, 4]).await;
    assert!(a.metric("lapwing_tracker_store_unwritten").is_some());

    // An outage longer than nodes may be silent: each tracker goes on with those that speak to it.
    server.process().kill9().unwrap();
    until_store_is([&a, &b], "0").await;
    for _ in 0..4 {
        rig.advance(Duration::from_secs(15));
        one.beat().await;
        two.beat().await;
    }
    let numbers = async |node: &crate::rig::Node| node.find(digest).await;
    assert_eq!(numbers(&asker).await, [(1, COMPLETE)]);
    server.restart().unwrap();
    both_know([&a, &b], &group, digest, &[1, 2]).await;
}
