//! Which nodes stand near each other: of a blob that thousands hold, an asker's neighbours are looked for among these,
//! since a sample of all holders would hardly contain one.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::nearness::Place;

/// A neighbourhood, by the labels or the address that its nodes have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Neighbourhood {
    Rack(Arc<str>, Arc<str>),
    /// The first 24 bits of an IPv4 address, 64 of an IPv6 address.
    Subnet(IpAddr),
    Zone(Arc<str>),
}

/// The nodes of each neighbourhood.
#[derive(Debug, Default)]
pub(super) struct Neighbours(HashMap<Neighbourhood, BTreeSet<u32>>);

impl Neighbours {
    pub(super) fn insert(&mut self, node: u32, place: &Place) {
        for neighbourhood in neighbourhoods(place) {
            self.0.entry(neighbourhood).or_default().insert(node);
        }
    }

    pub(super) fn remove(&mut self, node: u32, place: &Place) {
        for neighbourhood in neighbourhoods(place) {
            if let Some(nodes) = self.0.get_mut(&neighbourhood) {
                nodes.remove(&node);
                if nodes.is_empty() {
                    self.0.remove(&neighbourhood);
                }
            }
        }
    }

    /// Nodes near `place`, the nearest neighbourhoods first and of each at most `limit`, cyclic after a random one. A node
    /// may come more than once.
    pub(super) fn near<'a>(
        &'a self,
        place: &Place,
        limit: usize,
        random: &'a mut fastrand::Rng,
    ) -> impl Iterator<Item = u32> + 'a {
        let sets: Vec<_> = neighbourhoods(place).filter_map(|neighbourhood| self.0.get(&neighbourhood)).collect();
        sets.into_iter().flat_map(move |nodes| {
            let end = nodes.last().map_or(1, |last| last + 1);
            let from = if nodes.len() > limit { random.u32(..end) } else { 0 };
            nodes.range(from..).chain(nodes.range(..from)).take(limit).copied()
        })
    }
}

/// The nearest first.
fn neighbourhoods(place: &Place) -> impl Iterator<Item = Neighbourhood> + use<> {
    let (zone, rack) = (&place.zone, &place.rack);
    let rack = (!zone.is_empty() && !rack.is_empty()).then(|| Neighbourhood::Rack(Arc::clone(zone), Arc::clone(rack)));
    let zone = (!zone.is_empty()).then(|| Neighbourhood::Zone(Arc::clone(zone)));
    rack.into_iter().chain(Some(Neighbourhood::Subnet(subnet(place.address)))).chain(zone)
}

fn subnet(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() >> 8 << 8).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(zone: &str, rack: &str, address: &str) -> Place {
        Place { zone: zone.into(), rack: rack.into(), address: address.parse().unwrap() }
    }

    #[test]
    fn rack_subnet_and_zone_are_neighbourhoods() {
        let mut neighbours = Neighbours::default();
        let places = [
            place("a", "r1", "10.0.0.1"),
            place("a", "r1", "10.0.1.1"),
            place("a", "r2", "10.0.2.1"),
            place("", "r1", "10.0.0.2"),
            place("b", "r1", "10.0.3.1"),
            place("", "", "fd00:0:0:1::1"),
            place("", "", "fd00:0:0:1:2::1"),
            place("", "", "fd00:0:0:2::1"),
        ];
        for (node, place) in places.iter().enumerate() {
            neighbours.insert(node as u32, place);
        }
        let mut random = fastrand::Rng::with_seed(1);
        let mut near =
            |neighbours: &Neighbours, of: usize| neighbours.near(&places[of], 9, &mut random).collect::<Vec<_>>();
        assert_eq!(near(&neighbours, 0), [0, 1, 0, 3, 0, 1, 2]);
        assert_eq!(near(&neighbours, 3), [0, 3]);
        assert_eq!(near(&neighbours, 5), [5, 6]);
        for (node, place) in places.iter().enumerate() {
            neighbours.remove(node as u32, place);
        }
        assert!(neighbours.0.is_empty());
    }

    #[test]
    fn of_many_neighbours_each_comes_at_times() {
        let mut neighbours = Neighbours::default();
        let zone = place("a", "", "10.0.0.1");
        for node in 0..100 {
            neighbours.insert(node, &zone);
        }
        let mut random = fastrand::Rng::with_seed(1);
        let mut seen = BTreeSet::new();
        for _ in 0..100 {
            let near: Vec<u32> = neighbours.near(&zone, 10, &mut random).collect();
            assert_eq!(near.len(), 20, "ten of the subnet, ten of the zone");
            seen.extend(near);
        }
        assert!(seen.len() > 90);
    }
}
