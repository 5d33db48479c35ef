//! The cells of a timeline: bounded, whatever happens. No clock is read here.

use std::time::Duration;

use super::Track;

/// Cells of a timeline.
pub const CELLS: usize = 64;
/// How long a cell is at first; doubled whenever the cells are full.
const SHORTEST: Duration = Duration::from_millis(5);
/// Longest cell: what comes later goes to the last one.
const LONGEST: Duration = Duration::from_secs(3600);

/// One track of a timeline.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lane {
    /// How often it was done.
    pub count: u64,
    /// How long all of them took together; more than the time that went by when several were done at once.
    pub busy: Duration,
    /// Bytes that came.
    pub bytes: u64,
    /// When it first began.
    pub first: Option<Duration>,
    /// When it last ended.
    pub last: Duration,
    /// Microseconds by cell; those that are missing at the end are 0.
    pub busy_in: Vec<u64>,
    /// Bytes by cell; those that are missing at the end are 0.
    pub bytes_in: Vec<u64>,
}

impl Lane {
    /// For how long it was done at all, as far as the cells tell: at most what all took together.
    pub fn covered(&self, cell: Duration) -> Duration {
        let most = micros(cell);
        Duration::from_micros(self.busy_in.iter().map(|busy| *busy.min(&most)).sum())
    }

    fn note(&mut self, start: Duration, end: Duration) {
        self.first = Some(self.first.map_or(start, |first| first.min(start)));
        self.last = self.last.max(end);
    }
}

/// All tracks of a timeline, in cells of one width.
#[derive(Debug, Clone)]
pub(super) struct Lanes {
    cell: Duration,
    lanes: Vec<Lane>,
}

impl Default for Lanes {
    fn default() -> Self {
        Self { cell: SHORTEST, lanes: vec![Lane::default(); Track::ALL.len()] }
    }
}

impl Lanes {
    pub(super) const fn cell(&self) -> Duration {
        self.cell
    }

    pub(super) fn into_lanes(self) -> Vec<Lane> {
        self.lanes
    }

    /// Something was done from `start` to `end`. `late`: counted, and in no cell.
    pub(super) fn add(&mut self, track: Track, start: Duration, end: Duration, late: bool) {
        self.lanes[track as usize].count += 1;
        self.go_on(track, start, end, late);
    }

    /// What was added before went on.
    pub(super) fn go_on(&mut self, track: Track, start: Duration, end: Duration, late: bool) {
        let end = end.max(start);
        let lane = &mut self.lanes[track as usize];
        lane.busy += end - start;
        if late {
            return;
        }
        lane.note(start, end);
        let last = self.cell_at(end);
        let width = micros(self.cell);
        let (start, end) = (micros(start), micros(end));
        let lane = &mut self.lanes[track as usize];
        for cell in ((start / width) as usize).min(last)..=last {
            let begins = cell as u64 * width;
            let ends = if cell + 1 == CELLS { u64::MAX } else { begins + width };
            let busy = end.min(ends).saturating_sub(start.max(begins));
            if busy > 0 {
                at(&mut lane.busy_in, cell, busy);
            }
        }
    }

    /// Bytes came.
    pub(super) fn add_bytes(&mut self, track: Track, now: Duration, bytes: u64, late: bool) {
        self.lanes[track as usize].bytes += bytes;
        if late {
            return;
        }
        let cell = self.cell_at(now);
        let lane = &mut self.lanes[track as usize];
        lane.note(now, now);
        at(&mut lane.bytes_in, cell, bytes);
    }

    /// The cell of a moment, after the cells were widened for it.
    fn cell_at(&mut self, moment: Duration) -> usize {
        while moment >= self.cell * CELLS as u32 && self.cell < LONGEST {
            self.cell *= 2;
            for lane in &mut self.lanes {
                halve(&mut lane.busy_in);
                halve(&mut lane.bytes_in);
            }
        }
        ((micros(moment) / micros(self.cell)) as usize).min(CELLS - 1)
    }
}

fn at(cells: &mut Vec<u64>, cell: usize, more: u64) {
    if cells.len() <= cell {
        cells.resize(cell + 1, 0);
    }
    cells[cell] += more;
}

/// Makes one cell of two.
fn halve(cells: &mut Vec<u64>) {
    *cells = cells.chunks(2).map(|pair| pair.iter().sum()).collect();
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn time_and_bytes_fall_into_their_cells() {
        let mut lanes = Lanes::default();
        lanes.add(Track::Origin, ms(3), ms(12), false);
        lanes.add_bytes(Track::Origin, ms(11), 7, false);
        let lane = &lanes.lanes[Track::Origin as usize];
        assert_eq!(lane.busy_in, [2000, 5000, 2000]);
        assert_eq!(lane.bytes_in, [0, 0, 7]);
        assert_eq!((lane.count, lane.busy, lane.bytes), (1, ms(9), 7));
        assert_eq!((lane.first, lane.last), (Some(ms(3)), ms(12)));
    }

    #[test]
    fn cells_widen_and_lose_nothing() {
        let mut lanes = Lanes::default();
        for second in 0..1000 {
            lanes.add(Track::Verify, ms(second * 1000), ms(second * 1000 + 700), false);
            lanes.add_bytes(Track::Near, ms(second * 1000), 3, false);
        }
        let verify = &lanes.lanes[Track::Verify as usize];
        assert_eq!(verify.busy_in.iter().sum::<u64>(), 700_000_000);
        assert!(verify.busy_in.len() <= CELLS && lanes.cell() >= Duration::from_secs(1000) / CELLS as u32);
        assert_eq!(lanes.lanes[Track::Near as usize].bytes_in.iter().sum::<u64>(), 3000);
        let covered = verify.covered(lanes.cell());
        assert!(covered <= verify.busy, "{covered:?}");
    }

    #[test]
    fn what_is_done_twice_at_once_covers_its_time_once() {
        let mut lanes = Lanes::default();
        lanes.add(Track::Find, ms(0), ms(10), false);
        lanes.add(Track::Find, ms(0), ms(10), false);
        let lane = &lanes.lanes[Track::Find as usize];
        assert_eq!((lane.busy, lane.covered(lanes.cell())), (ms(20), ms(10)));
    }

    #[test]
    fn nothing_is_too_long() {
        let mut lanes = Lanes::default();
        lanes.add(Track::Transfer, ms(0), Duration::from_secs(86_400 * 400), false);
        lanes.add(Track::Transfer, Duration::MAX / 2, Duration::MAX / 2, false);
        assert!(lanes.lanes.iter().all(|lane| lane.busy_in.len() <= CELLS));
    }
}
