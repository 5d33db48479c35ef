use std::collections::{BTreeMap, BTreeSet};

use lapwing_p2p::discovery::{LeaseKind, StatementKind};

use super::*;
use crate::limits::{
    GRUDGE, MAX_COMPLETE_SCANNED, MAX_EXPIRED_HOLDINGS_PER_TICK, MAX_HOLDERS_PER_ANSWER, MAX_OBJECTS_PER_SUBJECT,
    MAX_REPORTS_PER_NODE, MAX_SEEDS, NODE_TTL, QUARANTINE, QUICK_BLOB_BYTES, UNANNOUNCED, UNREPORTED_SILENCE,
};

mod model;

const S: Duration = Duration::from_secs(1);
const NOW: Duration = Duration::from_secs(1000);

fn peer(number: u32) -> PeerId {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    PeerId::from_bytes(bytes)
}

fn digest(number: u32) -> Digest {
    Digest::from_bytes(*peer(number).as_bytes())
}

/// Node `number`, each in a subnet of its own.
fn caller(number: u32) -> Caller {
    let [_, _, high, low] = number.to_be_bytes();
    Caller {
        node: peer(number),
        instance: 1,
        group: "default".to_owned(),
        place: Place { zone: "".into(), rack: "".into(), address: IpAddr::from([10, high, low, 1]) },
        port: 7081,
        seed: false,
        seed_port: 0,
        reached_at: IpAddr::from([10, 255, 255, 1]),
    }
}

fn registry() -> Registry {
    Registry::new(7)
}

fn hold(registry: &mut Registry, now: Duration, caller: &Caller, blob: u32, holding: Holding) -> Registration {
    registry.announce(now, caller, &[(digest(blob), Some(holding))]).unwrap()
}

fn names(registry: &mut Registry, now: Duration, asker: &Caller, blob: u32) -> Vec<PeerId> {
    let (_, found) = registry.find(now, asker, digest(blob)).unwrap();
    found.holders.into_iter().map(|holder| holder.peer).collect()
}

fn lease(registry: &mut Registry, now: Duration, asker: &Caller, blob: u32, length: u64) -> LeaseReply {
    let layout = PieceLayout::new(length).unwrap();
    let missing = std::iter::once(0..layout.piece_count()).collect();
    let request = LeaseRequest { missing, ..LeaseRequest::new(digest(blob), length) };
    registry.lease(now, asker, &request, layout).unwrap().1
}

fn statement(subject: u32, object: u32) -> Statement {
    let (subject, object) = (digest(subject), digest(object + 100));
    Statement { subject, kind: StatementKind::LayerIndex, object, length: 3 }
}

#[test]
fn nearest_holders_come_first_and_equals_share_the_load() {
    let mut registry = registry();
    let at = |number: u32, zone: &str, address: [u8; 4]| Caller {
        place: Place { zone: zone.into(), rack: "".into(), address: address.into() },
        ..caller(number)
    };
    for node in [at(1, "z2", [10, 0, 0, 9]), at(2, "z1", [10, 9, 9, 9]), at(3, "z1", [10, 0, 0, 3])] {
        hold(&mut registry, NOW, &node, 1, Holding::Partial);
    }
    let asker = at(9, "z1", [10, 0, 0, 1]);
    assert_eq!(names(&mut registry, NOW, &asker, 1), [peer(3), peer(2), peer(1)]);

    for node in 20..24 {
        hold(&mut registry, NOW, &at(node, "z1", [10, 0, 0, node as u8]), 2, Holding::Partial);
    }
    let firsts: BTreeSet<PeerId> = (0..100).map(|_| names(&mut registry, NOW, &asker, 2)[0]).collect();
    assert_eq!(firsts.len(), 4, "every one of four equals is first at times");
}

#[test]
fn answers_are_bounded_and_keep_some_far_and_complete_holders() {
    let mut registry = registry();
    let in_zone = |number: u32, zone: &str| Caller {
        place: Place { zone: zone.into(), ..caller(number).place },
        ..caller(number)
    };
    for number in 0..1000 {
        hold(&mut registry, NOW, &in_zone(number, "near"), 1, Holding::Partial);
    }
    for number in 1000..1100 {
        hold(&mut registry, NOW, &in_zone(number, "far"), 1, Holding::Partial);
    }
    hold(&mut registry, NOW, &in_zone(2000, "far"), 1, Holding::Complete);
    let (_, found) = registry.find(NOW, &in_zone(5000, "near"), digest(1)).unwrap();
    let named: Vec<PeerId> = found.holders.iter().map(|holder| holder.peer).collect();
    assert_eq!(named.len(), MAX_HOLDERS_PER_ANSWER);
    assert_eq!(named.iter().collect::<BTreeSet<_>>().len(), named.len());
    let places: Vec<usize> = (1..=64).filter(|place| found.holders[place - 1].far).collect();
    assert!(places.contains(&4) && places.len() <= 16, "{places:?}");
    assert_eq!(named[3], peer(2000), "the only complete one is far, and among the first");
}

