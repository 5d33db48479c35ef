//! A download is killed, at every point at which it writes and at random moments: it always goes on from all that it had,
//! and never takes for stored what is not.

use std::path::Path;
use std::time::{Duration, Instant};

use lapwing_evidence::{Evidence, count, seed};
use lapwing_p2p::layout::PieceLayout;
use lapwing_p2p::swarm::Policy;

use crate::download::{Heard, Sent, Sources, copy_tree, stored_bytes};
use crate::points::{Reached, deaths, fast_directory, named, pointless, reached};

const MIB: usize = 1 << 20;
/// Transfers that the tests' tracker lets run at once, and pieces in each.
const ORIGIN_STREAMS: u64 = 8;
const RUN: u64 = 2;

/// Bytes of pieces that may be under way when a process is killed: asked of peers or leased from the origin, and not in the
/// store yet.
fn in_flight(layout: PieceLayout) -> u64 {
    let policy = Policy::default();
    let asked = u64::from(policy.budget_pieces).max(policy.budget_bytes / layout.piece_length());
    (asked + u64::from(policy.overdraft) + ORIGIN_STREAMS * RUN) * layout.piece_length()
}

/// What was sent, and what is there of it: over one download, or over all.
#[derive(Default)]
struct Traffic {
    by_origin: u64,
    by_peers: Vec<u64>,
    /// Most pieces that one kill made come again.
    again: u64,
}

impl Traffic {
    /// Holds one run of a downloader to what it may cost; gives the bytes that are there now, of which `had` were before.
    fn check(&mut self, root: &Path, sources: &Sources, before: &Sent, had: u64, heard: &Heard, at: &str) -> u64 {
        let has = stored_bytes(root, sources, heard);
        assert!(has >= had, "{at}: {had} bytes were there and {has} are left");
        let (now, layout) = (sources.sent(), sources.layout());
        let came = now.total() - before.total();
        let lost = came.saturating_sub(has - had);
        let hedged = heard.hedges * layout.piece_length();
        let most = in_flight(layout) + hedged;
        assert!(
            lost <= most,
            "{at}: {came} bytes came, {} of them are new, and no more than {most} were under way",
            has - had
        );
        if let Some((from_peers, from_origin)) = heard.complete {
            let taken = from_peers + from_origin;
            assert!(taken >= has - had && taken <= has - had + most, "{at}: took in {taken} bytes of {}", has - had);
        } else {
            self.again = self.again.max(lost.div_ceil(layout.piece_length()));
        }
        self.by_origin += now.by_origin - before.by_origin;
        self.by_peers.resize(now.by_peers.len(), 0);
        for (sum, (now, before)) in self.by_peers.iter_mut().zip(now.by_peers.iter().zip(&before.by_peers)) {
            *sum += now - before;
        }
        has
    }

    /// A campaign in which one of the sources gave next to nothing has shown nothing.
    fn assert_both_contributed(&self, downloads: u64, length: u64) {
        let Self { by_origin, by_peers, again } = self;
        eprintln!(
            "{downloads} downloads: {by_origin} bytes from the origin, {by_peers:?} from the peers, at most {again} pieces again after a kill"
        );
        let by_peers: u64 = self.by_peers.iter().sum();
        assert!(self.by_origin + by_peers >= downloads * length, "fewer bytes than the downloads have");
        assert!(self.by_origin >= downloads * length / 5, "the origin gave next to nothing");
        for (peer, &sent) in self.by_peers.iter().enumerate() {
            assert!(sent >= downloads * length / 10, "peer {peer} gave next to nothing");
        }
    }
}

/// A download that runs to its end while it notes at which points it comes by.
async fn points_of(sources: &Sources, root: &Path) -> Reached {
    let log = tempfile::NamedTempFile::new().unwrap();
    let heard = sources.download(root, &[("LAPWING_FAILPOINT_LOG", log.path().to_str().unwrap())]).end().await;
    assert!(heard.complete.is_some(), "{}", heard.status);
    reached(log.path())
}

