//! The registry's nodes and holdings as bytes, so that a tracker that starts again answers at once.
//!
//! Only a help: all of it is soft state. Whoever was listed has another registration afterwards and so tells everything
//! again at its next call, and is forgotten like any other if it stays silent. Statements, reports and leases are not
//! kept. A dump is made in slices, between which the registry changes: a blob may be missing that came meanwhile.
//!
//! Layout, integers little-endian: the magic `LAPTRK01`; seconds since 1970 (8 bytes); records, each with its kind (1
//! byte) first; kind 0; CRC-32C of all bytes before it (4 bytes). The records:
//!
//! * 1, a group: its name (1 byte of length, text). The records after it are of this group.
//! * 2, a node: its number (4), key (32), instance (8), piece port (2), seed port (2), whether it is a seed (1), address
//!   (16; IPv4 mapped), zone and rack (as a group's name).
//! * 3, a blob: digest (32), number of holders (4), and each of them (4): twice its node's number, plus 1 if it holds all.

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::Holding;
use lapwing_p2p::identity::PeerId;

use super::group::Group;
use super::{Caller, Place, Refusal, Registry};
use crate::limits::{DUMP_SLICE_HOLDINGS, MAX_NODES};
use crate::piccolo::AGENTS;
use crate::wire::{check_group, check_label};

const MAGIC: &[u8; 8] = b"LAPTRK01";
const END: u8 = 0;
const GROUP: u8 = 1;
const NODE: u8 = 2;
const BLOB: u8 = 3;

/// A dump that is being made.
#[derive(Debug)]
pub struct Dump {
    /// Registrations after it are not in the dump, nor what these nodes hold.
    numbers: u64,
    groups: Vec<String>,
    group: usize,
    stage: Stage,
    crc: u32,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    Name,
    /// From this number on.
    Nodes(u32),
    Blobs(u32),
}

/// Why bytes are no dump.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Another format, or another version of it.
    #[error("it is no dump of a tracker, or of another version")]
    Magic,
    /// Damaged.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// It has more than a tracker keeps.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// What a dump held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// When it was made, in seconds since 1970.
    pub made_at_s: u64,
    /// Nodes.
    pub nodes: usize,
    /// Pairs of a blob and a node.
    pub holdings: usize,
}

impl Registry {
    /// Begins a dump, at `now_s` seconds since 1970.
    pub fn begin_dump(&self, now_s: u64, out: &mut Vec<u8>) -> Dump {
        let groups = self.groups.keys().cloned().collect();
        let mut dump = Dump { numbers: self.totals.numbers, groups, group: 0, stage: Stage::Name, crc: 0 };
        let start = out.len();
        out.extend(MAGIC);
        out.extend(now_s.to_le_bytes());
        dump.crc = crc32c::crc32c(&out[start..]);
        dump
    }

    /// Appends the next slice; false after the last.
    pub fn dump_some(&self, dump: &mut Dump, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        let more = self.append(dump, out);
        dump.crc = crc32c::crc32c_append(dump.crc, &out[start..]);
        if !more {
            out.extend(dump.crc.to_le_bytes());
        }
        more
    }

    fn append(&self, dump: &mut Dump, out: &mut Vec<u8>) -> bool {
        let Some(name) = dump.groups.get(dump.group) else {
            out.push(END);
            return false;
        };
        let Some(group) = self.groups.get(name) else {
            (dump.group, dump.stage) = (dump.group + 1, Stage::Name);
            return true;
        };
        let is_old = |registration: u64| registration.wrapping_sub(self.totals.epoch) <= dump.numbers;
        match dump.stage {
            Stage::Name => {
                out.push(GROUP);
                text(out, name);
                dump.stage = Stage::Nodes(0);
            }
            Stage::Nodes(from) => {
                let next = append_nodes(group, from, is_old, out);
                dump.stage = next.map_or(Stage::Blobs(0), Stage::Nodes);
            }
            Stage::Blobs(from) => match append_blobs(group, from, is_old, out) {
                Some(next) => dump.stage = Stage::Blobs(next),
                None => (dump.group, dump.stage) = (dump.group + 1, Stage::Name),
            },
        }
        true
    }

