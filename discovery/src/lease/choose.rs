//! Which run of pieces is leased next.

use std::collections::BTreeSet;
use std::ops::Range;

use lapwing_p2p::discovery::LeaseRequest;
use lapwing_p2p::identity::PeerId;

use super::ranges::Runs;
use super::sites::{SiteId, Sites};
use super::{Asker, LeaseBook, union};
use crate::limits::{COPY_PAYS, LEASE_RUN, LEASE_STREAMS, MAX_RUN_BYTES, RUN_BYTES, RUNS_PER_STREAM};

impl LeaseBook {
    /// What is fetched, leaving out those whom the asker finds useless; none if that makes no difference.
    pub(super) fn had_by_others(&self, useless: &[PeerId]) -> Option<Runs> {
        let counts = |peer: &PeerId| !useless.contains(peer);
        let differs = useless.iter().any(|peer| self.fetched.contains_key(peer));
        differs.then(|| union(self.fetched.iter().filter(|(peer, _)| counts(peer)).map(|(_, runs)| runs)))
    }

    /// What `peer` fetched and lacks again, it has lost.
    pub(super) fn withdraw_lost(&mut self, peer: PeerId, request: &LeaseRequest) {
        let Some(own) = self.fetched.get_mut(&peer) else { return };
        let lost: Vec<_> = request.missing.iter().filter(|run| own.intersects((*run).clone())).cloned().collect();
        if lost.is_empty() {
            return;
        }
        lost.into_iter().for_each(|run| own.remove(run));
        self.fetched_by_any = union(self.fetched.values());
    }

    /// The lowest run of at most `length` pieces that is wanted, not had and not leased.
    pub(super) fn first_free(&self, had: &Runs, wanted: &[Range<u32>], length: u32) -> Option<Range<u32>> {
        wanted.iter().find_map(|run| {
            let mut rest = run.clone();
            // At most one round for each live lease, since a round passes over at least one.
            while let Some(gap) = had.first_gap(rest.clone()) {
                if let Some(free) = self.leased.first_gap(gap.clone()) {
                    return Some(free.start..free.end.min(free.start + length));
                }
                rest.start = gap.end;
            }
            None
        })
    }

    /// Whether some of it is under way, and nobody has it yet.
    pub(super) fn any_under_way(&self, had: &Runs, wanted: &[Range<u32>]) -> bool {
        wanted.iter().any(|run| {
            let mut rest = run.clone();
            while let Some(gap) = had.first_gap(rest.clone()) {
                if self.leased.intersects(gap.clone()) {
                    return true;
                }
                rest.start = gap.end;
            }
            false
        })
    }

    /// How many pieces a run has: two, or more where pieces are small, as long as the blob has many runs for each stream;
    /// or where the origin answers slowly.
    pub(super) fn run_length(&self, sites: &Sites, site: SiteId) -> u32 {
        let (piece, pieces) = (self.layout.piece_length().max(1), self.layout.piece_count());
        let share = pieces / (LEASE_STREAMS as u32 * RUNS_PER_STREAM);
        let by_bytes = (RUN_BYTES / piece) as u32;
        let for_first_byte = sites.get(site).map_or(1, |site| site.run_for_first_byte(piece));
        let slow = for_first_byte.min((MAX_RUN_BYTES / piece) as u32).min(pieces / (2 * LEASE_STREAMS as u32));
        by_bytes.min(share).max(slow).max(LEASE_RUN)
    }

    /// Whether a further copy of what the asker lacks is allowed, and saves time.
    pub(super) fn copy_pays(&self, asker: Asker<'_>, request: &LeaseRequest, sites: &Sites) -> bool {
        let copies = sites.get(asker.site).map_or(1, |site| site.policy.copies);
        let pays = self.piece_time.zip(request.remaining).is_some_and(|(piece, rest)| rest > piece * COPY_PAYS);
        pays && self.copies_left(copies) > 0 && !request.rare.is_empty()
    }

    /// Pieces that may be leased again where so many copies are allowed. One piece may come more often than another: what counts
    /// for the origin is how much it sends, and with a cap for each piece it idles while the swarm is at its last pieces.
    fn copies_left(&self, copies: u32) -> u32 {
        let most = u64::from(self.layout.piece_count()) * u64::from(copies.saturating_sub(1));
        u32::try_from(most.saturating_sub(self.copied)).unwrap_or(u32::MAX)
    }

    /// The run to fetch once more, where that pays: the rarest that the asker lacks and that nobody is fetching.
    pub(super) fn further_copy(&self, asker: Asker<'_>, request: &LeaseRequest, sites: &Sites) -> Option<Range<u32>> {
        let copies = sites.get(asker.site)?.policy.copies;
        let wanted: BTreeSet<u32> = request.rare.iter().map(|piece| piece.0).collect();
        let may_copy = |piece: u32| wanted.contains(&piece) && !self.leased.intersects(piece..piece + 1);
        let first = request.rare.iter().map(|piece| piece.0).find(|piece| may_copy(*piece))?;
        let longest = first.saturating_add(self.run_length(sites, asker.site).min(self.copies_left(copies)));
        let end = (first + 1..longest).find(|piece| !may_copy(*piece)).unwrap_or(longest);
        Some(first..end)
    }
}
