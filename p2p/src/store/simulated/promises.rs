//! What the store has promised, and whether it is so: the list under "After a crash" in `store.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Reference;
use crate::layout::PieceIndex;
use crate::store::ChunkStore;

/// Something begun or promised; blobs and pieces by number.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// A piece is being given these bytes.
    Writing(usize, u32, Arc<[u8]>),
    /// It could be read.
    Shown(usize, u32),
    Flushed(usize, Vec<u32>),
    Dropping(usize, Vec<u32>),
    Dropped(usize, Vec<u32>),
    Removing(usize),
    Verified(usize),
    Pinning(usize),
    Pinned(usize, bool),
    /// What a new process found of it; nothing else is there, if that is known to be what the disk has, and not only what the kernel shows.
    Found(usize, BTreeMap<u32, Arc<[u8]>>, bool),
}

impl Event {
    /// Whether it says that something begins: before its first change nothing of it can be on disk.
    pub(super) const fn begins(&self) -> bool {
        matches!(self, Self::Writing(..) | Self::Dropping(..) | Self::Removing(_) | Self::Pinning(_))
    }
}

#[derive(Debug, Clone, Default)]
struct Blob {
    /// By piece: any that it may have.
    may_be: BTreeMap<u32, Vec<Arc<[u8]>>>,
    flushed: BTreeSet<u32>,
    shown: BTreeSet<u32>,
    verified: bool,
    pinned: Option<bool>,
}

/// What is promised of all blobs.
#[derive(Debug, Clone, Default)]
pub(super) struct Promises(BTreeMap<usize, Blob>);

/// What happened to the store since: the further down, the less is promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum After {
    /// The process was killed: what could be read is there.
    Kill,
    /// The power failed: what was flushed is there.
    PowerCut,
    /// The disk refused something: the same, and what was known of whole blobs may have to be found out anew.
    Refusal,
    /// It still does: what is shown is right.
    Refusing,
}

/// What a check read.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) found: Vec<Event>,
    /// Set bits whose bytes were held to what was written.
    pub(super) bytes: u64,
}

impl Promises {
    pub(super) fn hear(&mut self, event: &Event) {
        let blob = |blobs: &mut BTreeMap<usize, Blob>, blob: &usize| blobs.remove(blob).unwrap_or_default();
        let blobs = &mut self.0;
        match event {
            Event::Writing(number, piece, bytes) => {
                blobs.entry(*number).or_default().may_be.entry(*piece).or_default().push(Arc::clone(bytes));
            }
            Event::Shown(number, piece) => drop(blobs.entry(*number).or_default().shown.insert(*piece)),
            Event::Flushed(number, pieces) => {
                let blob = blobs.entry(*number).or_default();
                for piece in pieces {
                    blob.flushed.insert(*piece);
                    // What was before it, or was lost with a former directory, is not there any more.
                    if let Some(may_be) = blob.may_be.get_mut(piece) {
                        may_be.drain(..may_be.len() - 1);
                    }
                }
            }
            Event::Dropping(number, pieces) | Event::Dropped(number, pieces) => {
                let blob = blobs.entry(*number).or_default();
                blob.verified = false;
                for piece in pieces {
                    blob.flushed.remove(piece);
                    blob.shown.remove(piece);
                    if matches!(event, Event::Dropped(..)) {
                        blob.may_be.remove(piece);
                    }
                }
            }
            Event::Removing(number) => {
                let former = blob(blobs, number);
                blobs.insert(*number, Blob { may_be: former.may_be, pinned: former.pinned, ..Blob::default() });
            }
            Event::Verified(number) => blobs.entry(*number).or_default().verified = true,
            Event::Pinning(number) => blobs.entry(*number).or_default().pinned = None,
            Event::Pinned(number, pinned) => blobs.entry(*number).or_default().pinned = Some(*pinned),
            Event::Found(number, pieces, for_good) => {
                let blob = blobs.entry(*number).or_default();
                if *for_good {
                    blob.may_be.clear();
                }
                for (&piece, bytes) in pieces {
                    blob.may_be.entry(piece).or_default().push(Arc::clone(bytes));
                }
                blob.shown = pieces.keys().copied().collect();
            }
        }
    }

