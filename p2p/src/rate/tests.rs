use super::*;

const MS: Duration = Duration::from_millis(1);

fn blob(n: u8) -> Digest {
    Digest::of(&[n])
}

fn peer(n: u8) -> PeerId {
    PeerId::from_bytes([n; 32])
}

fn buckets(rates: Rates) -> Buckets {
    let mut buckets = Buckets::default();
    buckets.set(Duration::ZERO, rates);
    buckets
}

/// Takes requests of `bytes` as soon as the buckets are open, a look every millisecond. Gives what went until `until`.
fn drain(buckets: &mut Buckets, from: Duration, until: Duration, digest: &Digest, peer: &PeerId, bytes: u64) -> u64 {
    let (mut now, mut gone) = (from, 0);
    while now < until {
        while buckets.is_open(now, digest) && buckets.is_open_to(now, peer) {
            buckets.take(now, digest, Some(peer), bytes);
            gone += bytes;
        }
        buckets.account(now);
        now += MS;
    }
    gone
}

#[test]
fn what_goes_in_a_span_is_the_rate_and_one_burst_to_the_byte() {
    // 1000 bytes a second gather 250 at most: 251 requests of one byte go at once, the last on credit.
    let mut few = buckets(Rates { node: 1000, ..Rates::default() });
    assert_eq!(drain(&mut few, Duration::ZERO, MS, &blob(1), &peer(1), 1), 251);
    // Each millisecond pays for one byte.
    assert_eq!(drain(&mut few, MS, 1001 * MS, &blob(1), &peer(1), 1), 1000);
    // After a second of rest one burst is there again, no more.
    assert_eq!(drain(&mut few, 2001 * MS, 2002 * MS, &blob(1), &peer(1), 1), 251);
}

#[test]
fn a_request_longer_than_a_burst_goes_and_is_paid_for_afterwards() {
    let mut buckets = buckets(Rates { node: 1000, ..Rates::default() });
    buckets.take(Duration::ZERO, &blob(1), None, 5250);
    assert_eq!(buckets.wait(Duration::ZERO, &blob(2)), Duration::from_secs(5));
    assert!(!buckets.is_open(4999 * MS, &blob(1)));
    assert!(buckets.is_open(5000 * MS, &blob(1)));
}

#[test]
fn no_time_is_lost_to_rounding() {
    // A third of a byte a millisecond, looked at every millisecond for 1000 seconds.
    let mut buckets = buckets(Rates { node: 333, ..Rates::default() });
    let until = Duration::from_secs(1000);
    // 83.25 bytes are there, the last goes on credit: of 333000 + 83.25 paid for, 333084 are begun.
    assert_eq!(drain(&mut buckets, Duration::ZERO, until + MS, &blob(1), &peer(1), 1), 333_084);
}

#[test]
fn blobs_and_peers_have_buckets_of_their_own_under_that_of_the_node() {
    let rates = Rates { node: 4000, per_blob: 2000, per_peer: 1000 };
    let mut buckets = buckets(rates);
    let second = Duration::from_secs(1);
    assert_eq!(drain(&mut buckets, Duration::ZERO, second, &blob(1), &peer(1), 10), 1250, "one peer");
    assert!(buckets.is_open(second - MS, &blob(1)), "the blob has more to give");
    assert!(buckets.is_open_to(second - MS, &peer(2)), "another peer may have it");
    let mut shared = Buckets::default();
    shared.set(Duration::ZERO, rates);
    let mut gone = [0; 3];
    for now in (0..1000).map(|n| n * MS) {
        for (n, gone) in (0_u8..).zip(&mut gone) {
            // Three blobs, each with two peers: the node's bucket is the narrowest.
            for peer in [peer(2 * n), peer(2 * n + 1)] {
                *gone += drain(&mut shared, now, now + MS, &blob(n), &peer, 10);
            }
        }
    }
    let total: u64 = gone.iter().sum();
    assert_eq!(total, 5000, "a second's worth and a burst: {gone:?}");
    assert!(gone.iter().all(|&gone| gone <= 2500), "none beyond its blob's: {gone:?}");
}

#[test]
fn zero_is_no_limit() {
    let mut buckets = buckets(Rates::default());
    for _ in 0..100 {
        buckets.take(Duration::ZERO, &blob(1), Some(&peer(1)), u64::MAX / 200);
    }
    assert!(buckets.is_open(Duration::ZERO, &blob(1)) && buckets.is_open_to(Duration::ZERO, &peer(1)));
    buckets.account(Duration::ZERO);
    assert_eq!(buckets.throttled(), Duration::ZERO);
}