#[test]
fn a_neighbourhood_is_never_cut_off_from_the_others() {
    let mut registry = registry();
    let at = |number: u32, subnet: u8| Caller {
        place: Place { address: [10, 0, subnet, number as u8].into(), ..caller(number).place },
        ..caller(number)
    };
    for number in 1..=200 {
        hold(&mut registry, NOW, &at(number, if number <= 100 { 1 } else { 2 }), 1, Holding::Partial);
    }
    let first = names(&mut registry, NOW, &at(1, 1), 1);
    let elsewhere =
        first[..16].iter().filter(|peer| u32::from_be_bytes(peer.as_bytes()[..4].try_into().unwrap()) > 100);
    assert_eq!(elsewhere.count(), 4);
    let alone = names(&mut registry, NOW, &at(250, 9), 1);
    assert_eq!(alone.len(), MAX_HOLDERS_PER_ANSWER, "equals all");
}

/// A stretch of all holders, who registered subnet by subnet, would be of one only.
#[test]
fn no_neighbourhood_of_thousands_is_cut_off_either() {
    let mut registry = registry();
    let at = |number: u32| Caller {
        place: Place { address: [10, (number / 200) as u8, 0, (number % 200) as u8].into(), ..caller(number).place },
        ..caller(number)
    };
    for number in 0..10_000 {
        hold(&mut registry, NOW, &at(number), 1, Holding::Partial);
    }
    for asker in [3, 5000, 9999] {
        let (_, found) = registry.find(NOW, &at(asker), digest(1)).unwrap();
        let subnets: BTreeSet<IpAddr> = found.holders[..16]
            .iter()
            .map(|holder| match holder.address.ip() {
                IpAddr::V4(address) => IpAddr::from([10, address.octets()[1], 0, 0]),
                other => other,
            })
            .collect();
        assert!(subnets.len() >= 4, "{subnets:?}");
    }
}

#[test]
fn seeds_are_those_that_say_so_and_live() {
    let mut registry = registry();
    let seed = |number: u32| Caller { seed_port: 7083, ..caller(number) };
    for number in 1..=3 {
        registry.heartbeat(NOW, &seed(number)).unwrap();
    }
    registry.heartbeat(NOW, &caller(4)).unwrap();
    registry.heartbeat(NOW, &Caller { group: "other".to_owned(), ..seed(5) }).unwrap();
    let named = |registry: &mut Registry, now, asker: &Caller| -> Vec<String> {
        registry.seeds(now, asker).unwrap().1.iter().map(|seed| seed.service().to_string()).collect()
    };
    assert_eq!(named(&mut registry, NOW, &caller(9)), ["10.0.1.1:7083", "10.0.2.1:7083", "10.0.3.1:7083"]);
    assert_eq!(named(&mut registry, NOW, &seed(1)), ["10.0.2.1:7083", "10.0.3.1:7083"], "not the asker itself");

    registry.leave(&seed(1));
    registry.heartbeat(NOW, &caller(2)).unwrap();
    assert_eq!(named(&mut registry, NOW, &caller(9)), ["10.0.3.1:7083"], "one left, one is no seed any more");
    let later = NOW + UNREPORTED_SILENCE;
    assert!(named(&mut registry, later, &caller(9)).is_empty(), "a silent seed is not counted on");
    registry.heartbeat(later, &seed(3)).unwrap();
    assert_eq!(named(&mut registry, later, &caller(9)).len(), 1);
    registry.tick(later + NODE_TTL);
    assert!(named(&mut registry, later + NODE_TTL, &caller(9)).is_empty());

    for number in 100..100 + 2 * MAX_SEEDS as u32 {
        registry.heartbeat(later, &seed(number)).unwrap();
    }
    let (some, same) = (named(&mut registry, later, &caller(9)), named(&mut registry, later, &caller(10)));
    assert_eq!(some.len(), MAX_SEEDS);
    assert_eq!(some, same, "of too many the same are named to all");
}