    /// Takes in a dump, into an empty registry: all or, after an error, an unknown part of it. Every node counts as heard
    /// from at `now`.
    pub fn restore(&mut self, now: Duration, from: impl Read) -> Result<Restored, DumpError> {
        let mut input = Input { from, crc: 0 };
        if &input.take::<8>()? != MAGIC {
            return Err(DumpError::Magic);
        }
        let mut restored = Restored { made_at_s: u64::from_le_bytes(input.take()?), nodes: 0, holdings: 0 };
        // Numbers in the dump, and those of the same nodes here.
        let (mut group, mut numbers) = (String::new(), HashMap::new());
        loop {
            match input.byte()? {
                END => break,
                GROUP => {
                    group = input.text()?;
                    check_group(group.strip_prefix(AGENTS).unwrap_or(&group)).map_err(DumpError::Damaged)?;
                    numbers = HashMap::new();
                }
                NODE => {
                    let (number, caller) = input.node(&group)?;
                    let call = self.enter(now, &caller)?;
                    call.group.note_hearsay(call.node);
                    numbers.insert(number, call.node);
                    restored.nodes += 1;
                }
                BLOB => restored.holdings += self.restore_blob(&group, &mut input, &numbers)?,
                kind => return Err(DumpError::Damaged(format!("{kind} is no kind of record"))),
            }
        }
        let crc = input.crc;
        if u32::from_le_bytes(input.take()?) != crc {
            return Err(DumpError::Damaged("its checksum does not match".to_owned()));
        }
        Ok(restored)
    }

    fn restore_blob(
        &mut self,
        group: &str,
        input: &mut Input<impl Read>,
        numbers: &HashMap<u32, u32>,
    ) -> Result<usize, DumpError> {
        let digest = Digest::from_bytes(input.take()?);
        let count = u32::from_le_bytes(input.take()?) as usize;
        if count > MAX_NODES {
            return Err(DumpError::Damaged(format!("{digest} has {count} holders")));
        }
        let mut holders = Vec::new();
        for _ in 0..count {
            let entry = u32::from_le_bytes(input.take()?);
            let holding = if entry & 1 == 1 { Holding::Complete } else { Holding::Partial };
            if let Some(node) = numbers.get(&(entry >> 1)) {
                holders.push((*node, holding));
            }
        }
        if let Some(group) = self.groups.get_mut(group) {
            group.restore_blob(&mut self.totals, digest, &holders)?;
        }
        Ok(holders.len())
    }
}

/// Nodes from this number on; gives where to go on.
fn append_nodes(group: &Group, from: u32, is_old: impl Fn(u64) -> bool, out: &mut Vec<u8>) -> Option<u32> {
    let end = from.saturating_add(DUMP_SLICE_HOLDINGS as u32 / 16);
    for number in from..end.min(group.nodes.numbers() as u32) {
        let Some(node) = group.nodes.get(number).filter(|node| is_old(node.registration)) else { continue };
        out.push(NODE);
        out.extend(number.to_le_bytes());
        out.extend(node.peer.as_bytes());
        out.extend(node.instance.to_le_bytes());
        out.extend(node.port.to_le_bytes());
        out.extend(node.seed_port.to_le_bytes());
        out.push(node.seed.into());
        let address = match node.place.address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        out.extend(address.octets());
        text(out, &node.place.zone);
        text(out, &node.place.rack);
    }
    ((end as usize) < group.nodes.numbers()).then_some(end)
}

