//! A download is killed, at every point at which it writes and at random moments: it always goes on from all that it had,
//! and never takes for stored what is not.

use std::path::Path;

use crate::download::{Sources, stored_bytes};

const MIB: usize = 1 << 20;
/// Bytes that may be on their way when a process is killed: requests to one peer, two transfers from the origin with
/// their socket buffers, pieces that are being checked and written.
const IN_FLIGHT: u64 = 3 * MIB as u64;

/// Where to die, and when reaching it for which time.
const POINTS: [(&str, u32); 41] = [
    ("blob.created", 1),
    ("data.created", 1),
    ("data.sized", 1),
    ("journal.created", 1),
    ("data.writing", 1),
    ("data.writing", 60),
    ("data.half", 1),
    ("data.half", 50),
    ("data.written", 1),
    ("data.written", 50),
    ("journal.half", 1),
    ("journal.half", 40),
    ("journal.noted", 1),
    ("journal.noted", 70),
    ("piece.shown", 1),
    ("piece.shown", 80),
    ("flush.begun", 1),
    ("flush.begun", 3),
    ("data.synced", 1),
    ("data.synced", 3),
    ("pieces.opened", 1),
    ("pieces.opened", 3),
    ("pieces.half", 1),
    ("pieces.half", 3),
    ("pieces.written", 1),
    ("pieces.written", 3),
    ("pieces.synced", 1),
    ("pieces.synced", 3),
    ("pieces.renamed", 1),
    ("pieces.renamed", 3),
    ("pieces.durable", 1),
    ("pieces.durable", 3),
    ("verified.set", 1),
    ("verified.set", 2),
    ("journal.ending", 1),
    ("metainfo.opened", 1),
    ("metainfo.half", 1),
    ("metainfo.written", 1),
    ("metainfo.synced", 1),
    ("metainfo.renamed", 1),
    ("metainfo.durable", 1),
];

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_point_of_writing_it_goes_on_from_what_it_had() {
    let sources = Sources::start(6 * MIB).await;
    let length = sources.bytes.len() as u64;
    for (point, count) in POINTS {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let sent = sources.sent();
        let heard = sources.download(root, &[("LAPWING_FAILPOINT", &format!("{point}:{count}"))]).end().await;
        assert!(heard.was_killed(), "{point}:{count} was not reached: {}", heard.status);
        let had = stored_bytes(root, &sources, &heard);
        let gone = sources.sent() - sent;
        assert!(gone <= had + IN_FLIGHT, "{point}:{count}: {gone} bytes came and {had} are there");
        let heard = sources.download(root, &[]).end().await;
        assert!(heard.complete, "{point}:{count}: {}", heard.status);
        assert_eq!(stored_bytes(root, &sources, &heard), length, "{point}:{count}");
        let all = sources.sent() - sent;
        assert!(all <= length + 2 * IN_FLIGHT, "{point}:{count}: {all} bytes for {length}");
    }
    sources.stop().await;
}

/// `LAPWING_TEST_KILLS` is how often; `LAPWING_TEST_RANDOM` repeats the same moments, as far as processes let that be.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_moments_it_goes_on_from_what_it_had() {
    let kills: u32 = std::env::var("LAPWING_TEST_KILLS").map_or(40, |kills| kills.parse().unwrap());
    let seed = std::env::var("LAPWING_TEST_RANDOM").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    eprintln!("LAPWING_TEST_RANDOM={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let sources = Sources::start(24 * MIB).await;
    let length = sources.bytes.len() as u64;
    let (mut killed, mut complete) = (0, 0);
    while killed < kills {
        let directory = tempfile::tempdir().unwrap();
        complete += 1;
        killed += until_complete(&sources, directory.path(), &mut random, kills - killed).await;
    }
    assert!(complete <= kills, "{killed} kills in {complete} downloads of {length} bytes");
    sources.stop().await;
}

/// Downloads it once, with kills in between, at most so many; gives how many there were.
async fn until_complete(sources: &Sources, root: &Path, random: &mut fastrand::Rng, limit: u32) -> u32 {
    let length = sources.bytes.len() as u64;
    let (mut killed, mut had) = (0, 0);
    loop {
        let sent = sources.sent();
        let more = if killed < limit { random.u64(..length / 3) } else { u64::MAX };
        let heard = sources.download(root, &[]).kill_when(|| sources.sent() - sent >= more).await;
        let has = stored_bytes(root, sources, &heard);
        let came = sources.sent() - sent;
        assert!(has >= had, "{had} bytes were there and {has} are left");
        assert!(came <= has - had + IN_FLIGHT, "{came} bytes came and {} are new", has - had);
        had = has;
        if heard.complete {
            assert_eq!(has, length);
            return killed;
        }
        assert!(heard.was_killed(), "the download failed by itself: {}", heard.status);
        killed += 1;
    }
}
