//! What is fetched without a lease: a little at a time, and of each stretch by few of the nodes that miss it.
//!
//! Nodes that lose their tracker lose it together, and each would fetch what none of its neighbours has. They agree without
//! a word by rendezvous hashing (Thaler and Ravishankar 1998): every node weighs itself and all that it knows to take part
//! against each stretch, and fetches those of the first missing ones where it weighs most. With a swarm that is larger than
//! what a node knows of it, several do: one in as many as each knows.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use super::STALL;
use crate::digest::Digest;
use crate::identity::PeerId;
use crate::swarm::Swarm;
use crate::swarm::blob::BlobState;

/// Bytes of one transfer without a lease, and of the stretches that fall to one node or another.
pub(super) const RUN_BYTES: u64 = 1 << 20;
/// Transfers without a lease start spread over this time, so that nodes that lost their tracker do not start as one.
const JITTER: Duration = Duration::from_secs(1);
/// So many of the first missing stretches are seen to at once: enough for the origin's link, and few enough that each
/// arrives, and is known to have arrived, before it falls to more nodes.
const WINDOW: usize = 8;
/// Whenever nothing came for so long, four times as many nodes take a stretch for theirs: those whose it was may be gone.
const ROUND: Duration = Duration::from_secs(1);

impl Swarm {
    /// Takes a little without a lease: of another zone's peers if they have it, else of the origin.
    pub(super) fn go_without(
        &mut self,
        digest: Digest,
        missing: &[Range<u32>],
        urgent: &[Range<u32>],
        importable: &[Range<u32>],
    ) {
        if importable.is_empty() {
            self.fetch_unleased(digest, missing, urgent);
        } else {
            self.import_unleased(digest, importable);
        }
    }

    /// Fetches a little of what is missing, without a lease. What reads wait for goes first; else a node with peers keeps to
    /// its own share, so that nodes that lost their tracker together fetch different pieces and trade them.
    fn fetch_unleased(&mut self, digest: Digest, missing: &[Range<u32>], urgent: &[Range<u32>]) {
        if self.unleased >= self.config.unleased_streams.max(1) {
            return;
        }
        let (now, Some(blob)) = (self.now, self.blobs.get(&digest)) else { return };
        let length = (RUN_BYTES / blob.layout.piece_length()).max(1) as u32;
        // Runs that follow one another need no spreading any more.
        let at_once = !urgent.is_empty() || blob.origin.delivered;
        let delay = if at_once { Duration::ZERO } else { JITTER * self.rng.u32(..1000) / 1000 };
        let run = match urgent.first() {
            Some(run) => run.clone(),
            // Nothing is shared where peers' bytes are not taken: any more, or because nobody is there who would vouch for them.
            None if !blob.takes_from_peers() || blob.trades.is_empty() => missing[0].clone(),
            None => match self.own_share(&digest, blob, missing, length) {
                Some(run) => run,
                // Others see to it, as far as this node knows; unless none of them does.
                None if now < blob.last_progress + STALL => return,
                None => missing[self.rng.usize(..missing.len())].clone(),
            },
        };
        self.unleased += 1;
        self.transfer(digest, run.start..run.end.min(run.start + length), None, delay);
    }

    /// The first missing run that falls to this node, if one does.
    fn own_share(&self, digest: &Digest, blob: &BlobState, missing: &[Range<u32>], length: u32) -> Option<Range<u32>> {
        let known = blob.known.iter().filter(|(_, known)| !known.far && !known.failed).map(|(peer, _)| *peer);
        let near = blob.trades.values().filter(|trade| !trade.far).map(|trade| trade.peer);
        let others: BTreeSet<PeerId> = known.chain(near).collect();
        let quiet = self.now.saturating_sub(blob.last_progress).as_millis() / ROUND.as_millis();
        let chosen = 1_usize << (2 * quiet.min(8));
        let is_mine = |stretch: u32| {
            let mine = weight(digest, &self.me, stretch);
            others.iter().filter(|peer| weight(digest, peer, stretch) >= mine).count() < chosen
        };
        let mut seen = BTreeSet::new();
        for run in missing {
            for stretch in run.start / length..=(run.end - 1) / length {
                seen.insert(stretch);
                if seen.len() > WINDOW {
                    return None;
                }
                if is_mine(stretch) {
                    return Some(run.start.max(stretch * length)..run.end.min((stretch + 1) * length));
                }
            }
        }
        None
    }
}

/// How much a peer weighs against a stretch of a blob: the same to whoever asks.
fn weight(digest: &Digest, peer: &PeerId, stretch: u32) -> u64 {
    let word = |bytes: &[u8]| u64::from_be_bytes(*bytes.first_chunk().unwrap_or(&[0; 8]));
    let seed = word(peer.as_bytes()) ^ word(digest.as_bytes()).rotate_left(17);
    fastrand::Rng::with_seed(seed ^ u64::from(stretch).wrapping_mul(0x9e37_79b9_7f4a_7c15)).u64(..)
}
