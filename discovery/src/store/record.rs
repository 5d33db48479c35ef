//! A node's record in bytes, which differ from store to store in nothing.
//!
//! ```text
//! version 1, flags (1: seed, 2: IPv6), instance (8), seen in ms (8), piece port (2), seed port (2), address (4 or 16),
//! length of zone (1), zone, length of rack (1), rack; integers big-endian
//! ```

use std::net::IpAddr;
use std::time::Duration;

use lapwing_p2p::identity::PeerId;

use super::NodeRecord;
use crate::registry::Place;

const VERSION: u8 = 1;
const SEED: u8 = 1;
const IPV6: u8 = 2;

impl NodeRecord {
    /// Without the key, under which it stands.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(40 + self.place.zone.len() + self.place.rack.len());
        let v6 = if self.place.address.is_ipv6() { IPV6 } else { 0 };
        bytes.extend([VERSION, u8::from(self.seed) | v6]);
        bytes.extend(self.instance.to_be_bytes());
        bytes.extend(milliseconds(self.seen).to_be_bytes());
        bytes.extend(self.port.to_be_bytes());
        bytes.extend(self.seed_port.to_be_bytes());
        match self.place.address {
            IpAddr::V4(ip) => bytes.extend(ip.octets()),
            IpAddr::V6(ip) => bytes.extend(ip.octets()),
        }
        for label in [&self.place.zone, &self.place.rack] {
            bytes.push(u8::try_from(label.len()).expect("labels of callers are checked: at most 63 bytes"));
            bytes.extend(label.as_bytes());
        }
        bytes
    }

    /// A record as a store gave it, unless no tracker could have written that.
    pub fn from_bytes(peer: PeerId, bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let [version, flags] = take(&mut rest)?;
        if version != VERSION || flags & !(SEED | IPV6) != 0 {
            return None;
        }
        let instance = u64::from_be_bytes(take(&mut rest)?);
        let seen = Duration::from_millis(u64::from_be_bytes(take(&mut rest)?));
        let port = u16::from_be_bytes(take(&mut rest)?);
        let seed_port = u16::from_be_bytes(take(&mut rest)?);
        let address = match flags & IPV6 {
            0 => IpAddr::from(take::<4>(&mut rest)?),
            _ => IpAddr::from(take::<16>(&mut rest)?),
        };
        let (zone, rack) = (label(&mut rest)?, label(&mut rest)?);
        let place = Place { zone: zone.into(), rack: rack.into(), address };
        let record = Self { peer, instance, seen, place, port, seed: flags & SEED != 0, seed_port };
        (rest.is_empty() && record.is_possible()).then_some(record)
    }
}

/// As stores count time.
pub fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, others) = rest.split_first_chunk()?;
    *rest = others;
    Some(*first)
}

fn label<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let [length] = take(rest)?;
    let (label, others) = rest.split_at_checked(length.into())?;
    *rest = others;
    std::str::from_utf8(label).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(address: &str, zone: &str) -> NodeRecord {
        NodeRecord {
            peer: PeerId::from_bytes([7; 32]),
            instance: 1 << 60,
            seen: Duration::from_millis(1_790_000_000_123),
            place: Place { zone: zone.into(), rack: "r".into(), address: address.parse().unwrap() },
            port: 7081,
            seed: zone.is_empty(),
            seed_port: 9,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for record in [record("10.1.2.3", "zone-a"), record("fd00::1", ""), record("::ffff:1.2.3.4", &"z".repeat(63))] {
            assert_eq!(NodeRecord::from_bytes(record.peer, &record.to_bytes()), Some(record));
        }
    }

    #[test]
    fn what_no_tracker_writes_is_not_read() {
        let good = record("10.1.2.3", "z");
        let bytes = good.to_bytes();
        for cut in 0..bytes.len() {
            assert_eq!(NodeRecord::from_bytes(good.peer, &bytes[..cut]), None);
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(NodeRecord::from_bytes(good.peer, &longer), None);
        assert_eq!(NodeRecord::from_bytes(good.peer, &record("10.1.2.3", "a b").to_bytes()), None, "no label");
        assert_eq!(NodeRecord::from_bytes(good.peer, &record("10.1.2.3", &"z".repeat(64)).to_bytes()), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_left(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(record) = NodeRecord::from_bytes(PeerId::from_bytes([0; 32]), &bytes) {
                prop_assert_eq!(record.to_bytes(), bytes);
            }
        }
    }
}
