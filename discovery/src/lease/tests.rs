use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashSet};

use lapwing_p2p::digest::Digest;
use proptest::prelude::*;

use super::sites::{LeasePolicy, SitePolicy};
use super::*;
use crate::limits::*;

const MS: Duration = Duration::from_millis(1);

fn peer(number: u32) -> PeerId {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    PeerId::from_bytes(bytes)
}

fn digest() -> Digest {
    Digest::of(b"layer")
}

/// A blob of at least this many pieces of 64 KiB.
fn layout(pieces: u32) -> PieceLayout {
    let layout = PieceLayout::new(u64::from(pieces.max(5)) * 64 * 1024).unwrap();
    assert!(layout.piece_count() >= pieces);
    layout
}

/// Hands out new ids, as the registry does.
struct Desk {
    book: LeaseBook,
    sites: Sites,
    next: u64,
    seeds: HashSet<u32>,
}

impl Desk {
    fn new(pieces: u32) -> Self {
        Self::under(LeasePolicy::default(), layout(pieces))
    }

    fn under(policy: LeasePolicy, layout: PieceLayout) -> Self {
        let mut sites = Sites::new(policy);
        Self { book: LeaseBook::new(layout, &mut sites), sites, next: 0, seeds: HashSet::new() }
    }

    fn request(&self, missing: &[Range<u32>], urgent: &[Range<u32>]) -> LeaseRequest {
        LeaseRequest {
            missing: missing.to_vec(),
            urgent: urgent.to_vec(),
            ..LeaseRequest::new(digest(), self.book.layout().length())
        }
    }

    fn ask_for(&mut self, now: Duration, asker: u32, request: &LeaseRequest) -> LeaseReply {
        self.next += 1;
        let site = self.sites.id(now, &request.site);
        let asker = Asker { peer: peer(asker), zone: "", seed: self.seeds.contains(&asker), site, may_fetch: true };
        self.book.ask(now, asker, request, self.next, &mut self.sites)
    }

    fn ask(&mut self, now: Duration, asker: u32, missing: &[Range<u32>], urgent: &[Range<u32>]) -> LeaseReply {
        let request = self.request(missing, urgent);
        self.ask_for(now, asker, &request)
    }

    fn want(&mut self, now: Duration, asker: u32, missing: Range<u32>) -> LeaseReply {
        self.ask(now, asker, std::slice::from_ref(&missing), &[])
    }

    fn granted(&mut self, now: Duration, asker: u32, missing: Range<u32>) -> Lease {
        match self.want(now, asker, missing) {
            LeaseReply::Granted(lease) => lease,
            other => panic!("{asker} at {now:?}: {other:?}"),
        }
    }

    fn settle(&mut self, now: Duration, asker: u32, lease: u64, fetched: u32) -> Result<(), SettleError> {
        self.end(now, asker, Settlement::new(lease, digest(), fetched))
    }

    fn end(&mut self, now: Duration, asker: u32, settlement: Settlement) -> Result<(), SettleError> {
        self.book.settle(now, peer(asker), &settlement, &mut self.sites)
    }

    fn trouble(&mut self, now: Duration, asker: u32, lease: &Lease, trouble: Trouble) {
        let settlement = Settlement { trouble: Some(trouble), ..Settlement::new(lease.id, digest(), 0) };
        self.end(now, asker, settlement).unwrap();
    }

    fn forget(&mut self, asker: u32) {
        self.book.forget(peer(asker), &mut self.sites);
    }
}

fn runs_of(pieces: &BTreeSet<u32>) -> Vec<Range<u32>> {
    let mut runs = Runs::default();
    pieces.iter().for_each(|piece| runs.insert(*piece..piece + 1));
    runs.iter().take(64).collect()
}

/// What a simulated cold start came to.
struct Outcome {
    fetched: BTreeMap<u32, u32>,
    leases: BTreeMap<u32, u32>,
    asks: u32,
    end: Duration,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Ask(u32),
    /// Asker, lease, first piece and end of its run.
    Settle(u32, u64, u32, u32),
    /// Everybody has got these pieces from whoever fetched them.
    Trade(u32, u32),
}