/// Kills a download at each of the points, and lets it end; it begins with what is in `template`.
async fn kill_at_each(
    sources: &Sources,
    template: &Path,
    points: &[(String, u32)],
    traffic: &mut Traffic,
    evidence: &mut Evidence,
) {
    let length = sources.bytes.len() as u64;
    for (point, count) in points {
        let directory = fast_directory();
        let (root, at) = (directory.path(), format!("{point}:{count}"));
        copy_tree(template, root);
        let nothing = Heard::default();
        let mut had = stored_bytes(root, sources, &nothing);
        let before = sources.sent();
        let heard = sources.download(root, &[("LAPWING_FAILPOINT", &at)]).end().await;
        assert!(heard.was_killed(), "{at} was not reached: {}", heard.status);
        evidence.fault("kill -9 at a write point of a download");
        had = traffic.check(root, sources, &before, had, &heard, &at);
        let before = sources.sent();
        let begun = Instant::now();
        let heard = sources.download(root, &[]).end().await;
        evidence.ended(begun.elapsed(), heard.complete.is_some());
        assert!(heard.complete.is_some(), "{at}: {}", heard.status);
        assert_eq!(traffic.check(root, sources, &before, had, &heard, &at), length, "{at}");
        // Each stored piece was held to what it should be.
        evidence.served_after(length);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_point_of_writing_it_goes_on_from_what_it_had() {
    let sources = Sources::start(6 * MIB).await;
    let (fresh, scratch) = (fast_directory(), fast_directory());
    let mut traffic = Traffic::default();
    let mut evidence = Evidence::new(1, "a download killed at each of its write points");
    let mut points = points_of(&sources, scratch.path()).await;
    evidence.served_before(stored_bytes(scratch.path(), &sources, &Heard::default()));
    let mut places = deaths(&points);
    kill_at_each(&sources, fresh.path(), &places, &mut traffic, &mut evidence).await;
    // Where something was derived before, a line is added.
    let lines = std::fs::read_to_string(scratch.path().join("derived")).unwrap();
    std::fs::write(fresh.path().join("derived"), format!("{}\n", lines.lines().next().unwrap())).unwrap();
    let again = fast_directory();
    copy_tree(fresh.path(), again.path());
    let more = points_of(&sources, again.path()).await;
    let new: Reached = more.into_iter().filter(|(point, _)| points.iter().all(|(known, _)| known != point)).collect();
    kill_at_each(&sources, fresh.path(), &deaths(&new), &mut traffic, &mut evidence).await;
    places.extend(deaths(&new));
    points.extend(new);
    traffic.assert_both_contributed(places.len() as u64, sources.bytes.len() as u64);
    let missed: Vec<_> =
        named("node/derived").into_iter().filter(|named| !points.iter().any(|(point, _)| named.is(point))).collect();
    assert!(missed.is_empty(), "no download comes by {missed:?}");
    evidence.figure("write points of a download", points.len() as f64);
    sources.stop().await;
}

/// What a killed process left is taken up, and that is killed, too.
#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_takes_up_what_was_left_it_loses_nothing_either() {
    let sources = Sources::start(6 * MIB).await;
    let (template, scratch) = (fast_directory(), fast_directory());
    let heard = sources.download(template.path(), &[("LAPWING_FAILPOINT", "journal.noted:45")]).end().await;
    assert!(heard.was_killed());
    let mut evidence = Evidence::new(1, "killed while it takes up what a killed process left");
    evidence.fault("kill -9 at a write point of a download");
    copy_tree(template.path(), scratch.path());
    let mut points = points_of(&sources, scratch.path()).await;
    points.truncate(points.iter().position(|(point, _)| point == "data.writing").unwrap());
    let deaths: Vec<_> = points.into_iter().map(|(point, _)| (point, 1)).collect();
    assert!(deaths.iter().any(|(point, _)| point == "replayed.synced"), "nothing was left to take up: {deaths:?}");
    kill_at_each(&sources, template.path(), &deaths, &mut Traffic::default(), &mut evidence).await;
    sources.stop().await;
}

#[test]
fn whatever_writes_names_a_point_at_which_it_can_be_killed() {
    let pointless = [pointless("store"), pointless("node/derived")].concat();
    assert!(pointless.is_empty(), "without a failpoint: {pointless:?}");
}

/// `LAPWING_TEST_KILLS` is how often; `LAPWING_TEST_RANDOM` repeats the same moments, as far as processes let that be.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_moments_it_goes_on_from_what_it_had() {
    let kills: u32 =
        std::env::var("LAPWING_TEST_KILLS").map_or_else(|_| count(40, 1000), |kills| kills.parse().unwrap());
    let seed = std::env::var("LAPWING_TEST_RANDOM").map_or_else(|_| seed(), |seed| seed.parse().unwrap());
    eprintln!("LAPWING_TEST_RANDOM={seed}");
    let sources = Sources::start(24 * MIB).await;
    let evidence = Evidence::new(1, "a download killed at random moments");
    let mut campaign = Campaign {
        random: fastrand::Rng::with_seed(seed),
        killed: 0,
        moving: 0,
        downloads: 0,
        traffic: Traffic::default(),
        evidence,
    };
    let undisturbed = tempfile::tempdir().unwrap();
    campaign.until_complete(&sources, undisturbed.path(), 0).await;
    let begun = Instant::now();
    while campaign.killed < kills {
        let directory = tempfile::tempdir().unwrap();
        campaign.until_complete(&sources, directory.path(), kills).await;
    }
    let Campaign { killed, moving, downloads, traffic, mut evidence, .. } = campaign;
    evidence.figure("most pieces that one kill made come again", traffic.again as f64);
    evidence.figure("kills while bytes came", moving.into());
    eprintln!("{killed} kills in {:?}, {moving} of them while bytes came", begun.elapsed());
    assert!(moving * 2 >= killed, "{moving} of {killed} kills hit while bytes came: too little to say anything");
    assert!(downloads <= u64::from(kills) + 1, "{killed} kills in {downloads} downloads");
    traffic.assert_both_contributed(downloads, sources.bytes.len() as u64);
    sources.stop().await;
}

