//! The power fails between any two changes, ten thousand times.

use std::cell::RefCell;
use std::rc::Rc;

use lapwing_evidence::{Evidence, count, seed};

use super::disk::{Losses, Model, Recorder};
use super::life::Life;
use super::promises::{After, Event, Promises};
use super::{Reference, directory};
use crate::changes::watched;

/// How often one disk fails.
const LIVES: u32 = 3;

/// What one seed came to.
#[derive(Default)]
struct Outcome {
    cuts: u64,
    kills: u64,
    losses: Losses,
    read_before: u64,
    read_after: u64,
}

/// Lives on one disk, each ended by a loss of power or a kill. An error says which promise was broken. `lies_about` is a kind of sync that the disk
/// acknowledges and does not do.
fn try_seed(seed: u64, blobs: &[Reference], lies_about: Option<&'static str>) -> Result<Outcome, String> {
    let directory = directory();
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut model, mut promises, mut after) = (Model::new(), Promises::default(), After::Kill);
    let mut outcome = Outcome::default();
    for life in 0..=LIVES {
        let root = directory.path().join(life.to_string());
        model.build(&root);
        let mut recorder = Recorder::new(&root, &model);
        recorder.lies_about = lies_about;
        let recorder = Rc::new(RefCell::new(recorder));
        watched::watch(Some(Rc::clone(&recorder) as _));
        let begun = Life::begin(&root, blobs, &recorder, &promises, after, random.fork());
        let lived = begun.and_then(|mut life| {
            let calls = random.u32(2..14);
            for _ in 0..calls {
                life.call(&promises)?;
            }
            Ok((life.events, life.read))
        });
        watched::watch(None);
        let (events, read) = lived.map_err(|error| format!("seed {seed}, life {life}: {error:?}"))?;
        if life == 0 {
            outcome.read_before += read;
        } else {
            outcome.read_after += read;
        }
        let recorder = recorder.borrow();
        let cut = random.usize(0..=recorder.ops.len());
        let reached = |(at, event): &&(usize, Event)| if event.begins() { *at < cut } else { *at <= cut };
        events.iter().filter(reached).for_each(|(_, event)| promises.hear(event));
        recorder.ops[..cut].iter().for_each(|op| model.apply(op));
        after = if random.u8(0..5) == 0 { After::Kill } else { After::PowerCut };
        if after == After::Kill {
            outcome.kills += 1;
        } else {
            outcome.cuts += 1;
            promises.power_failed();
            let losses = model.lose_power(&mut random);
            outcome.losses.lost_writes += losses.lost_writes;
            outcome.losses.torn_writes += losses.torn_writes;
            outcome.losses.lost_names += losses.lost_names;
        }
        std::fs::remove_dir_all(root).unwrap();
    }
    Ok(outcome)
}

#[test]
fn a_disk_that_loses_tears_and_reorders_what_was_not_synced_breaks_no_promise() {
    let mut evidence = Evidence::new(2, "writes and names lost, torn and out of order, on a simulated disk");
    let blobs = Reference::some();
    let seeds = count(300, 10_000);
    for number in 0..seeds {
        let seed = seed().wrapping_mul(1_000_000).wrapping_add(number.into());
        let outcome = evidence.operation(|| try_seed(seed, &blobs, None)).unwrap_or_else(|error| panic!("{error}"));
        evidence.faults("power cut on a simulated disk", outcome.cuts);
        evidence.faults("killed between two changes", outcome.kills);
        evidence.faults("write lost", outcome.losses.lost_writes);
        evidence.faults("write torn", outcome.losses.torn_writes);
        evidence.faults("name lost", outcome.losses.lost_names);
        evidence.served_before(outcome.read_before);
        evidence.served_after(outcome.read_after);
    }
    evidence.figure("disk seeds", seeds.into());
}

/// Each kind of sync is there because a promise needs it: a disk that does not do one of them is found out.
#[test]
fn a_disk_that_does_not_sync_is_found_out() {
    let blobs = Reference::some();
    for lie in ["data", "tmp", "journal", "blob", "shard", "sha256", "blobs"] {
        let found = (0..2000).find_map(|seed| try_seed(seed, &blobs, Some(lie)).err());
        eprintln!("without syncs of {lie}: {found:?}");
        assert!(found.is_some(), "nobody would notice that {lie} is not synced");
    }
}

/// A process was killed between the renaming of a bitmap file and the sync of its directory; the next one took what it found for flushed, said so,
/// and lost it with the power.
#[test]
fn what_a_killed_process_left_to_the_kernel_alone_is_flushed_before_it_counts_as_flushed() {
    const FOUND_BY: u64 = 1_007_310;
    if let Err(error) = try_seed(FOUND_BY, &Reference::some(), None) {
        panic!("{error}");
    }
}
