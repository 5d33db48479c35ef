//! A set of piece indexes, kept as runs.

use std::collections::BTreeMap;
use std::ops::Range;

/// Disjoint runs that do not touch, by start. Memory and time follow the number of runs, not of pieces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Runs(BTreeMap<u32, u32>);

impl Runs {
    /// Adds every index of `run`.
    pub(super) fn insert(&mut self, run: Range<u32>) {
        if run.is_empty() {
            return;
        }
        let (mut start, mut end) = (run.start, run.end);
        while let Some((&before, &before_end)) = self.0.range(..=end).next_back().filter(|(_, e)| **e >= start) {
            start = start.min(before);
            end = end.max(before_end);
            self.0.remove(&before);
        }
        self.0.insert(start, end);
    }

    /// Removes every index of `run`.
    pub(super) fn remove(&mut self, run: Range<u32>) {
        if run.is_empty() {
            return;
        }
        while let Some((&start, &end)) = self.0.range(..run.end).next_back().filter(|(_, e)| **e > run.start) {
            self.0.remove(&start);
            if end > run.end {
                self.0.insert(run.end, end);
            }
            if start < run.start {
                self.0.insert(start, run.start);
            }
        }
    }

    /// The first run of `within` that is not in the set, up to where the set goes on.
    pub(super) fn first_gap(&self, within: Range<u32>) -> Option<Range<u32>> {
        let start = match self.0.range(..=within.start).next_back() {
            Some((_, &end)) if end > within.start => end,
            _ => within.start,
        };
        // Runs do not touch: after one ends there is a gap.
        let end = self.0.range(start..).next().map_or(within.end, |(&next, _)| next.min(within.end));
        (start < end).then_some(start..end)
    }

    /// Whether any index of `within` is in the set.
    pub(super) fn intersects(&self, within: Range<u32>) -> bool {
        !within.is_empty() && self.0.range(..within.end).next_back().is_some_and(|(_, end)| *end > within.start)
    }

    /// The runs, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        self.0.iter().map(|(start, end)| *start..*end)
    }

    /// Number of indexes in the set.
    pub(super) fn count(&self) -> u32 {
        self.iter().map(|run| run.end - run.start).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_a_set(operations in prop::collection::vec((any::<bool>(), 0_u32..64, 0_u32..12), 0..80),
                             probe in 0_u32..80, length in 0_u32..20) {
            let mut runs = Runs::default();
            let mut model = BTreeSet::new();
            for (insert, start, length) in operations {
                if insert {
                    runs.insert(start..start + length);
                    model.extend(start..start + length);
                } else {
                    runs.remove(start..start + length);
                    model.retain(|index| !(start..start + length).contains(index));
                }
            }
            let within = probe..probe + length;
            prop_assert_eq!(runs.iter().flatten().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(runs.count() as usize, model.len());
            prop_assert_eq!(runs.intersects(within.clone()), within.clone().any(|index| model.contains(&index)));
            let first = within.clone().find(|index| !model.contains(index));
            prop_assert_eq!(runs.first_gap(within.clone()).map(|gap| gap.start), first);
            if let Some(gap) = runs.first_gap(within.clone()) {
                prop_assert!(gap.clone().all(|index| !model.contains(&index)));
                prop_assert!(gap.end == within.end || model.contains(&gap.end));
            }
            let starts: Vec<_> = runs.iter().collect();
            prop_assert!(starts.windows(2).all(|pair| pair[0].end < pair[1].start), "runs touch: {starts:?}");
        }
    }
}
