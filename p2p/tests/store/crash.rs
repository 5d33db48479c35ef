//! A process that writes into the chunk store is killed, or the machine loses power, again and again: what a set bit
//! promises stays true, and nothing that was flushed is lost. It is also killed at every point at which the store writes.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Instant;

use lapwing_evidence::{Evidence, count};
use lapwing_p2p::layout::PieceIndex;
use lapwing_p2p::store::foreign::{Ledger, Stamp};
use lapwing_p2p::store::{ChunkStore, StoreConfig, StoredBlob};

use crate::mounts::Mount;
use crate::points::{deaths, fast_directory, named, reached};
use crate::reference::{Reference, random};

const ROOT: &str = "LAPWING_TEST_STORE_ROOT";
const SEED: &str = "LAPWING_TEST_SEED";
const LENGTH: usize = (7 << 20) + 12_345;

/// Not a test of its own: the process that is killed. Says on standard output what it was promised.
#[test]
fn writer() {
    let Ok(root) = std::env::var(ROOT) else { return };
    let mut random = fastrand::Rng::with_seed(std::env::var(SEED).unwrap().parse().unwrap());
    let store = ChunkStore::open(Path::new(&root), StoreConfig::default()).unwrap();
    let (reference, passer_by) = (Reference::new(1, LENGTH), Reference::new(2, 300_000));
    let blob = store.open_blob(&reference.digest, LENGTH as u64).unwrap();
    let ledger = Ledger::load(Path::new(&root));
    let mut say = std::io::stdout();
    loop {
        let note = random.u32(..);
        writeln!(say, "\nnoting {note}").unwrap();
        ledger.note(reference.digest, stamp(note)).unwrap();
        writeln!(say, "\nnoted {note}").unwrap();
        let count = blob.layout().piece_count();
        let some = (0..random.u32(1..12)).map(|_| random.u32(0..count)).collect::<Vec<_>>();
        let whole = (0..count).filter(|_| random.u8(..) > 0).collect();
        for piece in if random.u8(0..8) == 0 { whole } else { some } {
            let piece = PieceIndex(piece);
            blob.write_piece(piece, reference.piece(piece)).unwrap();
        }
        // What is there before the flush begins is what the flush promises.
        let have = blob.have();
        blob.flush().unwrap();
        writeln!(say, "\nflushed {}", have.iter().map(|piece| format!("{} ", piece.0)).collect::<String>()).unwrap();
        if have.is_full() {
            blob.verify().unwrap();
            writeln!(say, "\nverified").unwrap();
        }
        if random.u8(..) < 40 {
            store.insert(&passer_by.digest, &passer_by.bytes).unwrap();
            assert!(store.remove(&passer_by.digest).unwrap());
        }
        if have.is_full() || random.u8(..) < 40 {
            drop_some(&blob, &reference, &mut random, &mut say);
        }
    }
}

fn stamp(note: u32) -> Stamp {
    Stamp { device: 1, inode: note.into(), length: LENGTH as u64, modified_ns: 1_700_000_000_000_000_000 }
}

/// Takes some pieces back, and leaves rubbish where they were, as a lying peer would have.
fn drop_some(blob: &Arc<StoredBlob>, reference: &Reference, random: &mut fastrand::Rng, say: &mut std::io::Stdout) {
    let count = blob.layout().piece_count();
    let pieces: Vec<_> = (0..random.u32(1..count)).map(|_| PieceIndex(random.u32(0..count))).collect();
    let names: String = pieces.iter().map(|piece| format!("{} ", piece.0)).collect();
    writeln!(say, "\ndropping {names}").unwrap();
    blob.drop_pieces(&pieces).unwrap();
    for &piece in &pieces {
        // Written as a piece, never flushed, dropped again: until then it may outlive the process, and from then on it must not.
        blob.write_piece(piece, &rubbish(reference, piece)).unwrap();
    }
    blob.drop_pieces(&pieces).unwrap();
    writeln!(say, "\ndropped").unwrap();
}

fn rubbish(reference: &Reference, piece: PieceIndex) -> Vec<u8> {
    reference.piece(piece).iter().map(|byte| !byte).collect()
}

/// What the writer was promised, as far as it came to say so.
#[derive(Default)]
struct Promises {
    there: BTreeSet<u32>,
    /// Where rubbish is being written and dropped.
    in_doubt: BTreeSet<u32>,
    verified: bool,
    flushes: usize,
    /// What the list of verified foreign files says, or was about to.
    noting: Option<u32>,
    noted: Option<u32>,
}

