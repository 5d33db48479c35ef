//! What limited a pull: each cell of its time is given to one cause. A pure function of the cells.
//!
//! A cell's cause is the first of these that holds:
//!
//! 1. a speed limit of this node held bytes back for half of it;
//! 2. bytes came, and the processor was busy with decompressing or hashing, on three quarters of its cores;
//! 3. bytes came, and pieces waited for the disk all the time;
//! 4. the client left what it was given for most of the time that its transfers were open;
//! 5. bytes came: whichever source gave more of them was as fast as it could be;
//! 6. no bytes came, and somebody waited: for the registry's answer, a lease, a tracker, metainfo;
//! 7. no bytes came any more: unpacking, mounting, hashing, decompressing, and what else is left to do with them;
//! 8. nothing of the kind: the client did something else.

use lapwing_p2p::timeline::Track;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::merge::Merged;

/// How much of a cell something must have been going on to be its cause.
const HALF: f64 = 0.5;
/// How much of the cores must be busy.
const BUSY_CORES: f64 = 0.75;
/// How much of the time of open transfers the client must have left.
const SLOW_CLIENT: f64 = 0.6;
/// What counts as under way at all.
const SOME: f64 = 0.02;

/// What held a pull up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Cause {
    /// The origin sent as fast as it, or the network to it, could.
    OriginRate,
    /// Other nodes sent as fast as they, or the network to them, could.
    PeersUpload,
    /// A speed limit of this node.
    NodeLimit,
    /// Hashing.
    Verification,
    /// Decompressing.
    Decompression,
    /// The disk.
    Disk,
    /// Whoever pulls took the bytes slowly.
    Client,
    /// The registry had not answered.
    RegistryAnswer,
    /// A tracker had not answered.
    Tracker,
    /// The tracker let others fetch first.
    Lease,
    /// The hashes of the pieces were on their way.
    Metainfo,
    /// Peers or origin were asked, and nothing came.
    NoBytes,
    /// An index was looked for or built.
    Index,
    /// containerd unpacked, or waited for the mount in the place of it.
    Unpacking,
    /// Mounting.
    Mounting,
    /// Nothing was asked of the node.
    Idle,
}

impl Cause {
    /// For people.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::OriginRate => "the origin's rate, or the network to it",
            Self::PeersUpload => "the peers' upload, or the network to them",
            Self::NodeLimit => "this node's speed limit",
            Self::Verification => "hashing on this node",
            Self::Decompression => "decompression on this node",
            Self::Disk => "this node's disk",
            Self::Client => "the client, which took the bytes slowly",
            Self::RegistryAnswer => "waiting for the registry's answer",
            Self::Tracker => "waiting for a tracker's answer",
            Self::Lease => "waiting for a lease, while others fetch",
            Self::Metainfo => "waiting for the hashes of the pieces",
            Self::NoBytes => "waiting for bytes that nobody sent",
            Self::Index => "looking for a layer's index",
            Self::Unpacking => "unpacking",
            Self::Mounting => "mounting",
            Self::Idle => "the client, which asked for nothing",
        }
    }
}

/// A cause and its part of a pull.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Share {
    pub cause: Cause,
    /// What `cause` means.
    pub text: String,
    /// For how long it was what limited the pull.
    pub seconds: f64,
    /// Of the pull's time, from 0 to 1.
    pub share: f64,
}

/// What limited a pull of `length` seconds, the greatest part first.
pub(super) fn limited_by(merged: &Merged, length: f64, cores: usize) -> Vec<Share> {
    let mut shares: Vec<(Cause, f64)> = Vec::new();
    let columns = (length / merged.cell).ceil().max(0.0) as usize;
    for column in 0..columns.min(super::merge::COLUMNS) {
        let width = merged.cell.min(length - column as f64 * merged.cell);
        let cause = Cell { merged, column, fraction: width / merged.cell }.cause(cores as f64);
        match shares.iter_mut().find(|(known, _)| *known == cause) {
            Some((_, seconds)) => *seconds += width,
            None => shares.push((cause, width)),
        }
    }
    shares.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    let share = |(cause, seconds): (Cause, f64)| Share {
        cause,
        text: cause.text().to_owned(),
        seconds,
        share: seconds / length.max(f64::MIN_POSITIVE),
    };
    shares.into_iter().map(share).collect()
}

struct Cell<'a> {
    merged: &'a Merged,
    column: usize,
    /// How much of the cell belongs to the pull.
    fraction: f64,
}

