//! What trackers must do whatever they share, and what those do that share a store. Every test has groups of its own, so that
//! all can use one server, one after the other.

use std::sync::Arc;
use std::time::Duration;

use lapwing_discovery::proto::{self, Caller};
use lapwing_discovery::store::{NodeRecord, Update};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::Holding;
use lapwing_p2p::identity::PeerId;
use tonic::Code;

use crate::rig::{COMPLETE, GONE, PARTIAL, Rig, Served, holding, until};

/// Runs all of it.
pub(crate) async fn run(rig: &Rig) {
    what_is_announced_to_one_is_found_through_both(rig).await;
    what_is_withdrawn_is_gone_for_both(rig).await;
    groups_are_isolated(rig).await;
    seeds_are_listed_by_both(rig).await;
    leases_and_copies_count_holders_of_both(rig).await;
    large_listings_arrive_whole(rig).await;
    nodes_that_start_again_hold_what_they_say_then(rig).await;
    what_is_refused_is_not_known(rig).await;
    silent_nodes_are_forgotten(rig).await;
    if rig.is_shared() {
        a_tracker_that_starts_answers_at_once(rig).await;
        a_node_that_goes_to_another_tracker_is_believed_there(rig).await;
        a_whole_listing_replaces_what_nobody_remembers(rig).await;
        stores_keep_the_latest(rig).await;
    }
}

fn blob(number: u32) -> Digest {
    Digest::of(&number.to_be_bytes())
}

async fn what_is_announced_to_one_is_found_through_both(rig: &Rig) {
    let ((a, b), group, digest) = (rig.pair().await, rig.group(), blob(1));
    a.node(&group, 1).await.announce(digest, PARTIAL).await;
    b.node_at("[::1]", &group, 2).await.announce(digest, COMPLETE).await;
    for tracker in [&a, &b] {
        let asker = tracker.node(&group, 9).await;
        let both = [(1, PARTIAL), (2, COMPLETE)];
        until("both holders are found", || async { asker.find(digest).await == both }).await;
        let holders = asker.holders(digest).await;
        assert_eq!((&holders[0].address[..], holders[0].port), (&[127, 0, 0, 1][..], 7001));
        let v6 = std::net::Ipv6Addr::LOCALHOST.octets();
        assert_eq!((&holders[1].address[..], holders[1].port), (&v6[..], 7002));
    }
    let grown = a.node(&group, 1).await;
    grown.announce(digest, COMPLETE).await;
    let asker = b.node(&group, 9).await;
    until("a holder becomes complete", || async { asker.find(digest).await == [(1, COMPLETE), (2, COMPLETE)] }).await;
}

async fn what_is_withdrawn_is_gone_for_both(rig: &Rig) {
    let ((a, b), group, digest) = (rig.pair().await, rig.group(), blob(2));
    let (one, two) = (a.node(&group, 1).await, a.node(&group, 2).await);
    one.announce(digest, COMPLETE).await;
    two.announce(digest, COMPLETE).await;
    let (near, far) = (a.node(&group, 8).await, b.node(&group, 9).await);
    until("both are known", || async { far.find(digest).await.len() == 2 }).await;
    one.announce(digest, GONE).await;
    assert_eq!(near.find(digest).await, [(2, COMPLETE)], "at once where it was withdrawn");
    until("a withdrawal is known", || async { far.find(digest).await == [(2, COMPLETE)] }).await;
    two.leave().await;
    assert_eq!(near.find(digest).await, []);
    until("a departure is known", || async { far.find(digest).await.is_empty() }).await;
}

async fn groups_are_isolated(rig: &Rig) {
    let ((a, b), digest) = (rig.pair().await, blob(3));
    let (ours, theirs) = (rig.group(), rig.group());
    a.node(&ours, 1).await.announce(digest, COMPLETE).await;
    b.node(&theirs, 2).await.announce(digest, COMPLETE).await;
    for tracker in [&a, &b] {
        let (our, their) = (tracker.node(&ours, 9).await, tracker.node(&theirs, 9).await);
        until("each group knows its own", || async {
            our.find(digest).await == [(1, COMPLETE)] && their.find(digest).await == [(2, COMPLETE)]
        })
        .await;
    }
    // The same key in two groups is two nodes.
    a.node(&theirs, 1).await.leave().await;
    let ours = b.node(&ours, 9).await;
    assert_eq!(ours.find(digest).await, [(1, COMPLETE)]);
}

