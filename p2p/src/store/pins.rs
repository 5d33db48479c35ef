//! What is kept though nobody reads it: blobs that an operator pinned, and those that something here depends on.
//!
//! Operator pins are for digests, whether the blob is here already or not, and last until they are taken back: they
//! stand in `blobs/pins`, one digest a line, replaced in one step. A [`Hold`] lasts as long as its value.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::error::StoreError;
use super::{ChunkStore, disk, lock};
use crate::digest::Digest;
use crate::limits::{MAX_OPERATOR_PINS, MAX_PINS_FILE_LENGTH};

const PINS: &str = "pins";

/// The pins of one store.
#[derive(Debug)]
pub(super) struct Pins {
    /// Where the operator's pins are kept; none in a store that keeps nothing.
    directory: Option<PathBuf>,
    pinned: Mutex<BTreeSet<Digest>>,
    /// Held while the file is written; taken before `pinned`.
    turn: Mutex<()>,
    held: Arc<Mutex<HashMap<Digest, usize>>>,
}

/// Keeps a blob from being evicted or removed as long as it lives, without keeping it open.
#[derive(Debug)]
pub struct Hold {
    digest: Digest,
    held: Arc<Mutex<HashMap<Digest, usize>>>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = lock(&self.held);
        if let Some(count) = held.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.digest);
            }
        }
    }
}

impl Pins {
    /// Reads what was pinned. A line that names no digest is skipped; a file that cannot be read is an error, since
    /// without it what is pinned would be evicted.
    pub(super) fn load(directory: Option<PathBuf>) -> Result<Self, StoreError> {
        let mut pinned = BTreeSet::new();
        if let Some(directory) = &directory {
            let path = directory.join(PINS);
            let bytes = match disk::read(&path, MAX_PINS_FILE_LENGTH) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
                read => read.map_err(|error| StoreError::io("read", &path, error))?,
            };
            for line in String::from_utf8_lossy(&bytes).lines() {
                match line.parse() {
                    Ok(digest) => drop(pinned.insert(digest)),
                    Err(_) => tracing::warn!(path = %path.display(), line, "not a digest, pins nothing"),
                }
            }
        }
        Ok(Self { directory, pinned: Mutex::new(pinned), turn: Mutex::default(), held: Arc::default() })
    }

    pub(super) fn is_pinned(&self, digest: &Digest) -> bool {
        lock(&self.pinned).contains(digest)
    }

    pub(super) fn is_held(&self, digest: &Digest) -> bool {
        lock(&self.held).contains_key(digest)
    }

    /// As long as the answer lives no blob gets a pin or hold; an error if this one has one.
    pub(super) fn none_on(&self, digest: &Digest) -> Result<impl Sized + use<'_>, StoreError> {
        let (pinned, held) = (lock(&self.pinned), lock(&self.held));
        if pinned.contains(digest) {
            return Err(StoreError::Pinned(*digest));
        }
        if held.contains_key(digest) {
            return Err(StoreError::InUse(*digest));
        }
        Ok((pinned, held))
    }

    fn hold(&self, digest: Digest) -> Hold {
        *lock(&self.held).entry(digest).or_default() += 1;
        Hold { digest, held: Arc::clone(&self.held) }
    }

    fn change(&self, digest: Digest, pin: bool) -> Result<bool, StoreError> {
        let _turn = lock(&self.turn);
        let mut pinned = lock(&self.pinned).clone();
        if pin && pinned.len() >= MAX_OPERATOR_PINS && !pinned.contains(&digest) {
            return Err(StoreError::TooManyPins(digest));
        }
        let changed = if pin { pinned.insert(digest) } else { pinned.remove(&digest) };
        if changed && let Some(directory) = &self.directory {
            let text: String = pinned.iter().map(|digest| format!("{digest}\n")).collect();
            disk::replace(directory, PINS, text.as_bytes())?;
        }
        *lock(&self.pinned) = pinned;
        Ok(changed)
    }
}

impl ChunkStore {
    /// Pins a blob in the operator's name, over restarts too, whether it is here or not: it is not evicted. Whether
    /// that is new.
    pub fn pin(&self, digest: Digest) -> Result<bool, StoreError> {
        self.pins.change(digest, true)
    }

    /// Takes an operator's pin back; whether there was one.
    pub fn unpin(&self, digest: Digest) -> Result<bool, StoreError> {
        self.pins.change(digest, false)
    }

    /// The digests that an operator pinned.
    pub fn pinned(&self) -> Vec<Digest> {
        lock(&self.pins.pinned).iter().copied().collect()
    }

    /// Keeps a blob, whether it is here or not, as long as the answer lives.
    pub fn hold(&self, digest: Digest) -> Hold {
        self.pins.hold(digest)
    }
}
