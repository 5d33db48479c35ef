//! Which nodes hold a blob, and which of them hold all of it: millions of (blob, node) pairs have to fit in memory.
//!
//! Few holders are a sorted list with four bytes each. Where a list would take more room than two bits for every node of
//! the group, and a change would move many kilobytes, they are two bitmaps: a blob that 100,000 nodes hold takes 25 KiB.

use lapwing_p2p::discovery::Holding;

/// A list of fewer holders stays a list.
const MIN_BITS: usize = 128;
/// Bits of both maps for one node, against the 32 bits of its place in a list. The list is chosen again only when it
/// is a fourth of the bitmaps' size, so that a blob at the threshold is not rebuilt at every change.
const BITS_PER_NODE: usize = 2;
const BITS_PER_ENTRY: usize = 32;

/// A node's number and whether it holds all of the blob, in four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry(u32);

impl Entry {
    const fn new(node: u32, complete: bool) -> Self {
        Self(node << 1 | complete as u32)
    }

    const fn node(self) -> u32 {
        self.0 >> 1
    }

    const fn is_complete(self) -> bool {
        self.0 & 1 == 1
    }
}

/// A set of node numbers, a bit each.
#[derive(Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn get(&self, node: u32) -> bool {
        self.0.get(node as usize / 64).is_some_and(|word| word >> (node % 64) & 1 == 1)
    }

    fn set(&mut self, node: u32, value: bool) {
        let at = node as usize / 64;
        if at >= self.0.len() {
            if !value {
                return;
            }
            // In steps, so that a growing group does not move it with each node.
            let words = (at + 1).next_multiple_of(64);
            self.0.reserve_exact(words - self.0.len());
            self.0.resize(words, 0);
        }
        let bit = 1 << (node % 64);
        if value { self.0[at] |= bit } else { self.0[at] &= !bit }
    }

    /// From the word at `from` on, cyclic.
    fn iter(&self, from: usize) -> impl Iterator<Item = u32> + '_ {
        let from = from.min(self.0.len());
        let words = (from..self.0.len()).chain(0..from);
        words.flat_map(|at| {
            let mut word = self.0[at];
            std::iter::from_fn(move || {
                let bit = word.trailing_zeros();
                (bit < 64).then(|| {
                    word &= word - 1;
                    at as u32 * 64 + bit
                })
            })
        })
    }
}

#[derive(Debug)]
enum Set {
    /// Sorted.
    List(Vec<Entry>),
    /// Who holds some of it or all; and who holds all.
    Bits(Box<(Bits, Bits)>),
}

/// The holders of one blob.
#[derive(Debug)]
pub(super) struct Holders {
    set: Set,
    count: u32,
    complete: u32,
}

impl Default for Holders {
    fn default() -> Self {
        Self { set: Set::List(Vec::new()), count: 0, complete: 0 }
    }
}

impl Holders {
    /// Sets or withdraws what `node` holds, in a group whose numbers are below `numbers`. Gives by how much the number of
    /// holdings changed.
    pub(super) fn set(&mut self, node: u32, holding: Option<Holding>, numbers: usize) -> isize {
        let complete = holding == Some(Holding::Complete);
        let before = self.get(node);
        if before == holding {
            return 0;
        }
        match &mut self.set {
            Set::List(list) => match (list.binary_search_by_key(&node, |entry| entry.node()), holding) {
                (Ok(at), Some(_)) => list[at] = Entry::new(node, complete),
                (Ok(at), None) => drop(list.remove(at)),
                (Err(at), Some(_)) => {
                    if list.len() == list.capacity() {
                        list.reserve_exact((list.len() / 4).max(4));
                    }
                    list.insert(at, Entry::new(node, complete));
                }
                (Err(_), None) => {}
            },
            Set::Bits(bits) => {
                bits.0.set(node, holding.is_some());
                bits.1.set(node, complete);
            }
        }
        let change = isize::from(holding.is_some()) - isize::from(before.is_some());
        self.count = self.count.saturating_add_signed(change as i32);
        let change_complete = i32::from(complete) - i32::from(before == Some(Holding::Complete));
        self.complete = self.complete.saturating_add_signed(change_complete);
        self.reshape(numbers);
        change
    }

