//! A process that uses the store as a node does, and lying peers would have it.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;

use super::Reference;
use super::disk::Recorder;
use super::promises::{After, Event, Promises, rubbish};
use crate::layout::PieceIndex;
use crate::store::{ChunkStore, Removed, StoreConfig, StoreError, StoredBlob};

/// What ended a call.
#[derive(Debug)]
pub(super) enum Trouble {
    /// A promise.
    Broken(String),
    /// The disk would not.
    Refused(StoreError),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

/// The process, and what it was told.
pub(super) struct Life<'a> {
    /// None if it could not be opened again.
    store: Option<Arc<ChunkStore>>,
    root: &'a Path,
    blobs: &'a [Reference],
    recorder: &'a Rc<RefCell<Recorder>>,
    random: fastrand::Rng,
    /// With how many changes had been made then.
    pub(super) events: Vec<(usize, Event)>,
    /// Bytes that were read and right.
    pub(super) read: u64,
    /// What made room for others on a full disk.
    evicted: Option<UnboundedReceiver<Removed>>,
}

impl<'a> Life<'a> {
    /// Opens the store, and holds it to what is promised.
    pub(super) fn begin(
        root: &'a Path,
        blobs: &'a [Reference],
        recorder: &'a Rc<RefCell<Recorder>>,
        promises: &Promises,
        after: After,
        random: fastrand::Rng,
    ) -> Result<Self, Trouble> {
        let (events, read) = (Vec::new(), 0);
        let mut life = Self { store: None, root, blobs, recorder, random, events, read, evicted: None };
        life.look(promises, after)?;
        Ok(life)
    }

    fn say(&mut self, event: Event) {
        let changes = self.recorder.borrow().ops.len();
        self.events.push((changes, event));
    }

    fn store(&mut self) -> Result<Arc<ChunkStore>, StoreError> {
        if let Some(store) = &self.store {
            return Ok(Arc::clone(store));
        }
        let store = ChunkStore::open(self.root, StoreConfig::default())?;
        self.evicted = Some(store.watch_removed());
        self.store = Some(Arc::clone(&store));
        Ok(store)
    }

    /// Whoever finds rubbish drops it.
    fn look(&mut self, promises: &Promises, after: After) -> Result<(), Trouble> {
        let seen = promises.check(&*self.store()?, self.blobs, after).map_err(Trouble::Broken)?;
        self.read += seen.bytes;
        for event in seen.found {
            let Event::Found(number, found, _) = &event else { continue };
            let (number, wrong) = (*number, rubbish(found, &self.blobs[*number]));
            self.say(event);
            if !wrong.is_empty() {
                self.drop_pieces(number, &wrong)?;
            }
        }
        Ok(())
    }

    /// All that is shown is right.
    pub(super) fn check(&mut self, promises: &Promises, after: After) -> Result<(), Trouble> {
        let mut promises = promises.clone();
        self.events.iter().for_each(|(_, event)| promises.hear(event));
        let seen = promises.check(&*self.store()?, self.blobs, after).map_err(Trouble::Broken)?;
        self.read += seen.bytes;
        Ok(())
    }

    fn blob(&mut self, number: usize) -> Result<Arc<StoredBlob>, StoreError> {
        let reference = &self.blobs[number];
        let (digest, length) = (reference.digest, reference.layout.length());
        self.store()?.open_blob(&digest, length)
    }

    /// One call to the store, whichever.
    pub(super) fn call(&mut self, promises: &Promises) -> Result<(), Trouble> {
        let number = self.random.usize(0..self.blobs.len());
        let done = match self.random.u8(0..100) {
            0..40 => self.write_some(number).map_err(Trouble::from),
            40..60 => self.flush(number).map_err(Trouble::from),
            60..74 => self.drop_some(number).map_err(Trouble::from),
            74..82 => self.insert(number).map_err(Trouble::from),
            82..87 => self.verify(number).map_err(Trouble::from),
            87..92 => self.remove(number).map_err(Trouble::from),
            92..96 => self.pin(number).map_err(Trouble::from),
            _ => self.again(promises),
        };
        while let Some(removed) = self.evicted.as_mut().and_then(|evicted| evicted.try_recv().ok()) {
            let number = self.blobs.iter().position(|blob| blob.digest == removed.digest);
            if let Some(number) = number.filter(|_| removed.evicted) {
                self.say(Event::Removing(number));
            }
        }
        done
    }

    /// The process is killed, and another one goes on; the machine runs.
    fn again(&mut self, promises: &Promises) -> Result<(), Trouble> {
        let mut promises = promises.clone();
        self.events.iter().for_each(|(_, event)| promises.hear(event));
        self.store = None;
        match self.look(&promises, After::Kill) {
            // No call need have failed for it: a piece without its note in the journal is lost with the process, and fetched again.
            Err(Trouble::Broken(_)) if self.recorder.borrow().has_refused => self.look(&promises, After::Refusing),
            looked => looked,
        }
    }