#[test]
fn a_silent_node_is_gone_and_leaves_nothing() {
    let mut registry = registry();
    hold(&mut registry, NOW, &caller(1), 1, Holding::Complete);
    let before = hold(&mut registry, NOW, &caller(2), 1, Holding::Partial);
    assert_eq!(names(&mut registry, NOW + NODE_TTL - S, &caller(2), 1), [peer(1)]);
    assert_eq!(names(&mut registry, NOW + NODE_TTL, &caller(2), 1), [], "even before a tick");
    assert_eq!(registry.tick(NOW + NODE_TTL).nodes, 1);
    assert_eq!(registry.heartbeat(NOW + NODE_TTL, &caller(2)), Ok(before), "2 asked meanwhile");
    assert_ne!(registry.heartbeat(NOW + 3 * NODE_TTL, &caller(2)), Ok(before), "and was silent now");
    registry.tick(NOW + 5 * NODE_TTL);
    let counts = registry.counts();
    assert_eq!((counts.nodes, counts.blobs, counts.holders, counts.groups), (0, 0, 0, 0));
}

#[test]
fn another_process_with_the_same_key_starts_anew() {
    let mut registry = registry();
    let before = hold(&mut registry, NOW, &caller(1), 1, Holding::Complete);
    assert_eq!(registry.heartbeat(NOW, &caller(1)), Ok(before));
    let restarted = Caller { instance: 2, ..caller(1) };
    assert_ne!(registry.heartbeat(NOW, &restarted), Ok(before));
    assert_eq!(names(&mut registry, NOW, &caller(2), 1), []);
    registry.leave(&caller(1));
    assert_eq!(registry.counts().nodes, 2, "the old process cannot take the new one along");
}

#[test]
fn one_reporter_alone_cannot_blind_the_cluster() {
    let mut registry = registry();
    for number in 1..=20 {
        hold(&mut registry, NOW, &caller(number), 1, Holding::Complete);
    }
    let (liar, asker) = (caller(100), caller(101));
    for number in 1..=20 {
        registry.report(NOW, &liar, peer(number)).unwrap();
    }
    assert_eq!(names(&mut registry, NOW, &liar, 1), [], "has it its own way");
    assert_eq!(names(&mut registry, NOW, &asker, 1).len(), 20 - MAX_REPORTS_PER_NODE);
    assert_eq!(names(&mut registry, NOW + QUARANTINE, &asker, 1).len(), 20);
    for number in 1..=20 {
        registry.report(NOW + QUARANTINE, &liar, peer(number)).unwrap();
    }
    assert_eq!(names(&mut registry, NOW + QUARANTINE, &asker, 1).len(), 20, "the same again does not count");
}

#[test]
fn two_reporters_keep_a_peer_away_until_it_is_heard() {
    let mut registry = registry();
    hold(&mut registry, NOW, &caller(1), 1, Holding::Complete);
    for reporter in [2, 3] {
        registry.report(NOW, &caller(reporter), peer(1)).unwrap();
    }
    assert_eq!(names(&mut registry, NOW + 2 * QUARANTINE, &caller(4), 1), []);
    registry.heartbeat(NOW + 2 * QUARANTINE, &caller(1)).unwrap();
    assert_eq!(names(&mut registry, NOW + 2 * QUARANTINE, &caller(4), 1), [peer(1)]);
    assert_eq!(names(&mut registry, NOW + 2 * QUARANTINE, &caller(2), 1), [], "a grudge lasts");
    assert_eq!(names(&mut registry, NOW + GRUDGE - S, &caller(4), 1), [peer(1)]);

    registry.heartbeat(NOW + GRUDGE, &caller(1)).unwrap();
    assert_eq!(names(&mut registry, NOW + GRUDGE, &caller(2), 1), [peer(1)]);
}

#[test]
fn one_who_restarted_is_named_to_those_that_reported_it_too() {
    let mut registry = registry();
    let seed = Caller { seed: true, seed_port: 7082, ..caller(1) };
    hold(&mut registry, NOW, &seed, 1, Holding::Complete);
    registry.report(NOW, &caller(2), peer(1)).unwrap();
    assert_eq!(names(&mut registry, NOW + S, &caller(2), 1), []);
    let restarted = Caller { instance: 2, ..seed };
    hold(&mut registry, NOW + S, &restarted, 1, Holding::Complete);
    assert_eq!(names(&mut registry, NOW + S, &caller(2), 1), [peer(1)]);
    registry.report(NOW + S, &caller(2), peer(1)).unwrap();
    assert_eq!(names(&mut registry, NOW + S, &caller(2), 1), [], "if it fails again, too");
}

