//! What profiles have in common, and one made of several. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

use lapwing_p2p::digest::Digest;

use super::{EntryPoint, Profile, Read, Start};
use crate::limits::{MAX_PROFILE_LAYERS, MAX_PROFILE_READS, MAX_PROFILE_STARTS};

/// Which bytes of which layers were read, in whatever order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extent(BTreeMap<Digest, BTreeMap<u64, u64>>);

impl Extent {
    /// That of some reads.
    pub fn of<'a>(reads: impl IntoIterator<Item = &'a Read>) -> Self {
        let mut extent = Self::default();
        for read in reads {
            extent.add(&read.layer, &read.range);
        }
        extent
    }

    /// Adds a range; gives the parts of it that were not in.
    pub fn add(&mut self, layer: &Digest, range: &Range<u64>) -> Vec<Range<u64>> {
        let new = self.missing(layer, range);
        if new.is_empty() {
            return new;
        }
        let ranges = self.0.entry(*layer).or_default();
        let mut whole = range.clone();
        while let Some((&start, &end)) = ranges.range(..=whole.end).next_back()
            && end >= whole.start
        {
            ranges.remove(&start);
            whole = whole.start.min(start)..whole.end.max(end);
        }
        ranges.insert(whole.start, whole.end);
        new
    }

    /// The parts of a range that are not in, ascending.
    pub fn missing(&self, layer: &Digest, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut missing = Vec::new();
        let mut at = range.start;
        if let Some(ranges) = self.0.get(layer) {
            let first = ranges.range(..=range.start).next_back().map_or(range.start, |(&start, _)| start);
            for (&start, &end) in ranges.range(first..range.end.max(first)) {
                if start > at {
                    missing.push(at..start);
                }
                at = at.max(end);
            }
        }
        if at < range.end {
            missing.push(at..range.end);
        }
        missing
    }

    /// All bytes.
    pub fn bytes(&self) -> u64 {
        self.0.values().flatten().map(|(start, end)| end - start).sum()
    }

    /// Bytes of each layer.
    pub fn layers(&self) -> impl Iterator<Item = (Digest, u64)> {
        self.0.iter().map(|(layer, ranges)| (*layer, ranges.iter().map(|(start, end)| end - start).sum()))
    }

    /// Bytes that are in both.
    pub fn common_bytes(&self, other: &Self) -> u64 {
        let missing = |(layer, (&start, &end)): (&Digest, (&u64, &u64))| -> u64 {
            let missing: u64 = other.missing(layer, &(start..end)).iter().map(|part| part.end - part.start).sum();
            end - start - missing
        };
        self.0.iter().flat_map(|(layer, ranges)| ranges.iter().map(move |range| (layer, range))).map(missing).sum()
    }
}

impl Profile {
    /// Takes up what was recorded at one more start. What was known of that entry point stays: a container that starts on what the
    /// machine has in memory already is seen to read little. Gives whether anything changed but times and counts.
    pub fn absorb(&mut self, new: Start) -> bool {
        let changed = match self.starts.iter_mut().find(|start| start.entry == new.entry) {
            Some(known) => known.absorb(new),
            None => {
                self.starts.push(new);
                true
            }
        };
        self.forget_some();
        changed
    }

    /// The latest entry points first; keeps within the limits.
    fn forget_some(&mut self) {
        self.starts.sort_by_key(|start| std::cmp::Reverse(start.recorded));
        self.starts.truncate(MAX_PROFILE_STARTS);
        let fair = MAX_PROFILE_READS / self.starts.len().max(1);
        let mut spare: usize = self.starts.iter().map(|start| fair.saturating_sub(start.reads.len())).sum();
        let mut layers: Vec<Digest> = Vec::new();
        for start in &mut self.starts {
            let beyond = start.reads.len().saturating_sub(fair);
            let kept = beyond.min(spare);
            spare -= kept;
            start.reads.truncate(start.reads.len() - beyond + kept);
            start.reads.retain(|read| {
                let known = layers.contains(&read.layer);
                if !known && layers.len() < MAX_PROFILE_LAYERS {
                    layers.push(read.layer);
                }
                known || layers.last() == Some(&read.layer)
            });
        }
    }

    /// All that is to be read, each byte once: first what was read at starts with `first`, then the others.
    pub fn in_order(&self, first: Option<&EntryPoint>) -> Vec<Read> {
        let is_first = |start: &&Start| first == Some(&start.entry);
        let others = self.starts.iter().filter(|start| !is_first(start));
        let starts = self.starts.iter().filter(is_first).chain(others);
        once(starts.flat_map(|start| &start.reads))
    }
}

/// Each byte once, where it comes first.
pub fn once<'a>(reads: impl IntoIterator<Item = &'a Read>) -> Vec<Read> {
    let mut seen = Extent::default();
    let mut ordered = Vec::new();
    for read in reads {
        let parts = seen.add(&read.layer, &read.range);
        ordered.extend(parts.into_iter().map(|range| Read { range, ..read.clone() }));
    }
    ordered
}