impl Promises {
    fn hear(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        let event = words.next();
        let pieces = words.map(|word| word.parse::<u32>());
        match event {
            Some("flushed") => {
                self.there.extend(pieces.map(Result::unwrap));
                self.flushes += 1;
            }
            Some("dropping") => {
                for piece in pieces.map(Result::unwrap) {
                    self.there.remove(&piece);
                    self.in_doubt.insert(piece);
                }
                self.verified = false;
            }
            Some("dropped") => self.in_doubt.clear(),
            Some("verified") => self.verified = true,
            Some("noting") => self.noting = pieces.map(Result::unwrap).next(),
            Some("noted") => self.noted = pieces.map(Result::unwrap).next(),
            _ => {}
        }
    }
}

fn start_writer(root: &Path, seed: u64, errors: Stdio, variable: (&str, &str)) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::writer", "--nocapture", "--test-threads=1"])
        .env(ROOT, root)
        .env(SEED, seed.to_string())
        .env(variable.0, variable.1)
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

const NONE: (&str, &str) = ("LAPWING_TEST_NOTHING", "");
const KILL: &str = "LAPWING_FAILPOINT";

/// Lets the writer work until it dies by itself, and hears all that it says; false if it is still alive after many lines.
fn hear_to_the_end(root: &Path, random: &mut fastrand::Rng, promises: &mut Promises, variable: (&str, &str)) -> bool {
    const MANY: u32 = 2000;
    let (mut child, mut output) = start_writer(root, random.u64(..), Stdio::inherit(), variable);
    let mut line = String::new();
    let mut lines = 0;
    while output.read_line(&mut line).unwrap() > 0 {
        if line.ends_with('\n') {
            promises.hear(&line);
        }
        line.clear();
        lines += 1;
        if lines == MANY {
            child.kill().unwrap();
        }
    }
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(9), "the writer failed by itself: {status}");
    lines < MANY
}

/// Lets the writer work until it has said some lines and a little longer, then does `end`, and hears the rest.
fn run_writer(
    root: &Path,
    random: &mut fastrand::Rng,
    promises: &mut Promises,
    errors: Stdio,
    end: impl FnOnce(),
) -> ExitStatus {
    let (mut child, mut output) = start_writer(root, random.u64(..), errors, NONE);
    let mut line = String::new();
    let mut hear = |output: &mut BufReader<ChildStdout>| {
        line.clear();
        let more = output.read_line(&mut line).unwrap() > 0;
        // A line cut off by the end of the writer says nothing.
        if line.ends_with('\n') {
            promises.hear(&line);
        }
        more
    };
    for _ in 0..random.u32(0..60) {
        assert!(hear(&mut output), "the writer ended by itself");
    }
    for _ in 0..random.u32(0..200_000) {
        std::hint::spin_loop();
    }
    end();
    child.kill().unwrap();
    while hear(&mut output) {}
    child.wait().unwrap()
}

/// Every set piece has the bytes that were written. What was rubbish is taken back, as whoever finds it out would do. Gives how many bytes
/// were held to what was written.
fn check(root: &Path, reference: &Reference, promises: &mut Promises) -> u64 {
    let in_doubt = std::mem::take(&mut promises.in_doubt);
    let store = ChunkStore::open(root, StoreConfig::default()).unwrap();
    let Some(blob) = store.get(&reference.digest) else {
        assert!(promises.there.is_empty(), "lost {:?}", promises.there);
        return 0;
    };
    let have: BTreeSet<u32> = blob.have().iter().map(|piece| piece.0).collect();
    let (mut spoilt, mut read) = (Vec::new(), 0);
    for &piece in &have {
        let (doubtful, piece) = (in_doubt.contains(&piece), PieceIndex(piece));
        let bytes = blob.read_piece(piece).unwrap();
        read += bytes.len() as u64;
        if bytes != reference.piece(piece) {
            assert!(doubtful && bytes == rubbish(reference, piece), "{piece:?} is set and wrong");
            spoilt.push(piece);
        }
    }
    let lost: Vec<_> = promises.there.difference(&have).collect();
    assert!(lost.is_empty(), "flushed and lost: {lost:?}");
    assert!(!promises.verified || blob.is_verified());
    assert!(!blob.is_verified() || blob.is_complete());
    let all = store.list();
    assert_eq!(store.used_bytes(), all.iter().map(|blob| blob.have_bytes).sum::<u64>());
    for other in all.iter().filter(|other| other.digest != reference.digest && other.verified) {
        store.get(&other.digest).unwrap().verify().unwrap();
    }
    if !spoilt.is_empty() {
        blob.drop_pieces(&spoilt).unwrap();
    }
    read
}

