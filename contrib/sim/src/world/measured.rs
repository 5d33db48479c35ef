//! What a run is measured by.

/// The measurements of a run, or of a part of it.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// When the nodes that live had everything, ascending, in seconds since their start.
    pub done_s: Vec<f64>,
    /// When the last one had, since the beginning.
    pub last_s: f64,
    /// Bytes that the origin sent.
    pub origin_bytes: u64,
    /// Bytes that went into the second zone and out of it.
    pub border_bytes: [u64; 2],
    /// Bytes of pieces that arrived where nobody waited for them any more, or were wrong.
    pub wasted_bytes: u64,
    /// Bytes of pieces that arrived.
    pub bytes: u64,
    /// Second requests for a piece.
    pub hedges: u64,
    /// Messages about new pieces.
    pub haves: u64,
    /// Messages about free upload slots.
    pub invitations: u64,
    /// Peers that were refused for wrong pieces.
    pub bans: u64,
    /// Questions that the tracker was asked: who has a blob, and for leases.
    pub questions: [u64; 2],
    /// Events that schedulers were told of.
    pub events: u64,
    /// For the first nodes: when each piece was there, in seconds.
    pub arrivals_s: Vec<Vec<f64>>,
    /// Hash of everything that happened.
    pub trace: u64,
    /// Nodes that live and did not finish within the limit.
    pub unfinished: usize,
}

impl Measured {
    /// Adds to the trace.
    pub(super) fn note(&mut self, now_ns: u64, node: u32, what: u64) {
        let mixed = self.trace ^ now_ns ^ u64::from(node) << 40 ^ what << 8;
        self.trace = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }

    /// Adds what was counted elsewhere.
    pub(super) fn add(&mut self, other: &Self) {
        self.origin_bytes += other.origin_bytes;
        self.wasted_bytes += other.wasted_bytes;
        self.bytes += other.bytes;
        self.hedges += other.hedges;
        self.haves += other.haves;
        self.invitations += other.invitations;
        self.bans += other.bans;
        self.events += other.events;
        for (sum, more) in [(&mut self.border_bytes, other.border_bytes), (&mut self.questions, other.questions)] {
            sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        }
        self.note(0, 0, other.trace);
    }
}