/// `askers` start at once. A piece takes `piece` from the origin, and reaches everybody 100 ms later. Those in `dying`
/// vanish with their first lease, and are found dead a second later.
fn cold_start(askers: u32, pieces: u32, piece: Duration, dying: &HashSet<u32>) -> Outcome {
    let mut desk = Desk::new(pieces);
    let mut missing: BTreeSet<u32> = (0..pieces).collect();
    let mut own: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    let mut outcome = Outcome { fetched: BTreeMap::new(), leases: BTreeMap::new(), asks: 0, end: Duration::ZERO };
    let mut queue: BinaryHeap<std::cmp::Reverse<(Duration, Event)>> = BinaryHeap::new();
    let at = |queue: &mut BinaryHeap<_>, when: Duration, event: Event| queue.push(std::cmp::Reverse((when, event)));
    for asker in 0..askers {
        at(&mut queue, Duration::from_micros(u64::from(asker)), Event::Ask(asker));
    }
    while let Some(std::cmp::Reverse((now, event))) = queue.pop() {
        assert!(now < Duration::from_secs(600), "never ends");
        match event {
            Event::Ask(asker) => {
                let mine = own.entry(asker).or_default();
                let lacking: BTreeSet<u32> = missing.difference(mine).copied().collect();
                if lacking.is_empty() {
                    continue;
                }
                outcome.asks += 1;
                match desk.ask(now, asker, &runs_of(&lacking), &[]) {
                    LeaseReply::Granted(lease) if dying.contains(&asker) => {
                        assert!(lease.term <= 2 * FIRST_TERM);
                    }
                    LeaseReply::Granted(lease) => {
                        let (first, end) = (lease.first.0, lease.first.0 + lease.count);
                        let done = now + piece * lease.count;
                        at(&mut queue, done, Event::Settle(asker, lease.id, first, end));
                        // It keeps asking while it fetches, as a peer with free streams does.
                        at(&mut queue, now + MS, Event::Ask(asker));
                        *outcome.leases.entry(asker).or_default() += 1;
                    }
                    LeaseReply::Wait(pause) => {
                        assert!(pause >= MIN_WAIT && pause <= MAX_WAIT);
                        at(&mut queue, now + pause, Event::Ask(asker));
                    }
                    LeaseReply::Exhausted => at(&mut queue, now + 500 * MS, Event::Ask(asker)),
                }
                let streams = desk.book.live();
                assert!(streams <= LEASE_STREAMS, "{streams} streams");
            }
            Event::Settle(asker, id, first, end) => {
                desk.settle(now, asker, id, end - first).unwrap();
                own.entry(asker).or_default().extend(first..end);
                (first..end).for_each(|piece| *outcome.fetched.entry(piece).or_default() += 1);
                at(&mut queue, now + 100 * MS, Event::Trade(first, end));
            }
            Event::Trade(first, end) => {
                missing.retain(|piece| !(first..end).contains(piece));
                outcome.end = now;
            }
        }
    }
    outcome
}

#[test]
fn nodes_that_start_together_fetch_each_piece_once() {
    for askers in [1, 4, 32, 128] {
        let outcome = cold_start(askers, 500, 40 * MS, &HashSet::new());
        assert!(outcome.fetched.values().all(|times| *times == 1), "{askers}: {:?}", outcome.fetched);
        assert_eq!(outcome.fetched.len(), 500, "{askers}");
        // Eight streams of 40 ms a piece take 2.5 s; half as much again would mean that streams stand idle.
        assert!(outcome.end < 2500 * MS * 3 / 2, "{askers} took {:?}", outcome.end);
        let most = outcome.leases.values().max().copied().unwrap_or_default();
        let mean = 250_u32.div_ceil(askers);
        assert!(most <= 2 * mean + 4, "{askers}: one got {most} leases, the mean is {mean}");
        assert!(
            u32::from(outcome.leases.len() as u16) >= askers.min(100),
            "{askers}: {} got any",
            outcome.leases.len()
        );
        assert!(outcome.asks < 1200 * 4, "{askers} asked {} times", outcome.asks);
    }
}

#[test]
fn what_the_dead_held_is_fetched_by_the_living() {
    let dying = HashSet::from([0, 3]);
    let outcome = cold_start(8, 200, 10 * MS, &dying);
    assert_eq!(outcome.fetched.len(), 200);
    assert!(outcome.fetched.values().all(|times| *times == 1));
    assert!(outcome.end < FIRST_TERM + Duration::from_secs(2), "{:?}", outcome.end);
}

#[test]
fn runs_are_of_two_pieces_in_order_and_by_what_is_missing() {
    let mut desk = Desk::new(10);
    let first = desk.granted(Duration::ZERO, 1, 0..10);
    assert_eq!((first.first, first.count), (PieceIndex(0), LEASE_RUN));
    assert_eq!(desk.granted(Duration::ZERO, 2, 0..10).first, PieceIndex(2));
    let LeaseReply::Granted(third) = desk.ask(Duration::ZERO, 3, &[1..3, 7..8], &[]) else { panic!() };
    assert_eq!((third.first, third.count), (PieceIndex(7), 1));
    assert_eq!(desk.want(Duration::ZERO, 4, 0..0), LeaseReply::Exhausted);
    assert!(matches!(desk.want(Duration::ZERO, 4, 0..4), LeaseReply::Wait(_)), "all with others");
}

#[test]
fn an_expired_lease_is_free_and_its_holder_waits_while_others_ask() {
    let mut desk = Desk::new(8);
    let slow = desk.granted(Duration::ZERO, 1, 0..8);
    let late = slow.term;
    let again = desk.granted(late, 2, 0..2);
    assert_eq!(again.first, slow.first);
    assert!(matches!(desk.want(late, 1, 2..8), LeaseReply::Wait(_)), "barred");
    desk.granted(late, 2, 2..8);
    desk.granted(late + EXPIRY_BAR, 1, 4..8);
}

