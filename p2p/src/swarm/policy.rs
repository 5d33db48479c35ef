//! The numbers of the scheduler's policy.

use std::time::Duration;

/// Numbers that were found by simulation (`contrib/sim`, `ARCHITECTURE.md`). They are here, and not beside the rules that
/// use them, so that the simulator can vary them; nodes take the defaults.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Requests under way over all blobs, in pieces and in bytes: one more is sent while either is below. Few leave uplinks
    /// idle, many let everybody wait for the same one.
    pub budget_pieces: u32,
    /// See [`Self::budget_pieces`].
    pub budget_bytes: u64,
    /// Missing pieces, from the first one, among which the rarest is taken.
    pub window: u32,
    /// A second peer is asked for a piece that takes so many times the mean.
    pub hedge_after: u32,
    /// How long new pieces are gathered before peers are told.
    pub have_batch: Duration,
    /// The same in a large swarm.
    pub have_batch_of_many: Duration,
    /// Pieces handed to one connection and not yet written.
    pub pipeline: u32,
    /// An upload slot goes to the peer with fewest pieces while those that wait for it are at most so many apart; beyond, they
    /// have not started together, and are served in turn.
    pub spread: u32,
    /// Peers that are invited for each upload slot that nobody asks for.
    pub invitations: u32,
    /// Requests beyond the budget to peers that have invited.
    pub overdraft: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            budget_pieces: 4,
            budget_bytes: 1 << 20,
            window: 64,
            hedge_after: 3,
            have_batch: Duration::from_millis(50),
            have_batch_of_many: Duration::from_millis(250),
            pipeline: 2,
            spread: 64,
            invitations: 2,
            overdraft: 4,
        }
    }
}
