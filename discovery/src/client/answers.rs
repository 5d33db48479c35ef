//! What is believed of a tracker's answers: a tracker may lie, and must not send a node anywhere it should not go.

use std::collections::HashSet;
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Found, Holding, LeaseKind, LeaseReply, LeaseRequest, may_dial};
use lapwing_p2p::identity::PeerId;
use lapwing_p2p::layout::PieceIndex;

use crate::limits::{MAX_BELIEVED, MAX_HOLDERS_PER_ANSWER, MAX_LESSEES, MAX_OBJECTS_PER_SUBJECT, MAX_SEEDS, MIN_WAIT};
use crate::proto::{self, lease_reply::Outcome};
use crate::seed::Seed;
use crate::wire;

/// Reads the answer to a search for `digest`: no more than the bounds, no peer twice, not this node, no address that no
/// peer can have. Loopback addresses are taken from a tracker on this machine only.
pub(super) fn found(reply: &proto::FindReply, digest: Digest, me: PeerId, tracker_is_local: bool) -> Found {
    let mut seen = HashSet::from([me]);
    let holders = reply.holders.iter().filter_map(wire::holder);
    let holders = holders.filter(|holder| may_dial(holder.address.ip(), tracker_is_local) && seen.insert(holder.peer));
    let holders = holders.take(MAX_HOLDERS_PER_ANSWER).collect();
    let votes = reply.votes.iter().filter_map(|vote| wire::vote(digest, vote)).take(MAX_OBJECTS_PER_SUBJECT).collect();
    let lessees = reply.lessees.iter().filter_map(|peer| wire::peer("", peer).ok()).take(MAX_LESSEES).collect();
    Found { holders, votes, lessees }
}

/// What two trackers know together, by the same bounds; who holds all in the eyes of one does.
pub(super) fn merged(mut found: Found, more: Found) -> Found {
    for holder in more.holders {
        let room = found.holders.len() < MAX_HOLDERS_PER_ANSWER;
        match found.holders.iter_mut().find(|known| known.peer == holder.peer) {
            Some(known) if holder.holding == Holding::Complete => *known = holder,
            None if room => found.holders.push(holder),
            _ => {}
        }
    }
    for vote in more.votes {
        let room = found.votes.len() < MAX_OBJECTS_PER_SUBJECT;
        match found.votes.iter_mut().find(|known| known.statement == vote.statement) {
            // Mostly the same nodes: they say it to both.
            Some(known) => known.nodes = known.nodes.max(vote.nodes),
            None if room => found.votes.push(vote),
            None => {}
        }
    }
    found.votes.sort_by_key(|vote| std::cmp::Reverse(vote.nodes));
    let known: HashSet<PeerId> = found.lessees.iter().copied().collect();
    let new = more.lessees.into_iter().filter(|lessee| !known.contains(lessee));
    let room = MAX_LESSEES.saturating_sub(known.len());
    found.lessees.extend(new.take(room));
    found
}

/// Reads a listing of seeds: no more than the bound, none twice, not this node, no address that none can have.
pub(super) fn seeds(reply: &proto::SeedsReply, me: PeerId, tracker_is_local: bool) -> Vec<Seed> {
    let mut seen = HashSet::from([me]);
    let seeds = reply.seeds.iter().filter_map(wire::seed);
    let seeds = seeds.filter(|seed| may_dial(seed.address, tracker_is_local) && seen.insert(seed.peer));
    seeds.take(MAX_SEEDS).collect()
}