#[test]
fn nobody_is_barred_when_alone() {
    let mut desk = Desk::new(8);
    let slow = desk.granted(Duration::ZERO, 1, 0..8);
    desk.granted(slow.term, 1, 0..8);
}

#[test]
fn a_late_settlement_counts() {
    let mut desk = Desk::new(2);
    let slow = desk.granted(Duration::ZERO, 1, 0..2);
    let now = slow.term;
    let again = desk.granted(now, 2, 0..2);
    desk.settle(now, 1, slow.id, 2).unwrap();
    assert_eq!(desk.want(now, 3, 0..2), LeaseReply::Exhausted, "1 has it, though 2 is fetching it still");
    desk.settle(now, 2, again.id, 0).unwrap();
    assert_eq!(desk.want(now, 3, 0..2), LeaseReply::Exhausted);
}

/// A piece takes 4 s, longer than the first term: the book learns it rather than fetching everything twice.
#[test]
fn a_slow_origin_lengthens_the_terms() {
    let mut desk = Desk::new(100);
    let piece = 4000 * MS;
    let (mut now, mut granted) = (Duration::ZERO, 0);
    let mut settled = 0;
    while settled < 20 {
        let lease = desk.granted(now, 1, settled..100);
        granted += lease.count;
        now += piece * lease.count;
        desk.settle(now, 1, lease.id, lease.count).unwrap();
        desk.book.expire(now, &mut desk.sites);
        settled = desk.book.fetched();
        assert!(lease.term <= MAX_TERM);
    }
    assert!(granted <= 22, "{granted} pieces for 20");
}

#[test]
fn an_expiry_blames_the_origin_only_if_nobody_got_anything() {
    let mut desk = Desk::new(8);
    let first = desk.granted(Duration::ZERO, 1, 0..8);
    let second = desk.granted(first.term, 2, 0..2);
    assert!(second.term >= 2 * first.term, "{:?} after {:?}", second.term, first.term);

    let mut desk = Desk::new(8);
    let slow = desk.granted(Duration::ZERO, 1, 0..8);
    let quick = desk.granted(Duration::ZERO, 2, 0..8);
    desk.settle(100 * MS, 2, quick.id, 2).unwrap();
    assert_eq!(desk.granted(slow.term, 2, 0..2).term, MIN_TERM);
}

#[test]
fn urgent_pieces_go_beyond_the_streams_but_never_twice() {
    let mut desk = Desk::new(100);
    for asker in 0..LEASE_STREAMS as u32 {
        desk.granted(Duration::ZERO, asker, 0..100);
    }
    assert!(matches!(desk.want(Duration::ZERO, 90, 0..100), LeaseReply::Wait(_)), "no stream is free");
    let LeaseReply::Granted(urgent) = desk.ask(Duration::ZERO, 90, &[0..100], &[50..51]) else { panic!() };
    assert_eq!((urgent.first, urgent.count), (PieceIndex(50), 1));
    assert_eq!(desk.ask(Duration::ZERO, 91, &[0..100], &[50..51]), LeaseReply::Wait(URGENT_WAIT));
    let mut granted = 1;
    while let LeaseReply::Granted(_) = desk.ask(Duration::ZERO, 90, &[], &[51..100]) {
        granted += 1;
    }
    assert_eq!(granted, URGENT_STREAMS.min(26), "bounded, or all of it");
}

#[test]
fn what_only_the_dead_fetched_is_leased_again() {
    let mut desk = Desk::new(4);
    for asker in [1, 2] {
        let lease = desk.granted(Duration::ZERO, asker, 0..4);
        desk.settle(MS, asker, lease.id, 2).unwrap();
    }
    assert_eq!(desk.want(MS, 3, 0..4), LeaseReply::Exhausted);
    desk.forget(1);
    let again = desk.granted(MS, 3, 0..4);
    assert_eq!((again.first, again.count), (PieceIndex(0), 2));
    assert!(desk.book.lessees().contains(&peer(1)), "its statements still count");
}

#[test]
fn what_was_not_fetched_of_a_run_is_free() {
    let mut desk = Desk::new(4);
    let lease = desk.granted(Duration::ZERO, 1, 0..4);
    desk.settle(MS, 1, lease.id, 1).unwrap();
    let rest = desk.granted(MS, 2, 0..4);
    assert_eq!((rest.first, rest.count), (PieceIndex(1), 2));
}

#[test]
fn settlements_that_cannot_be_are_refused() {
    let mut desk = Desk::new(4);
    let lease = desk.granted(Duration::ZERO, 1, 0..4);
    assert_eq!(desk.settle(MS, 2, lease.id, 1), Err(SettleError::NotTheHolder(lease.id)));
    let too_many = SettleError::TooMany { lease: lease.id, count: 2, fetched: 3 };
    assert_eq!(desk.settle(MS, 1, lease.id, 3), Err(too_many));
    assert_eq!(desk.settle(MS, 1, 999, 3), Ok(()), "of an earlier life of the tracker");
    assert_eq!((desk.book.live(), desk.book.fetched()), (1, 0));
}

