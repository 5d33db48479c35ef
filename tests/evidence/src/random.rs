//! Chance that is the same on every run, and what it does to bytes.

/// SplitMix64 (Steele, Lea and Flood 2014).
#[derive(Debug)]
pub struct Random(u64);

/// Numbers at which lengths, counts and offsets go wrong.
const EDGES: [u64; 18] = [
    0,
    1,
    2,
    7,
    8,
    0x7f,
    0x80,
    0xff,
    0x100,
    511,
    513,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    i64::MAX as u64,
    u64::MAX,
];

impl Random {
    /// The same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.draw() % limit as u64) as usize
    }

    /// True once in `count` times, which is not 0.
    pub fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    /// One of them; there is one at least.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// A number at which something may go wrong, or close to it.
    pub fn edge(&mut self) -> u64 {
        let edge = *self.pick(&EDGES);
        if self.one_in(3) { edge.wrapping_add(self.draw() % 9).wrapping_sub(4) } else { edge }
    }

    /// So many bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.draw() as u8).collect()
    }

    /// Changes bytes in one to four places; `other` is what parts are taken from.
    pub fn mutate(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        for _ in 0..=self.below(4) {
            self.change(bytes, other);
        }
    }

    /// Changes one place and not the length.
    pub fn nudge(&mut self, bytes: &mut [u8]) {
        if bytes.is_empty() {
            return;
        }
        let at = self.below(bytes.len());
        match self.below(3) {
            0 => bytes[at] ^= 1 << self.below(8),
            1 => bytes[at] = bytes[at].wrapping_add(1),
            _ => self.number(bytes, at),
        }
    }

    fn change(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        if bytes.is_empty() {
            *bytes = self.bytes(8);
            return;
        }
        let at = self.below(bytes.len());
        let length = 1 + self.below(bytes.len() - at).min(64);
        match self.below(9) {
            0 => bytes[at] ^= 1 << self.below(8),
            1 => bytes[at] = self.draw() as u8,
            2 | 3 => self.number(bytes, at),
            4 => bytes[at..at + length].fill(if self.one_in(2) { 0 } else { 0xff }),
            5 => drop(bytes.drain(at..at + length)),
            6 => {
                let copy = bytes[at..at + length].to_vec();
                let to = self.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            7 if !other.is_empty() => {
                let from = self.below(other.len());
                let part = &other[from..][..length.min(other.len() - from)];
                let end = (at + part.len()).min(bytes.len());
                bytes.splice(at..end, part.iter().copied());
            }
            7 => bytes.truncate(at),
            _ if self.one_in(4) => bytes.truncate(at),
            _ => bytes[at] = bytes[at].wrapping_add(1),
        }
    }

    /// A number at the edge in the place of what is at `at`, aligned most of the time.
    fn number(&mut self, bytes: &mut [u8], at: usize) {
        let width = *self.pick(&[1usize, 2, 4, 8]);
        let at = if self.one_in(4) { at } else { at / width * width };
        let value = self.edge();
        let bytes = &mut bytes[at..];
        let width = width.min(bytes.len());
        if self.one_in(3) {
            bytes[..width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
        } else {
            bytes[..width].copy_from_slice(&value.to_le_bytes()[..width]);
        }
    }
}
