//! Finds sequential readers among the reads of one layer. Pure: no clock, no I/O.

use std::ops::Range;

/// Readers followed at once; the one that was quiet longest is forgotten.
const STREAMS: usize = 8;
/// How far a read may lie off the end of the last one and still continue it: the kernel sends several at once, in any
/// order.
const SLACK_BYTES: u64 = 512 << 10;

#[derive(Debug, Clone, Copy)]
struct Stream {
    /// End of what was read.
    end: u64,
    /// Bytes read in a row.
    run: u64,
}

/// The recent readers of a layer, the latest last.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    streams: Vec<Stream>,
}

impl ReadAhead {
    /// Takes note of a read; gives what should be fetched ahead of it, empty unless it continues a run: as much as the
    /// run is long, at most `limit_bytes`.
    pub(super) fn on_read(&mut self, read: &Range<u64>, limit_bytes: u64) -> Range<u64> {
        let continued = self.streams.iter().rposition(|stream| stream.end.abs_diff(read.start) <= SLACK_BYTES);
        let stream = match continued {
            Some(at) => {
                let before = self.streams.remove(at);
                let end = before.end.max(read.end);
                Stream { end, run: before.run + (end - before.end) }
            }
            None => {
                if self.streams.len() == STREAMS {
                    self.streams.remove(0);
                }
                Stream { end: read.end, run: 0 }
            }
        };
        self.streams.push(stream);
        stream.end..stream.end.saturating_add(stream.run.min(limit_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: u64 = 128 << 10;
    const LIMIT: u64 = 8 << 20;

    #[test]
    fn a_lone_read_asks_for_nothing() {
        let mut ahead = ReadAhead::default();
        for start in [0, 100 << 20, 50 << 20, 10 << 20] {
            assert!(ahead.on_read(&(start..start + READ), LIMIT).is_empty());
        }
    }

    #[test]
    fn the_window_grows_with_the_run_up_to_the_limit() {
        let mut ahead = ReadAhead::default();
        let windows: Vec<u64> = (0..200)
            .map(|i| ahead.on_read(&(i * READ..(i + 1) * READ), LIMIT))
            .map(|window| window.end - window.start)
            .collect();
        assert_eq!(windows[..4], [0, READ, 2 * READ, 3 * READ]);
        assert_eq!(windows[199], LIMIT);
    }

    #[test]
    fn interleaved_and_swapped_readers_are_told_apart() {
        let mut ahead = ReadAhead::default();
        for i in [1, 0, 2, 4, 3, 5] {
            ahead.on_read(&(i * READ..(i + 1) * READ), LIMIT);
            ahead.on_read(&((1 << 30) + i * READ..(1 << 30) + (i + 1) * READ), LIMIT);
        }
        for base in [0, 1 << 30] {
            let window = ahead.on_read(&(base + 6 * READ..base + 7 * READ), LIMIT);
            assert_eq!(window.start, base + 7 * READ);
            assert!(window.end - window.start >= 5 * READ);
        }
    }
}