impl Cell<'_> {
    /// How many were under way.
    fn at(&self, track: Track) -> f64 {
        self.merged.lane(track).under_way.get(self.column).copied().unwrap_or_default() / self.fraction.max(1e-9)
    }

    fn bytes(&self, tracks: &[Track]) -> f64 {
        tracks.iter().filter_map(|track| self.merged.lane(*track).bytes_in.get(self.column)).sum()
    }

    fn cause(&self, cores: f64) -> Cause {
        if self.at(Track::Limit) >= HALF {
            return Cause::NodeLimit;
        }
        let origin = self.bytes(&[Track::Origin]);
        let peers = self.bytes(&[Track::Near, Track::Far, Track::Seed]);
        if origin + peers > 0.0 {
            return self.while_bytes_come(origin, peers, cores);
        }
        self.is_slow_client().unwrap_or_else(|| self.while_nothing_comes())
    }

    fn while_bytes_come(&self, origin: f64, peers: f64, cores: f64) -> Cause {
        let (verify, inflate) = (self.at(Track::Verify), self.at(Track::Inflate));
        if verify + inflate >= BUSY_CORES * cores {
            return if inflate > verify { Cause::Decompression } else { Cause::Verification };
        }
        if self.at(Track::Write) >= 1.0 {
            return Cause::Disk;
        }
        self.is_slow_client().unwrap_or(if origin >= peers { Cause::OriginRate } else { Cause::PeersUpload })
    }

    fn is_slow_client(&self) -> Option<Cause> {
        let (client, transfer) = (self.at(Track::Client), self.at(Track::Transfer));
        (transfer > SOME && client >= SLOW_CLIENT * transfer).then_some(Cause::Client)
    }

    /// Whichever waits most of what the next bytes depend on; else what is done with those that came.
    fn while_nothing_comes(&self) -> Cause {
        let waits = [
            (self.at(Track::Authorize) + self.at(Track::Resolve) + self.at(Track::OriginAnswer), Cause::RegistryAnswer),
            (self.at(Track::Lease), Cause::Lease),
            (self.at(Track::Find), Cause::Tracker),
            (self.at(Track::Metainfo), Cause::Metainfo),
        ];
        if let Some(cause) = greatest(&waits) {
            return cause;
        }
        let work = [
            (self.at(Track::Inflate), Cause::Decompression),
            (self.at(Track::Verify), Cause::Verification),
            (self.at(Track::Write), Cause::Disk),
        ];
        // Work within a longer step is what that step waits for, if it takes most of it.
        let steps = [
            (self.at(Track::Mount), Cause::Mounting),
            (self.at(Track::Index), Cause::Index),
            (self.at(Track::Unpack), Cause::Unpacking),
        ];
        let done = |least: f64| greatest(&work.map(|(much, cause)| (if much >= least { much } else { 0.0 }, cause)));
        let waiting = (self.at(Track::Transfer) + self.at(Track::Fault) > SOME).then_some(Cause::NoBytes);
        done(HALF).or_else(|| greatest(&steps)).or_else(|| done(SOME)).or(waiting).unwrap_or(Cause::Idle)
    }
}