#[test]
fn the_next_lease_goes_to_whoever_has_fewest() {
    let mut desk = Desk::new(100);
    let mut first = Vec::new();
    for _ in 0..LEASE_STREAMS {
        first.push(desk.granted(Duration::ZERO, 1, 0..100));
    }
    assert!(matches!(desk.want(MS, 2, 0..100), LeaseReply::Wait(_)));
    desk.settle(2 * MS, 1, first[0].id, 2).unwrap();
    assert!(matches!(desk.want(2 * MS, 1, 0..100), LeaseReply::Wait(_)), "2 waits and has none");
    desk.granted(3 * MS, 2, 0..100);
}

#[test]
fn lessees_are_bounded_and_the_dead_make_room() {
    let pieces = 8 * MAX_LESSEES as u32;
    let mut desk = Desk::under(LeasePolicy::default(), PieceLayout::new(u64::from(pieces) << 20).unwrap());
    let (mut now, many) = (Duration::ZERO, MAX_LESSEES as u32);
    for asker in 0..many {
        now += MS;
        let lease = desk.granted(now, asker, 0..pieces);
        desk.settle(now, asker, lease.id, 2).unwrap();
    }
    assert!(matches!(desk.want(now, many, 0..pieces), LeaseReply::Wait(_)));
    desk.forget(5);
    desk.granted(now, many, 0..pieces);
    assert_eq!(desk.book.lessees().len(), MAX_LESSEES);
}

fn fetched_all(desk: &mut Desk, by: u32, pieces: u32) {
    while desk.book.fetched() < pieces {
        let lease = desk.granted(Duration::ZERO, by, desk.book.fetched()..pieces);
        desk.settle(100 * MS, by, lease.id, lease.count).unwrap();
    }
}

fn copies(copies: u32) -> LeasePolicy {
    LeasePolicy { usual: SitePolicy { copies, ..SitePolicy::default() }, ..LeasePolicy::default() }
}

fn copy_request(desk: &Desk, rare: &[u32], remaining: Duration) -> LeaseRequest {
    let rare = rare.iter().copied().map(PieceIndex).collect();
    LeaseRequest { rare, remaining: Some(remaining), ..desk.request(&[], &[]) }
}

#[test]
fn the_rarest_pieces_are_leased_again_up_to_the_cap_and_while_it_pays() {
    const LONG: Duration = Duration::from_secs(10);
    let mut desk = Desk::under(copies(3), layout(40));
    let early = copy_request(&desk, &[7], LONG);
    assert_eq!(desk.ask_for(MS, 2, &early), LeaseReply::Exhausted, "nobody knows yet what a piece takes");
    fetched_all(&mut desk, 1, 40);
    let piece = desk.book.piece_time.unwrap();
    let short = copy_request(&desk, &[7], piece * COPY_PAYS);
    assert_eq!(desk.ask_for(200 * MS, 2, &short), LeaseReply::Exhausted, "the swarm is quicker");
    let request = copy_request(&desk, &[7, 8, 30], LONG);
    let grant = |desk: &mut Desk, asker| match desk.ask_for(200 * MS, asker, &request) {
        LeaseReply::Granted(lease) => Some((lease.id, lease.first.0, lease.count)),
        _ => None,
    };
    let failed = grant(&mut desk, 2).unwrap();
    desk.settle(300 * MS, 2, failed.0, 0).unwrap();
    let mut begun = Vec::new();
    for asker in 3..100 {
        let Some((id, first, count)) = grant(&mut desk, asker) else { continue };
        desk.settle(300 * MS, asker, id, count).unwrap();
        begun.extend(first..first + count);
    }
    assert!(begun.iter().all(|piece| [7, 8, 30].contains(piece)), "{begun:?}");
    assert_eq!(begun.len() + failed.2 as usize, 80, "twice as many pieces as the blob has, whether they came or not");
    assert_eq!(desk.ask_for(200 * MS, 100, &request), LeaseReply::Exhausted, "nothing to wait for");
}

#[test]
fn one_copy_is_one_copy() {
    let mut desk = Desk::new(40);
    fetched_all(&mut desk, 1, 40);
    let request = copy_request(&desk, &[7, 8, 30], Duration::from_secs(1000));
    assert_eq!(desk.ask_for(200 * MS, 2, &request), LeaseReply::Exhausted);
}

#[test]
fn a_further_copy_never_goes_before_a_first() {
    let mut desk = Desk::under(copies(2), layout(100));
    let mut held = Vec::new();
    for asker in 1..8 {
        held.push(desk.granted(Duration::ZERO, asker, 0..100));
    }
    desk.settle(100 * MS, 1, held[0].id, held[0].count).unwrap();
    let last = desk.granted(100 * MS, 1, 50..100);
    desk.granted(100 * MS, 9, 50..100);
    assert!(matches!(desk.want(100 * MS, 10, 50..100), LeaseReply::Wait(_)), "no stream is free");
    desk.settle(120 * MS, 1, last.id, last.count).unwrap();
    let request = copy_request(&desk, &[0], Duration::from_secs(100));
    assert!(matches!(desk.ask_for(120 * MS, 9, &request), LeaseReply::Wait(_)), "10 waits, and has none");
    desk.granted(120 * MS, 10, 60..100);
}

