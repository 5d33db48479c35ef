//! What is due when: a calendar of short buckets around the present, and a heap for what is far away.
//!
//! A swarm of ten thousand nodes has some hundred thousand events pending, most of them due within a tenth of a second.
//! In one heap every step costs a dozen cache misses; here the heap in use holds a fraction of a millisecond.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

/// Nanoseconds of one bucket, as a power of two: 262 us.
const BUCKET_BITS: u32 = 18;
/// Buckets of the calendar: 1.07 s in all.
const BUCKETS: usize = 4096;

/// Something that is due.
#[derive(Debug)]
struct Entry<T> {
    at_ns: u64,
    /// Order of entering, which decides between equal times.
    sequence: u64,
    what: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    /// The earliest is the greatest, as `BinaryHeap` wants it.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at_ns, other.sequence).cmp(&(self.at_ns, self.sequence))
    }
}

/// Events in the order of their times; those of equal times in the order in which they were added.
#[derive(Debug)]
pub struct Queue<T> {
    /// Number of the bucket whose entries are in `present`, since time zero.
    bucket: u64,
    present: BinaryHeap<Entry<T>>,
    near: Vec<Vec<Entry<T>>>,
    near_count: usize,
    far: BTreeMap<u64, Vec<Entry<T>>>,
    /// Emptied buckets, whose memory is used again.
    spare: Vec<Vec<Entry<T>>>,
    sequence: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            bucket: 0,
            present: BinaryHeap::new(),
            near: std::iter::repeat_with(Vec::new).take(BUCKETS).collect(),
            near_count: 0,
            far: BTreeMap::new(),
            spare: Vec::new(),
            sequence: 0,
        }
    }
}

impl<T> Queue<T> {
    /// Adds what is due at `at_ns`, which must not lie before what was given last.
    pub fn push(&mut self, at_ns: u64, what: T) {
        self.sequence += 1;
        let entry = Entry { at_ns, sequence: self.sequence, what };
        let bucket = at_ns >> BUCKET_BITS;
        if bucket <= self.bucket {
            self.present.push(entry);
        } else if bucket - self.bucket < BUCKETS as u64 {
            let slot = &mut self.near[bucket as usize % BUCKETS];
            if slot.capacity() == 0
                && let Some(spare) = self.spare.pop()
            {
                *slot = spare;
            }
            slot.push(entry);
            self.near_count += 1;
        } else {
            self.far.entry(bucket).or_default().push(entry);
        }
    }

    /// The next event and its time.
    pub fn pop(&mut self) -> Option<(u64, T)> {
        self.pop_before(u64::MAX)
    }

    /// The same, if it is due before `end_ns`. What is added afterwards may be due from then on.
    pub fn pop_before(&mut self, end_ns: u64) -> Option<(u64, T)> {
        if self.next_ns()? >= end_ns {
            return None;
        }
        self.present.pop().map(|entry| (entry.at_ns, entry.what))
    }

    /// When the next event is due.
    pub fn next_ns(&mut self) -> Option<u64> {
        while self.present.is_empty() {
            self.advance()?;
        }
        self.present.peek().map(|entry| entry.at_ns)
    }

    /// Moves on to the next bucket that may hold something.
    fn advance(&mut self) -> Option<()> {
        self.bucket = if self.near_count == 0 { *self.far.first_key_value()?.0 } else { self.bucket + 1 };
        let emptied = std::mem::take(&mut self.present).into_vec();
        let mut due = std::mem::take(&mut self.near[self.bucket as usize % BUCKETS]);
        self.near_count -= due.len();
        while let Some(first) = self.far.first_entry().filter(|first| *first.key() <= self.bucket) {
            due.extend(first.remove());
        }
        if emptied.capacity() > 0 {
            self.spare.push(emptied);
        }
        self.present = BinaryHeap::from(due);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_everything_in_order_of_time_and_entry() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut queue = Queue::default();
        let (mut now, mut next, mut pending) = (0, 0_u64, BTreeMap::new());
        for step in 0..200_000 {
            let horizon = [10, 1 << BUCKET_BITS, 100 << BUCKET_BITS, (2 * BUCKETS as u64) << BUCKET_BITS];
            if step < 100_000 && random.u32(..3) > 0 {
                let horizon = horizon[random.usize(..4)];
                let at = now + random.u64(..horizon);
                queue.push(at, next);
                pending.insert((at, next), ());
                next += 1;
            } else if let Some(((at, number), ())) = pending.pop_first() {
                assert_eq!(queue.pop(), Some((at, number)));
                now = at;
            }
        }
        assert!(pending.is_empty());
        assert_eq!(queue.pop(), None);
    }
}