async fn seeds_are_listed_by_both(rig: &Rig) {
    let ((a, b), group) = (rig.pair().await, rig.group());
    let mut seed = a.node(&group, 1).await;
    (seed.caller.seed, seed.caller.seed_port) = (true, 7083);
    seed.announce(blob(4), COMPLETE).await;
    a.node(&group, 2).await.beat().await;
    let asker = b.node(&group, 9).await;
    until("the seed is listed", || async { asker.seeds().await == [(1, 7001, 7083)] }).await;
    until("the seed is found", || async { asker.holders(blob(4)).await.iter().any(|holder| holder.seed) }).await;
    seed.leave().await;
    let fresh = Arc::new(if rig.is_shared() { rig.tracker().await } else { return });
    let asker = fresh.node(&group, 9).await;
    until("a seed that left is not listed", || async { asker.seeds().await.is_empty() }).await;
}

async fn leases_and_copies_count_holders_of_both(rig: &Rig) {
    let ((a, b), group) = (rig.pair().await, rig.group());
    let (held, partial, unknown) = (blob(5), blob(6), blob(7));
    let holder = a.node(&group, 1).await;
    holder.announce(held, COMPLETE).await;
    holder.announce(partial, PARTIAL).await;
    let asker = b.node(&group, 9).await;
    until("copies are counted", || async { asker.copies(&[unknown, held, partial]).await == [0, 1, 0] }).await;
    assert!(!asker.is_granted(held).await, "nobody fetches from the origin what a live node has");
    assert!(asker.is_granted(partial).await);
    assert!(asker.is_granted(unknown).await);
    // Not even the first time that a tracker hears of it.
    if rig.is_shared() {
        let fresh = rig.tracker().await;
        assert!(!fresh.node(&group, 8).await.is_granted(held).await);
    }
}

async fn large_listings_arrive_whole(rig: &Rig) {
    let ((a, b), group) = (rig.pair().await, rig.group());
    let digests: Vec<Digest> = (1000..11_000).map(blob).collect();
    a.node(&group, 1).await.sync(&digests, false).await;
    let asker = b.node(&group, 9).await;
    for digest in digests.iter().step_by(499).chain(digests.last()) {
        until("every blob of a large listing is known", || async { asker.find(*digest).await.len() == 1 }).await;
    }
    a.node(&group, 1).await.leave().await;
    until("all of it goes", || async { asker.find(digests[0]).await.is_empty() }).await;
}

async fn nodes_that_start_again_hold_what_they_say_then(rig: &Rig) {
    let ((a, b), group, old, new) = (rig.pair().await, rig.group(), blob(8), blob(9));
    let mut node = a.node(&group, 1).await;
    node.announce(old, COMPLETE).await;
    let asker = b.node(&group, 9).await;
    until("it is known", || async { asker.find(old).await.len() == 1 }).await;
    rig.advance(Duration::from_secs(2));
    node = node.at(&b).await;
    (node.caller.instance, node.caller.piece_port) = (2, 7500);
    node.announce(new, COMPLETE).await;
    for tracker in [&a, &b] {
        let asker = tracker.node(&group, 9).await;
        until("only what the new process holds", || async {
            asker.find(new).await == [(1, COMPLETE)] && asker.find(old).await.is_empty()
        })
        .await;
        assert_eq!(asker.holders(new).await[0].port, 7500);
    }
}

async fn what_is_refused_is_not_known(rig: &Rig) {
    let ((a, b), group, digest) = (rig.pair().await, rig.group(), blob(10));
    let good = a.node(&group, 1).await;
    let refused = |outcome: Result<(), tonic::Status>, code: Code| assert_eq!(outcome.unwrap_err().code(), code);
    let short = proto::Holding { digest: vec![1; 31], ..holding(digest, COMPLETE) };
    refused(good.try_announce(vec![holding(digest, COMPLETE), short]).await, Code::InvalidArgument);
    let many = vec![holding(digest, COMPLETE); 4097];
    refused(good.try_announce(many).await, Code::ResourceExhausted);
    let spoiled: [fn(&mut Caller); 6] = [
        |caller| caller.group = "a/b".to_owned(),
        |caller| caller.group = "g'; DROP TABLE nodes; --".to_owned(),
        |caller| caller.zone = "z".repeat(64),
        |caller| caller.rack = "two words".to_owned(),
        |caller| caller.piece_port = 65_536,
        |caller| caller.node = vec![1; 33],
    ];
    for spoil in spoiled {
        let mut bad = good.clone();
        spoil(&mut bad.caller);
        refused(bad.try_announce(vec![holding(digest, COMPLETE)]).await, Code::InvalidArgument);
    }
    // What is told next has been written, so what was told before would have been.
    good.announce(blob(11), COMPLETE).await;
    let asker = b.node(&group, 9).await;
    until("the next one is known", || async { asker.find(blob(11)).await.len() == 1 }).await;
    assert_eq!(asker.find(digest).await, []);
}

