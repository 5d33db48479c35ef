//! Imports: what one zone's peers bring over its border, of one blob.
//!
//! To a zone, the others are an origin: each piece crosses once, under an import lease that names one importer, and is
//! traded within the zone from there on. What is counted as brought goes with the peer that brought it; then it may be
//! imported again, for those who find no peer of their own zone that has it. Peers without a zone are near to all.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use lapwing_p2p::discovery::{LeaseReply, LeaseRequest};
use lapwing_p2p::identity::PeerId;

use super::ranges::Runs;
use super::sites::Sites;
use super::{Asker, LeaseBook, Purpose, union};
use crate::limits::{IMPORT_RUN, MAX_ZONES_PER_BLOB};

/// One zone's part in a blob.
#[derive(Debug, Default)]
pub(super) struct Zone {
    name: String,
    /// From the origin or over the border.
    brought: HashMap<PeerId, Runs>,
    /// The union of `brought`.
    here: Runs,
    /// Being imported.
    pub(super) coming: Runs,
}

impl Zone {
    pub(super) fn bring(&mut self, peer: PeerId, run: Range<u32>) {
        self.here.insert(run.clone());
        self.brought.entry(peer).or_default().insert(run);
    }

    /// `peer` is gone, and what it brought with it.
    pub(super) fn forget(&mut self, peer: PeerId) {
        if self.brought.remove(&peer).is_some() {
            self.here = union(self.brought.values());
        }
    }

    /// `peer` says that it lacks these: it has lost them.
    fn withdraw(&mut self, peer: PeerId, missing: &[Range<u32>]) {
        let Some(own) = self.brought.get_mut(&peer) else { return };
        if missing.iter().any(|run| own.intersects(run.clone())) {
            missing.iter().for_each(|run| own.remove(run.clone()));
            self.here = union(self.brought.values());
        }
    }
}

impl LeaseBook {
    /// The zone's number in this book; peers that name none share one. None when there are too many.
    pub(super) fn zone(&mut self, name: &str) -> Option<usize> {
        if let Some(at) = self.zones.iter().position(|zone| zone.name == name) {
            return Some(at);
        }
        if self.zones.len() >= MAX_ZONES_PER_BLOB {
            return None;
        }
        self.zones.push(Zone { name: name.to_owned(), ..Zone::default() });
        Some(self.zones.len() - 1)
    }

    /// What an asker of that zone need not import, since it is there or with peers of no zone.
    fn here(&self, zone: &Zone, useless: &[PeerId]) -> Option<Runs> {
        let zoneless = self.zones.iter().find(|zone| zone.name.is_empty() && !zone.brought.is_empty());
        let lost = useless.iter().any(|peer| zone.brought.contains_key(peer));
        if zoneless.is_none() && !lost {
            return None;
        }
        let all = zone.brought.iter().chain(zoneless.into_iter().flat_map(|zone| &zone.brought));
        Some(union(all.filter(|(peer, _)| !useless.contains(peer)).map(|(_, runs)| runs)))
    }

    /// Whether something that the asker lacks is in another zone, or on its way into its own: it will come, or can be
    /// imported as soon as a peer there offers it.
    pub(super) fn is_elsewhere(&self, asker: Asker<'_>, request: &LeaseRequest) -> bool {
        let zone = self.zones.iter().find(|zone| zone.name == asker.zone).filter(|zone| !zone.name.is_empty());
        let Some(zone) = zone.filter(|_| self.zones.len() > 1 || !asker.may_fetch) else { return false };
        let here = self.here(zone, &request.useless);
        let here = here.as_ref().unwrap_or(&zone.here);
        request.missing.iter().any(|run| here.first_gap(run.clone()).is_some())
    }

    /// A lease to import some of what the asker could, if there is anything and it is its turn; none if there is nothing
    /// to import.
    pub(super) fn ask_import(
        &mut self,
        now: Duration,
        asker: Asker<'_>,
        request: &LeaseRequest,
        id: u64,
        sites: &mut Sites,
    ) -> Option<LeaseReply> {
        if asker.zone.is_empty() || request.importable.is_empty() {
            return None;
        }
        let at = self.zone(asker.zone)?;
        self.zones[at].withdraw(asker.peer, &request.missing);
        let zone = &self.zones[at];
        let here = self.here(zone, &request.useless);
        let here = here.as_ref().unwrap_or(&zone.here);
        let run = request.importable.iter().find_map(|run| first_free(here, &zone.coming, run.clone()))?;
        let border = Asker { site: sites.border(now, asker.zone), ..asker };
        Some(self.ask_stream(now, border, run, Purpose::Import, id, sites))
    }
}

fn first_free(here: &Runs, coming: &Runs, wanted: Range<u32>) -> Option<Range<u32>> {
    let mut rest = wanted;
    while let Some(gap) = here.first_gap(rest.clone()) {
        if let Some(free) = coming.first_gap(gap.clone()) {
            return Some(free.start..free.end.min(free.start + IMPORT_RUN));
        }
        rest.start = gap.end;
    }
    None
}
