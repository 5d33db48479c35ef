//! A node among peers, in simulated time.

use super::*;
use crate::discovery::Holding;
use crate::wire::telling::ToldHolder;

const GROUP: [u8; 32] = [1; 32];

fn peer(number: u16) -> PeerId {
    let mut bytes = [7; 32];
    bytes[..2].copy_from_slice(&number.to_be_bytes());
    PeerId::from_bytes(bytes)
}

fn address(number: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, (number >> 8) as u8, number as u8], 7081))
}

const fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn node(remembered: u16) -> Exchange {
    let known = (1..=remembered).map(|number| (peer(number), address(number))).collect();
    Exchange::new(peer(0), GROUP, known, 5)
}

fn told(digest: Digest, own: Option<Holding>, others: &[(u16, SocketAddr)]) -> Telling {
    let other =
        |&(number, address): &(u16, SocketAddr)| ToldHolder { peer: peer(number), address, holding: Holding::Complete };
    Telling { digest, own, metainfo: None, others: others.iter().map(other).collect() }
}

fn asked(steps: &[Step]) -> Vec<PeerId> {
    steps.iter().filter_map(|step| if let Step::Ask { peer, .. } = step { Some(*peer) } else { None }).collect()
}

fn dialled(steps: &[Step]) -> Vec<PeerId> {
    steps.iter().filter_map(|step| if let Step::Dial { peer, .. } = step { Some(*peer) } else { None }).collect()
}

#[test]
fn asks_some_of_those_connected_once_in_a_search() {
    let mut node = node(0);
    for number in 1..=20 {
        node.met(at(0), peer(number), 1, address(number), GROUP);
    }
    let digest = Digest::of(b"a");
    let steps = node.search(at(1), digest);
    assert_eq!((asked(&steps).len(), dialled(&steps).len()), (ASKED, 0));
    assert!(node.search(at(5), digest).is_empty(), "it is under way");
    assert_eq!(asked(&node.search(at(5), Digest::of(b"b"))).len(), ASKED, "another blob");
    assert_eq!(asked(&node.search(at(1) + PATIENCE, digest)).len(), ASKED, "it came to nothing: again");
}

#[test]
fn dials_remembered_peers_and_asks_those_who_come() {
    let mut node = node(100);
    let digest = Digest::of(b"a");
    let steps = node.search(at(1), digest);
    let called = dialled(&steps);
    assert_eq!((asked(&steps).len(), called.len()), (0, DIALLED));
    let (number, link) = ((1..=100).find(|&number| peer(number) == called[0]).unwrap(), 3);
    assert_eq!(node.met(at(2), called[0], link, address(number), GROUP), [Step::Ask { peer: called[0], digest }]);
    assert!(node.met(at(2), called[0], link, address(number), GROUP).is_empty(), "once");
    node.unreachable(at(2), called[1]);
    let again: Vec<PeerId> = dialled(&node.search(at(3), Digest::of(b"b")));
    assert!(again.iter().all(|peer| !called.contains(peer)), "who was dialled just now is not dialled for every blob");
    assert!(node.met(at(1) + PATIENCE, called[2], 4, address(9), GROUP).len() <= 1, "that search is over");
}

#[test]
fn answers_are_hints_about_what_was_asked() {
    let mut node = node(0);
    let digest = Digest::of(b"a");
    node.met(at(0), peer(1), 1, address(1), GROUP);
    node.met(at(0), peer(2), 1, address(2), GROUP);
    node.search(at(1), digest);
    let others = [(3, address(3)), (3, address(4)), (0, address(5)), (1, address(6))];
    let found = node.answered(at(2), peer(1), &told(digest, Some(Holding::Partial), &others)).unwrap().unwrap();
    let names: Vec<_> = found.holders.iter().map(|holder| (holder.peer, holder.address)).collect();
    assert_eq!(names, [(peer(1), address(1)), (peer(3), address(3))], "nobody twice, not this node");
    let again = node.answered(at(2), peer(1), &told(digest, None, &others));
    assert_eq!(again, Err(Disbelief::Unasked), "one answer to one question");
    assert_eq!(node.answered(at(2), peer(9), &told(digest, None, &others)), Err(Disbelief::Unasked));
    assert_eq!(node.answered(at(2), peer(2), &told(Digest::of(b"b"), None, &others)), Err(Disbelief::Unasked));
    assert_eq!(node.answered(at(2), peer(2), &told(digest, None, &[])), Ok(None), "it knows nobody");
}