/// Reads the answer to `request`; none if it grants what was not asked for, or nothing known.
pub(super) fn leased(reply: &proto::LeaseReply, request: &LeaseRequest) -> Option<LeaseReply> {
    match reply.outcome.as_ref()? {
        Outcome::Grant(grant) => {
            let end = grant.first.checked_add(grant.count)?;
            let mut wanted = request.missing.iter().chain(&request.urgent);
            let lease = wire::lease::grant(grant);
            let rare = |piece: u32| request.rare.contains(&PieceIndex(piece));
            let asked = match lease.kind {
                LeaseKind::Whole => grant.first == 0 && !request.missing.is_empty(),
                LeaseKind::Import => request.importable.iter().any(|run| run.start <= grant.first && end <= run.end),
                LeaseKind::Origin => {
                    wanted.any(|run| run.start <= grant.first && end <= run.end)
                        || (grant.count as usize <= request.rare.len() && (grant.first..end).all(rare))
                }
            };
            (grant.count > 0 && asked).then_some(LeaseReply::Granted(lease))
        }
        Outcome::Wait(wait) => {
            let pause = Duration::from_millis(wait.pause_ms.into()).clamp(MIN_WAIT, MAX_BELIEVED);
            Some(LeaseReply::Wait(pause.mul_f64(0.9 + 0.3 * fastrand::f64())))
        }
        Outcome::Exhausted(_) => Some(LeaseReply::Exhausted),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

    fn holder(node: u8, address: &[u8], port: u32) -> proto::Holder {
        proto::Holder {
            node: vec![node; 32],
            address: address.to_vec(),
            port,
            state: proto::HoldingState::Partial.into(),
            ..proto::Holder::default()
        }
    }

    #[test]
    fn a_lying_tracker_sends_nobody_astray() {
        let digest = Digest::of(b"x");
        let me = PeerId::from_bytes([1; 32]);
        let link_local: Ipv6Addr = "fe80::1".parse().unwrap();
        let mapped: Ipv6Addr = "::ffff:169.254.169.254".parse().unwrap();
        let statement = proto::Statement {
            subject: vec![7; 32],
            kind: proto::StatementKind::Metainfo.into(),
            object: vec![8; 32],
            length: 1,
        };
        let reply = proto::FindReply {
            holders: vec![
                holder(1, &[10, 0, 0, 1], 7081),
                holder(2, &[169, 254, 169, 254], 80),
                holder(3, &[127, 0, 0, 1], 22),
                holder(4, &[0, 0, 0, 0], 22),
                holder(5, &[224, 0, 0, 1], 22),
                holder(6, &[255, 255, 255, 255], 22),
                holder(7, &link_local.octets(), 22),
                holder(8, &METADATA_V6.octets(), 80),
                holder(9, &mapped.octets(), 80),
                holder(10, &[10, 0, 0, 2], 0),
                holder(11, &[10, 0, 0], 7081),
                holder(12, &[10, 0, 0, 2], 70_000),
                holder(13, &[10, 0, 0, 3], 7081),
                holder(13, &[10, 0, 0, 4], 7081),
            ],
            votes: vec![proto::Vote { statement: Some(statement), nodes: 9 }, proto::Vote::default()],
            lessees: vec![vec![1; 31], vec![5; 32]],
            ..proto::FindReply::default()
        };
        let believed = found(&reply, digest, me, false);
        let addresses: Vec<String> = believed.holders.iter().map(|holder| holder.address.to_string()).collect();
        assert_eq!(addresses, ["10.0.0.3:7081"]);
        assert!(believed.votes.is_empty(), "a vote on another subject");
        assert_eq!(believed.lessees, [PeerId::from_bytes([5; 32])]);
        assert_eq!(found(&reply, digest, me, true).holders.len(), 2, "loopback from a local tracker");
    }

    #[test]
    fn seeds_are_believed_as_little_as_holders() {
        let seed = |node: u8, address: [u8; 4], piece_port, seed_port| proto::Seed {
            node: vec![node; 32],
            address: address.to_vec(),
            piece_port,
            seed_port,
        };
        let mut seeds_named = vec![
            seed(1, [10, 0, 0, 1], 7081, 7083),
            seed(2, [169, 254, 169, 254], 80, 80),
            seed(3, [127, 0, 0, 1], 7081, 22),
            seed(4, [10, 0, 0, 4], 0, 7083),
            seed(5, [10, 0, 0, 5], 7081, 0),
            seed(6, [10, 0, 0, 6], 7081, 70_000),
            proto::Seed { node: vec![7; 3], ..seed(7, [10, 0, 0, 7], 7081, 7083) },
            seed(8, [10, 0, 0, 8], 7081, 7083),
            seed(8, [10, 0, 0, 9], 7081, 7083),
        ];
        let read = |seeds: Vec<proto::Seed>| {
            let reply = proto::SeedsReply { seeds, ..proto::SeedsReply::default() };
            super::seeds(&reply, PeerId::from_bytes([1; 32]), false)
        };
        let believed = read(seeds_named.clone());
        assert_eq!(believed.iter().map(|seed| seed.service().to_string()).collect::<Vec<_>>(), ["10.0.0.8:7083"]);
        seeds_named.extend((20..255).map(|node| seed(node, [10, 0, 1, node], 7081, 7083)));
        assert_eq!(read(seeds_named).len(), MAX_SEEDS);
    }

    #[test]
    fn two_answers_are_merged_within_the_bounds_of_one() {
        use lapwing_p2p::discovery::{Holder, Statement, StatementKind, Vote};
        let peer = |number: u8| PeerId::from_bytes([number; 32]);
        let holder = |number, holding| Holder::new(peer(number), "10.0.0.1:7081".parse().unwrap(), holding);
        let vote = |object: &[u8], nodes| {
            let (subject, object) = (Digest::of(b"x"), Digest::of(object));
            Vote { statement: Statement { subject, kind: StatementKind::Metainfo, object, length: 1 }, nodes }
        };
        let one = Found {
            holders: vec![holder(1, Holding::Partial), holder(2, Holding::Complete)],
            votes: vec![vote(b"a", 3)],
            lessees: vec![peer(1)],
        };
        let other = Found {
            holders: vec![holder(1, Holding::Complete), holder(2, Holding::Partial), holder(3, Holding::Partial)],
            votes: vec![vote(b"b", 5), vote(b"a", 2)],
            lessees: vec![peer(1), peer(4)],
        };
        let both = merged(one.clone(), other);
        let holders: Vec<_> = both.holders.iter().map(|holder| (holder.peer, holder.holding)).collect();
        assert_eq!(holders, [(peer(1), Holding::Complete), (peer(2), Holding::Complete), (peer(3), Holding::Partial)]);
        assert_eq!(both.votes, [vote(b"b", 5), vote(b"a", 3)]);
        assert_eq!(both.lessees, [peer(1), peer(4)]);
        let many = (0..=255).map(|number| holder(number, Holding::Partial)).collect();
        assert_eq!(merged(one, Found { holders: many, ..Found::default() }).holders.len(), MAX_HOLDERS_PER_ANSWER);
    }

    #[test]
    fn a_million_holders_are_cut_to_the_bound() {
        let many = (0..1_000_000_u32).map(|index| {
            let mut node = vec![2; 32];
            node[..4].copy_from_slice(&index.to_be_bytes());
            proto::Holder { node, ..holder(0, &[10, 0, 0, 1], 7081) }
        });
        let reply = proto::FindReply { holders: many.collect(), ..proto::FindReply::default() };
        let found = found(&reply, Digest::of(b"x"), PeerId::from_bytes([1; 32]), false);
        assert_eq!(found.holders.len(), MAX_HOLDERS_PER_ANSWER);
    }

    #[test]
    fn a_grant_must_be_of_what_was_asked() {
        let request = LeaseRequest {
            missing: vec![2..4, 8..9],
            urgent: vec![0..1, 20..21],
            ..LeaseRequest::new(Digest::of(b"x"), 8 << 20)
        };
        let read = |first, count| {
            let outcome =
                Outcome::Grant(proto::lease_reply::Grant { lease: 1, first, count, term_ms: u32::MAX, kind: 0 });
            leased(&proto::LeaseReply { outcome: Some(outcome), ..proto::LeaseReply::default() }, &request)
        };
        for (first, count) in [(2, 2), (2, 1), (8, 1), (0, 1)] {
            let Some(LeaseReply::Granted(lease)) = read(first, count) else { panic!("{first}+{count}") };
            assert_eq!((lease.first, lease.count, lease.term), (PieceIndex(first), count, MAX_BELIEVED));
        }
        for (first, count) in [(2, 0), (2, 3), (3, 2), (9, 1), (u32::MAX, 2)] {
            assert_eq!(read(first, count), None, "{first}+{count}");
        }
        assert_eq!(leased(&proto::LeaseReply::default(), &request), None);
    }
}