#[test]
fn while_a_seed_asks_others_get_nothing_but_what_reads_wait_for() {
    let mut desk = Desk::new(100);
    desk.seeds.insert(1);
    let first = desk.granted(Duration::ZERO, 1, 0..100);
    assert!(matches!(desk.want(MS, 2, 0..100), LeaseReply::Wait(_)));
    assert!(matches!(desk.ask(MS, 2, &[50..100], &[50..51]), LeaseReply::Granted(_)), "a read does not wait");
    let held = first.term - MS;
    assert!(matches!(desk.want(held, 2, 0..100), LeaseReply::Wait(_)), "it holds a lease");
    desk.settle(held, 1, first.id, first.count).unwrap();
    desk.granted(held, 2, 2..50);
}

#[test]
fn a_seed_that_the_origin_refuses_makes_way_at_once() {
    let mut desk = Desk::new(100);
    desk.seeds.extend([1, 2]);
    let one = desk.granted(Duration::ZERO, 1, 0..100);
    desk.trouble(MS, 1, &one, Trouble::Refused);
    let two = desk.granted(MS, 2, 0..100);
    assert!(matches!(desk.want(2 * MS, 3, 0..100), LeaseReply::Wait(_)), "the other seed sees to it");
    desk.trouble(2 * MS, 2, &two, Trouble::Unavailable);
    desk.granted(2 * MS, 3, 0..100);
    desk.granted(2 * MS + FAILURE_BAR, 2, 0..100);
    assert!(matches!(desk.want(2 * MS + FAILURE_BAR, 3, 0..100), LeaseReply::Wait(_)), "a seed is back");
}

#[test]
fn a_pause_holds_for_every_blob_and_peer_of_the_site() {
    let mut desk = Desk::new(100);
    let site = |desk: &Desk, name: &str| LeaseRequest { site: name.into(), ..desk.request(&[0..100], &[5..6]) };
    let (busy, other) = (site(&desk, "busy.example"), site(&desk, "other.example"));
    let LeaseReply::Granted(lease) = desk.ask_for(Duration::ZERO, 1, &busy) else { panic!() };
    desk.trouble(MS, 1, &lease, Trouble::Busy(Duration::from_secs(10)));
    let LeaseReply::Wait(pause) = desk.ask_for(MS, 2, &busy) else { panic!("urgent or not") };
    assert_eq!(pause, Duration::from_secs(10));
    let mut second = LeaseBook::new(layout(10), &mut desk.sites);
    let asker = |desk: &mut Desk, request: &LeaseRequest| {
        let site = desk.sites.id(MS, &request.site);
        Asker { peer: peer(3), zone: "", seed: false, site, may_fetch: true }
    };
    let here = asker(&mut desk, &busy);
    let request = LeaseRequest { missing: vec![0..10], urgent: Vec::new(), ..busy.clone() };
    assert!(matches!(second.ask(MS, here, &request, 900, &mut desk.sites), LeaseReply::Wait(_)), "another blob");
    assert!(matches!(desk.ask_for(MS, 2, &other), LeaseReply::Granted(_)), "another site has the same bytes");
    let later = MS + Duration::from_secs(10);
    assert!(matches!(second.ask(later, here, &request, 901, &mut desk.sites), LeaseReply::Granted(_)));
    let waits = desk.ask_for(later, 2, &LeaseRequest { urgent: Vec::new(), ..busy });
    assert!(matches!(waits, LeaseReply::Wait(_)), "one tries first: {waits:?}");
}

#[test]
fn blobs_of_a_site_share_its_streams_evenly() {
    let mut desk = Desk::new(100);
    let mut second = LeaseBook::new(layout(100), &mut desk.sites);
    let request = desk.request(&[0..100], &[]);
    let mut held: VecDeque<Lease> = (1..=8).map(|asker| desk.granted(Duration::ZERO, asker, 0..100)).collect();
    let (mut now, mut of_second) = (Duration::ZERO, 0);
    let site = desk.sites.id(now, "");
    let asker = Asker { peer: peer(50), zone: "", seed: false, site, may_fetch: true };
    assert!(matches!(second.ask(now, asker, &request, 1000, &mut desk.sites), LeaseReply::Wait(_)));
    for round in 0..6 {
        now += 10 * MS;
        let (ended, by) = (held.pop_front().unwrap(), round + 1);
        desk.settle(now, by, ended.id, ended.count).unwrap();
        let first = desk.want(now, by, 50..100);
        let asker = Asker { peer: peer(51 + round), ..asker };
        let other = second.ask(now, asker, &request, 1001 + u64::from(round), &mut desk.sites);
        of_second += u32::from(matches!(other, LeaseReply::Granted(_)));
        let granted = [&first, &other].iter().filter(|reply| matches!(reply, LeaseReply::Granted(_))).count();
        assert!(granted <= 1, "eight streams in all");
    }
    assert!(of_second >= 4, "the second blob got {of_second} of six");
}

