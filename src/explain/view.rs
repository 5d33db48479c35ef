//! The form in which a pull is told: JSON of the admin listener, read by `lapwing explain` and the dashboard.

use std::time::{Duration, Instant, SystemTime};

use lapwing_p2p::digest::Digest;
use lapwing_p2p::timeline::{Recorded, Track};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits::{Share, limited_by};
use super::merge::{Cells, Merged};
use super::pulls::{Pull, Pulls};

/// What came from where, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Bytes {
    /// The registry, web server or object store.
    pub origin: u64,
    /// Nodes of this zone.
    pub peers_near: u64,
    /// Nodes of other zones.
    pub peers_far: u64,
    /// Seeds.
    pub seeds: u64,
    /// What was here when the pull began.
    pub here_before: u64,
}

impl Bytes {
    /// What came during the pull.
    pub(crate) const fn came(&self) -> u64 {
        self.origin + self.peers_near + self.peers_far + self.seeds
    }

    const fn plus(self, other: &Self) -> Self {
        Self {
            origin: self.origin + other.origin,
            peers_near: self.peers_near + other.peers_near,
            peers_far: self.peers_far + other.peers_far,
            seeds: self.seeds + other.seeds,
            here_before: self.here_before + other.here_before,
        }
    }

    fn of(recorded: &Recorded) -> Self {
        let bytes = |track| recorded.lane(track).bytes;
        Self {
            origin: bytes(Track::Origin),
            peers_near: bytes(Track::Near),
            peers_far: bytes(Track::Far),
            seeds: bytes(Track::Seed),
            here_before: recorded.held.unwrap_or_default(),
        }
    }
}

/// One pull, in short.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct PullSummary {
    /// The image, or the digest of a blob that was asked for alone.
    pub name: String,
    /// Digest of the image's manifest, or of the blob.
    pub digest: String,
    /// `image` or `blob`.
    pub kind: String,
    /// When it began, in milliseconds of Unix time.
    pub began_unix_ms: u64,
    /// How long ago that was.
    pub age_seconds: f64,
    /// How long it took, or takes until now.
    pub seconds: f64,
    /// `running` or `ended`.
    pub state: String,
    /// Length of all its blobs, as far as they are known.
    pub length_bytes: u64,
    pub bytes: Bytes,
    /// Reads of mounted layers that had to wait.
    pub faults: u64,
    /// How long they waited, all together.
    pub faults_seconds: f64,
    /// What limited it, the greatest part first.
    pub limited_by: Vec<Share>,
}

/// One pull.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct PullState {
    #[serde(flatten)]
    pub summary: PullSummary,
    /// How long a cell is.
    pub cell_seconds: f64,
    /// What was done when.
    pub phases: Vec<Phase>,
    /// In the order in which they were asked for.
    pub blobs: Vec<BlobPull>,
}

/// One kind of thing that was done.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Phase {
    /// What was done, as `lapwing explain` prints it.
    pub name: String,
    /// How often.
    pub count: u64,
    /// From the beginning of the pull; the same for `last_seconds`.
    pub first_seconds: f64,
    /// When the last of it ended, from the beginning of the pull.
    pub last_seconds: f64,
    /// For how long it was done at all.
    pub seconds: f64,
    /// How long all of them took together.
    pub busy_seconds: f64,
    /// What was moved or worked on.
    pub bytes: u64,
    /// How many were under way on average, by cell.
    pub under_way: Vec<f64>,
    /// ... by cell.
    pub bytes_in: Vec<u64>,
}

/// One blob of a pull.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct BlobPull {
    /// The blob.
    pub digest: String,
    /// `config`, `layer`, or `blob`.
    pub kind: String,
    /// Its whole length; 0 if it is not known.
    pub length_bytes: u64,
    pub bytes: Bytes,
    /// When all of it was here and matched its digest, from the beginning of the pull.
    pub complete_seconds: Option<f64>,
    /// From the beginning of the pull until the last that was done for it; the same for `ended_seconds`.
    pub began_seconds: Option<f64>,
    /// See `began_seconds`.
    pub ended_seconds: f64,
    /// `here` (nothing was fetched), `fetching`, `fetched`, `mounted`, or `asked` (nothing came yet).
    pub state: String,
    /// Reads of it, mounted, that had to wait.
    pub faults: u64,
    /// How long they waited, all together.
    pub faults_seconds: f64,
}

/// What a pull is put together from.
struct Piece {
    digest: Digest,
    kind: &'static str,
    length: u64,
    recorded: Recorded,
}