async fn silent_nodes_are_forgotten(rig: &Rig) {
    let ((a, b), group, digest) = (rig.pair().await, rig.group(), blob(12));
    let (silent, alive) = (a.node(&group, 1).await, a.node(&group, 2).await);
    silent.announce(digest, COMPLETE).await;
    alive.announce(digest, COMPLETE).await;
    let askers = [a.node(&group, 8).await, b.node(&group, 9).await];
    for asker in &askers {
        until("both are known", || async { asker.find(digest).await.len() == 2 }).await;
    }
    for _ in 0..3 {
        rig.advance(Duration::from_secs(15));
        alive.beat().await;
    }
    for asker in &askers {
        until("45 s of silence are not too many", || async { asker.find(digest).await.len() == 2 }).await;
    }
    rig.advance(Duration::from_secs(15));
    alive.beat().await;
    for asker in &askers {
        until("60 s of silence are", || async { asker.find(digest).await == [(2, COMPLETE)] }).await;
    }
    let Some(store) = rig.store() else { return };
    store.forget(&group, &[(PeerId::from_bytes([2; 32]), 1)]).await.unwrap();
    rig.advance(Duration::from_secs(6));
    alive.beat().await;
    until("what was forgotten of a node that lives is written again, though nobody asks its tracker", || async {
        store.find(&group, &[digest], 10, Duration::ZERO).await.unwrap()[0].holders.len() == 1
            && askers[1].find(digest).await == [(2, COMPLETE)]
    })
    .await;
    until("the store forgets as well", || async {
        let found = store.find(&group, &[digest], 10, Duration::ZERO).await.unwrap();
        found[0].holders.len() == 1
    })
    .await;
}

async fn a_tracker_that_starts_answers_at_once(rig: &Rig) {
    let ((a, b), group, digest) = (rig.pair().await, rig.group(), blob(13));
    a.node(&group, 1).await.announce(digest, COMPLETE).await;
    b.node(&group, 2).await.announce(digest, PARTIAL).await;
    let store = rig.store().unwrap();
    until("both are written", || async {
        store.find(&group, &[digest], 10, Duration::ZERO).await.unwrap()[0].holders.len() == 2
    })
    .await;
    drop((a, b));
    let restarted = rig.tracker().await;
    let asker = restarted.node(&group, 9).await;
    assert_eq!(asker.find(digest).await, [(1, COMPLETE), (2, PARTIAL)], "the first time it is asked");
}

async fn a_node_that_goes_to_another_tracker_is_believed_there(rig: &Rig) {
    let ((a, b), group, digest) = (rig.pair().await, rig.group(), blob(14));
    let node = a.node(&group, 1).await;
    node.announce(digest, COMPLETE).await;
    let (near, far) = (a.node(&group, 8).await, b.node(&group, 9).await);
    until("it is known", || async { far.find(digest).await.len() == 1 }).await;
    let node = node.at(&b).await;
    node.announce(blob(15), COMPLETE).await;
    node.announce(digest, GONE).await;
    // What it told the first tracker holds there for as long as it may just be between two heartbeats.
    for _ in 0..2 {
        rig.advance(Duration::from_secs(15));
        node.beat().await;
    }
    until("its first tracker knows, too", || async {
        near.find(digest).await.is_empty() && near.find(blob(15)).await == [(1, COMPLETE)]
    })
    .await;
}

async fn a_whole_listing_replaces_what_nobody_remembers(rig: &Rig) {
    let (group, kept, evicted) = (rig.group(), blob(16), blob(17));
    let before = rig.tracker().await;
    let node = before.node(&group, 1).await;
    node.announce(kept, COMPLETE).await;
    node.announce(evicted, COMPLETE).await;
    let asker = before.node(&group, 9).await;
    let store = rig.store().unwrap();
    until("both are written", || async {
        let found = store.find(&group, &[kept, evicted], 10, Duration::ZERO).await.unwrap();
        found.iter().all(|found| found.holders.len() == 1)
    })
    .await;
    assert_eq!(asker.find(evicted).await.len(), 1);
    drop(before);
    let after = rig.tracker().await;
    let node = node.at(&after).await;
    let asker = after.node(&group, 9).await;
    node.sync(&[kept], false).await;
    // A share of what it holds says nothing of the rest.
    until("its listing is written", || async { asker.find(evicted).await.len() == 1 }).await;
    node.sync(&[kept], true).await;
    until("what it does not list is gone", || async { asker.find(evicted).await.is_empty() }).await;
    assert_eq!(asker.find(kept).await.len(), 1);
}