#[test]
fn an_origin_without_ranges_gets_one_leaseholder_who_streams_all_of_it() {
    let mut desk = Desk::new(100);
    let (one, two) = (desk.granted(Duration::ZERO, 1, 0..100), desk.granted(Duration::ZERO, 2, 0..100));
    desk.trouble(MS, 1, &one, Trouble::NoRanges);
    let whole = desk.granted(MS, 3, 4..100);
    assert_eq!((whole.kind, whole.first, whole.count), (LeaseKind::Whole, PieceIndex(0), 100));
    desk.trouble(2 * MS, 2, &two, Trouble::NoRanges);
    for asker in [1, 2, 4] {
        assert!(matches!(desk.ask(2 * MS, asker, &[0..100], &[7..8]), LeaseReply::Wait(_)), "{asker}");
    }
    desk.settle(Duration::from_secs(4), 3, whole.id, 60).unwrap();
    assert_eq!(desk.want(Duration::from_secs(4), 4, 0..60), LeaseReply::Exhausted);
    assert_eq!(desk.granted(Duration::from_secs(4), 4, 60..100).kind, LeaseKind::Whole, "the rest, by another");
}

#[test]
fn who_sits_on_pieces_that_nobody_took_waits_for_others() {
    let mut desk = Desk::new(100);
    let ask = |desk: &mut Desk, asker, unshared| {
        let request = LeaseRequest { unshared, ..desk.request(&[50..100], &[]) };
        desk.ask_for(MS, asker, &request)
    };
    let mut held = Vec::new();
    for asker in 2..10 {
        let LeaseReply::Granted(lease) = ask(&mut desk, asker, 2) else { panic!() };
        held.push((asker, lease));
    }
    assert!(matches!(ask(&mut desk, 11, 2), LeaseReply::Wait(_)), "no stream is free");
    let (asker, lease) = held.remove(0);
    desk.settle(MS, asker, lease.id, lease.count).unwrap();
    assert!(matches!(ask(&mut desk, 1, 40), LeaseReply::Wait(_)), "it hoards, and 11 waits");
    assert!(matches!(ask(&mut desk, 11, 2), LeaseReply::Granted(_)));
    let (asker, lease) = held.remove(0);
    desk.settle(MS, asker, lease.id, lease.count).unwrap();
    assert!(matches!(ask(&mut desk, 1, 40), LeaseReply::Granted(_)), "nobody else waits");
}

#[test]
fn one_slow_peer_is_found_out_by_the_pace_of_the_others() {
    let mut desk = Desk::under(LeasePolicy::default(), PieceLayout::new(64 << 20).unwrap());
    let slow = desk.granted(Duration::ZERO, 1, 0..500);
    assert!(slow.term > 2 * MIN_TERM, "nobody knows yet how quick the origin is");
    let quick = desk.granted(Duration::ZERO, 2, 0..500);
    desk.settle(100 * MS, 2, quick.id, quick.count).unwrap();
    assert_eq!(desk.granted(MIN_TERM, 3, 0..500).first, slow.first, "its lease is over");
}

#[test]
fn runs_are_long_enough_for_small_pieces_and_for_an_origin_that_answers_slowly() {
    let run = |length: u64, first_byte: Option<Duration>| {
        let mut desk = Desk::under(LeasePolicy::default(), PieceLayout::new(length).unwrap());
        let pieces = desk.book.layout().piece_count();
        let lease = desk.granted(Duration::ZERO, 1, 0..pieces);
        let took = 100 * MS * lease.count + first_byte.unwrap_or_default();
        let settlement = Settlement { first_byte, ..Settlement::new(lease.id, digest(), lease.count) };
        desk.end(took, 1, settlement).unwrap();
        let next = desk.granted(took, 1, lease.count..pieces);
        (lease.count, next.count)
    };
    assert_eq!(run(256 << 20, None), (2, 2), "512 KiB each");
    assert_eq!(run(64 << 20, Some(5 * MS)), (4, 4), "128 KiB each");
    assert_eq!(run(2 << 20, None), (2, 2), "a small blob is shared by many");
    assert_eq!(run(256 << 20, Some(Duration::from_secs(1))).1, 32, "sixteen runs in all, at least");
}

/// Asks in a zone's name.
fn ask_in(desk: &mut Desk, now: Duration, asker: u32, zone: &str, missing: Range<u32>, far: Range<u32>) -> LeaseReply {
    let list = |run: Range<u32>| if run.is_empty() { Vec::new() } else { vec![run] };
    let request = LeaseRequest { importable: list(far), ..desk.request(&list(missing), &[]) };
    desk.next += 1;
    let site = desk.sites.id(now, "");
    let asker = Asker { peer: peer(asker), zone, seed: false, site, may_fetch: zone != "far" };
    desk.book.ask(now, asker, &request, desk.next, &mut desk.sites)
}