fn greatest(candidates: &[(f64, Cause)]) -> Option<Cause> {
    let most = candidates.iter().filter(|(much, _)| *much >= SOME).max_by(|(one, _), (other, _)| one.total_cmp(other));
    most.map(|(_, cause)| *cause)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use lapwing_p2p::timeline::Timeline;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn begun() -> (std::sync::Arc<Timeline>, impl Fn(u64) -> Instant) {
        let began = Instant::now() - Duration::from_secs(100);
        (Timeline::begin_at(began), move |ms| began + Duration::from_millis(ms))
    }

    /// Ten seconds; bytes are given by cell afterwards, since those of a timeline come when they come.
    fn merged(timeline: &Timeline, bytes: &[(Track, u64)]) -> Merged {
        let recorded = timeline.recorded();
        let mut merged = Merged::of(&[(Duration::ZERO, &recorded)], Duration::from_secs(10));
        for &(track, bytes) in bytes {
            merged.lanes[track as usize].bytes_in = vec![bytes as f64; super::super::merge::COLUMNS];
        }
        merged
    }

    fn main_cause(timeline: &Timeline, bytes: &[(Track, u64)]) -> Cause {
        let shares = limited_by(&merged(timeline, bytes), 10.0, 2);
        let total: f64 = shares.iter().map(|share| share.share).sum();
        assert!((total - 1.0).abs() < 1e-6, "{shares:?}");
        shares[0].cause
    }

    #[test]
    fn whoever_gives_most_is_what_limits_a_pull_that_waits_for_nothing_else() {
        let (timeline, at) = begun();
        timeline.add(Track::Transfer, at(0), at(10_000));
        timeline.add(Track::Verify, at(0), at(3_000));
        assert_eq!(main_cause(&timeline, &[(Track::Origin, 3 * MIB), (Track::Near, MIB)]), Cause::OriginRate);
        let peers = [(Track::Origin, MIB), (Track::Near, MIB), (Track::Seed, MIB)];
        assert_eq!(main_cause(&timeline, &peers), Cause::PeersUpload);
        assert_eq!(main_cause(&timeline, &[]), Cause::NoBytes);
    }

    #[test]
    fn this_node_limits_what_it_holds_back() {
        let origin = [(Track::Origin, MIB)];
        let busy = |track, at_once: u64, share: u64| {
            let (timeline, at) = begun();
            timeline.add(Track::Transfer, at(0), at(10_000));
            for _ in 0..at_once {
                for second in 0..10 {
                    timeline.add(track, at(second * 1000), at(second * 1000 + share * 10));
                }
            }
            main_cause(&timeline, &origin)
        };
        assert_eq!(busy(Track::Limit, 1, 100), Cause::NodeLimit);
        assert_eq!(busy(Track::Verify, 2, 100), Cause::Verification);
        assert_eq!(busy(Track::Verify, 1, 100), Cause::OriginRate, "one of two cores");
        assert_eq!(busy(Track::Inflate, 2, 100), Cause::Decompression);
        assert_eq!(busy(Track::Write, 2, 100), Cause::Disk);
        assert_eq!(busy(Track::Client, 1, 100), Cause::Client);
        assert_eq!(busy(Track::Lease, 1, 100), Cause::OriginRate, "bytes come meanwhile");
    }

    #[test]
    fn what_is_waited_for_is_named() {
        for (track, cause) in [
            (Track::Resolve, Cause::RegistryAnswer),
            (Track::Authorize, Cause::RegistryAnswer),
            (Track::OriginAnswer, Cause::RegistryAnswer),
            (Track::Lease, Cause::Lease),
            (Track::Find, Cause::Tracker),
            (Track::Metainfo, Cause::Metainfo),
            (Track::Mount, Cause::Mounting),
            (Track::Unpack, Cause::Unpacking),
            (Track::Index, Cause::Index),
            (Track::Inflate, Cause::Decompression),
            (Track::Verify, Cause::Verification),
        ] {
            let (timeline, at) = begun();
            timeline.add(track, at(0), at(9_000));
            timeline.add(Track::Transfer, at(0), at(10_000));
            let shares = limited_by(&merged(&timeline, &[]), 10.0, 2);
            assert_eq!(shares[0].cause, cause);
            assert!((shares[0].seconds - 9.0).abs() < 0.2, "{track:?}: {shares:?}");
        }
    }

    #[test]
    fn work_within_unpacking_is_named_if_it_is_most_of_it() {
        let unpacking = |inflating: u64| {
            let (timeline, at) = begun();
            timeline.add(Track::Unpack, at(0), at(10_000));
            (0..100).for_each(|n| timeline.add(Track::Inflate, at(n * 100), at(n * 100 + inflating)));
            main_cause(&timeline, &[])
        };
        assert_eq!(unpacking(80), Cause::Decompression);
        assert_eq!(unpacking(20), Cause::Unpacking);
    }

    #[test]
    fn nothing_at_all_is_the_clients_doing() {
        let (timeline, _) = begun();
        assert_eq!(main_cause(&timeline, &[]), Cause::Idle);
        assert_eq!(limited_by(&merged(&timeline, &[]), 0.0, 2), []);
    }

    #[test]
    fn a_cell_that_the_pull_ends_in_counts_as_far_as_it_goes() {
        let (timeline, at) = begun();
        timeline.add(Track::Unpack, at(0), at(1_000));
        let shares = limited_by(&merged(&timeline, &[]), 0.15, 2);
        assert_eq!(shares.len(), 1, "{shares:?}");
        assert!((shares[0].seconds - 0.15).abs() < 1e-9 && shares[0].cause == Cause::Unpacking, "{shares:?}");
    }
}