#[test]
fn a_killed_writer_leaves_no_lie_and_loses_nothing_flushed() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let reference = Reference::new(1, LENGTH);
    let mut random = random();
    let mut promises = Promises::default();
    let mut evidence = Evidence::new(1, "a process that writes into the store killed at random moments");
    let rounds = count(80, 300);
    for _ in 0..rounds {
        let status = run_writer(&root, &mut random, &mut promises, Stdio::inherit(), || {});
        assert_eq!(status.signal(), Some(9), "the writer failed by itself: {status}");
        evidence.fault("kill -9 at a random moment of the store");
        let begun = Instant::now();
        let read = check(&root, &reference, &mut promises);
        evidence.ended(begun.elapsed(), true);
        evidence.served_after(read);
    }
    assert!(promises.flushes > rounds as usize, "only {} flushes: nothing was tried", promises.flushes);
}

/// Leaves a piece in the journal and not in the bitmap, which is no rubbish.
fn leave_unflushed(root: &Path, reference: &Reference, random: &mut fastrand::Rng, promises: &mut Promises) {
    loop {
        assert!(hear_to_the_end(root, random, promises, (KILL, "journal.noted:1")));
        if promises.in_doubt.is_empty() {
            return;
        }
        check(root, reference, promises);
    }
}

/// The end of the data file is gone, and with it the last piece.
fn cut_short(root: &Path, reference: &Reference, promises: &mut Promises) {
    let hex = reference.digest.hex();
    let data = root.join("blobs/sha256").join(&hex[..2]).join(hex).join("data");
    std::fs::File::options().write(true).open(data).unwrap().set_len(LENGTH as u64 - 1).unwrap();
    promises.there.remove(&(reference.layout.piece_count() - 1));
    promises.verified = false;
}

#[test]
fn a_writer_killed_at_any_point_leaves_no_lie_and_loses_nothing_flushed() {
    let directory = fast_directory();
    let (root, log) = (directory.path().join("store"), directory.path().join("log"));
    let reference = Reference::new(1, LENGTH);
    let mut random = random();
    let mut promises = Promises::default();
    let mut evidence = Evidence::new(1, "a process that writes into the store killed at each of its write points");
    // Something to take up, and something to mend.
    leave_unflushed(&root, &reference, &mut random, &mut promises);
    cut_short(&root, &reference, &mut promises);
    hear_to_the_end(&root, &mut random, &mut promises, ("LAPWING_FAILPOINT_LOG", log.to_str().unwrap()));
    check(&root, &reference, &mut promises);
    let points = reached(&log);
    let missed: Vec<_> =
        named("store").into_iter().filter(|named| !points.iter().any(|(point, _)| named.is(point))).collect();
    assert!(missed.is_empty(), "the writer never comes by {missed:?}");
    evidence.figure("write points of the store", points.len() as f64);
    for (point, count) in deaths(&points) {
        // A new one for each: some things are done once.
        let directory = fast_directory();
        let (root, mut promises) = (directory.path().join("store"), Promises::default());
        if ["replayed.synced", "data.lengthened"].contains(&point.as_str()) {
            leave_unflushed(&root, &reference, &mut random, &mut promises);
        }
        if point == "data.lengthened" {
            cut_short(&root, &reference, &mut promises);
        }
        // What it comes by thousands of times it comes by soon.
        let at = format!("{point}:{}", count.min(5));
        assert!(hear_to_the_end(&root, &mut random, &mut promises, (KILL, &at)), "{at} was not reached");
        evidence.fault("kill -9 at a write point of the store");
        let begun = Instant::now();
        let read = check(&root, &reference, &mut promises);
        evidence.ended(begun.elapsed(), true);
        evidence.served_after(read);
        let ledger = Ledger::load(&root);
        let known = |&note: &u32| ledger.judged(&reference.digest, &stamp(note)) == Some(true);
        let Promises { noted, noting, .. } = &promises;
        assert!(noted.is_none() || noted.iter().chain(noting).any(known), "{at}: {noted:?} is forgotten");
    }
}

/// ext4 is shut down without writing its log or any page: what was not synced is gone, as after a loss of power.
#[test]
fn a_power_cut_leaves_no_lie_and_loses_nothing_flushed() {
    let reference = Reference::new(1, LENGTH);
    let mut random = random();
    let mut promises = Promises::default();
    let Some(disk) = Mount::ext4(96 << 20) else { return };
    let root = disk.path().join("store");
    let mut evidence = Evidence::new(2, "ext4 shut down with neither its log nor any page written");
    let rounds = count(25, 100);
    for _ in 0..rounds {
        // The writer's complaints about a dead disk are what it should say, and tell nothing here.
        run_writer(&root, &mut random, &mut promises, Stdio::null(), || disk.cut_power());
        evidence.fault("power cut under ext4");
        disk.restart();
        let begun = Instant::now();
        let read = check(&root, &reference, &mut promises);
        evidence.ended(begun.elapsed(), true);
        evidence.served_after(read);
    }
    assert!(promises.flushes > rounds as usize, "only {} flushes: nothing was tried", promises.flushes);
}