/// Blobs from this number on; gives where to go on.
fn append_blobs(group: &Group, from: u32, is_old: impl Fn(u64) -> bool, out: &mut Vec<u8>) -> Option<u32> {
    let (mut number, mut holdings) = (from, 0);
    while (number as usize) < group.blobs.numbers() && holdings < DUMP_SLICE_HOLDINGS {
        holdings += 1;
        let blob = group.blobs.get(number);
        number += 1;
        let Some(blob) = blob.filter(|blob| !blob.holders.is_empty()) else { continue };
        out.push(BLOB);
        out.extend(blob.digest.as_bytes());
        let count_at = out.len();
        out.extend([0; 4]);
        let mut count = 0u32;
        for (node, holding) in blob.holders.entries() {
            holdings += 1;
            if group.nodes.get(node).is_some_and(|node| is_old(node.registration)) {
                out.extend((node << 1 | u32::from(holding == Holding::Complete)).to_le_bytes());
                count += 1;
            }
        }
        out[count_at..count_at + 4].copy_from_slice(&count.to_le_bytes());
    }
    ((number as usize) < group.blobs.numbers()).then_some(number)
}

/// Names and labels are shorter than 256 bytes.
fn text(out: &mut Vec<u8>, text: &str) {
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    out.push(length);
    out.extend(&text.as_bytes()[..length.into()]);
}

/// Bytes, and their checksum so far.
struct Input<R> {
    from: R,
    crc: u32,
}

