//! Small tables that every event looks into: connected peers by number, the peers of one blob, the requests of one blob.
//!
//! A peer's name is 32 bytes long; it is looked up once an event, and from there on its number stands for it. A number is
//! given again only after nothing refers to it any more.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use super::peers::Peer;
use crate::bitfield::Bitfield;
use crate::identity::PeerId;
use crate::layout::PieceIndex;

/// The number of a connected peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Slot(pub(super) u32);

/// Hashes names of peers: keys that look random already, and that nobody can choose freely and use. Products with secret
/// numbers are enough for them, and an event costs one such hash.
#[derive(Debug, Clone)]
struct NameHash([u64; 4]);

impl Default for NameHash {
    fn default() -> Self {
        let random = RandomState::new();
        Self([0_u8, 1, 2, 3].map(|key| random.hash_one(key)))
    }
}

impl BuildHasher for NameHash {
    type Hasher = NameHasher;

    fn build_hasher(&self) -> NameHasher {
        NameHasher { keys: self.0, words: 0, sum: 0 }
    }
}

struct NameHasher {
    keys: [u64; 4],
    words: usize,
    sum: u64,
}

impl Hasher for NameHasher {
    fn write(&mut self, bytes: &[u8]) {
        for pair in bytes.chunks(16) {
            let word = |at: usize| {
                let bytes = pair.iter().skip(at).take(8);
                bytes.fold(0_u64, |word, &byte| word << 8 | u64::from(byte))
            };
            let (low, high) = match pair.first_chunk::<16>() {
                Some(pair) => {
                    let both = u128::from_ne_bytes(*pair);
                    (both as u64, (both >> 64) as u64)
                }
                None => (word(0), word(8)),
            };
            self.mix(low, high);
        }
    }

    fn write_usize(&mut self, _: usize) {
        // The length of a name, which is the same for all.
    }

    fn finish(&self) -> u64 {
        self.sum
    }
}

impl NameHasher {
    fn mix(&mut self, low: u64, high: u64) {
        let at = self.words % 4;
        let product = u128::from(low ^ self.keys[at]) * u128::from(high ^ self.keys[at + 1]);
        self.sum ^= (product as u64 ^ (product >> 64) as u64).rotate_left(self.words as u32);
        self.words += 2;
    }
}

/// Connected peers. Iteration is in the order of their numbers, so that it does not depend on hashes.
#[derive(Debug, Default)]
pub(super) struct Peers {
    slots: HashMap<PeerId, Slot, NameHash>,
    names: Vec<Option<PeerId>>,
    /// Apart from the names: every choice of a peer goes through the states of many.
    states: Vec<Option<Peer>>,
    free: Vec<Slot>,
}

impl Peers {
    pub(super) fn slot(&self, peer: &PeerId) -> Option<Slot> {
        self.slots.get(peer).copied()
    }