#[test]
fn a_peer_that_starts_again_and_again_does_not_use_up_a_reporters_voice() {
    let mut registry = registry();
    for instance in 1..=2 * MAX_REPORTS_PER_NODE as u64 {
        hold(&mut registry, NOW, &Caller { instance, ..caller(1) }, 1, Holding::Complete);
        registry.report(NOW, &caller(2), peer(1)).unwrap();
        assert_eq!(names(&mut registry, NOW, &caller(3), 1), [], "start {instance} is reported");
    }
    hold(&mut registry, NOW, &caller(4), 2, Holding::Complete);
    registry.report(NOW, &caller(2), peer(4)).unwrap();
    assert_eq!(names(&mut registry, NOW, &caller(3), 2), [], "others are spared another peer, too");
}

#[test]
fn many_keys_on_one_machine_are_one_reporter() {
    let mut registry = registry();
    hold(&mut registry, NOW, &caller(1), 1, Holding::Complete);
    for number in 50..60 {
        let sybil = Caller { place: caller(50).place, ..caller(number) };
        registry.report(NOW, &sybil, peer(1)).unwrap();
    }
    assert_eq!(names(&mut registry, NOW + QUARANTINE, &caller(4), 1), [peer(1)]);
}

#[test]
fn what_a_dead_lessee_fetched_is_free_once_two_miss_it() {
    let mut registry = registry();
    let LeaseReply::Granted(first) = lease(&mut registry, NOW, &caller(1), 1, 300 << 10) else { panic!() };
    let settlement = Settlement::new(first.id, digest(1), first.count);
    registry.settle(NOW, &caller(1), settlement).unwrap();
    registry.report(NOW + S / 2, &caller(2), peer(1)).unwrap();
    registry.tick(NOW + 2 * S);
    let LeaseReply::Granted(rest) = lease(&mut registry, NOW + 2 * S, &caller(4), 1, 300 << 10) else { panic!() };
    assert_ne!(rest.first, first.first, "one may lie");
    registry.report(NOW + 2 * S, &caller(3), peer(1)).unwrap();
    let LeaseReply::Granted(again) = lease(&mut registry, NOW + 2 * S, &caller(2), 1, 300 << 10) else { panic!() };
    assert_eq!(again.first, first.first);
}

#[test]
fn a_report_takes_the_leases_of_one_who_is_silent_and_of_nobody_else() {
    let mut registry = registry();
    let LeaseReply::Granted(first) = lease(&mut registry, NOW, &caller(1), 1, 128 << 10) else { panic!() };
    registry.report(NOW + S / 2, &caller(2), peer(1)).unwrap();
    assert!(matches!(lease(&mut registry, NOW + S / 2, &caller(3), 1, 128 << 10), LeaseReply::Wait(_)));
    registry.heartbeat(NOW + S, &caller(1)).unwrap();
    registry.report(NOW + 2 * S, &caller(3), peer(1)).unwrap();
    let LeaseReply::Granted(again) = lease(&mut registry, NOW + 2 * S, &caller(3), 1, 128 << 10) else { panic!() };
    assert_eq!(again.first, first.first);
    registry.settle(NOW + 3 * S, &caller(1), Settlement::new(first.id, digest(1), first.count)).unwrap();
    registry.settle(NOW + 3 * S, &caller(3), Settlement::new(again.id, digest(1), 0)).unwrap();
    let reply = lease(&mut registry, NOW + 3 * S, &caller(4), 1, 128 << 10);
    assert_eq!(reply, LeaseReply::Exhausted, "what it settles late still counts");
}

#[test]
fn a_single_report_holds_until_the_peer_is_heard_from_if_it_missed_a_heartbeat() {
    let mut registry = registry();
    hold(&mut registry, NOW, &caller(1), 1, Holding::Complete);
    registry.report(NOW + 15 * S, &caller(2), peer(1)).unwrap();
    assert_eq!(names(&mut registry, NOW + 16 * S, &caller(4), 1), []);
    assert_eq!(names(&mut registry, NOW + 30 * S, &caller(4), 1), [], "it missed a heartbeat");
    registry.heartbeat(NOW + 31 * S, &caller(1)).unwrap();
    assert_eq!(names(&mut registry, NOW + 31 * S, &caller(4), 1), [peer(1)]);
}