/// All that is remembered, the newest first: images, and blobs that belong to none.
pub(crate) fn list(pulls: &Pulls) -> Vec<PullSummary> {
    let images = pulls.all();
    let claimed: std::collections::HashSet<_> =
        images.iter().flat_map(|pull| &pull.parts).map(|part| std::sync::Arc::as_ptr(&part.timeline)).collect();
    let mut all: Vec<_> = images.iter().map(|pull| image(pull).summary).collect();
    for (digest, timeline) in pulls.timelines().all() {
        let is_alone = !claimed.contains(&std::sync::Arc::as_ptr(&timeline));
        let recorded = timeline.recorded();
        // Indexes and metainfo are blobs too, which no client asks for.
        if is_alone && recorded.lane(Track::Transfer).count > 0 {
            all.push(blob(digest, recorded).summary);
        }
    }
    all.sort_by_key(|pull| std::cmp::Reverse(pull.began_unix_ms));
    all
}

/// The newest pull of an image or blob.
pub(crate) fn find(pulls: &Pulls, name: &str) -> Option<PullState> {
    if let Some(pull) = pulls.of_image(name) {
        return Some(image(&pull));
    }
    blob_named(pulls, name)
}

/// The same for what cannot be taken back: the names that may be meant if there are several.
pub(crate) fn find_single(pulls: &Pulls, name: &str) -> Result<Option<PullState>, Vec<String>> {
    match pulls.single(name) {
        Ok(Some(pull)) => Ok(Some(image(&pull))),
        Ok(None) => Ok(blob_named(pulls, name)),
        Err(ambiguous) => Err(ambiguous.names),
    }
}

fn blob_named(pulls: &Pulls, name: &str) -> Option<PullState> {
    let digest = name.parse::<Digest>().ok()?;
    pulls.timelines().get(&digest).map(|timeline| blob(digest, timeline.recorded()))
}

fn image(pull: &Pull) -> PullState {
    let own = pull.timeline.recorded();
    let piece = |part: &super::pulls::Part| Piece {
        digest: part.digest,
        kind: if part.is_config { "config" } else { "layer" },
        length: part.length,
        recorded: part.timeline.recorded(),
    };
    tell(pull.name(), pull.manifest, "image", Some(&own), &pull.parts.iter().map(piece).collect::<Vec<_>>())
}

fn blob(digest: Digest, recorded: Recorded) -> PullState {
    let piece = Piece { digest, kind: "blob", length: recorded.length, recorded };
    tell(digest.to_string(), digest, "blob", None, &[piece])
}

/// When the pull ended, from its own beginning.
fn end(recorded: &Recorded) -> Duration {
    if recorded.active {
        return recorded.age;
    }
    let came =
        || recorded.complete.unwrap_or_else(|| recorded.lanes.iter().map(|lane| lane.last).max().unwrap_or_default());
    recorded.pulled.unwrap_or_else(came)
}

fn tell(name: String, digest: Digest, kind: &str, own: Option<&Recorded>, pieces: &[Piece]) -> PullState {
    let all = || own.into_iter().chain(pieces.iter().map(|piece| &piece.recorded));
    let began = own.map_or_else(|| all().map(|one| one.at).min().unwrap_or_else(Instant::now), |own| own.at);
    let offset = |recorded: &Recorded| recorded.at.saturating_duration_since(began);
    // What an image's blobs were pulled for before is another pull's.
    let until = all().filter(|one| one.at >= began).map(|one| offset(one) + end(one)).max().unwrap_or_default();
    let shown = all().map(|one| {
        let in_use = [Track::Fault].map(|track| one.lane(track)).into_iter().filter(|lane| lane.count > 0);
        offset(one) + in_use.map(|lane| lane.last).max().unwrap_or_default()
    });
    let shown = shown.max().unwrap_or_default().max(until);
    let timelines: Vec<_> = all().filter(|one| one.at >= began).map(|one| (offset(one), one)).collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let limited_by = limited_by(&Merged::of(&timelines, until), until.as_secs_f64(), cores);
    let merged = Merged::of(&timelines, shown);
    let clock = own.or_else(|| pieces.first().map(|piece| &piece.recorded)).map(|one| one.began);
    let blobs: Vec<_> = pieces.iter().map(|piece| blob_pull(piece, began)).collect();
    let faults = merged.lane(Track::Fault);
    let is_running = all().any(|one| one.active);
    let summary = PullSummary {
        name,
        digest: digest.to_string(),
        kind: kind.to_owned(),
        began_unix_ms: clock.and_then(unix_ms).unwrap_or_default(),
        age_seconds: began.elapsed().as_secs_f64(),
        seconds: until.as_secs_f64(),
        state: if is_running { "running" } else { "ended" }.to_owned(),
        length_bytes: blobs.iter().map(|blob| blob.length_bytes).sum(),
        bytes: blobs.iter().fold(Bytes::default(), |sum, blob| sum.plus(&blob.bytes)),
        faults: faults.count,
        faults_seconds: faults.busy,
        limited_by,
    };
    let phases = Track::ALL.iter().zip(&merged.lanes).filter_map(|(track, cells)| phase(*track, cells, merged.cell));
    PullState { summary, cell_seconds: merged.cell, phases: phases.collect(), blobs }
}