/// Another zone has fetched everything.
fn fetched_near(desk: &mut Desk, pieces: u32) {
    while desk.book.fetched() < pieces {
        let missing = desk.book.fetched()..pieces;
        let LeaseReply::Granted(lease) = ask_in(desk, Duration::ZERO, 1, "near", missing, 0..0) else { panic!() };
        desk.settle(100 * MS, 1, lease.id, lease.count).unwrap();
    }
}

#[test]
fn each_piece_crosses_a_border_once_and_a_few_at_a_time() {
    let mut desk = Desk::new(40);
    fetched_near(&mut desk, 40);
    let mut crossing = Vec::new();
    for asker in 10..20 {
        if let LeaseReply::Granted(lease) = ask_in(&mut desk, MS, asker, "far", 0..40, 0..40) {
            assert_eq!(lease.kind, LeaseKind::Import);
            crossing.push((asker, lease));
        }
    }
    assert_eq!(crossing.len(), IMPORT_STREAMS as usize, "transfers at once");
    let firsts: BTreeSet<u32> = crossing.iter().map(|(_, lease)| lease.first.0).collect();
    assert_eq!(firsts.len(), crossing.len(), "one importer for a piece");
    for (asker, lease) in &crossing {
        desk.settle(2 * MS, *asker, lease.id, lease.count).unwrap();
    }
    let LeaseReply::Granted(next) = ask_in(&mut desk, 2 * MS, 19, "far", 0..40, 0..40) else { panic!() };
    assert_eq!(next.first, PieceIndex(4), "the first four are there");
    assert_eq!(ask_in(&mut desk, 2 * MS, 18, "far", 0..4, 0..4), LeaseReply::Exhausted, "to be had in the zone");
    assert_eq!(desk.book.fetched(), 40, "imports are no copies of the origin's");
    assert!(!desk.book.lessees().contains(&peer(19)), "an importer vouches for nothing");
}

#[test]
fn what_a_dead_importer_brought_is_imported_again_by_those_who_lack_it() {
    let mut desk = Desk::new(40);
    fetched_near(&mut desk, 40);
    let LeaseReply::Granted(lease) = ask_in(&mut desk, MS, 10, "far", 0..40, 0..40) else { panic!() };
    let LeaseReply::Granted(late) = ask_in(&mut desk, MS, 11, "far", 0..40, 0..40) else { panic!() };
    desk.settle(2 * MS, 10, lease.id, lease.count).unwrap();
    desk.forget(10);
    let LeaseReply::Granted(again) = ask_in(&mut desk, 3 * MS, 12, "far", 0..40, 0..40) else { panic!() };
    assert_eq!(again.first, lease.first);
    let revoked = MS + MAX_TERM;
    let LeaseReply::Granted(other) = ask_in(&mut desk, revoked, 13, "far", 1..2, 1..2) else { panic!() };
    assert_eq!(other.first, late.first, "it took too long");
}

#[test]
fn a_zone_waits_for_what_is_on_the_other_side_and_fetches_what_is_nowhere() {
    let mut desk = Desk::new(40);
    let LeaseReply::Granted(first) = ask_in(&mut desk, MS, 1, "near", 0..40, 0..0) else { panic!() };
    desk.settle(2 * MS, 1, first.id, first.count).unwrap();
    let waits = ask_in(&mut desk, 3 * MS, 10, "far", 0..first.count, 0..0);
    assert!(matches!(waits, LeaseReply::Wait(_)), "no peer there offers it yet: {waits:?}");
    assert!(matches!(ask_in(&mut desk, 3 * MS, 10, "far", 0..40, 0..0), LeaseReply::Wait(_)), "not its side");
    let LeaseReply::Granted(own) = ask_in(&mut desk, 3 * MS, 20, "third", 0..40, 0..first.count) else { panic!() };
    assert_eq!(own.kind, LeaseKind::Import, "rather than a second copy");
    let LeaseReply::Granted(own) = ask_in(&mut desk, 3 * MS, 21, "third", 10..40, 0..0) else { panic!() };
    assert_eq!(own.kind, LeaseKind::Origin);
}

#[derive(Debug, Clone)]
enum Op {
    Ask { asker: u32, missing: Vec<(u32, u32)>, urgent: Option<(u32, u32)> },
    Settle { nth: usize, fetched: u32 },
    Pass { ms: u64 },
    Forget { asker: u32 },
}

fn op() -> impl Strategy<Value = Op> {
    let run = || (0_u32..60, 1_u32..12);
    prop_oneof![
        6 => (0_u32..12, prop::collection::vec(run(), 0..4), prop::option::weighted(0.2, run()))
            .prop_map(|(asker, missing, urgent)| Op::Ask { asker, missing, urgent }),
        4 => (any::<usize>(), 0_u32..=LEASE_RUN).prop_map(|(nth, fetched)| Op::Settle { nth, fetched }),
        3 => prop_oneof![0_u64..100, 0_u64..8000].prop_map(|ms| Op::Pass { ms }),
        1 => (0_u32..12).prop_map(|asker| Op::Forget { asker }),
    ]
}

