//! From a profile's reads to the spans that are to be fetched. Pure.

use std::collections::HashMap;
use std::ops::Range;

use lapwing_p2p::digest::Digest;

use super::Read;
use crate::index::Index;
use crate::limits::{MAX_PREFETCH_RUN_BYTES, MAX_PREFETCH_SHARE, MIN_PREFETCH_BYTES};

/// How far ahead in the order a neighbour may stand to be fetched at once.
const WINDOW: usize = 32;

/// Where a layer's spans are.
#[derive(Debug, Clone)]
pub struct SpanTable {
    /// Of each span, where it ends in the decompressed tar.
    ends: Vec<u64>,
    /// Of each span, how many compressed bytes it takes.
    compressed: Vec<u64>,
}

impl SpanTable {
    /// That of an index.
    pub fn of(index: &Index) -> Self {
        let spans = index.spans();
        Self {
            ends: spans.iter().map(|span| span.output.end).collect(),
            compressed: spans.iter().map(|span| span.compressed.end - span.compressed.start).collect(),
        }
    }

    fn spans(&self, range: &Range<u64>) -> Range<usize> {
        let first = self.ends.partition_point(|end| *end <= range.start);
        let last = self.ends.partition_point(|end| *end < range.end);
        first..(last + 1).min(self.ends.len()).max(first)
    }
}

/// Spans of one layer that follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The layer.
    pub layer: Digest,
    /// Numbers of the spans.
    pub spans: Range<usize>,
}

/// How many compressed bytes profiles may have fetched of an image whose layers have so many.
pub const fn budget(image_bytes: u64) -> u64 {
    let share = image_bytes / MAX_PREFETCH_SHARE;
    if share > MIN_PREFETCH_BYTES { share } else { MIN_PREFETCH_BYTES }
}

/// The spans that `reads` touch, in their order, each once, as long as their compressed bytes are within `budget_bytes`. Spans that follow each
/// other and are wanted at about the same time make one run. Reads of layers without a table are left out.
pub fn plan(reads: &[Read], tables: &HashMap<Digest, SpanTable>, budget_bytes: u64) -> Vec<Run> {
    let wanted = wanted(reads, tables, budget_bytes);
    let places: HashMap<(Digest, usize), usize> =
        wanted.iter().enumerate().map(|(place, wanted)| (*wanted, place)).collect();
    let mut taken = vec![false; wanted.len()];
    let mut runs = Vec::new();
    for (place, &(layer, span)) in wanted.iter().enumerate() {
        if taken[place] {
            continue;
        }
        taken[place] = true;
        let table = &tables[&layer];
        let (mut spans, mut bytes) = (span..span + 1, table.compressed[span]);
        let mut take = |neighbour: Option<usize>| {
            let neighbour = neighbour?;
            let &other = places.get(&(layer, neighbour))?;
            let more = bytes + table.compressed[neighbour];
            if taken[other] || other > place + WINDOW || more > MAX_PREFETCH_RUN_BYTES {
                return None;
            }
            (taken[other], bytes) = (true, more);
            Some(neighbour)
        };
        while let Some(next) = take(Some(spans.end)) {
            spans.end = next + 1;
        }
        while let Some(before) = take(spans.start.checked_sub(1)) {
            spans.start = before;
        }
        runs.push(Run { layer, spans });
    }
    runs
}

