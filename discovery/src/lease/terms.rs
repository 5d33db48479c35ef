//! How long a lease holds.

use std::ops::Range;
use std::time::Duration;

use lapwing_p2p::discovery::Settlement;

use super::sites::{SiteId, Sites};
use super::{Grant, LeaseBook, Purpose};
use crate::limits::{FIRST_TERM, FLOOR_BYTES_PER_S, LEASE_STREAMS, MAX_TERM, MAX_WHOLE_TERM, MIN_TERM, TERM_OVER_MEAN};

impl LeaseBook {
    /// How long a lease holds, counted from its grant. Terms follow what pieces turn out to take: as soon as others
    /// deliver, a lease that was granted before anybody knew is held to their pace.
    pub(super) fn term(&self, grant: &Grant) -> Duration {
        let mean = if grant.purpose == Purpose::Import { self.import_time } else { self.piece_time };
        match mean {
            Some(mean) if grant.purpose != Purpose::Whole => over_mean(mean, grant.count()),
            _ => grant.term,
        }
    }

    /// How long a lease holds while it is not known what a piece of this blob takes: by what the site did before, or by
    /// the least that it is trusted with, which all its streams share.
    pub(super) fn first_term(&self, run: &Range<u32>, purpose: Purpose, site: SiteId, sites: &Sites) -> Duration {
        let count = run.end - run.start;
        let bytes = self.layout.piece_length().saturating_mul(u64::from(count));
        if purpose == Purpose::Whole {
            return at_rate(bytes, FLOOR_BYTES_PER_S).clamp(FIRST_TERM, MAX_WHOLE_TERM);
        }
        let known = sites.get(site).and_then(|site| site.piece_time(self.layout.piece_length()));
        match known {
            Some(piece) => over_mean(piece, count).max(FIRST_TERM),
            None => at_rate(bytes, FLOOR_BYTES_PER_S / LEASE_STREAMS as u64).clamp(FIRST_TERM, MAX_TERM),
        }
    }

    /// A run, or its first pieces, came.
    pub(super) fn learn(&mut self, now: Duration, grant: &Grant, settlement: &Settlement, sites: &mut Sites) {
        let took = now.saturating_sub(grant.granted);
        self.last_settled = Some(now);
        self.observe(took / settlement.fetched.max(1), grant.purpose);
        if let Some(site) = sites.get_mut(grant.site) {
            let bytes = self.layout.piece_length().saturating_mul(u64::from(settlement.fetched));
            site.delivered(bytes, took, settlement.first_byte);
        }
    }

    pub(super) fn observe(&mut self, piece: Duration, purpose: Purpose) {
        let mean = if purpose == Purpose::Import { &mut self.import_time } else { &mut self.piece_time };
        *mean = Some(mean.map_or(piece, |mean| (mean * 3 + piece) / 4));
    }
}

/// One piece may take several times the mean, the others take what they do.
fn over_mean(mean: Duration, count: u32) -> Duration {
    mean.saturating_mul(TERM_OVER_MEAN + count.saturating_sub(1)).clamp(MIN_TERM, MAX_TERM)
}

fn at_rate(bytes: u64, bytes_per_s: u64) -> Duration {
    Duration::from_millis(bytes.saturating_mul(1000) / bytes_per_s)
}