#[test]
fn what_only_useless_peers_hold_or_fetched_is_leased_again_to_those_who_say_so() {
    let mut registry = registry();
    let layout = PieceLayout::new(128 << 10).unwrap();
    let request = |useless: &[u32]| LeaseRequest {
        missing: std::iter::once(0..2).collect(),
        useless: useless.iter().copied().map(peer).collect(),
        ..LeaseRequest::new(digest(1), 128 << 10)
    };
    let LeaseReply::Granted(first) = registry.lease(NOW, &caller(1), &request(&[]), layout).unwrap().1 else {
        panic!()
    };
    registry.settle(NOW, &caller(1), Settlement::new(first.id, digest(1), first.count)).unwrap();
    hold(&mut registry, NOW, &caller(2), 1, Holding::Complete);
    let mut ask = |asker, useless: &[u32]| registry.lease(NOW, &caller(asker), &request(useless), layout).unwrap().1;
    assert_eq!(ask(3, &[1]), LeaseReply::Exhausted, "2 holds all of it");
    assert_eq!(ask(3, &[2]), LeaseReply::Exhausted, "1 fetched all of it");
    let LeaseReply::Granted(again) = ask(3, &[1, 2]) else { panic!() };
    assert_eq!((again.first, again.count), (first.first, first.count));
    assert_eq!(ask(4, &[]), LeaseReply::Exhausted, "others are not concerned");
    assert!(matches!(ask(4, &[1, 2]), LeaseReply::Wait(_)), "never two live leases of a piece");
}

#[test]
fn a_node_does_not_wait_for_what_a_peer_fetched_that_it_reported_and_is_not_told_of() {
    let mut registry = registry();
    let LeaseReply::Granted(first) = lease(&mut registry, NOW, &caller(1), 1, 128 << 10) else { panic!() };
    registry.settle(NOW, &caller(1), Settlement::new(first.id, digest(1), first.count)).unwrap();
    assert_eq!(lease(&mut registry, NOW, &caller(2), 1, 128 << 10), LeaseReply::Exhausted, "1 fetched all of it");
    registry.report(NOW, &caller(2), peer(1)).unwrap();
    registry.heartbeat(NOW + 10 * S, &caller(1)).unwrap();
    registry.heartbeat(NOW + GRUDGE / 2, &caller(1)).unwrap();
    let late = NOW + GRUDGE * 3 / 4;
    registry.heartbeat(late, &caller(1)).unwrap();
    assert_eq!(names(&mut registry, late, &caller(2), 1), []);
    assert!(matches!(lease(&mut registry, late, &caller(2), 1, 128 << 10), LeaseReply::Granted(_)));
    assert_eq!(lease(&mut registry, late, &caller(3), 1, 128 << 10), LeaseReply::Exhausted, "others are not concerned");
}

#[test]
fn nobody_fetches_what_a_live_node_holds_completely() {
    let mut registry = registry();
    hold(&mut registry, NOW, &caller(1), 1, Holding::Complete);
    assert_eq!(lease(&mut registry, NOW, &caller(2), 1, 1 << 20), LeaseReply::Exhausted);
    registry.report(NOW, &caller(2), peer(1)).unwrap();
    assert!(matches!(lease(&mut registry, NOW, &caller(2), 1, 1 << 20), LeaseReply::Granted(_)));
}

#[test]
fn a_holder_that_misses_its_heartbeat_is_not_counted_on() {
    let mut registry = registry();
    hold(&mut registry, NOW, &caller(1), 1, Holding::Complete);
    let silent = NOW + UNREPORTED_SILENCE;
    assert_eq!(lease(&mut registry, silent - S, &caller(2), 1, 1 << 20), LeaseReply::Exhausted);
    assert!(matches!(lease(&mut registry, silent, &caller(2), 1, 1 << 20), LeaseReply::Granted(_)));
    assert_eq!(names(&mut registry, silent, &caller(2), 1), [peer(1)], "but it may be tried");
}

#[test]
fn many_that_fall_silent_together_are_forgotten_in_turns() {
    let mut registry = registry();
    // Each counts for itself and for its holding.
    let at_once = MAX_EXPIRED_HOLDINGS_PER_TICK / 2;
    let many = at_once + 1;
    for number in 0..many as u32 {
        hold(&mut registry, NOW, &caller(number), 1, Holding::Complete);
    }
    let expired = registry.tick(NOW + NODE_TTL);
    assert_eq!((expired.nodes, expired.backlog), (at_once, true));
    assert_eq!(names(&mut registry, NOW + NODE_TTL, &caller(50_000), 1), []);
    let expired = registry.tick(NOW + NODE_TTL);
    assert_eq!((expired.nodes, expired.backlog), (1, false));
}