/// The spans, each once, in the order of the reads.
fn wanted(reads: &[Read], tables: &HashMap<Digest, SpanTable>, budget_bytes: u64) -> Vec<(Digest, usize)> {
    let mut left = budget_bytes;
    let mut wanted = Vec::new();
    let mut seen: HashMap<Digest, Vec<bool>> = HashMap::new();
    for read in reads {
        let Some(table) = tables.get(&read.layer) else { continue };
        let seen = seen.entry(read.layer).or_insert_with(|| vec![false; table.ends.len()]);
        for span in table.spans(&read.range) {
            if std::mem::replace(&mut seen[span], true) {
                continue;
            }
            match left.checked_sub(table.compressed[span]) {
                Some(rest) => left = rest,
                None => return wanted,
            }
            wanted.push((read.layer, span));
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests_support::reads;
    use super::*;

    fn layer(number: u8) -> Digest {
        Digest::of(&[number])
    }

    /// Spans of ten bytes that were compressed to `compressed` each.
    fn table(spans: usize, compressed: u64) -> SpanTable {
        let ends = (1..=spans as u64).map(|end| end * 10).collect();
        SpanTable { ends, compressed: vec![compressed; spans] }
    }

    fn tables() -> HashMap<Digest, SpanTable> {
        HashMap::from([(layer(0), table(100, 5)), (layer(1), table(100, 5))])
    }

    fn run(number: u8, spans: Range<usize>) -> Run {
        Run { layer: layer(number), spans }
    }

    #[test]
    fn the_order_is_kept_and_neighbours_are_joined() {
        let reads =
            reads(&[(0, 0, 505..506), (1, 1, 0..1), (2, 0, 515..520), (3, 0, 495..501), (4, 1, 25..31), (5, 0, 0..1)]);
        let planned = plan(&reads, &tables(), 1000);
        assert_eq!(planned, [run(0, 49..52), run(1, 0..1), run(1, 2..4), run(0, 0..1)]);
    }

    #[test]
    fn what_comes_much_later_is_not_drawn_forward() {
        let mut read = vec![(0, 0, 0..1)];
        read.extend((0..40).map(|other| (1, 1, other * 20..other * 20 + 1)));
        read.push((2, 0, 10..11));
        let planned = plan(&reads(&read), &tables(), 1000);
        assert_eq!((planned.first(), planned.last()), (Some(&run(0, 0..1)), Some(&run(0, 1..2))));
    }

    #[test]
    fn a_run_is_bounded() {
        let large = HashMap::from([(layer(0), table(100, 1 << 20))]);
        let planned = plan(&reads(&[(0, 0, 0..1000)]), &large, u64::MAX);
        assert_eq!(planned.len(), 25);
        assert!(planned.iter().all(|run| run.spans.len() == 4));
    }

    #[test]
    fn what_lies_beyond_a_layer_or_in_none_is_left_out() {
        let strange = reads(&[(0, 7, 0..10), (1, 0, 5000..9000), (2, 0, 995..2000)]);
        assert_eq!(plan(&strange, &tables(), 1000), [run(0, 99..100)]);
    }

    #[test]
    fn a_profile_that_names_everything_costs_a_part_of_the_image() {
        assert_eq!(budget(1 << 30), 1 << 29);
        assert_eq!(budget(1 << 20), MIN_PREFETCH_BYTES);
        let planned = plan(&reads(&[(0, 0, 0..1000), (0, 1, 0..1000)]), &tables(), 333);
        assert_eq!(planned.iter().map(|run| run.spans.len() as u64 * 5).sum::<u64>(), 330);
    }

    proptest! {
        #[test]
        fn every_span_is_fetched_once_within_the_budget(
            read in prop::collection::vec((0_u32..1, 0_u8..3, 0_u64..1200, 1_u64..60), 0..80), budget in 0_u64..1500,
        ) {
            let read: Vec<_> = read.into_iter().map(|(at, layer, start, length)| (at, layer, start..start + length)).collect();
            let planned = plan(&reads(&read), &tables(), budget);
            let mut spans: Vec<_> = planned.iter().flat_map(|run| run.spans.clone().map(|span| (run.layer, span))).collect();
            let count = spans.len();
            spans.sort();
            spans.dedup();
            prop_assert_eq!(spans.len(), count);
            prop_assert!(count as u64 * 5 <= budget);
            let touched: std::collections::BTreeSet<_> = read.iter()
                .filter(|(_, layer, _)| *layer < 2)
                .flat_map(|(_, number, range)| (range.start / 10..=(range.end - 1) / 10).map(|span| (layer(*number), span as usize)))
                .filter(|(_, span)| *span < 100)
                .collect();
            if touched.len() as u64 * 5 <= budget {
                prop_assert!(spans.into_iter().eq(touched));
            }
        }
    }
}