    /// What `node` holds.
    pub(super) fn get(&self, node: u32) -> Option<Holding> {
        let complete = match &self.set {
            Set::List(list) => {
                list.binary_search_by_key(&node, |entry| entry.node()).ok().map(|at| list[at].is_complete())
            }
            Set::Bits(bits) => bits.0.get(node).then(|| bits.1.get(node)),
        };
        complete.map(|complete| if complete { Holding::Complete } else { Holding::Partial })
    }

    /// Each holder once.
    pub(super) fn iter(&self) -> Box<dyn Iterator<Item = u32> + '_> {
        match &self.set {
            Set::List(list) => Box::new(list.iter().map(|entry| entry.node())),
            Set::Bits(bits) => Box::new(bits.0.iter(0)),
        }
    }

    /// `limit` of them, or all, evenly from everywhere: who registered together stands together, so that a stretch would leave
    /// whole neighbourhoods out.
    pub(super) fn sample(&self, limit: usize, random: &mut fastrand::Rng) -> Vec<u32> {
        let offset = random.f64();
        let places = |length: usize| {
            let steps = limit.min(length);
            (0..steps).map(move |step| ((step as f64 + offset) * length as f64 / steps as f64) as usize)
        };
        match &self.set {
            Set::List(list) => places(list.len()).map(|at| list[at].node()).collect(),
            Set::Bits(bits) => {
                let words = &bits.0.0;
                let used = words.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
                // The holder at or after a place, among those of the same word, cyclic.
                let holder = |place: usize| {
                    let (word, bit) = (words[place / 64], (place % 64) as u32);
                    (word != 0).then(|| place as u32 / 64 * 64 + (word.rotate_right(bit).trailing_zeros() + bit) % 64)
                };
                let mut chosen: Vec<u32> = places(used * 64).filter_map(holder).collect();
                chosen.sort_unstable();
                chosen.dedup();
                let lacking = limit - chosen.len();
                let more = bits.0.iter(random.usize(..used.max(1))).filter(|node| chosen.binary_search(node).is_err());
                let more: Vec<u32> = more.take(lacking).collect();
                chosen.extend(more);
                chosen
            }
        }
    }

    /// All, with what they hold.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u32, Holding)> + '_ {
        self.iter().filter_map(|node| Some((node, self.get(node)?)))
    }

    /// Who holds all of it, each once, beginning after the share `from` (0 to 1) of all holders, cyclic.
    pub(super) fn complete(&self, from: f64) -> Box<dyn Iterator<Item = u32> + '_> {
        let complete: Box<dyn Iterator<Item = u32>> = match &self.set {
            Set::List(list) => {
                let (before, after) = list.split_at((list.len() as f64 * from) as usize);
                let all = after.iter().chain(before);
                Box::new(all.filter(|entry| entry.is_complete()).map(|entry| entry.node()))
            }
            Set::Bits(bits) => Box::new(bits.1.iter((bits.1.0.len() as f64 * from) as usize)),
        };
        Box::new(complete.take(self.complete as usize))
    }

    /// Number of holders, and how many of them hold all of it.
    pub(super) const fn counts(&self) -> (usize, u32) {
        (self.count as usize, self.complete)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn reshape(&mut self, numbers: usize) {
        let count = self.count as usize;
        match &mut self.set {
            Set::List(list) => {
                if count >= MIN_BITS && count * BITS_PER_ENTRY > numbers * BITS_PER_NODE {
                    let mut bits = Box::<(Bits, Bits)>::default();
                    // The highest first: one allocation.
                    for entry in list.iter().rev() {
                        bits.0.set(entry.node(), true);
                        bits.1.set(entry.node(), entry.is_complete());
                    }
                    self.set = Set::Bits(bits);
                } else if list.capacity() > 8 && list.capacity() > 2 * list.len() {
                    list.shrink_to(list.len() + list.len() / 4);
                }
            }
            Set::Bits(bits) => {
                let size = bits.0.0.len() * 64;
                if count < MIN_BITS / 4 || count * BITS_PER_ENTRY * 4 < size * BITS_PER_NODE {
                    let list = bits.0.iter(0).map(|node| Entry::new(node, bits.1.get(node))).collect();
                    self.set = Set::List(list);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a map, over both shapes and the ways between them.
        #[test]
        fn holders_are_who_was_set(
            stretches in prop::collection::vec((0..900u32, 1..400u32, 0..3u8, 1..5u32), 1..30),
            from in 0.0..1.0f64,
        ) {
            let (mut holders, mut model) = (Holders::default(), BTreeMap::new());
            for (first, count, holding, step) in stretches {
                let holding = [None, Some(Holding::Partial), Some(Holding::Complete)][holding as usize];
                for node in (first..first + count * step).step_by(step as usize) {
                    let before: Option<Holding> = match holding {
                        Some(holding) => model.insert(node, holding),
                        None => model.remove(&node),
                    };
                    let change = holders.set(node, holding, 2500);
                    prop_assert_eq!(change, isize::from(holding.is_some()) - isize::from(before.is_some()));
                }
                let complete: Vec<u32> =
                    model.iter().filter(|(_, holding)| **holding == Holding::Complete).map(|(node, _)| *node).collect();
                prop_assert_eq!(holders.counts(), (model.len(), complete.len() as u32));
                let sorted = |nodes: Box<dyn Iterator<Item = u32> + '_>| {
                    let mut nodes: Vec<u32> = nodes.collect();
                    nodes.sort_unstable();
                    nodes
                };
                prop_assert_eq!(sorted(holders.complete(from)), complete);
                prop_assert_eq!(sorted(holders.iter()), model.keys().copied().collect::<Vec<_>>());
                prop_assert!((0..2600).all(|node| holders.get(node) == model.get(&node).copied()));
            }
        }
    }

    #[test]
    fn a_sample_comes_from_everywhere_and_in_time_from_everybody() {
        let mut random = fastrand::Rng::with_seed(1);
        for (numbers, step, is_list) in [(10_000u32, 1, false), (10_000, 5, false), (10_000, 25, true)] {
            let mut holders = Holders::default();
            for node in (0..numbers).step_by(step) {
                holders.set(node, Some(Holding::Partial), numbers as usize);
            }
            assert_eq!(matches!(holders.set, Set::List(_)), is_list);
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..5000 {
                let mut sample = holders.sample(80, &mut random);
                sample.sort_unstable();
                sample.dedup();
                assert_eq!(sample.len(), 80);
                assert!(sample.iter().all(|node| holders.get(*node).is_some()));
                let widest = sample.windows(2).map(|pair| pair[1] - pair[0]).max();
                assert!(widest < Some(numbers / 20), "{widest:?}");
                seen.extend(sample);
            }
            assert_eq!(seen.len(), (numbers as usize).div_ceil(step));
        }
    }

    #[test]
    fn a_blob_that_all_hold_takes_two_bits_for_each() {
        let mut holders = Holders::default();
        for node in 0..100_000 {
            holders.set(node, Some(Holding::Complete), node as usize + 1);
        }
        let Set::Bits(bits) = &holders.set else { panic!("it is a list") };
        assert!((bits.0.0.capacity() + bits.1.0.capacity()) * 8 < 27_000);
        for node in 0..99_000 {
            holders.set(node, None, 100_000);
        }
        let Set::List(list) = &holders.set else { panic!("a thousand holders are no list") };
        assert!(list.capacity() < 2000);
    }
}
