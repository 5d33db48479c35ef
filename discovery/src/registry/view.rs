//! What an operator asks: some of the nodes, and who has one blob. Nothing here registers anybody or changes anything.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::Holding;
use lapwing_p2p::identity::PeerId;

use super::Registry;
use super::group::Group;
use super::nearness::{Place, distance};
use super::snapshot::{Member, member};
use crate::limits::MAX_VIEW_ROWS;

/// Which nodes are asked for.
#[derive(Debug, Clone, Default)]
pub struct MemberFilter {
    /// Only those of this group.
    pub group: Option<String>,
    /// Only those of this zone.
    pub zone: Option<String>,
    /// So many of them were shown before.
    pub skip: usize,
    /// At most so many rows, and at most [`MAX_VIEW_ROWS`].
    pub limit: usize,
}

/// Nodes, ordered by group and address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    /// How many there are of the kind that was asked for.
    pub total: usize,
    /// Those that were asked for.
    pub rows: Vec<Member>,
}

/// How much there is in one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupCounts {
    /// Its name.
    pub group: String,
    /// Its nodes.
    pub nodes: usize,
    /// Blobs that somebody in it holds, states something of or fetches.
    pub blobs: usize,
}

/// One blob in one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobView {
    /// The group.
    pub group: String,
    /// How many nodes hold some or all of it.
    pub total: usize,
    /// How many hold all of it.
    pub complete: u32,
    /// The nearest of them.
    pub holders: Vec<HolderView>,
    /// Who is fetching which pieces from the origin.
    pub leases: Vec<LeaseView>,
}

/// A holder of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HolderView {
    /// The node.
    pub node: Member,
    /// How much of the blob it has.
    pub holding: Holding,
    /// Whether askers are sent to it now.
    pub serves: bool,
}

/// An origin lease under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseView {
    /// Who fetches.
    pub peer: PeerId,
    /// Where its piece wire listens, if it is still registered.
    pub address: Option<SocketAddr>,
    /// Which pieces.
    pub pieces: Range<u32>,
    /// Since when.
    pub age: Duration,
}

impl Registry {
    /// The groups by name.
    pub fn group_counts(&self) -> Vec<GroupCounts> {
        let mut groups: Vec<GroupCounts> = self
            .groups
            .iter()
            .map(|(name, group)| GroupCounts {
                group: name.clone(),
                nodes: group.nodes.len(),
                blobs: group.blobs.len(),
            })
            .collect();
        groups.sort_unstable_by(|one, other| one.group.cmp(&other.group));
        groups
    }

    /// The nodes that `filter` asks for.
    pub fn members(&self, now: Duration, filter: &MemberFilter) -> Members {
        let mut members = Members::default();
        let mut skip = filter.skip;
        for (name, group) in self.groups_called(filter.group.as_deref()) {
            let zone = filter.zone.as_deref();
            let asked_for = group.nodes.iter().filter(|(_, node)| zone.is_none_or(|zone| *node.place.zone == *zone));
            let mut found: Vec<_> = asked_for.map(|(index, node)| (node.address(), node.peer, index)).collect();
            members.total += found.len();
            let room = filter.limit.min(MAX_VIEW_ROWS) - members.rows.len();
            let here = skip.min(found.len());
            keep_least(&mut found, here + room);
            let shown = found.iter().skip(here).filter_map(|(_, _, index)| group.nodes.get(*index));
            members.rows.extend(shown.map(|node| member(now, name, node)));
            skip -= here;
        }
        members
    }

    /// Who has `digest`, in one group or in all where somebody has, nearest to `from` first, at most `limit` of each.
    pub fn holders_of(
        &self,
        now: Duration,
        digest: Digest,
        group: Option<&str>,
        from: &Place,
        limit: usize,
    ) -> Vec<BlobView> {
        let limit = limit.min(MAX_VIEW_ROWS);
        let groups = self.groups_called(group).into_iter();
        groups.filter_map(|(name, group)| group.view(now, name, digest, from, limit)).collect()
    }

    /// Blobs that somebody fetches from the origin now, or has just fetched, with their groups: at most `limit`. Looks at no
    /// others, however many there are.
    pub fn under_way(&self, limit: usize) -> Vec<(String, Digest)> {
        let leased = self.groups_called(None).into_iter().flat_map(|(name, group)| {
            group.leased.iter().filter_map(move |index| Some((name.to_owned(), group.blobs.get(*index)?.digest)))
        });
        leased.take(limit.min(MAX_VIEW_ROWS)).collect()
    }

    fn groups_called(&self, name: Option<&str>) -> Vec<(&str, &Group)> {
        let mut groups: Vec<(&str, &Group)> = match name {
            Some(name) => {
                self.groups.get_key_value(name).map(|(name, group)| (name.as_str(), group)).into_iter().collect()
            }
            None => self.groups.iter().map(|(name, group)| (name.as_str(), group)).collect(),
        };
        groups.sort_unstable_by_key(|(name, _)| *name);
        groups
    }
}