#[test]
fn absurd_addresses_make_the_whole_answer_void() {
    for absurd in ["0.0.0.0:1", "127.0.0.1:7081", "169.254.169.254:80", "224.0.0.1:5", "10.0.0.1:0", "[fe80::1]:7081"] {
        let mut node = node(0);
        let digest = Digest::of(b"a");
        node.met(at(0), peer(1), 1, address(1), GROUP);
        node.search(at(1), digest);
        let others = [(3, address(3)), (4, absurd.parse().unwrap())];
        let told = told(digest, Some(Holding::Complete), &others);
        assert_eq!(node.answered(at(2), peer(1), &told), Err(Disbelief::Impossible(1)), "{absurd}");
    }
}

#[test]
fn an_answer_that_comes_too_late_was_not_asked_for() {
    let mut node = node(0);
    let digest = Digest::of(b"a");
    node.met(at(0), peer(1), 1, address(1), GROUP);
    node.search(at(1), digest);
    let late = node.answered(at(1) + PATIENCE, peer(1), &told(digest, Some(Holding::Complete), &[]));
    assert_eq!(late, Err(Disbelief::Unasked));
}

#[test]
fn metainfo_counts_once_for_each_who_has_proven_it() {
    let mut node = node(0);
    let digest = Digest::of(b"a");
    let (right, wrong) = ((Digest::of(b"right"), 100), (Digest::of(b"wrong"), 100));
    for number in 1..=3 {
        node.met(at(0), peer(number), 1, address(number), GROUP);
    }
    node.search(at(1), digest);
    let mut votes = Vec::new();
    for (number, metainfo) in [(1, wrong), (2, right), (3, right)] {
        let telling = Telling { metainfo: Some(metainfo), ..told(digest, Some(Holding::Complete), &[]) };
        votes = node.answered(at(2), peer(number), &telling).unwrap().unwrap().votes;
    }
    let named: Vec<_> = votes.iter().map(|vote| (vote.statement.object, vote.nodes)).collect();
    assert_eq!(named, [(right.0, 2), (wrong.0, 1)]);
}

#[test]
fn other_groups_are_neither_asked_nor_answered_nor_remembered() {
    let mut node = node(3);
    node.met(at(0), peer(1), 1, address(1), [2; 32]);
    assert!(!node.may_ask(at(1), peer(1)));
    assert!(!node.may_ask(at(1), peer(8)), "nor is who did not say its group");
    let steps = node.search(at(1), Digest::of(b"a"));
    assert!(asked(&steps).is_empty() && !dialled(&steps).contains(&peer(1)), "{steps:?}");
    assert_eq!(node.take_changed().unwrap().len(), 2);
    assert_eq!(node.take_changed(), None);
}

#[test]
fn questions_of_one_peer_are_bounded() {
    let mut node = node(0);
    node.met(at(0), peer(1), 1, address(1), GROUP);
    let answered = (0..1000)
        .filter(|_| {
            node.met(at(1), peer(1), 1, address(1), GROUP);
            node.may_ask(at(1), peer(1))
        })
        .count();
    assert_eq!(answered, MAX_QUESTIONS_AT_ONCE as usize, "saying hello again refills nothing");
    let later = (0..1000).filter(|_| node.may_ask(at(2), peer(1))).count();
    assert_eq!(later, QUESTIONS_PER_SECOND as usize);
}

#[test]
fn the_last_ones_met_are_remembered() {
    let mut node = node(0);
    for number in 1..=1000 {
        node.met(at(0), peer(number), 1, address(number), GROUP);
        node.parted(peer(number), 1);
    }
    node.met(at(0), peer(900), 2, address(1), GROUP);
    let kept = node.take_changed().unwrap();
    assert_eq!(kept.len(), MAX_REMEMBERED_PEERS);
    assert_eq!(kept.last(), Some(&(peer(900), address(1))), "where it was met last");
    assert_eq!(kept[0].0, peer(1000 - MAX_REMEMBERED_PEERS as u16 + 1));
}

#[test]
fn searches_at_once_are_bounded() {
    let mut node = node(0);
    node.met(at(0), peer(1), 1, address(1), GROUP);
    let begun = (0..MAX_SEARCHES + 10).filter(|n| !node.search(at(1), Digest::of(&n.to_be_bytes())).is_empty()).count();
    assert_eq!(begun, MAX_SEARCHES);
}