    pub(super) fn contains_key(&self, peer: &PeerId) -> bool {
        self.slots.contains_key(peer)
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn name(&self, slot: Slot) -> Option<PeerId> {
        *self.names.get(slot.0 as usize)?
    }

    pub(super) fn at(&self, slot: Slot) -> Option<&Peer> {
        self.states.get(slot.0 as usize)?.as_ref()
    }

    pub(super) fn at_mut(&mut self, slot: Slot) -> Option<&mut Peer> {
        self.states.get_mut(slot.0 as usize)?.as_mut()
    }

    /// Adds a peer that is not there.
    pub(super) fn insert(&mut self, peer: PeerId, state: Peer) -> Slot {
        let slot = self.free.pop().unwrap_or(Slot(self.states.len() as u32));
        if slot.0 as usize == self.states.len() {
            self.names.push(None);
            self.states.push(None);
        }
        self.names[slot.0 as usize] = Some(peer);
        self.states[slot.0 as usize] = Some(state);
        self.slots.insert(peer, slot);
        slot
    }

    pub(super) fn remove(&mut self, peer: &PeerId) -> Option<Peer> {
        let slot = self.slots.remove(peer)?;
        self.free.push(slot);
        self.names[slot.0 as usize] = None;
        self.states[slot.0 as usize].take()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (PeerId, &Peer)> + '_ {
        let both = self.names.iter().zip(&self.states);
        both.filter_map(|(peer, state)| Some(((*peer)?, state.as_ref()?)))
    }
}

/// A connected peer that takes part in a blob.
#[derive(Debug)]
pub(super) struct Trade {
    pub(super) peer: PeerId,
    pub(super) have: Bitfield,
    /// Not asked before: it was slow, or nobody vouches for its pieces.
    pub(super) unusable_until: Duration,
    /// Whether its pieces count as available: it can be asked.
    pub(super) counts: bool,
    /// In another zone: it does not count, and is asked for what is under import.
    pub(super) far: bool,
    /// Pieces that came here and that it was not told of, since it had them: with the next ones that are news to it.
    pub(super) untold: Vec<PieceIndex>,
    /// When it last asked for a piece.
    pub(super) last_request: Duration,
}

impl Trade {
    /// Whether it lacks something of `have`.
    pub(super) fn lacks(&self, have: &Bitfield) -> bool {
        (0..have.len().div_ceil(64)).any(|index| have.word(index) & !self.have.word(index) != 0)
    }
}

/// The peers that take part in one blob: some dozens, so that looking through their numbers is quickest.
#[derive(Debug, Default)]
pub(super) struct Trades {
    slots: Vec<Slot>,
    list: Vec<Trade>,
}

impl Trades {
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    fn position(&self, slot: Slot) -> Option<usize> {
        self.slots.iter().position(|&known| known == slot)
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Trade> {
        self.position(slot).map(|at| &self.list[at])
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut Trade> {
        self.position(slot).map(|at| &mut self.list[at])
    }

    pub(super) fn contains(&self, slot: Slot) -> bool {
        self.slots.contains(&slot)
    }

    /// Whether the peer of that name is among them.
    pub(super) fn contains_key(&self, peer: &PeerId) -> bool {
        self.list.iter().any(|trade| trade.peer == *peer)
    }

    /// Adds a peer that is not there.
    pub(super) fn insert(&mut self, slot: Slot, trade: Trade) {
        self.slots.push(slot);
        self.list.push(trade);
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Option<Trade> {
        let at = self.position(slot)?;
        self.slots.swap_remove(at);
        Some(self.list.swap_remove(at))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, &Trade)> + '_ {
        self.slots.iter().copied().zip(&self.list)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (Slot, &mut Trade)> + '_ {
        self.slots.iter().copied().zip(&mut self.list)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Trade> + '_ {
        self.list.iter()
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Trade> + '_ {
        self.list.iter_mut()
    }
}

/// A request under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flight {
    pub(super) piece: u32,
    pub(super) slot: Slot,
    pub(super) peer: PeerId,
    pub(super) since: Duration,
}

/// The requests under way for pieces of one blob: a handful.
#[derive(Debug)]
pub(super) struct Flights {
    list: Vec<Flight>,
    bits: Bitfield,
}

impl Flights {
    pub(super) fn new(pieces: u32) -> Self {
        Self { list: Vec::new(), bits: Bitfield::empty(pieces) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn contains_key(&self, piece: &u32) -> bool {
        self.bits.get(PieceIndex(*piece))
    }

    /// The pieces under way, as [`Bitfield::word`] gives them.
    pub(super) fn word(&self, index: u32) -> u64 {
        self.bits.word(index)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Flight> + '_ {
        self.list.iter()
    }

    /// Those for one piece.
    pub(super) fn of(&self, piece: PieceIndex) -> impl Iterator<Item = &Flight> + '_ {
        let any = self.contains_key(&piece.0);
        self.list.iter().filter(move |flight| any && flight.piece == piece.0)
    }

    pub(super) fn push(&mut self, flight: Flight) {
        self.bits.set(PieceIndex(flight.piece));
        self.list.push(flight);
    }

    /// Takes out those that `ends` affirms.
    pub(super) fn take(&mut self, ends: impl Fn(&Flight) -> bool) -> Vec<Flight> {
        let ended: Vec<Flight> = self.list.extract_if(.., |flight| ends(flight)).collect();
        for flight in &ended {
            if !self.list.iter().any(|other| other.piece == flight.piece) {
                self.bits.clear(PieceIndex(flight.piece));
            }
        }
        ended
    }
}

/// How many of the peers that can be asked have each piece.
#[derive(Debug, Default)]
pub(super) struct Availability {
    counts: Vec<u16>,
    /// The pieces that at least one has; none while nobody is counted.
    any: Option<Bitfield>,
}

impl Availability {
    pub(super) fn add(&mut self, have: &Bitfield) {
        if self.counts.is_empty() {
            self.counts = vec![0; have.len() as usize];
            self.any = Some(Bitfield::empty(have.len()));
        }
        have.iter().for_each(|piece| self.add_piece(piece));
    }

    pub(super) fn remove(&mut self, have: &Bitfield) {
        have.iter().for_each(|piece| self.remove_piece(piece));
    }

    pub(super) fn add_piece(&mut self, piece: PieceIndex) {
        if let (Some(count), Some(any)) = (self.counts.get_mut(piece.0 as usize), &mut self.any) {
            *count = count.saturating_add(1);
            any.set(piece);
        }
    }

    pub(super) fn remove_piece(&mut self, piece: PieceIndex) {
        if let (Some(count), Some(any)) = (self.counts.get_mut(piece.0 as usize), &mut self.any) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                any.clear(piece);
            }
        }
    }

    pub(super) fn of(&self, piece: PieceIndex) -> u16 {
        self.counts.get(piece.0 as usize).copied().unwrap_or_default()
    }

    /// The pieces that somebody has, as [`Bitfield::word`] gives them.
    pub(super) fn word(&self, index: u32) -> u64 {
        self.any.as_ref().map_or(0, |any| any.word(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_name_counts_for_its_hash() {
        let hash = NameHash::default();
        let hashes: std::collections::BTreeSet<u64> = (0..=255_u8)
            .flat_map(|bit| {
                let mut name = [7; 32];
                name[usize::from(bit / 8)] ^= 1 << (bit % 8);
                [hash.hash_one(PeerId::from_bytes(name)), hash.hash_one(PeerId::from_bytes([bit; 32]))]
            })
            .collect();
        // [7; 32] itself is among the second ones; the others differ.
        assert_eq!(hashes.len(), 512);
    }
}