#[test]
fn who_fetches_a_small_blob_is_named_before_it_has_announced_anything() {
    let mut registry = registry();
    let LeaseReply::Granted(granted) = lease(&mut registry, NOW, &caller(1), 1, 1) else { panic!() };
    assert_eq!(names(&mut registry, NOW, &caller(2), 1), [peer(1)], "it fetches");
    assert_eq!(names(&mut registry, NOW, &caller(1), 1), [], "nobody is told of himself");
    let settlement = Settlement::new(granted.id, digest(1), 1);
    registry.settle(NOW, &caller(1), settlement).unwrap();
    assert_eq!(names(&mut registry, NOW, &caller(2), 1), [peer(1)], "it has fetched");
    let stranger = Caller { group: "others".to_owned(), ..caller(3) };
    assert_eq!(names(&mut registry, NOW, &stranger, 1), [], "another group");
    assert_eq!(names(&mut registry, NOW + UNANNOUNCED, &caller(2), 1), [], "it would have said so by now");
    hold(&mut registry, NOW, &caller(1), 1, Holding::Complete);
    assert_eq!(names(&mut registry, NOW, &caller(2), 1), [peer(1)], "once");
    registry.announce(NOW, &caller(1), &[(digest(1), None)]).unwrap();
    assert_eq!(names(&mut registry, NOW, &caller(2), 1), [], "it gave it up");

    let LeaseReply::Granted(granted) = lease(&mut registry, NOW, &caller(1), 2, 1) else { panic!() };
    let failed = Settlement::new(granted.id, digest(2), 0);
    registry.settle(NOW, &caller(1), failed).unwrap();
    assert_eq!(names(&mut registry, NOW, &caller(2), 2), [], "nothing came");

    lease(&mut registry, NOW, &caller(1), 3, QUICK_BLOB_BYTES + 1);
    assert_eq!(names(&mut registry, NOW, &caller(2), 3), [], "announced long before all of it is there");

    lease(&mut registry, NOW, &caller(1), 4, 1);
    assert_eq!(names(&mut registry, NOW, &caller(2), 4), [peer(1)]);
    registry.leave(&caller(1));
    assert_eq!(names(&mut registry, NOW, &caller(2), 4), [], "it left");
}

#[test]
fn pieces_of_one_who_gave_the_blob_up_are_free() {
    let mut registry = registry();
    hold(&mut registry, NOW, &caller(1), 1, Holding::Partial);
    let LeaseReply::Granted(first) = lease(&mut registry, NOW, &caller(1), 1, 1) else { panic!() };
    let settlement = Settlement::new(first.id, digest(1), 1);
    registry.settle(NOW, &caller(1), settlement).unwrap();
    assert_eq!(lease(&mut registry, NOW, &caller(2), 1, 1), LeaseReply::Exhausted);
    registry.announce(NOW, &caller(1), &[(digest(1), None)]).unwrap();
    assert!(matches!(lease(&mut registry, NOW, &caller(2), 1, 1), LeaseReply::Granted(_)));
}

#[test]
fn lies_about_a_length_do_not_stop_the_others_and_are_bounded() {
    let mut registry = registry();
    let layout = |length| PieceLayout::new(length).unwrap();
    for lie in 1..MAX_LENGTHS_PER_BLOB as u64 {
        assert!(matches!(lease(&mut registry, NOW, &caller(1), 1, lie), LeaseReply::Granted(_)));
    }
    assert!(matches!(lease(&mut registry, NOW, &caller(2), 1, 5 << 20), LeaseReply::Granted(_)));
    let request = LeaseRequest::new(digest(1), 77);
    assert_eq!(registry.lease(NOW, &caller(1), &request, layout(77)), Err(Refusal::lengths()));
}

#[test]
fn idle_books_are_forgotten() {
    let mut registry = registry();
    lease(&mut registry, NOW, &caller(1), 1, 1 << 20);
    assert_eq!(registry.totals.books, 1);
    let mut now = NOW;
    while now < NOW + crate::limits::BOOK_IDLE + crate::limits::MAX_TERM {
        now += 10 * S;
        registry.heartbeat(now, &caller(1)).unwrap();
        registry.tick(now);
    }
    assert_eq!((registry.totals.books, registry.counts().blobs), (0, 0));
    assert_eq!(registry.counts().nodes, 1);
}