fn tidy(runs: &[(u32, u32)]) -> Vec<Range<u32>> {
    let mut tidy = Runs::default();
    runs.iter().for_each(|(start, length)| tidy.insert(*start..(start + length).min(64)));
    tidy.iter().collect()
}

/// A lease as the test remembers it.
struct Known {
    asker: u32,
    run: Range<u32>,
    until: Duration,
    urgent: bool,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// At no time two live leases of one piece, nor more streams than there may be; nothing is leased that a live node
    /// fetched or that was not asked for; and once all are gone nothing is left.
    #[test]
    fn holds_its_promises(ops in prop::collection::vec(op(), 1..120)) {
        let mut desk = Desk::new(64);
        let mut now = Duration::ZERO;
        let mut known: BTreeMap<u64, Known> = BTreeMap::new();
        let mut fetched: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Ask { asker, missing, urgent } => {
                    let own = fetched.get(&asker).cloned().unwrap_or_default();
                    let lacks = |runs: &[Range<u32>]| -> Vec<Range<u32>> {
                        runs_of(&runs.iter().cloned().flatten().filter(|piece| !own.contains(piece)).collect())
                    };
                    let (missing, urgent) = (lacks(&tidy(&missing)), lacks(&tidy(urgent.as_slice())));
                    let reply = desk.ask(now, asker, &missing, &urgent);
                    let wanted: BTreeSet<u32> = missing.iter().chain(&urgent).cloned().flatten().collect();
                    let had: BTreeSet<u32> = fetched.values().flatten().copied().collect();
                    let live: Vec<&Known> = known.values().filter(|lease| lease.until > now).collect();
                    let leased: BTreeSet<u32> = live.iter().flat_map(|lease| lease.run.clone()).collect();
                    match reply {
                        LeaseReply::Granted(lease) => {
                            let run = lease.first.0..lease.first.0 + lease.count;
                            prop_assert!(lease.count >= 1 && lease.count <= LEASE_RUN);
                            prop_assert!(run.clone().all(|piece| wanted.contains(&piece)));
                            prop_assert!(run.clone().all(|piece| !leased.contains(&piece)), "leased twice");
                            prop_assert!(run.clone().all(|piece| !had.contains(&piece)), "fetched already");
                            let urgent = urgent.iter().any(|wanted| wanted.contains(&run.start));
                            let streams = live.iter().filter(|lease| !lease.urgent).count();
                            prop_assert!(urgent || streams < LEASE_STREAMS);
                            // Not the term: when others prove quicker it becomes shorter.
                            known.insert(lease.id, Known { asker, run, until: now + MIN_TERM, urgent });
                        }
                        LeaseReply::Exhausted => {
                            prop_assert!(missing.iter().cloned().flatten().all(|piece| had.contains(&piece)));
                        }
                        LeaseReply::Wait(pause) => {
                            prop_assert!(pause >= MIN_WAIT && pause <= MAX_WAIT);
                            prop_assert!(wanted.iter().any(|piece| !had.contains(piece)));
                        }
                    }
                }
                Op::Settle { nth, fetched: count } => {
                    let Some(id) = known.keys().nth(nth % known.len().max(1)).copied() else { continue };
                    let lease = known.remove(&id).expect("just seen");
                    let count = count.min(lease.run.end - lease.run.start);
                    prop_assert_eq!(desk.settle(now, lease.asker, id, count), Ok(()));
                    fetched.entry(lease.asker).or_default().extend(lease.run.start..lease.run.start + count);
                }
                Op::Pass { ms } => now += Duration::from_millis(ms),
                Op::Forget { asker } => {
                    desk.forget(asker);
                    known.retain(|_, lease| lease.asker != asker);
                    fetched.remove(&asker);
                }
            }
            let runs = desk.book.live.values().map(|grant| grant.run.clone());
            let leased: Vec<u32> = runs.flatten().collect();
            prop_assert_eq!(leased.iter().collect::<BTreeSet<_>>().len(), leased.len(), "two live leases of a piece");
            prop_assert_eq!(desk.book.leased.count() as usize, leased.len());
            let distinct: BTreeSet<u32> = fetched.values().flatten().copied().collect();
            prop_assert_eq!(desk.book.fetched() as usize, distinct.len());
        }
        for asker in 0..12 {
            desk.forget(asker);
        }
        prop_assert_eq!((desk.book.live(), desk.book.fetched(), desk.book.participants().count()), (0, 0, 0));
        let lease = desk.granted(now, 99, 0..64);
        prop_assert_eq!(lease.first, PieceIndex(0));
        prop_assert!(!desk.book.is_idle(now));
        prop_assert!(desk.book.is_idle(now + BOOK_IDLE) || desk.book.live() > 0);
    }
}
