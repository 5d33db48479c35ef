use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashSet};

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn peer(number: u32) -> PeerId {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    PeerId::from_bytes(bytes)
}

/// A book of at least this many pieces of 64 KiB.
fn book(pieces: u32) -> LeaseBook {
    let layout = PieceLayout::new(u64::from(pieces.max(5)) * 64 * 1024).unwrap();
    assert!(layout.piece_count() >= pieces);
    LeaseBook::new(layout)
}

/// Hands out new ids, as the registry does.
struct Desk {
    book: LeaseBook,
    next: u64,
}

impl Desk {
    fn new(pieces: u32) -> Self {
        Self { book: book(pieces), next: 0 }
    }

    fn ask(&mut self, now: Duration, asker: u32, missing: &[Range<u32>], urgent: &[Range<u32>]) -> LeaseReply {
        self.next += 1;
        self.book.ask(now, peer(asker), Wanted { missing, urgent }, self.next)
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
                        assert!(lease.term <= FIRST_TERM.max(MIN_TERM));
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
                desk.book.settle(now, peer(asker), id, end - first).unwrap();
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
    desk.book.settle(now, peer(1), slow.id, 2).unwrap();
    assert_eq!(desk.want(now, 3, 0..2), LeaseReply::Exhausted, "1 has it, though 2 is fetching it still");
    desk.book.settle(now, peer(2), again.id, 0).unwrap();
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
        let lease = desk.granted(now, 1, 0..100);
        granted += lease.count;
        now += piece * lease.count;
        desk.book.settle(now, peer(1), lease.id, lease.count).unwrap();
        desk.book.expire(now);
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
    desk.book.settle(100 * MS, peer(2), quick.id, 2).unwrap();
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
        desk.book.settle(MS, peer(asker), lease.id, 2).unwrap();
    }
    assert_eq!(desk.want(MS, 3, 0..4), LeaseReply::Exhausted);
    desk.book.forget(peer(1));
    let again = desk.granted(MS, 3, 0..4);
    assert_eq!((again.first, again.count), (PieceIndex(0), 2));
    assert!(desk.book.lessees().contains(&peer(1)), "its statements still count");
}

#[test]
fn what_was_not_fetched_of_a_run_is_free() {
    let mut desk = Desk::new(4);
    let lease = desk.granted(Duration::ZERO, 1, 0..4);
    desk.book.settle(MS, peer(1), lease.id, 1).unwrap();
    let rest = desk.granted(MS, 2, 0..4);
    assert_eq!((rest.first, rest.count), (PieceIndex(1), 2));
}

#[test]
fn settlements_that_cannot_be_are_refused() {
    let mut desk = Desk::new(4);
    let lease = desk.granted(Duration::ZERO, 1, 0..4);
    assert_eq!(desk.book.settle(MS, peer(2), lease.id, 1), Err(SettleError::NotTheHolder(lease.id)));
    let too_many = SettleError::TooMany { lease: lease.id, count: 2, fetched: 3 };
    assert_eq!(desk.book.settle(MS, peer(1), lease.id, 3), Err(too_many));
    assert_eq!(desk.book.settle(MS, peer(1), 999, 3), Ok(()), "of an earlier life of the tracker");
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
    desk.book.settle(2 * MS, peer(1), first[0].id, 2).unwrap();
    assert!(matches!(desk.want(2 * MS, 1, 0..100), LeaseReply::Wait(_)), "2 waits and has none");
    desk.granted(3 * MS, 2, 0..100);
}

#[test]
fn lessees_are_bounded_and_the_dead_make_room() {
    let pieces = 8 * MAX_LESSEES as u32;
    let mut desk = Desk { book: LeaseBook::new(PieceLayout::new(u64::from(pieces) << 20).unwrap()), next: 0 };
    let (mut now, many) = (Duration::ZERO, MAX_LESSEES as u32);
    for asker in 0..many {
        now += MS;
        let lease = desk.granted(now, asker, 0..pieces);
        desk.book.settle(now, peer(asker), lease.id, 2).unwrap();
    }
    assert!(matches!(desk.want(now, many, 0..pieces), LeaseReply::Wait(_)));
    desk.book.forget(peer(5));
    desk.granted(now, many, 0..pieces);
    assert_eq!(desk.book.lessees().len(), MAX_LESSEES);
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
                    let (missing, urgent) = (tidy(&missing), tidy(urgent.as_slice()));
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
                            known.insert(lease.id, Known { asker, run, until: now + lease.term, urgent });
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
                    prop_assert_eq!(desk.book.settle(now, peer(lease.asker), id, count), Ok(()));
                    fetched.entry(lease.asker).or_default().extend(lease.run.start..lease.run.start + count);
                }
                Op::Pass { ms } => now += Duration::from_millis(ms),
                Op::Forget { asker } => {
                    desk.book.forget(peer(asker));
                    known.retain(|_, lease| lease.asker != asker);
                    fetched.remove(&asker);
                }
            }
            let distinct: BTreeSet<u32> = fetched.values().flatten().copied().collect();
            prop_assert_eq!(desk.book.fetched() as usize, distinct.len());
        }
        for asker in 0..12 {
            desk.book.forget(peer(asker));
        }
        prop_assert_eq!((desk.book.live(), desk.book.fetched(), desk.book.participants().count()), (0, 0, 0));
        let lease = desk.granted(now, 99, 0..64);
        prop_assert_eq!(lease.first, PieceIndex(0));
        prop_assert!(!desk.book.is_idle(now));
        prop_assert!(desk.book.is_idle(now + BOOK_IDLE) || desk.book.live() > 0);
    }
}
