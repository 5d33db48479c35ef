//! Memory for pieces on their way from a peer or an origin to the disk: bounded over the whole node, and used again.
//!
//! Who receives takes a buffer when the first byte of a piece is there, and gives it back by dropping it when the piece
//! is on disk. Beyond [`MAX_RECEIVE_BYTES`] it waits, and with it the sender: what is not read stays in the kernel. Only
//! the local disk must make progress for a buffer to come back, or a sender that is given up for being slow.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::{MAX_IDLE_RECEIVE_BYTES, MAX_RECEIVE_BYTES};

/// The budget is counted in these.
const UNIT: usize = 4 << 10;
/// The smallest buffer.
const MIN_BUFFER: usize = 64 << 10;

/// All receive buffers of a node.
#[derive(Debug)]
pub(super) struct Buffers {
    budget: Arc<Semaphore>,
    idle: Arc<Mutex<Idle>>,
}

/// Buffers that nobody uses.
#[derive(Debug, Default)]
struct Idle {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
    /// Whether one was taken since the last [`Buffers::trim`].
    used: bool,
}

/// Room for one piece.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    length: usize,
    idle: Arc<Mutex<Idle>>,
    _permit: OwnedSemaphorePermit,
}

impl Buffers {
    pub(super) fn new() -> Self {
        let budget = Arc::new(Semaphore::new(MAX_RECEIVE_BYTES / UNIT));
        Self { budget, idle: Arc::default() }
    }

    /// A buffer of `length` bytes, no more than two pieces, with anything in them. Waits for its turn.
    pub(super) async fn take(&self, length: usize) -> Buffer {
        let capacity = length.next_power_of_two().max(MIN_BUFFER);
        let units = (capacity / UNIT) as u32;
        #[expect(clippy::expect_used, reason = "the semaphore lives as long as this and is never closed")]
        let permit = Arc::clone(&self.budget).acquire_many_owned(units).await.expect("never closed");
        let bytes = lock(&self.idle).take(capacity).unwrap_or_else(|| vec![0; capacity]);
        Buffer { bytes, length, idle: Arc::clone(&self.idle), _permit: permit }
    }

    /// Lets go of idle buffers if none was used since the last call.
    pub(super) fn trim(&self) {
        let mut idle = lock(&self.idle);
        if !std::mem::take(&mut idle.used) {
            *idle = Idle::default();
        }
    }
}

impl Idle {
    fn take(&mut self, capacity: usize) -> Option<Vec<u8>> {
        self.used = true;
        // The last is the warmest.
        let at = self.buffers.iter().rposition(|buffer| buffer.len() == capacity)?;
        self.bytes -= capacity;
        Some(self.buffers.remove(at))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut idle = lock(&self.idle);
        if idle.bytes + bytes.len() <= MAX_IDLE_RECEIVE_BYTES {
            idle.bytes += bytes.len();
            idle.buffers.push(bytes);
        }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }
}

fn lock(idle: &Mutex<Idle>) -> std::sync::MutexGuard<'_, Idle> {
    // Nothing under this lock panics half-way.
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MAX_PIECE_LENGTH;
    use futures_util::FutureExt as _;
    use tokio::task::unconstrained;

    #[tokio::test]
    async fn buffers_are_bounded_and_used_again() {
        let buffers = Buffers::new();
        let piece = MAX_PIECE_LENGTH as usize;
        let mut held = Vec::new();
        for _ in 0..MAX_RECEIVE_BYTES / piece {
            held.push(buffers.take(piece).await);
        }
        assert!(unconstrained(buffers.take(1)).now_or_never().is_none(), "more than the budget");
        let first = held.pop().unwrap();
        let address = first.as_ref().as_ptr();
        drop(first);
        let again = unconstrained(buffers.take(piece - 7)).now_or_never().expect("one was given back");
        assert_eq!((again.as_ref().as_ptr(), again.as_ref().len()), (address, piece - 7));
        drop((held, again));
        assert!(lock(&buffers.idle).bytes <= MAX_IDLE_RECEIVE_BYTES);
        buffers.trim();
        assert_ne!(lock(&buffers.idle).bytes, 0, "they were just used");
        buffers.trim();
        assert_eq!(lock(&buffers.idle).bytes, 0);
        assert_eq!(buffers.budget.available_permits(), MAX_RECEIVE_BYTES / UNIT);
    }

    #[tokio::test]
    async fn small_pieces_take_little_of_the_budget() {
        let buffers = Buffers::new();
        let mut held = Vec::new();
        for _ in 0..MAX_RECEIVE_BYTES / MIN_BUFFER {
            held.push(buffers.take(1000).await);
        }
        assert!(unconstrained(buffers.take(1000)).now_or_never().is_none(), "more than the budget");
    }
}
