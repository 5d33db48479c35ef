//! Timelines of several blobs on one axis. No clock is read here.

use std::time::Duration;

use lapwing_p2p::timeline::{Lane, Recorded, Track};

/// Cells of the axis.
pub(super) const COLUMNS: usize = 96;

/// What went on, cell by cell.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Merged {
    /// How long a cell is, in seconds.
    pub(super) cell: f64,
    /// By [`Track`], in the order of [`Track::ALL`].
    pub(super) lanes: Vec<Cells>,
}

/// One track of all blobs together.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Cells {
    pub(super) count: u64,
    /// Seconds that all of them took together.
    pub(super) busy: f64,
    pub(super) bytes: u64,
    /// Seconds from the beginning.
    pub(super) first: Option<f64>,
    pub(super) last: f64,
    /// How many were under way, on average of each cell.
    pub(super) under_way: Vec<f64>,
    /// Bytes of each cell.
    pub(super) bytes_in: Vec<f64>,
}

impl Cells {
    /// Seconds in which it was done at all.
    pub(super) fn covered(&self, cell: f64) -> f64 {
        self.under_way.iter().map(|under_way| under_way.min(1.0) * cell).sum()
    }
}

impl Merged {
    /// Timelines, each with how long after the first of all it began, up to `until`.
    pub(super) fn of(timelines: &[(Duration, &Recorded)], until: Duration) -> Self {
        let cell = (until.as_secs_f64() / COLUMNS as f64).max(1e-6);
        let mut lanes = vec![Cells::default(); Track::ALL.len()];
        for (offset, timeline) in timelines {
            for (track, lane) in Track::ALL.iter().zip(&mut lanes) {
                let mut own = Cells::default();
                own.take(timeline.lane(*track), offset.as_secs_f64(), timeline.cell.as_secs_f64(), cell);
                match track {
                    Track::Limit => lane.share(&own),
                    _ => lane.sum(&own),
                }
            }
        }
        for lane in &mut lanes {
            lane.under_way.iter_mut().for_each(|busy| *busy /= cell);
        }
        Self { cell, lanes }
    }

    pub(super) fn lane(&self, track: Track) -> &Cells {
        &self.lanes[track as usize]
    }
}

impl Cells {
    /// Together with what another blob's timeline has.
    fn sum(&mut self, other: &Self) {
        self.count += other.count;
        self.busy += other.busy;
        self.bytes += other.bytes;
        self.span(other);
        combine(&mut self.under_way, &other.under_way, |one, other| one + other);
        combine(&mut self.bytes_in, &other.bytes_in, |one, other| one + other);
    }

    /// The same for what is taken down with every blob although it happened once: a limit is the whole node's.
    fn share(&mut self, other: &Self) {
        self.count = self.count.max(other.count);
        self.bytes = self.bytes.max(other.bytes);
        self.span(other);
        combine(&mut self.under_way, &other.under_way, f64::max);
        combine(&mut self.bytes_in, &other.bytes_in, f64::max);
        self.busy = self.busy.max(other.busy).max(self.under_way.iter().sum());
    }

    fn span(&mut self, other: &Self) {
        if let Some(first) = other.first {
            self.first = Some(self.first.map_or(first, |before| before.min(first)));
            self.last = self.last.max(other.last);
        }
    }

    fn take(&mut self, lane: &Lane, offset: f64, width: f64, cell: f64) {
        self.count = lane.count;
        self.busy = lane.busy.as_secs_f64();
        self.bytes = lane.bytes;
        if let Some(first) = lane.first {
            self.first = Some(offset + first.as_secs_f64());
            self.last = offset + lane.last.as_secs_f64();
        }
        let seconds = lane.busy_in.iter().map(|micros| *micros as f64 / 1e6);
        spread(&mut self.under_way, seconds, offset, width, cell);
        spread(&mut self.bytes_in, lane.bytes_in.iter().map(|bytes| *bytes as f64), offset, width, cell);
    }
}

fn combine(into: &mut Vec<f64>, other: &[f64], with: impl Fn(f64, f64) -> f64) {
    into.resize(into.len().max(other.len()), 0.0);
    into.iter_mut().zip(other).for_each(|(one, other)| *one = with(*one, *other));
}

/// Adds cells that are `width` long and begin at `offset` to those that are `cell` long and begin at 0, in proportion.
fn spread(into: &mut Vec<f64>, amounts: impl Iterator<Item = f64>, offset: f64, width: f64, cell: f64) {
    for (number, amount) in amounts.enumerate().filter(|(_, amount)| *amount > 0.0) {
        into.resize(COLUMNS, 0.0);
        let (start, end) = (offset + number as f64 * width, offset + (number + 1) as f64 * width);
        for (column, sum) in into.iter_mut().enumerate().skip((start / cell) as usize) {
            let (begins, ends) = (column as f64 * cell, (column + 1) as f64 * cell);
            if begins >= end {
                break;
            }
            *sum += amount * (end.min(ends) - start.max(begins)).max(0.0) / width;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_kept_however_the_cells_lie() {
        for (offset, width, cell) in [(0.0, 1.0, 1.0), (0.37, 0.5, 0.083), (2.0, 0.005, 1.0), (1.0, 7.0, 0.2)] {
            let mut into = Vec::new();
            spread(&mut into, [1.0, 0.0, 2.0].into_iter(), offset, width, cell);
            let total: f64 = into.iter().sum();
            let fits = offset + 3.0 * width <= cell * COLUMNS as f64;
            assert!(!fits || (total - 3.0).abs() < 1e-9, "{offset} {width} {cell}: {total}");
            assert!(into.iter().all(|amount| *amount >= 0.0));
        }
    }

    #[test]
    fn a_limit_of_the_node_holds_back_once_however_many_blobs_wait() {
        let timelines: Vec<_> = (0..4).map(|_| lapwing_p2p::timeline::Timeline::begin()).collect();
        let now = std::time::Instant::now() + Duration::from_secs(10);
        for timeline in &timelines {
            timeline.held_back(now, now + Duration::from_secs(1));
            timeline.add(Track::Verify, now, now + Duration::from_secs(1));
        }
        let recorded: Vec<_> = timelines.iter().map(|timeline| timeline.recorded()).collect();
        let parts: Vec<_> = recorded.iter().map(|recorded| (Duration::ZERO, recorded)).collect();
        let merged = Merged::of(&parts, Duration::from_secs(12));
        let (limit, verify) = (merged.lane(Track::Limit), merged.lane(Track::Verify));
        assert_eq!((limit.count, verify.count), (1, 4));
        // They did not begin in the same moment.
        assert!(limit.busy >= 0.99 && limit.busy < 1.5, "{}", limit.busy);
        assert!(limit.under_way.iter().all(|under_way| *under_way <= 1.01), "{:?}", limit.under_way);
        assert!((verify.busy - 4.0).abs() < 0.01 && verify.under_way.iter().any(|under_way| *under_way > 1.5));
    }

    #[test]
    fn what_begins_later_lies_later() {
        let mut into = Vec::new();
        spread(&mut into, [1.0].into_iter(), 10.0, 1.0, 1.0);
        assert_eq!(into.iter().position(|amount| *amount > 0.0), Some(10));
    }
}