fn phase(track: Track, cells: &Cells, cell: f64) -> Option<Phase> {
    if cells.count == 0 && cells.bytes == 0 {
        return None;
    }
    Some(Phase {
        name: track.name().to_owned(),
        count: cells.count,
        first_seconds: cells.first.unwrap_or_default(),
        last_seconds: cells.last,
        seconds: cells.covered(cell),
        busy_seconds: cells.busy,
        bytes: cells.bytes,
        under_way: cells.under_way.iter().map(|much| (much * 1000.0).round() / 1000.0).collect(),
        bytes_in: cells.bytes_in.iter().map(|bytes| bytes.round() as u64).collect(),
    })
}

fn blob_pull(piece: &Piece, began: Instant) -> BlobPull {
    let Piece { digest, kind, length, recorded } = piece;
    let offset = recorded.at.saturating_duration_since(began);
    let since = |time: Duration| (offset + time).as_secs_f64();
    let (bytes, faults) = (Bytes::of(recorded), recorded.lane(Track::Fault));
    let first = recorded.lanes.iter().filter_map(|lane| lane.first).min();
    let is_here = recorded.complete.is_some() || recorded.held.is_some_and(|held| held >= *length);
    let state = match () {
        () if recorded.lane(Track::Mount).count > 0 => "mounted",
        () if is_here && bytes.came() == 0 => "here",
        () if is_here => "fetched",
        () if bytes.came() > 0 => "fetching",
        () => "asked",
    };
    BlobPull {
        digest: digest.to_string(),
        kind: (*kind).to_owned(),
        length_bytes: *length,
        bytes,
        complete_seconds: recorded.complete.map(since),
        began_seconds: first.map(since),
        ended_seconds: since(end(recorded)),
        state: state.to_owned(),
        faults: faults.count,
        faults_seconds: faults.busy.as_secs_f64(),
    }
}

fn unix_ms(time: SystemTime) -> Option<u64> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lapwing_p2p::timeline::Timeline;

    use super::*;

    fn tenths(timeline: &Timeline, track: Track, from: u64, to: u64, began: Instant) {
        timeline.add(track, began + Duration::from_millis(from * 100), began + Duration::from_millis(to * 100));
    }

    #[test]
    fn an_images_blobs_are_told_on_one_axis() {
        let began = Instant::now() - Duration::from_secs(60);
        let own = Timeline::begin_at(began);
        tenths(&own, Track::Resolve, 0, 5, began);
        let layer = Timeline::begin_at(began + Duration::from_secs(1));
        layer.opened(100, 10);
        tenths(&layer, Track::Transfer, 10, 30, began);
        tenths(&layer, Track::Fault, 100, 110, began);
        layer.bytes(Track::Near, 90);
        let before = Timeline::begin_at(began - Duration::from_secs(10));
        before.opened(50, 50);
        tenths(&before, Track::Unpack, 0, 40, began - Duration::from_secs(10));
        let pieces = [("l", &layer), ("b", &before)].map(|(name, timeline): (&str, &Arc<Timeline>)| Piece {
            digest: Digest::of(name.as_bytes()),
            kind: "layer",
            length: timeline.recorded().length,
            recorded: timeline.recorded(),
        });
        let told = tell("x".into(), Digest::of(b"x"), "image", Some(&own.recorded()), &pieces);
        let summary = &told.summary;
        assert!((summary.seconds - 60.0).abs() > 1.0 && (summary.seconds - 3.0).abs() < 0.01, "{}", summary.seconds);
        assert_eq!((summary.length_bytes, summary.bytes.peers_near, summary.bytes.here_before), (150, 90, 60));
        assert_eq!((summary.faults, summary.state.as_str()), (1, "ended"));
        let phases: Vec<_> = told.phases.iter().map(|phase| phase.name.as_str()).collect();
        assert_eq!(phases, ["resolve", "peers_near", "fault", "transfer"], "what was before is another pull's");
        assert_eq!(told.blobs.iter().map(|blob| blob.state.as_str()).collect::<Vec<_>>(), ["fetching", "here"]);
        let transfer = told.phases.last().unwrap();
        assert!((transfer.first_seconds - 1.0).abs() < 0.01 && (transfer.seconds - 2.0).abs() < 0.1, "{transfer:?}");
    }
}