    /// The power failed: what could be read and was not flushed may be gone.
    pub(super) fn power_failed(&mut self) {
        self.0.values_mut().for_each(|blob| blob.shown.clear());
    }

    /// Holds a store to what was promised.
    pub(super) fn check(&self, store: &ChunkStore, blobs: &[Reference], after: After) -> Result<Seen, String> {
        let mut seen = Seen::default();
        let mut used = 0;
        let nothing = Blob::default();
        for (number, reference) in blobs.iter().enumerate() {
            let promised = self.0.get(&number).unwrap_or(&nothing);
            if promised.pinned.is_some_and(|pinned| pinned != store.pinned().contains(&reference.digest))
                && after != After::Refusing
            {
                return Err(format!("blob {number}: it was said to be pinned: {:?}", promised.pinned));
            }
            let blob = store.get(&reference.digest);
            let mut found = BTreeMap::new();
            if let Some(blob) = &blob {
                if blob.layout() != reference.layout {
                    return Err(format!("blob {number} has another length"));
                }
                for piece in blob.have().iter() {
                    let bytes = blob.read_piece(piece).map_err(|error| format!("blob {number}, {piece:?}: {error}"))?;
                    let may_be = promised.may_be.get(&piece.0).into_iter().flatten();
                    let Some(right) = may_be.into_iter().find(|right| right[..] == bytes[..]) else {
                        let known = promised.may_be.contains_key(&piece.0);
                        return Err(format!(
                            "blob {number}, {piece:?} is marked as there and wrong (there at all: {known})"
                        ));
                    };
                    seen.bytes += bytes.len() as u64;
                    found.insert(piece.0, Arc::clone(right));
                }
                used += blob.have_bytes();
                if blob.is_verified() && !is_right(&found, reference) {
                    return Err(format!("blob {number} is said to be verified and is not"));
                }
                if blob.metainfo().is_some_and(|metainfo| metainfo.digest() != reference.digest) {
                    return Err(format!("blob {number} has the metainfo of another"));
                }
            }
            let missing = |pieces: &BTreeSet<u32>| pieces.iter().find(|piece| !found.contains_key(piece)).copied();
            if let Some(piece) = missing(&promised.flushed).filter(|_| after < After::Refusing) {
                return Err(format!("blob {number}, piece {piece} was flushed and is lost"));
            }
            if let Some(piece) = missing(&promised.shown).filter(|_| after == After::Kill) {
                return Err(format!(
                    "blob {number}, piece {piece} could be read before the process was killed and is lost"
                ));
            }
            if promised.verified && after < After::Refusal && !blob.is_some_and(|blob| blob.is_verified()) {
                return Err(format!("blob {number} was verified and is not any more"));
            }
            seen.found.push(Event::Found(number, found, after == After::PowerCut));
        }
        if store.used_bytes() != used && after < After::Refusing {
            return Err(format!("{} bytes are counted and {used} are there", store.used_bytes()));
        }
        Ok(seen)
    }
}

fn is_right(found: &BTreeMap<u32, Arc<[u8]>>, reference: &Reference) -> bool {
    (0..reference.layout.piece_count())
        .all(|piece| found.get(&piece).is_some_and(|is| is[..] == *reference.piece(piece)))
}

/// The pieces that are not what they should be.
pub(super) fn rubbish(found: &BTreeMap<u32, Arc<[u8]>>, reference: &Reference) -> Vec<PieceIndex> {
    let wrong = |(piece, bytes): &(&u32, &Arc<[u8]>)| bytes[..] != *reference.piece(**piece);
    found.iter().filter(wrong).map(|(&piece, _)| PieceIndex(piece)).collect()
}
