//! How far two nodes are from each other, as far as labels and addresses tell.

use std::hash::BuildHasher as _;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::FixedState;

/// Where a node stands; empty labels are unknown ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Availability zone, data centre or building.
    pub zone: Arc<str>,
    /// Rack or switch.
    pub rack: Arc<str>,
    /// As seen on its connection.
    pub address: IpAddr,
}

/// A [`Place`] as it is compared: of a popular blob, an answer compares hundreds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stand {
    /// A hash of the label, 0 if it is empty. Two zones of one hash in four thousand million would be taken for one.
    zone: u32,
    rack: u32,
    /// IPv4 addresses in their mapped form.
    address: u128,
}

impl Stand {
    pub(super) fn of(place: &Place) -> Self {
        let label = |label: &str| if label.is_empty() { 0 } else { FixedState::default().hash_one(label) as u32 | 1 };
        let address = match place.address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        Self { zone: label(&place.zone), rack: label(&place.rack), address: address.to_bits() }
    }

    /// See [`distance`].
    pub(super) const fn distance(&self, other: &Self) -> u32 {
        self.label_distance(other) * 16 + self.address_distance(other)
    }

    /// Whether a zone's border lies between them, as far as is known.
    pub(super) const fn is_far(&self, other: &Self) -> bool {
        self.zone != 0 && other.zone != 0 && self.zone != other.zone
    }

    const fn label_distance(&self, other: &Self) -> u32 {
        if self.zone == 0 || other.zone == 0 {
            return 2;
        }
        match (self.zone == other.zone, self.rack != 0 && self.rack == other.rack) {
            (false, _) => 3,
            (true, false) => 1,
            (true, true) => 0,
        }
    }

    /// From 0 (same address) to 8 (nothing in common).
    const fn address_distance(&self, other: &Self) -> u32 {
        let common = (self.address ^ other.address).leading_zeros();
        match (self.is_v4(), other.is_v4()) {
            (true, true) => 4 - (common - 96) / 8,
            (false, false) => 8 - common / 16,
            _ => 8,
        }
    }

    const fn is_v4(&self) -> bool {
        self.address >> 32 == 0xffff
    }
}

/// Distance between two places, less is nearer. Labels come first: same rack, same zone, unknown, another zone. Among
/// equals the longest common prefix of the addresses decides, in steps (8 bits of IPv4, 16 bits of IPv6), so that the
/// nodes of one subnet are equals and share the load. IPv4 and IPv6 addresses have nothing in common.
pub fn distance(a: &Place, b: &Place) -> u32 {
    Stand::of(a).distance(&Stand::of(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(zone: &str, rack: &str, address: &str) -> Place {
        Place { zone: zone.into(), rack: rack.into(), address: address.parse().unwrap() }
    }

    /// Every list is ordered: each is farther from the first than the one before it.
    #[test]
    fn orders_by_labels_and_then_by_prefix() {
        let v4 = [
            place("z1", "r1", "10.1.2.3"),
            place("z1", "r1", "10.1.2.9"),
            place("z1", "r1", "10.1.9.9"),
            place("z1", "r1", "fd00::1"),
            place("z1", "r2", "10.1.2.3"),
            place("z1", "", "10.1.2.4"),
            place("", "", "10.1.2.3"),
            place("", "r1", "192.168.1.1"),
            place("z2", "r1", "10.1.2.3"),
            place("z2", "r1", "10.1.3.3"),
        ];
        let v6 = [
            place("", "", "fd00:1:2:3::1"),
            place("", "", "fd00:1:2:3::2"),
            place("", "", "fd00:1:2:4::1"),
            place("", "", "fd00:1:9:3::1"),
            place("", "", "2001:db8::1"),
        ];
        for list in [&v4[..], &v6[..]] {
            let distances: Vec<_> = list.iter().map(|other| distance(&list[0], other)).collect();
            assert!(distances.windows(2).all(|pair| pair[0] < pair[1]), "{distances:?}");
        }
    }

    #[test]
    fn a_mapped_address_is_the_address() {
        let (plain, mapped) = (place("", "", "10.1.2.3"), place("", "", "::ffff:10.1.2.3"));
        assert_eq!(distance(&plain, &plain), distance(&plain, &mapped));
    }

    #[test]
    fn nodes_of_one_subnet_are_equals() {
        let me = place("", "", "10.1.2.3");
        assert_eq!(distance(&me, &place("", "", "10.1.2.4")), distance(&me, &place("", "", "10.1.2.250")));
    }
}
