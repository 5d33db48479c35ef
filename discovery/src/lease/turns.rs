//! Whose turn it is, and who has to wait.

use std::time::Duration;

use lapwing_p2p::identity::PeerId;

use super::sites::Sites;
use super::{Asker, LeaseBook, Turn};
use crate::limits::{
    ASKER_ACTIVE, FAILURE_BAR, MAX_FAILURE_BAR, MAX_LESSEES, MAX_WAIT, MIN_WAIT, REFUSAL_BAR, SEED_ACTIVE,
    UNSHARED_FLOOR, UNSHARED_OVER_MEAN, WAIT_PER_ASKER,
};

impl LeaseBook {
    /// Whether a seed sees to this blob, which the asker is not.
    pub(super) fn is_behind_seed(&self, now: Duration, asker: Asker<'_>) -> bool {
        let sees_to_it = |(peer, turn): (&PeerId, &Turn)| {
            turn.seed
                && turn.barred_until <= now
                && (now.saturating_sub(turn.asked) < SEED_ACTIVE || self.live.values().any(|grant| grant.peer == *peer))
        };
        !asker.seed && self.askers.iter().any(sees_to_it)
    }

    /// Whether a stream is free that nobody has a better claim to.
    pub(super) fn has_turn(&mut self, now: Duration, asker: Asker<'_>, sites: &Sites) -> bool {
        let peer = asker.peer;
        let Some(site) = sites.get(asker.site) else { return false };
        let free = site.free(self.layout.piece_length(), self.run_length(sites, asker.site));
        if free == 0 || site.before(now, self.id) >= free || !self.may_be_lessee(peer) {
            return false;
        }
        let mine = self.askers.get(&peer).cloned().unwrap_or_default();
        let mut others = self.askers.iter().filter(|(other, turn)| **other != peer && turn.barred_until <= now);
        if mine.barred_until > now && others.clone().any(|(_, turn)| now.saturating_sub(turn.asked) < ASKER_ACTIVE) {
            return false;
        }
        let most_unshared = self.most_unshared(now);
        let waiting = |turn: &Turn| {
            turn.waits_until >= now && turn.waits_for == Some(asker.site) && turn.unshared <= most_unshared
        };
        if mine.unshared > most_unshared && others.clone().any(|(_, turn)| waiting(turn)) {
            return false;
        }
        let live = site.live_of(peer);
        // One lease more than another is no reason to leave a stream idle until that one polls.
        let before_me = |(other, turn): &(&PeerId, &Turn)| {
            waiting(turn) && {
                let theirs = site.live_of(**other);
                theirs < live || (theirs == live && turn.leases + 1 < mine.leases)
            }
        };
        others.by_ref().filter(before_me).take(free).count() < free
    }

    /// With more pieces than that, which nobody took from it, a peer waits until others have had their turn.
    fn most_unshared(&self, now: Duration) -> u32 {
        let active = self.askers.values().filter(|turn| now.saturating_sub(turn.asked) < ASKER_ACTIVE);
        let (sum, count) =
            active.fold((0_u64, 0_u64), |(sum, count), turn| (sum + u64::from(turn.unshared), count + 1));
        let mean = u32::try_from(sum / count.max(1)).unwrap_or(u32::MAX);
        mean.saturating_mul(UNSHARED_OVER_MEAN).max(UNSHARED_FLOOR)
    }

    /// Whether `peer` may become a lessee: an answer can name only so many.
    pub(super) fn may_be_lessee(&mut self, peer: PeerId) -> bool {
        if self.lessees.contains(&peer) || self.lessees.len() < MAX_LESSEES {
            return true;
        }
        let gone = |peer: &PeerId| !self.askers.contains_key(peer) && !self.fetched.contains_key(peer);
        match self.lessees.iter().position(gone) {
            Some(at) => {
                self.lessees.remove(at);
                true
            }
            None => false,
        }
    }

    pub(super) fn bar(&mut self, peer: PeerId, until: Duration) {
        let turn = self.askers.entry(peer).or_default();
        turn.barred_until = turn.barred_until.max(until);
    }

    /// A lease came back without any piece.
    pub(super) fn bar_failed(&mut self, now: Duration, peer: PeerId) {
        let turn = self.askers.entry(peer).or_default();
        let bar = FAILURE_BAR * (1 << turn.failures.min(8));
        turn.failures += 1;
        self.bar(peer, now + bar.min(MAX_FAILURE_BAR));
    }

    pub(super) fn bar_refused(&mut self, now: Duration, peer: PeerId) {
        self.bar(peer, now + REFUSAL_BAR);
    }

    /// Half a piece's time, longer the more askers there are, so that polling stays cheap.
    pub(super) fn pause_length(&self) -> Duration {
        let half_piece = self.piece_time.unwrap_or_default() / 2;
        let askers = u32::try_from(self.askers.len()).unwrap_or(u32::MAX);
        half_piece.clamp(MIN_WAIT, 3 * MIN_WAIT).max(WAIT_PER_ASKER.saturating_mul(askers)).min(MAX_WAIT)
    }
}