impl<R: Read> Input<R> {
    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes)?;
        self.crc = crc32c::crc32c_append(self.crc, &bytes);
        Ok(bytes)
    }

    fn byte(&mut self) -> io::Result<u8> {
        Ok(self.take::<1>()?[0])
    }

    fn text(&mut self) -> Result<String, DumpError> {
        let mut bytes = vec![0; self.byte()?.into()];
        self.from.read_exact(&mut bytes)?;
        self.crc = crc32c::crc32c_append(self.crc, &bytes);
        String::from_utf8(bytes).map_err(|_| DumpError::Damaged("a name is no text".to_owned()))
    }

    fn node(&mut self, group: &str) -> Result<(u32, Caller), DumpError> {
        let number = u32::from_le_bytes(self.take()?);
        let (node, instance) = (PeerId::from_bytes(self.take()?), u64::from_le_bytes(self.take()?));
        let (port, seed_port) = (u16::from_le_bytes(self.take()?), u16::from_le_bytes(self.take()?));
        let seed = self.byte()? == 1;
        let address = IpAddr::V6(Ipv6Addr::from(self.take::<16>()?)).to_canonical();
        let (zone, rack) = (self.text()?, self.text()?);
        check_label("zone", &zone).and_then(|()| check_label("rack", &rack)).map_err(DumpError::Damaged)?;
        let place = Place { zone: zone.into(), rack: rack.into(), address };
        let group = group.to_owned();
        Ok((number, Caller { node, instance, group, place, port, seed, seed_port, reached_at: address }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);

    fn caller(number: u32) -> Caller {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        let address = if number.is_multiple_of(2) {
            IpAddr::from([10, 0, (number >> 8) as u8, number as u8])
        } else {
            IpAddr::from([0xfd00, 0, 0, 1, 0, 0, 0, number as u16])
        };
        let place = Place { zone: format!("zone-{}", number % 3).into(), rack: "".into(), address };
        Caller {
            node: PeerId::from_bytes(key),
            instance: u64::from(number) + 1,
            group: ["default", "other"][number as usize % 7 / 6].to_owned(),
            place,
            port: 7081,
            seed: number == 4,
            seed_port: if number == 4 { 7083 } else { 0 },
            reached_at: IpAddr::from([10, 255, 255, 1]),
        }
    }

    fn digest(number: u32) -> Digest {
        Digest::of(&number.to_be_bytes())
    }

    fn crowd() -> Registry {
        let mut registry = Registry::new(1);
        for number in 0..3000 {
            let holding =
                |blob: u32| if (blob + number).is_multiple_of(5) { Holding::Partial } else { Holding::Complete };
            let blobs = [0, 1, number % 97 + 2, number + 100];
            let holdings: Vec<_> = blobs.map(|blob| (digest(blob), holding(blob))).into();
            registry.sync(NOW, &caller(number), &holdings, &[]).unwrap();
        }
        registry
    }

    /// `between` comes between the slices.
    fn dump(registry: &mut Registry, mut between: impl FnMut(&mut Registry, usize)) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut dump = registry.begin_dump(77, &mut bytes);
        let mut slices = 0;
        while registry.dump_some(&mut dump, &mut bytes) {
            slices += 1;
            between(registry, slices);
        }
        bytes
    }

    #[test]
    fn who_starts_again_answers_as_before() {
        let mut registry = crowd();
        let bytes = dump(&mut registry, |_, _| {});
        let mut again = Registry::new(2);
        let restored = again.restore(NOW, &bytes[..]).unwrap();
        assert_eq!(restored, Restored { made_at_s: 77, nodes: 3000, holdings: 12_000 });
        assert_eq!(again.counts(), registry.counts());
        let before = again.registrations();
        again.heartbeat(NOW, &caller(8)).unwrap();
        assert_eq!(again.registrations(), before + 1, "it has everything to tell, and its turn is to be planned");
        again.heartbeat(NOW, &caller(8)).unwrap();
        assert_eq!(again.registrations(), before + 1);
        for (asker, blob) in [(9, 0), (6, 1), (10, 50), (13, 2099), (4, 100)] {
            let names = |registry: &mut Registry| {
                let (registration, found) = registry.find(NOW, &caller(asker), digest(blob)).unwrap();
                let mut holders = found.holders;
                holders.sort_by_key(|holder| holder.peer);
                (registration, holders)
            };
            let (before, after) = (names(&mut registry), names(&mut again));
            assert_ne!(before.0, after.0, "a node that is not known to be told of its loss would tell nothing again");
            // Of a blob that thousands hold, a random sample is named.
            if blob > 1 {
                assert_eq!(before.1, after.1);
            } else {
                assert_eq!(before.1.len(), after.1.len());
            }
        }
        assert_eq!(again.seeds(NOW, &caller(0)).unwrap().1, registry.seeds(NOW, &caller(0)).unwrap().1);
    }

    /// A node's number is used again by another, while what the first held is not written yet.
    #[test]
    fn what_changes_meanwhile_is_nobody_elses() {
        let mut registry = crowd();
        let bytes = dump(&mut registry, |registry, slice| {
            let base = slice as u32 * 10;
            for number in base..base + 10 {
                registry.leave(&caller(number));
                let news = [(digest(number + 50_000), Some(Holding::Complete))];
                registry
                    .announce(NOW, &Caller { group: caller(number).group, ..caller(number + 5000) }, &news)
                    .unwrap();
            }
        });
        let mut again = Registry::new(2);
        again.restore(NOW, &bytes[..]).unwrap();
        for number in 0..3000 {
            let asker = Caller { group: caller(number).group, ..caller(9999) };
            let mut holders = |blob| again.find(NOW, &asker, digest(blob)).unwrap().1.holders;
            assert!(holders(number + 100).iter().all(|holder| holder.peer == caller(number).node), "{number}");
            assert!(
                holders(number + 50_000).iter().all(|holder| holder.peer == caller(number + 5000).node),
                "{number}"
            );
        }
    }

    #[test]
    fn damage_is_noticed() {
        let mut registry = crowd();
        let bytes = dump(&mut registry, |_, _| {});
        let restore = |bytes: &[u8]| Registry::new(2).restore(NOW, bytes);
        for length in [0, 7, 8, 15, 17, 100, bytes.len() / 2, bytes.len() - 1] {
            assert!(restore(&bytes[..length]).is_err(), "{length} bytes of it");
        }
        for at in (0..bytes.len()).step_by(bytes.len() / 50) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            assert!(restore(&damaged).is_err(), "byte {at}");
        }
        assert!(matches!(restore(b"LAPTRK99aaaaaaaaaaaaaaaa"), Err(DumpError::Magic)));
    }
}
