//! What is fetched without a lease: a little at a time, and of each stretch by few of the nodes that miss it.
//!
//! Nodes that lose their tracker lose it together, and each would fetch what none of its neighbours has. They agree without
//! a word by rendezvous hashing (Thaler and Ravishankar 1998): every node weighs itself and all that it knows to take part
//! against each stretch, and fetches those of the first missing ones where it weighs most. With a swarm that is larger than
//! what a node knows of it, several do: one in as many as each knows.

use std::ops::Range;
use std::time::Duration;

use crate::digest::Digest;
use crate::discovery::Holding;
use crate::identity::PeerId;
use crate::swarm::Swarm;
use crate::swarm::blob::BlobState;

/// Bytes of one transfer without a lease, and of the stretches that fall to one node or another.
pub(super) const RUN_BYTES: u64 = 1 << 20;
/// Transfers without a lease that others may begin, too, start spread over this time.
const JITTER: Duration = Duration::from_secs(1);
/// So many of the first missing stretches are seen to at once: enough for the origin's link, and few enough that each
/// arrives, and is known to have arrived, before it falls to more nodes.
const WINDOW: usize = 8;
/// More are not looked at, also when the nodes that the first ones fall to seem to be gone.
const WIDEST: usize = 64;
/// Whenever no peer gave anything for so long, four times as many nodes take a stretch for theirs, of four times as many:
/// those whose it was may be gone.
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
        let Some(blob) = self.blobs.get(&digest) else { return };
        let length = (RUN_BYTES / blob.layout.piece_length()).max(1) as u32;
        let (run, is_mine_alone) = match urgent.first() {
            Some(run) => (run.clone(), true),
            // Nothing is shared where peers' bytes are not taken: any more, or because nobody is there who would vouch for them.
            None if !blob.takes_from_peers() || blob.trades.is_empty() => (missing[0].clone(), false),
            None => match self.own_share(&digest, blob, missing, length) {
                Some((run, rank)) => (run, rank == 0),
                // Others see to it.
                None => return,
            },
        };
        // Runs that follow one another need no spreading any more.
        let at_once = is_mine_alone || blob.origin.delivered;
        let delay = if at_once { Duration::ZERO } else { JITTER * self.rng.u32(..1000) / 1000 };
        self.unleased += 1;
        self.transfer(digest, run.start..run.end.min(run.start + length), None, delay);
    }

    /// The missing run that falls to this node, if one does, and how many nodes it falls to before this one: of those for which
    /// it is among the chosen, where it ranks best.
    fn own_share(
        &self,
        digest: &Digest,
        blob: &BlobState,
        missing: &[Range<u32>],
        length: u32,
    ) -> Option<(Range<u32>, usize)> {
        let useless = self.useless(digest);
        let may_fetch = |peer: &PeerId| useless.binary_search(peer).is_err();
        let known =
            blob.known.iter().filter(|(_, known)| !known.far && !known.failed && known.holding != Holding::Complete);
        let near = blob.trades.values().filter(|trade| !trade.far && !blob.known.contains_key(&trade.peer));
        let others: Vec<PeerId> =
            known.map(|(peer, _)| *peer).chain(near.map(|trade| trade.peer)).filter(may_fetch).collect();
        let chosen = self.chosen(digest, blob);
        let mut best: Option<(usize, Range<u32>)> = None;
        for (stretch, run) in stretches(missing, length).take(WINDOW.saturating_mul(chosen).min(WIDEST)) {
            // Who has to fetch all of the blob for any of it does that for every stretch.
            let stretch = if blob.origin.whole_only { 0 } else { stretch };
            let mine = weight(digest, &self.me, stretch);
            let rank = others.iter().filter(|peer| weight(digest, peer, stretch) >= mine).count();
            if rank < best.as_ref().map_or(chosen, |(rank, _)| *rank) {
                best = Some((rank, run));
            }
            if rank == 0 {
                break;
            }
        }
        best.map(|(rank, run)| (run, rank))
    }

    /// To how many nodes a stretch falls.
    fn chosen(&self, digest: &Digest, blob: &BlobState) -> usize {
        // With a discovery that answers, and gives no lease, nobody knows who else has come to this.
        let Some(down) = self.silence.known_since(self.now) else { return usize::MAX };
        let turn = self.last_arrival_besides(digest).unwrap_or_default();
        let since = down.max(blob.origin.fed).max(blob.origin.pause_until).max(turn);
        let rounds = self.now.saturating_sub(since).as_millis() / ROUND.as_millis();
        1 << (2 * rounds.min(8))
    }
}

/// The stretches in which something is missing, each with the first such run in it.
fn stretches(missing: &[Range<u32>], length: u32) -> impl Iterator<Item = (u32, Range<u32>)> {
    let mut last = None;
    let all = missing.iter().flat_map(move |run| {
        let (begin, end) = (run.start, run.end);
        let of = move |stretch: u32| begin.max(stretch * length)..end.min((stretch + 1) * length);
        (begin / length..=(end - 1) / length).map(move |stretch| (stretch, of(stretch)))
    });
    all.filter(move |(stretch, _)| last.replace(*stretch) != Some(*stretch))
}

/// How much a peer weighs against a stretch of a blob: the same to whoever asks.
fn weight(digest: &Digest, peer: &PeerId, stretch: u32) -> u64 {
    let word = |bytes: &[u8]| u64::from_be_bytes(*bytes.first_chunk().unwrap_or(&[0; 8]));
    let seed = word(peer.as_bytes()) ^ word(digest.as_bytes()).rotate_left(17);
    fastrand::Rng::with_seed(seed ^ u64::from(stretch).wrapping_mul(0x9e37_79b9_7f4a_7c15)).u64(..)
}
