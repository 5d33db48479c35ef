//! How far two nodes are from each other, as far as labels and addresses tell.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

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

/// Distance between two places, less is nearer. Labels come first: same rack, same zone, unknown, another zone. Among
/// equals the longest common prefix of the addresses decides, in steps (8 bits of IPv4, 16 bits of IPv6), so that the
/// nodes of one subnet are equals and share the load. IPv4 and IPv6 addresses have nothing in common.
pub fn distance(a: &Place, b: &Place) -> u32 {
    label_distance(a, b) * 16 + address_distance(a.address, b.address)
}

/// Whether a zone's border lies between them, as far as is known.
pub(crate) fn is_far(a: &Place, b: &Place) -> bool {
    !a.zone.is_empty() && !b.zone.is_empty() && !is_same(&a.zone, &b.zone)
}

fn label_distance(a: &Place, b: &Place) -> u32 {
    if a.zone.is_empty() || b.zone.is_empty() {
        return 2;
    }
    match (is_same(&a.zone, &b.zone), !a.rack.is_empty() && is_same(&a.rack, &b.rack)) {
        (false, _) => 3,
        (true, false) => 1,
        (true, true) => 0,
    }
}

/// Labels of a group are shared as far as they are equal; those of callers are not.
fn is_same(a: &Arc<str>, b: &Arc<str>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}

/// From 0 (same address) to 8 (nothing in common).
fn address_distance(a: IpAddr, b: IpAddr) -> u32 {
    match (a.to_canonical(), b.to_canonical()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => 4 - (a.to_bits() ^ b.to_bits()).leading_zeros() / 8,
        (IpAddr::V6(a), IpAddr::V6(b)) => v6_distance(a, b),
        _ => 8,
    }
}

fn v6_distance(a: Ipv6Addr, b: Ipv6Addr) -> u32 {
    8 - (a.to_bits() ^ b.to_bits()).leading_zeros() / 16
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
