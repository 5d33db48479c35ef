//! Takes down what containers read of lazy layers while they start. Nothing here waits or reads a clock.
//!
//! A read names a layer and not a container. So what is read of a layer while containers of several images start that share it is taken
//! down for each of them, and containers of one image that start at once are one start.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lapwing_p2p::digest::Digest;

use crate::limits::{MAX_RECORDED_READS, MAX_RECORDINGS};
use crate::profile::Read;

/// Reads that touch each other are one, up to so many bytes.
const LONGEST_READ: u64 = 1 << 30;

/// The starts that are being recorded; see the module's documentation.
#[derive(Debug, Default)]
pub struct Recorder {
    /// How many there are: all that a read looks at while there are none.
    running: AtomicUsize,
    recordings: Mutex<Vec<Recording>>,
}

#[derive(Debug)]
struct Recording {
    image: Digest,
    layers: Vec<Digest>,
    began: Instant,
    last_read: Instant,
    /// Of a layer, by its place, and one of its spans: which read.
    seen: HashMap<(usize, usize), usize>,
    reads: Vec<Read>,
}

impl Recorder {
    /// Records what is read of `layers` from now on, for the image with that chain id. False if that is done already, or too much else.
    pub fn begin(&self, image: Digest, layers: Vec<Digest>, now: Instant) -> bool {
        let mut recordings = self.lock();
        if recordings.len() >= MAX_RECORDINGS || recordings.iter().any(|recording| recording.image == image) {
            return false;
        }
        let (seen, reads) = (HashMap::new(), Vec::new());
        recordings.push(Recording { image, layers, began: now, last_read: now, seen, reads });
        self.running.store(recordings.len(), Ordering::Relaxed);
        true
    }

    /// For how long nothing was read of an image that is recorded, or since it began.
    pub fn quiet(&self, image: &Digest, now: Instant) -> Option<Duration> {
        let recordings = self.lock();
        let recording = recordings.iter().find(|recording| recording.image == *image)?;
        Some(now.saturating_duration_since(recording.last_read))
    }

    /// Ends a recording; gives what was read, in order: of each span from the first to the last byte that anybody read.
    pub fn end(&self, image: &Digest) -> Option<Vec<Read>> {
        let mut recordings = self.lock();
        let at = recordings.iter().position(|recording| recording.image == *image)?;
        let recording = recordings.swap_remove(at);
        self.running.store(recordings.len(), Ordering::Relaxed);
        drop(recordings);
        Some(joined(recording.reads))
    }

    /// Whether anything is recorded: then reads are to be told.
    #[inline]
    pub(super) fn is_running(&self) -> bool {
        self.running.load(Ordering::Relaxed) > 0
    }

    /// Of a layer, the range `part` of that span was read.
    pub(super) fn on_read(&self, layer: &Digest, span: usize, part: &Range<u64>, now: Instant) {
        for recording in self.lock().iter_mut() {
            if let Some(place) = recording.layers.iter().position(|other| other == layer) {
                recording.on_read((place, span), part, now);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Recording>> {
        // Every change is one step.
        self.recordings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recording {
    fn on_read(&mut self, span: (usize, usize), part: &Range<u64>, now: Instant) {
        self.last_read = now;
        if let Some(&known) = self.seen.get(&span) {
            let range = &mut self.reads[known].range;
            *range = range.start.min(part.start)..range.end.max(part.end);
        } else if self.reads.len() < MAX_RECORDED_READS {
            self.seen.insert(span, self.reads.len());
            let since = now.saturating_duration_since(self.began).as_millis();
            let at_ms = u32::try_from(since).unwrap_or(u32::MAX);
            self.reads.push(Read { at_ms, layer: self.layers[span.0], range: part.clone() });
        }
    }
}

/// Makes one of reads that continue each other.
fn joined(reads: Vec<Read>) -> Vec<Read> {
    let mut joined: Vec<Read> = Vec::with_capacity(reads.len());
    for read in reads {
        match joined.last_mut() {
            Some(last)
                if last.layer == read.layer
                    && last.range.end == read.range.start
                    && read.range.end - last.range.start <= LONGEST_READ =>
            {
                last.range.end = read.range.end;
            }
            _ => joined.push(read),
        }
    }
    // Threads that read at once may come in either order, a moment apart.
    joined.sort_by_key(|read| read.at_ms);
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u8) -> Digest {
        Digest::of(&[number])
    }

    fn read(at_ms: u32, layer: u8, range: Range<u64>) -> Read {
        Read { at_ms, layer: digest(layer), range }
    }

    #[test]
    fn spans_are_taken_down_once_with_what_was_read_of_them() {
        let (recorder, began) = (Recorder::default(), Instant::now());
        let at = |ms| began + Duration::from_millis(ms);
        assert!(!recorder.is_running());
        assert!(recorder.begin(digest(9), vec![digest(0), digest(1)], began));
        assert!(!recorder.begin(digest(9), vec![digest(0)], began), "one start of an image at once");
        assert!(recorder.is_running());
        recorder.on_read(&digest(1), 5, &(510..520), at(3));
        recorder.on_read(&digest(0), 0, &(90..100), at(4));
        recorder.on_read(&digest(0), 1, &(100..150), at(5));
        recorder.on_read(&digest(1), 5, &(500..505), at(6));
        recorder.on_read(&digest(7), 0, &(0..1), at(7));
        assert_eq!(recorder.quiet(&digest(9), at(16)), Some(Duration::from_millis(10)));
        assert_eq!(recorder.end(&digest(9)).unwrap(), [read(3, 1, 500..520), read(4, 0, 90..150)]);
        assert!(!recorder.is_running() && recorder.end(&digest(9)).is_none());
    }

    #[test]
    fn images_that_share_a_layer_are_both_told() {
        let (recorder, now) = (Recorder::default(), Instant::now());
        recorder.begin(digest(8), vec![digest(0), digest(1)], now);
        recorder.begin(digest(9), vec![digest(0), digest(2)], now);
        for layer in 0..3 {
            recorder.on_read(&digest(layer), 0, &(0..10), now);
        }
        assert_eq!(recorder.end(&digest(8)).unwrap(), [read(0, 0, 0..10), read(0, 1, 0..10)]);
        assert_eq!(recorder.end(&digest(9)).unwrap(), [read(0, 0, 0..10), read(0, 2, 0..10)]);
    }

    #[test]
    fn recordings_and_their_reads_are_bounded() {
        let (recorder, now) = (Recorder::default(), Instant::now());
        let images = (0..=MAX_RECORDINGS as u8).map(digest);
        assert_eq!(images.filter(|image| recorder.begin(*image, vec![digest(0)], now)).count(), MAX_RECORDINGS);
        for span in 0..2 * MAX_RECORDED_READS {
            recorder.on_read(&digest(0), span, &(span as u64 * 10..span as u64 * 10 + 5), now);
        }
        assert_eq!(recorder.end(&digest(0)).unwrap().len(), MAX_RECORDED_READS);
    }
}
