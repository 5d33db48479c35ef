//! Which bytes of a window are ever used.
//!
//! Deflate refers at most 32 KiB back, so what the 32 KiB of output after a checkpoint do not copy out of the window,
//! nothing after them can copy. Those 32 KiB are inflated twice beside the real stream, with windows that name positions
//! instead of bytes: `a[p] = low(p)` and `b[p] = low(p) ^ (high(p) + 1)`, where `low` and `high` are the two bytes of the
//! position (`high` is below 128). A byte of output that was coded as a literal is the same in both; a byte that was copied,
//! directly or through other copies, out of position `p` differs, and the two give `p` back. So the set is exact.

use crate::inflate::{Corrupt, Event, Inflater, Stop, WINDOW_BYTES, Wrapper};

/// Part of the format version: another level gives another index for the same layer.
const ZSTD_LEVEL: i32 = 12;

/// One of the two inflaters beside the real one.
struct Shadow {
    inflater: Inflater,
    output: Vec<u8>,
    filled: usize,
    ended: bool,
}

impl Shadow {
    fn new() -> Self {
        Self { inflater: Inflater::new(Wrapper::Raw), output: vec![0; WINDOW_BYTES], filled: 0, ended: true }
    }

    fn start(&mut self, bits: u8, byte: u8, window: &[u8]) {
        self.inflater.resume(bits, byte, window);
        self.filled = 0;
        self.ended = false;
    }

    fn push(&mut self, mut compressed: &[u8]) -> Result<(), Corrupt> {
        while !self.ended {
            let step = self.inflater.step(compressed, &mut self.output[self.filled..], Stop::AtEnd)?;
            self.filled += step.produced;
            compressed = &compressed[step.consumed..];
            self.ended = step.event == Event::End || self.filled == self.output.len();
            if step.consumed == 0 && step.produced == 0 {
                break;
            }
        }
        Ok(())
    }
}

/// Finds the used bytes of one window at a time.
pub(super) struct Probe {
    shadows: [Shadow; 2],
    /// The window in question; empty when there is none.
    window: Vec<u8>,
}

impl Probe {
    pub(super) fn new() -> Self {
        Self { shadows: [Shadow::new(), Shadow::new()], window: Vec::new() }
    }

    /// Begins at a checkpoint whose first `bits` bits are the high ones of `byte`.
    pub(super) fn start(&mut self, bits: u8, byte: u8, window: Vec<u8>) {
        let low: Vec<u8> = (0..window.len()).map(|at| at as u8).collect();
        let mixed: Vec<u8> = (0..window.len()).map(|at| at as u8 ^ ((at >> 8) as u8 + 1)).collect();
        self.shadows[0].start(bits, byte, &low);
        self.shadows[1].start(bits, byte, &mixed);
        self.window = window;
    }

    /// Takes the compressed bytes after the checkpoint; gives the sparse window once it is known.
    pub(super) fn push(&mut self, compressed: &[u8]) -> Result<Option<Vec<u8>>, Corrupt> {
        if self.window.is_empty() {
            return Ok(None);
        }
        for shadow in &mut self.shadows {
            shadow.push(compressed)?;
        }
        if self.shadows.iter().all(|shadow| shadow.ended) { self.finish() } else { Ok(None) }
    }

    /// Gives the sparse window at the end of the member.
    pub(super) fn finish(&mut self) -> Result<Option<Vec<u8>>, Corrupt> {
        let window = std::mem::take(&mut self.window);
        let [low, mixed] = &self.shadows;
        if window.is_empty() {
            return Ok(None);
        }
        if low.filled != mixed.filled {
            return Err(Corrupt("inflaters disagree about the length of a block".to_owned()));
        }
        let mut sparse = vec![0; window.len()];
        let mut any = false;
        for (low, mixed) in low.output[..low.filled].iter().zip(&mixed.output) {
            if low != mixed {
                let at = usize::from(*low) | usize::from((low ^ mixed) - 1) << 8;
                let byte = window.get(at).ok_or_else(|| Corrupt("reference out of its window".to_owned()))?;
                sparse[at] = *byte;
                any = true;
            }
        }
        if any { pack(&sparse).map(Some) } else { Ok(None) }
    }
}

fn pack(sparse: &[u8]) -> Result<Vec<u8>, Corrupt> {
    zstd::bulk::compress(sparse, ZSTD_LEVEL).map_err(|error| Corrupt(format!("zstd of a window: {error}")))
}

/// The window as it was before [`Probe`] packed it, unused bytes as zeros.
pub(super) fn unpack(packed: &[u8]) -> Result<Vec<u8>, String> {
    if packed.is_empty() {
        return Ok(Vec::new());
    }
    zstd::bulk::decompress(packed, WINDOW_BYTES).map_err(|error| format!("window of its checkpoint: {error}"))
}