impl Start {
    fn absorb(&mut self, new: Self) -> bool {
        self.recorded = self.recorded.max(new.recorded);
        self.recordings = self.recordings.saturating_add(new.recordings);
        let before = self.reads.len();
        let mut seen = Extent::of(&self.reads);
        for read in new.reads {
            let parts = seen.add(&read.layer, &read.range);
            self.reads.extend(parts.into_iter().map(|range| Read { range, ..read.clone() }));
        }
        self.reads.sort_by_key(|read| read.at_ms);
        self.reads.len() != before
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests_support::{any_profile, profile, start};
    use super::*;

    fn layer(number: u8) -> Digest {
        Digest::of(&[number])
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init, reason = "ranges are meant")]
    fn an_extent_joins_what_touches() {
        let mut extent = Extent::default();
        assert_eq!(extent.add(&layer(0), &(10..20)), [10..20]);
        assert_eq!(extent.add(&layer(0), &(30..40)), [30..40]);
        assert_eq!(extent.add(&layer(0), &(15..35)), [20..30]);
        assert_eq!(extent.0[&layer(0)], BTreeMap::from([(10, 40)]));
        assert_eq!(extent.add(&layer(0), &(12..39)), []);
        assert_eq!(extent.missing(&layer(1), &(12..39)), [12..39]);
        assert_eq!(extent.missing(&layer(0), &(0..50)), [0..10, 40..50]);
    }

    proptest! {
        #[test]
        fn an_extent_counts_as_a_set_of_bytes(
            one in prop::collection::vec((0_u64..60, 1_u64..20), 0..12),
            two in prop::collection::vec((0_u64..60, 1_u64..20), 0..12),
        ) {
            let bytes = |ranges: &[(u64, u64)]| -> std::collections::BTreeSet<u64> {
                ranges.iter().flat_map(|(start, length)| *start..start + length).collect()
            };
            let extent = |ranges: &[(u64, u64)]| {
                let mut extent = Extent::default();
                for (start, length) in ranges {
                    extent.add(&layer(0), &(*start..start + length));
                }
                extent
            };
            prop_assert_eq!(extent(&one).bytes(), bytes(&one).len() as u64);
            let common = bytes(&one).intersection(&bytes(&two)).count() as u64;
            prop_assert_eq!(extent(&one).common_bytes(&extent(&two)), common);
        }

        #[test]
        fn whatever_is_absorbed_can_be_encoded(mut one in any_profile(), two in any_profile()) {
            for start in two.starts {
                one.absorb(start);
            }
            prop_assert_eq!(Profile::decode(&one.encode()), Ok(one));
        }
    }

    #[test]
    fn a_start_from_memory_takes_nothing_from_what_is_known() {
        let mut known = profile(&[(0, 0, 0..100), (50, 1, 0..100)]);
        assert!(!known.absorb(start(9, &[(1, 1, 0..50)])), "nothing new");
        assert_eq!(known.reads().count(), 2);
        assert_eq!((known.starts[0].recorded, known.starts[0].recordings), (9, 2));
        assert!(known.absorb(start(10, &[(20, 1, 90..120)])));
        let times: Vec<u32> = known.reads().map(|read| read.at_ms).collect();
        assert_eq!(times, [0, 20, 50], "in the order of their times");
        assert_eq!(Extent::of(known.reads()).bytes(), 220);
    }

    #[test]
    fn the_wanted_entry_point_goes_first_and_nothing_twice() {
        let mut both = profile(&[(0, 0, 0..100)]);
        let other = EntryPoint { tag: 1, program: "other".into() };
        both.absorb(Start { entry: other.clone(), ..start(7, &[(0, 0, 50..150), (1, 0, 300..400)]) });
        let ranges = |first: &EntryPoint| -> Vec<Range<u64>> {
            both.in_order(Some(first)).into_iter().map(|read| read.range).collect()
        };
        assert_eq!(ranges(&other), [50..150, 300..400, 0..50]);
        assert_eq!(ranges(&profile(&[]).starts[0].entry), [0..100, 100..150, 300..400]);
    }

    #[test]
    fn the_oldest_entry_points_and_the_latest_reads_are_left_out() {
        let mut known = profile(&[(0, 0, 0..1)]);
        for tag in 0..20 {
            let reads: Vec<(u32, u8, Range<u64>)> =
                (0..1000).map(|at| (at, 0, u64::from(at) * 10..u64::from(at) * 10 + 5)).collect();
            let entry = EntryPoint { tag, program: "many".into() };
            known.absorb(Start { entry, ..start(100 + u64::from(tag), &reads) });
        }
        assert_eq!(known.starts.len(), MAX_PROFILE_STARTS);
        assert_eq!(known.starts[0].entry.tag, 19);
        assert!(known.starts.iter().all(|start| start.entry.tag >= 4));
        assert!(known.reads().count() <= MAX_PROFILE_READS && known.reads().count() > MAX_PROFILE_READS / 2);
        assert!(Profile::decode(&known.encode()).is_ok());
    }
}