    fn write_some(&mut self, number: usize) -> Result<(), StoreError> {
        let blob = self.blob(number)?;
        for _ in 0..self.random.u8(1..5) {
            let piece = self.random.u32(0..blob.layout().piece_count());
            let lie = self.random.u8(0..6) == 0;
            self.write(number, &blob, piece, lie)?;
        }
        Ok(())
    }

    fn write(&mut self, number: usize, blob: &StoredBlob, piece: u32, lie: bool) -> Result<(), StoreError> {
        if blob.has(PieceIndex(piece)) {
            return Ok(());
        }
        let mut bytes = self.blobs[number].piece(piece).to_vec();
        if lie {
            let mask = self.random.u8(1..);
            bytes.iter_mut().for_each(|byte| *byte ^= mask);
        }
        self.say(Event::Writing(number, piece, bytes.clone().into()));
        blob.write_piece(PieceIndex(piece), &bytes)?;
        self.say(Event::Shown(number, piece));
        Ok(())
    }

    fn flush(&mut self, number: usize) -> Result<(), StoreError> {
        let blob = self.blob(number)?;
        let have = blob.have().iter().map(|piece| piece.0).collect();
        blob.flush()?;
        self.say(Event::Flushed(number, have));
        Ok(())
    }

    fn drop_some(&mut self, number: usize) -> Result<(), StoreError> {
        let count = self.blobs[number].layout.piece_count();
        let pieces: Vec<_> = (0..count).filter(|_| self.random.bool()).map(PieceIndex).collect();
        self.drop_pieces(number, &pieces)
    }

    fn drop_pieces(&mut self, number: usize, pieces: &[PieceIndex]) -> Result<(), StoreError> {
        let blob = self.blob(number)?;
        // One that is not there may come back with a directory of this blob that was removed before: that is not promised to last.
        let names: Vec<u32> = pieces.iter().filter(|piece| blob.has(**piece)).map(|piece| piece.0).collect();
        self.say(Event::Dropping(number, names.clone()));
        blob.drop_pieces(pieces)?;
        self.say(Event::Dropped(number, names));
        Ok(())
    }

    fn insert(&mut self, number: usize) -> Result<(), StoreError> {
        let reference = &self.blobs[number];
        let pieces: Vec<u32> = (0..reference.layout.piece_count()).collect();
        let there = self.store()?.get(&reference.digest);
        for &piece in &pieces {
            let is_there = there.as_ref().filter(|blob| blob.has(PieceIndex(piece)));
            match is_there.and_then(|blob| blob.read_piece(PieceIndex(piece)).ok()) {
                Some(bytes) if bytes == reference.piece(piece) => {}
                Some(_) => {
                    self.say(Event::Dropping(number, vec![piece]));
                    self.say(Event::Writing(number, piece, reference.piece(piece).into()));
                }
                None => self.say(Event::Writing(number, piece, reference.piece(piece).into())),
            }
        }
        self.store()?.insert(&reference.digest, &reference.bytes)?;
        self.say(Event::Flushed(number, pieces.clone()));
        pieces.iter().for_each(|&piece| self.say(Event::Shown(number, piece)));
        self.say(Event::Verified(number));
        Ok(())
    }

    fn verify(&mut self, number: usize) -> Result<(), StoreError> {
        let blob = self.blob(number)?;
        let have = blob.have();
        match blob.verify() {
            Ok(_) => {
                self.say(Event::Flushed(number, have.iter().map(|piece| piece.0).collect()));
                self.say(Event::Verified(number));
                self.read += blob.have_bytes();
                Ok(())
            }
            Err(StoreError::Missing { .. } | StoreError::DigestMismatch { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn remove(&mut self, number: usize) -> Result<(), StoreError> {
        self.say(Event::Removing(number));
        let digest = self.blobs[number].digest;
        match self.store()?.remove(&digest) {
            // Somebody pinned it.
            Err(StoreError::Pinned(_)) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn pin(&mut self, number: usize) -> Result<(), StoreError> {
        let (digest, pinned) = (self.blobs[number].digest, self.random.bool());
        self.say(Event::Pinning(number));
        let store = self.store()?;
        if pinned {
            store.pin(digest)?
        } else {
            store.unpin(digest)?
        };
        self.say(Event::Pinned(number, pinned));
        Ok(())
    }

    /// Ends what went wrong: every blob is brought whole, proven, and read.
    pub(super) fn mend(&mut self) -> Result<(), Trouble> {
        let blobs = self.blobs;
        for (number, reference) in blobs.iter().enumerate() {
            let blob = self.store()?.insert(&reference.digest, &reference.bytes)?;
            blob.verify()?;
            let bytes = blob.read_at(0..reference.layout.length())?;
            if bytes != reference.bytes {
                return Err(Trouble::Broken(format!("blob {number} is verified and wrong")));
            }
            self.read += bytes.len() as u64;
        }
        Ok(())
    }
}