impl Group {
    fn view(&self, now: Duration, name: &str, digest: Digest, from: &Place, limit: usize) -> Option<BlobView> {
        let blob = self.get(digest)?;
        let (total, complete) = blob.holders.counts();
        let mut found: Vec<_> = blob
            .holders
            .iter()
            .filter_map(|index| {
                let (holding, node) = (blob.holders.get(index)?, self.nodes.get(index)?);
                let partial = holding != Holding::Complete;
                Some((
                    (!node.serves(now), distance(from, &node.place), partial, node.address(), node.peer),
                    index,
                    holding,
                ))
            })
            .collect();
        if found.len() > limit {
            found.select_nth_unstable_by_key(limit, |(key, ..)| *key);
            found.truncate(limit);
        }
        found.sort_unstable_by_key(|(key, ..)| *key);
        let shown = |((silent, ..), index, holding): ((bool, _, _, _, _), u32, Holding)| {
            Some(HolderView { node: member(now, name, self.nodes.get(index)?), holding, serves: !silent })
        };
        let leases = blob.books.iter().flat_map(|book| book.under_way()).take(limit).map(|(peer, pieces, granted)| {
            let address = self.by_peer.get(&peer).and_then(|index| self.nodes.get(*index)).map(|node| node.address());
            LeaseView { peer, address, pieces, age: now.saturating_sub(granted) }
        });
        Some(BlobView {
            group: name.to_owned(),
            total,
            complete,
            leases: leases.collect(),
            holders: found.into_iter().filter_map(shown).collect(),
        })
    }
}

/// Leaves the `count` least, in order.
fn keep_least<T: Ord>(all: &mut Vec<T>, count: usize) {
    if all.len() > count {
        all.select_nth_unstable(count);
        all.truncate(count);
    }
    all.sort_unstable();
}

#[cfg(test)]
mod tests {
    use super::super::Caller;
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn caller(number: u8, group: &str, zone: &str) -> Caller {
        Caller {
            node: PeerId::from_bytes([number; 32]),
            instance: 1,
            group: group.into(),
            place: Place { zone: zone.into(), rack: "".into(), address: [10, 0, number / 100, number].into() },
            port: 7081,
            seed: false,
            seed_port: 0,
            reached_at: [10, 0, 0, 250].into(),
        }
    }

    fn registry() -> (Registry, Digest) {
        let mut registry = Registry::new(7);
        let digest = Digest::of(b"layer");
        for number in 1..=120 {
            let caller =
                caller(number, if number <= 100 { "a" } else { "b" }, if number % 2 == 0 { "even" } else { "odd" });
            let holding = if number == 3 { Holding::Partial } else { Holding::Complete };
            registry.announce(NOW, &caller, &[(digest, Some(holding))]).unwrap();
        }
        (registry, digest)
    }

    #[test]
    fn pages_show_every_node_once() {
        let (registry, _) = registry();
        let mut shown = Vec::new();
        loop {
            let filter = MemberFilter { skip: shown.len(), limit: 7, ..MemberFilter::default() };
            let page = registry.members(NOW, &filter);
            assert_eq!(page.total, 120);
            if page.rows.is_empty() {
                break;
            }
            assert!(page.rows.len() <= 7);
            shown.extend(page.rows);
        }
        assert_eq!(shown.len(), 120);
        assert!(shown.is_sorted_by_key(|member| (member.group.clone(), member.address)));
        assert!(shown.iter().all(|member| member.blobs == 1));
    }

    #[test]
    fn filters_count_what_they_let_through() {
        let (registry, _) = registry();
        let filter = MemberFilter { group: Some("b".into()), zone: Some("even".into()), skip: 0, limit: 3 };
        let page = registry.members(NOW, &filter);
        assert_eq!((page.total, page.rows.len()), (10, 3));
        assert!(page.rows.iter().all(|member| member.group == "b" && member.zone == "even"));
        let nobody = MemberFilter { group: Some("c".into()), limit: 3, ..MemberFilter::default() };
        assert_eq!(registry.members(NOW, &nobody), Members::default());
        let counts = registry.group_counts();
        assert_eq!(counts.iter().map(|group| (group.nodes, group.blobs)).collect::<Vec<_>>(), [(100, 1), (20, 1)]);
    }

    #[test]
    fn holders_come_nearest_first_and_silent_ones_last() {
        let (mut registry, digest) = registry();
        let from = Place { zone: "odd".into(), rack: "".into(), address: [10, 0, 0, 5].into() };
        let later = NOW + crate::limits::NODE_TTL;
        for number in 1..=9 {
            registry
                .heartbeat(
                    NOW + crate::limits::UNREPORTED_SILENCE,
                    &caller(number, "a", if number % 2 == 0 { "even" } else { "odd" }),
                )
                .unwrap();
        }
        let view = registry.holders_of(later, digest, Some("a"), &from, 6);
        assert_eq!(view.len(), 1);
        let numbers: Vec<u8> = view[0].holders.iter().map(|holder| holder.node.peer.as_bytes()[0]).collect();
        assert!(view[0].holders.len() == 6 && view[0].total == 100 && view[0].complete == 99, "{view:?}");
        assert_eq!(numbers[0], 5, "its own address");
        assert_eq!(numbers[4], 3, "among equals those that have all of it come first");
        assert!(view[0].holders[..5].iter().all(|holder| holder.node.zone == "odd" && holder.serves));
        assert!(view[0].holders[5].node.zone == "even" && view[0].holders[5].serves, "farther, but not silent");
        assert_eq!(registry.holders_of(later, digest, None, &from, 1).len(), 2, "one for each group");
        assert!(registry.holders_of(later, Digest::of(b"other"), None, &from, 1).is_empty());
    }
}