#[test]
fn a_node_cannot_announce_more_than_its_share() {
    let mut registry = registry();
    let all: Vec<_> = (0..MAX_BLOBS_PER_NODE as u32).map(|blob| (digest(blob), Some(Holding::Partial))).collect();
    registry.announce(NOW, &caller(1), &all).unwrap();
    let more = [(digest(u32::MAX), Some(Holding::Partial))];
    let refusal = registry.announce(NOW, &caller(1), &more).unwrap_err();
    assert_eq!(refusal, Refusal::blobs(peer(1)));
    assert!(refusal.to_string().contains(&peer(1).to_string()));
    registry.announce(NOW, &caller(1), &all[..1]).unwrap();
    assert_eq!(registry.counts().holders, MAX_BLOBS_PER_NODE);
}

#[test]
fn statements_of_a_time_that_passes_make_room_for_those_that_last() {
    let mut registry = registry();
    let right = |subject| Statement { kind: StatementKind::Right, ..statement(subject, 0) };
    let rights: Vec<_> = (1..MAX_STATEMENTS_PER_NODE as u32).map(right).collect();
    registry.state(NOW, &caller(1), &rights).unwrap();
    registry.state(NOW, &caller(1), &[statement(0, 0)]).unwrap();
    let votes = |registry: &mut Registry, subject| registry.find(NOW, &caller(2), digest(subject)).unwrap().1.votes;
    assert_eq!((votes(&mut registry, 0).len(), votes(&mut registry, 1).len()), (1, 1));
    // One more than a node may make.
    registry.state(NOW, &caller(1), &[right(u32::MAX)]).unwrap();
    assert_eq!((votes(&mut registry, 0).len(), votes(&mut registry, 1).len()), (1, 0));
    assert_eq!(votes(&mut registry, u32::MAX).len(), 1);
    let lasting: Vec<_> = (0..MAX_STATEMENTS_PER_NODE as u32).map(|subject| statement(subject, 0)).collect();
    registry.sync(NOW, &caller(1), &[], &lasting).unwrap();
    assert_eq!(registry.state(NOW, &caller(1), &[right(1)]).unwrap_err(), Refusal::statements(peer(1)));
}

#[test]
fn groups_are_bounded() {
    let mut registry = registry();
    let of = |number: usize| Caller { group: format!("g{number}"), ..caller(1) };
    for number in 0..MAX_GROUPS {
        registry.heartbeat(NOW, &of(number)).unwrap();
    }
    let refusal = registry.heartbeat(NOW, &of(MAX_GROUPS));
    assert_eq!(refusal, Err(Refusal::Full { what: "groups", limit: MAX_GROUPS }));
    registry.heartbeat(NOW, &of(0)).unwrap();
}

#[test]
fn a_holder_on_the_trackers_machine_is_reached_where_the_tracker_is() {
    let mut registry = registry();
    let loopback = Place { address: [127, 0, 0, 1].into(), ..caller(1).place };
    let local = Caller { place: loopback, reached_at: [127, 0, 0, 1].into(), ..caller(1) };
    hold(&mut registry, NOW, &local, 1, Holding::Complete);
    let address = |registry: &mut Registry, asker: &Caller| {
        registry.find(NOW, asker, digest(1)).unwrap().1.holders[0].address.to_string()
    };
    assert_eq!(address(&mut registry, &caller(2)), "10.255.255.1:7081");
    let neighbour = Caller { node: peer(3), ..local };
    assert_eq!(address(&mut registry, &neighbour), "127.0.0.1:7081");
}

#[test]
fn a_node_that_serves_nobody_is_not_named() {
    let mut registry = registry();
    hold(&mut registry, NOW, &Caller { port: 0, ..caller(1) }, 1, Holding::Complete);
    assert_eq!(names(&mut registry, NOW, &caller(2), 1), []);
    assert!(matches!(lease(&mut registry, NOW, &caller(2), 1, 1 << 20), LeaseReply::Granted(_)));
}