/// The contract of the trait itself, where trackers do not reach.
async fn stores_keep_the_latest(rig: &Rig) {
    let (store, group, now) = (rig.store().unwrap(), rig.group(), rig.now());
    let node = |instance: u64, age_s: u64, seed_port: u16| NodeRecord {
        peer: PeerId::from_bytes([7; 32]),
        instance,
        seen: now - Duration::from_secs(age_s),
        place: lapwing_discovery::registry::Place { zone: "z".into(), rack: "".into(), address: [10, 0, 0, 1].into() },
        port: 7081,
        seed: false,
        seed_port,
    };
    let update = |node: NodeRecord, holdings: &[(u32, Option<Holding>)], whole: bool| {
        let holdings = holdings.iter().map(|(number, holding)| (blob(*number), *holding)).collect();
        Update { group: group.clone(), node, holdings, whole }
    };
    let found = async |number: u32| {
        let answers = store.find(&group, &[blob(number)], 10, Duration::ZERO).await.unwrap();
        answers[0].holders.iter().map(|holder| (holder.node.instance, holder.holding)).collect::<Vec<_>>()
    };
    let (partial, complete) = (Some(Holding::Partial), Some(Holding::Complete));
    let other = NodeRecord { peer: PeerId::from_bytes([8; 32]), ..node(1, 50, 0) };
    let two = [update(other, &[], false), update(node(1, 50, 0), &[(20, partial), (21, complete)], false)];
    let mut unknown = store.write(&two).await.unwrap();
    unknown.sort_unstable();
    assert_eq!(unknown, [0, 1], "neither was known");
    assert_eq!(store.write(&two[..1]).await, Ok(vec![]));
    store.write(&[update(node(1, 60, 0), &[(22, complete)], false)]).await.unwrap();
    assert_eq!(found(22).await, [(1, Holding::Complete)], "late news of the same process");
    store.write(&[update(node(1, 60, 0), &[(22, complete)], true)]).await.unwrap();
    assert_eq!(found(20).await, [(1, Holding::Partial)], "an old listing does not replace");
    store.write(&[update(node(2, 40, 9), &[(21, partial)], false)]).await.unwrap();
    assert_eq!((found(20).await, found(21).await), (vec![], vec![(2, Holding::Partial)]), "another process");
    store.write(&[update(node(1, 45, 0), &[(20, complete)], false)]).await.unwrap();
    assert_eq!(found(20).await, [], "news of a process that has ended");
    let seeds = store.seeds(&group, 10, Duration::ZERO).await.unwrap();
    assert_eq!(seeds, [node(2, 40, 9)]);
    let alive = store.find(&group, &[blob(21), blob(99)], 10, now - Duration::from_secs(39)).await.unwrap();
    assert!(alive.iter().all(|found| found.holders.is_empty()), "not seen since then");
    store.forget(&group, &[(node(1, 0, 0).peer, 1)]).await.unwrap();
    assert_eq!(found(21).await.len(), 1, "the one that left was another");
    // What the tests before this one left.
    while store.expire(now - Duration::from_secs(41)).await.unwrap() > 0 {}
    assert_eq!(store.expire(now - Duration::from_secs(40)).await, Ok(0), "seen at that very moment");
    store.forget(&group, &[(node(2, 0, 0).peer, 2)]).await.unwrap();
    assert_eq!((found(21).await, store.seeds(&group, 10, Duration::ZERO).await.unwrap()), (vec![], vec![]));
    let crowd = (0..30u8).map(|number| NodeRecord { peer: PeerId::from_bytes([number; 32]), ..node(1, 0, 0) });
    let crowd: Vec<Update> = crowd.map(|node| update(node, &[(23, complete)], false)).collect();
    store.write(&crowd).await.unwrap();
    let some = &store.find(&group, &[blob(23)], 10, Duration::ZERO).await.unwrap()[0];
    assert_eq!((some.holders.len(), some.truncated), (10, true));
    let all = &store.find(&group, &[blob(23)], 64, Duration::ZERO).await.unwrap()[0];
    assert_eq!((all.holders.len(), all.truncated), (30, false));
    // The trackers of the test before have ended: what this one expires, nobody else does.
    let mut expired = 0;
    while store.expire(now + Duration::from_millis(1)).await.unwrap() > 0 {
        expired += 1;
        assert!(expired < 1000, "expiry comes to an end");
    }
    assert!(store.find(&group, &[blob(23)], 64, Duration::ZERO).await.unwrap()[0].holders.is_empty());
}

/// For tests beside these.
pub(crate) async fn both_know(trackers: [&Served; 2], group: &str, digest: Digest, expected: &[u8]) {
    for tracker in trackers {
        let asker = tracker.node(group, 9).await;
        until("both trackers know every holder", || async {
            let holders = asker.find(digest).await;
            holders.iter().map(|(number, _)| *number).eq(expected.iter().copied())
        })
        .await;
    }
}