#[test]
fn a_new_limit_holds_at_once_and_debts_are_paid_at_the_new_rate() {
    let mut buckets = buckets(Rates { node: 1000, ..Rates::default() });
    buckets.take(Duration::ZERO, &blob(1), None, 10_250);
    buckets.set(Duration::from_secs(2), Rates { node: 8000, ..Rates::default() });
    assert_eq!(buckets.wait(Duration::from_secs(2), &blob(1)), Duration::from_secs(1));
    buckets.set(Duration::from_secs(2), Rates::default());
    assert!(buckets.is_open(Duration::from_secs(2), &blob(1)));
    // A limit after none begins with a burst, whatever went before.
    buckets.take(Duration::from_secs(3), &blob(1), None, 1 << 40);
    buckets.set(Duration::from_secs(3), Rates { node: 1000, ..Rates::default() });
    assert_eq!(drain(&mut buckets, Duration::from_secs(3), Duration::from_secs(4), &blob(1), &peer(1), 1), 1250);
}

#[test]
fn the_time_in_which_something_is_held_back_is_counted() {
    let mut buckets = buckets(Rates { node: 1000, ..Rates::default() });
    // Ten requests of 500 bytes: 4500 - 250 bytes must be paid for before the last goes, after 4.25 s.
    let (mut left, mut now) = (10, Duration::ZERO);
    while left > 0 {
        while left > 0 && buckets.is_open(now, &blob(1)) {
            buckets.take(now, &blob(1), None, 500);
            left -= 1;
        }
        buckets.account(now);
        now += MS;
    }
    assert_eq!(buckets.throttled(), 4250 * MS);
    buckets.account(now + Duration::from_secs(60));
    assert_eq!(buckets.throttled(), 4250 * MS, "nobody asked");
}

#[test]
fn buckets_that_are_full_again_are_thrown_away() {
    let mut buckets = buckets(Rates { per_blob: 1000, per_peer: 1000, ..Rates::default() });
    for n in 0..100_000_u32 {
        // A new blob and a new peer every millisecond; each is full again after ten.
        let now = n * MS;
        let mut name = [0; 32];
        name[..4].copy_from_slice(&n.to_be_bytes());
        buckets.take(now, &Digest::from_bytes(name), Some(&PeerId::from_bytes(name)), 10);
        assert!(buckets.blobs.len() <= 2 * PRUNE_ABOVE && buckets.peers.len() <= 2 * PRUNE_ABOVE);
    }
}

/// Lets everybody pass who can, every millisecond until `until`; gives who passed when.
fn run(gate: &mut Gate, tickets: &[Ticket], until: Duration) -> Vec<(usize, Duration)> {
    let mut passed: Vec<(usize, Duration)> = Vec::new();
    for now in (0..until.as_millis() as u32).map(|n| n * MS) {
        // In no good order on purpose, and twice: who is not the first is let through when the first has gone.
        for (n, &ticket) in tickets.iter().enumerate().rev().chain(tickets.iter().enumerate()) {
            if !passed.iter().any(|(other, _)| *other == n) && gate.pass(now, ticket).is_ok() {
                passed.push((n, now));
            }
        }
    }
    passed
}

#[test]
fn at_the_gate_the_urgent_go_first_and_the_background_gets_what_is_left() {
    let mut gate = Gate::default();
    gate.set(Duration::ZERO, Rates { node: 1000, ..Rates::default() });
    let mut tickets = vec![
        gate.queue(Priority::Background, blob(1), 1000),
        gate.queue(Priority::Bulk, blob(2), 1000),
        gate.queue(Priority::Bulk, blob(3), 1000),
    ];
    tickets.push(gate.queue(Priority::Fault, blob(4), 1000));
    let passed = run(&mut gate, &tickets, Duration::from_secs(10));
    // The burst of 250 bytes and credit for the first, then one a second.
    assert_eq!(passed, [(3, Duration::ZERO), (1, 750 * MS), (2, 1750 * MS), (0, 2750 * MS)]);
}

#[test]
fn at_the_gate_who_waits_for_its_own_blob_keeps_nobody_back() {
    let mut gate = Gate::default();
    gate.set(Duration::ZERO, Rates { node: 0, per_blob: 1000, per_peer: 0 });
    let tickets = [
        gate.queue(Priority::Bulk, blob(1), 2250),
        gate.queue(Priority::Bulk, blob(1), 10),
        gate.queue(Priority::Background, blob(2), 10),
    ];
    let passed = run(&mut gate, &tickets, Duration::from_secs(5));
    assert_eq!(passed, [(0, Duration::ZERO), (2, Duration::ZERO), (1, Duration::from_secs(2))]);
    assert_eq!(gate.throttled(), Duration::from_secs(2));
}

#[test]
fn who_leaves_the_gate_keeps_nobody_back_and_takes_nothing() {
    let mut gate = Gate::default();
    gate.set(Duration::ZERO, Rates { node: 1000, ..Rates::default() });
    let (first, second) = (gate.queue(Priority::Fault, blob(1), 1 << 30), gate.queue(Priority::Bulk, blob(1), 1));
    assert_eq!(gate.pass(Duration::ZERO, second), Err(RETRY));
    gate.leave(Duration::ZERO, first);
    assert_eq!(gate.pass(Duration::ZERO, second), Ok(()));
}