#[test]
fn the_snapshot_tells_what_is_there() {
    let mut registry = registry();
    hold(&mut registry, NOW, &caller(1), 1, Holding::Complete);
    hold(&mut registry, NOW, &caller(2), 1, Holding::Partial);
    lease(&mut registry, NOW, &caller(2), 2, 1 << 20);
    registry.report(NOW, &caller(2), peer(1)).unwrap();
    let snapshot = registry.snapshot(NOW + S);
    assert_eq!((snapshot.nodes, snapshot.blobs, snapshot.holders, snapshot.leases), (2, 2, 2, 1));
    assert_eq!(snapshot.swarms[0].digest, digest(2), "the busiest first");
    assert_eq!((snapshot.swarms[1].holders, snapshot.swarms[1].complete), (2, 1));
    let one = snapshot.members.iter().find(|member| member.peer == peer(1)).unwrap();
    assert_eq!((one.address.to_string(), one.silence, one.set_aside), ("10.0.1.1:7081".to_owned(), S, true));
}

/// A sample of all holders would hardly contain one of the asker's rack.
#[test]
fn of_thousands_of_holders_those_of_the_askers_rack_come_first() {
    let mut registry = registry();
    let at = |number: u32| Caller {
        place: Place {
            zone: format!("zone-{}", number % 3).into(),
            rack: format!("rack-{}", number / 20).into(),
            ..caller(number).place
        },
        ..caller(number)
    };
    for number in 0..10_000 {
        hold(&mut registry, NOW, &at(number), 1, Holding::Complete);
    }
    for asker in [0, 4321, 9999] {
        let (_, found) = registry.find(NOW, &at(asker), digest(1)).unwrap();
        let mates: BTreeSet<PeerId> = (0..10_000)
            .filter(|other| *other != asker && other / 20 == asker / 20 && other % 3 == asker % 3)
            .map(peer)
            .collect();
        // Every fourth place is for one from elsewhere.
        let first: BTreeSet<PeerId> =
            found.holders.iter().take(mates.len() * 4 / 3 + 1).map(|holder| holder.peer).collect();
        assert!(mates.len() >= 5 && mates.is_subset(&first), "{mates:?} {first:?}");
        assert_eq!(found.holders.len(), MAX_HOLDERS_PER_ANSWER);
        assert!(found.holders.iter().any(|holder| holder.far));
    }
}

/// What was left to a node's silence alone: leases of a node that is never heard of again, and books nobody asks for.
#[test]
fn a_tick_finds_all_that_has_expired() {
    let mut registry = registry();
    for number in 0..300 {
        hold(&mut registry, NOW + number * Duration::from_millis(10), &caller(number), number % 7, Holding::Complete);
    }
    assert!(matches!(lease(&mut registry, NOW, &caller(500), 9, 1 << 20), LeaseReply::Granted(_)));
    for second in 1..=40 {
        for number in (0..300).step_by(3) {
            registry.heartbeat(NOW + second * S, &caller(number)).unwrap();
        }
        registry.tick(NOW + second * S);
    }
    assert_eq!(registry.counts().nodes, 301);
    for second in 41..=60 {
        registry.tick(NOW + second * S);
    }
    assert_eq!((registry.counts().nodes, registry.counts().holders), (100, 100));
    for second in 61..=700 {
        registry.heartbeat(NOW + second * S, &caller(0)).unwrap();
        registry.tick(NOW + second * S);
    }
    assert_eq!((registry.counts().nodes, registry.totals.books), (1, 0));
}

/// Who registered first would be all that is looked at, and each zone would import what one of its own nodes has.
#[test]
fn a_copy_in_the_zone_is_seen_though_thousands_elsewhere_registered_before() {
    let mut registry = registry();
    let in_zone = |number: u32, zone: &str| Caller {
        place: Place { zone: zone.into(), ..caller(number).place },
        ..caller(number)
    };
    for number in 0..3 * MAX_COMPLETE_SCANNED as u32 {
        hold(&mut registry, NOW, &in_zone(number, "far"), 1, Holding::Complete);
    }
    let asker = in_zone(60_000, "near");
    let request = LeaseRequest { importable: std::iter::once(0..4).collect(), ..LeaseRequest::new(digest(1), 1 << 20) };
    let layout = PieceLayout::new(1 << 20).unwrap();
    let ask = |registry: &mut Registry| registry.lease(NOW, &asker, &request, layout).unwrap().1;
    assert!(matches!(ask(&mut registry), LeaseReply::Granted(lease) if lease.kind == LeaseKind::Import));
    hold(&mut registry, NOW, &in_zone(50_000, "near"), 1, Holding::Complete);
    for _ in 0..20 {
        assert_eq!(ask(&mut registry), LeaseReply::Exhausted);
        assert_eq!(registry.replicas(NOW, &asker, &[digest(1)]).unwrap().1[0].zone, 1);
    }
}
