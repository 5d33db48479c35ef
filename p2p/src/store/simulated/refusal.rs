//! A disk that refuses one change, or all from one on, whichever it is: an error says so, nothing wrong is read, and it works again.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use lapwing_evidence::{Evidence, count, seed};
use rustix::io::Errno;

use super::disk::{Model, Recorder};
use super::life::{Life, Trouble};
use super::promises::{After, Promises};
use super::{Reference, directory};
use crate::changes::watched;

/// Which changes are refused, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refusal {
    error: Errno,
    at: u64,
    /// All that come after it, too.
    stays: bool,
}

impl Refusal {
    pub(super) fn of(&self, number: u64) -> io::Result<()> {
        if number == self.at || self.stays && number > self.at { Err(self.error.into()) } else { Ok(()) }
    }
}

/// What one refusal led to.
#[derive(Default)]
struct Outcome {
    /// Changes that the work comes by.
    changes: u64,
    calls: u64,
    /// What those were told that failed.
    errors: Vec<String>,
    read_before: u64,
    read_after: u64,
}

impl Outcome {
    /// A broken promise is passed on.
    fn take(&mut self, trouble: Trouble) -> Result<(), String> {
        match trouble {
            Trouble::Broken(promise) => Err(promise),
            Trouble::Refused(error) => {
                self.errors.push(error.to_string());
                Ok(())
            }
        }
    }
}

/// Works on while something is refused, and goes on as the next process when the disk is sound again.
fn try_refusal(seed: u64, blobs: &[Reference], refusal: Option<Refusal>) -> Result<Outcome, String> {
    let directory = directory();
    let root = directory.path().join("root");
    let model = Model::new();
    model.build(&root);
    let recorder = Rc::new(RefCell::new(Recorder::with_model(&root, model)));
    recorder.borrow_mut().refuses = refusal;
    watched::watch(Some(Rc::clone(&recorder) as _));
    let tried = refused(seed, &root, blobs, &recorder);
    watched::watch(None);
    tried.map_err(|error| format!("seed {seed}, {refusal:?}: {error}"))
}

fn refused(
    seed: u64,
    root: &std::path::Path,
    blobs: &[Reference],
    recorder: &Rc<RefCell<Recorder>>,
) -> Result<Outcome, String> {
    let (mut outcome, mut promises) = (Outcome::default(), Promises::default());
    let random = || fastrand::Rng::with_seed(seed);
    match Life::begin(root, blobs, recorder, &promises, After::Kill, random()) {
        Err(trouble) => outcome.take(trouble)?,
        Ok(mut life) => {
            for _ in 0..CALLS {
                outcome.calls += 1;
                let called = life.call(&promises);
                called.or_else(|trouble| outcome.take(trouble))?;
                let before = outcome.errors.is_empty();
                let read = life.read;
                life.check(&promises, After::Refusing).or_else(|trouble| outcome.take(trouble))?;
                if before { outcome.read_before += life.read - read } else { outcome.read_after += life.read - read }
            }
            outcome.changes = recorder.borrow().begun;
            recorder.borrow_mut().refuses = None;
            life.check(&promises, After::Refusal).map_err(|trouble| format!("the disk is sound again: {trouble:?}"))?;
            life.events.iter().for_each(|(_, event)| promises.hear(event));
        }
    }
    recorder.borrow_mut().refuses = None;
    let mended = Life::begin(root, blobs, recorder, &promises, After::Refusal, random()).and_then(|mut life| {
        life.mend()?;
        Ok(life.read)
    });
    outcome.read_after += mended.map_err(|trouble| format!("the next process: {trouble:?}"))?;
    Ok(outcome)
}

const CALLS: u32 = 16;

#[test]
fn a_disk_that_refuses_any_change_is_named_shows_nothing_wrong_and_is_used_again() {
    let mut evidence = Evidence::new(3, "each change of the store refused, once and from then on");
    let blobs = Reference::some();
    let mut failed = 0_u64;
    for round in 0..count(1, 12) {
        let seed = seed().wrapping_mul(1000).wrapping_add(round.into());
        let changes = try_refusal(seed, &blobs, None).unwrap().changes;
        assert!(changes > 50, "only {changes} changes: nothing is tried");
        for at in 1..=changes {
            for (number, (error, name)) in
                [(Errno::IO, "EIO"), (Errno::NOSPC, "ENOSPC"), (Errno::DQUOT, "EDQUOT")].into_iter().enumerate()
            {
                let stays = (at + number as u64).is_multiple_of(2);
                let tried = evidence.operation(|| try_refusal(seed, &blobs, Some(Refusal { error, at, stays })));
                let outcome = tried.unwrap_or_else(|error| panic!("{error}"));
                evidence.fault(name);
                evidence.served_before(outcome.read_before);
                evidence.served_after(outcome.read_after);
                failed += outcome.errors.len() as u64;
                for error in outcome.errors {
                    let named = ["chunk store", "blob sha256:"].iter().any(|name| error.contains(name));
                    assert!(named, "it does not say what failed: {error}");
                }
            }
        }
    }
    assert!(failed > 0, "nothing was refused");
    evidence.figure("calls that a refusing disk made fail", failed as f64);
}