struct Campaign {
    random: fastrand::Rng,
    killed: u32,
    /// Kills that came within a moment of the last byte.
    moving: u32,
    downloads: u64,
    traffic: Traffic,
    evidence: Evidence,
}

impl Campaign {
    /// Downloads it once, with kills in between while there are fewer than `limit`: most of them when so much has come, some
    /// after so much time, which may be before the first byte or after the last.
    async fn until_complete(&mut self, sources: &Sources, root: &Path, limit: u32) {
        let length = sources.bytes.len() as u64;
        let mut had = 0;
        self.downloads += 1;
        loop {
            let before = sources.sent();
            let sent = || sources.sent().total() - before.total();
            let begun = Instant::now();
            let (mut more, mut time) = (u64::MAX, Duration::MAX);
            if self.killed < limit {
                match self.random.u8(0..4) {
                    0 => time = Duration::from_millis(self.random.u64(0..1500)),
                    _ => more = self.random.u64(..length / 3),
                }
            }
            let heard = sources.download(root, &[]).kill_when(sent, |sent, run| sent >= more || run >= time).await;
            had = self.traffic.check(root, sources, &before, had, &heard, &format!("kill {}", self.killed));
            if heard.complete.is_some() {
                assert_eq!(had, length);
                // Each stored piece was held to what it should be.
                if self.killed == 0 {
                    self.evidence.served_before(length);
                } else {
                    self.evidence.served_after(length);
                    self.evidence.ended(begun.elapsed(), true);
                }
                return;
            }
            assert!(heard.was_killed(), "the download failed by itself: {}", heard.status);
            self.killed += 1;
            self.evidence.fault("kill -9 at a random moment of a download");
            self.moving += u32::from(heard.moving);
        }
    }
}
