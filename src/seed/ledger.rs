//! What the seed has taken on and not finished: one small file for each blob, so that a restart goes on with it.
//!
//! ```text
//! <root>/seed/<hex digest>      length, registry, repository, one a line
//! ```
//!
//! A file appears whole or not at all (written aside, renamed). It is not synced: after a power failure an entry may be
//! missing, and the blob is taken on again when the next node asks.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use lapwing_discovery::seed::Wanted;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::origin::Locator;

use crate::limits::{MAX_SEED_ENTRIES, MAX_SEED_ENTRY_BYTES};

/// See the module's documentation.
pub(super) struct Ledger {
    dir: PathBuf,
}

impl Ledger {
    /// Opens the directory, which is made if need be.
    pub(super) fn open(dir: &Path) -> anyhow::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("configuration key root: {} cannot be made", dir.display()))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Notes that a blob was taken on.
    pub(super) fn add(&self, wanted: &Wanted) {
        let (path, aside) = (self.path(&wanted.digest), self.path(&wanted.digest).with_extension("new"));
        let text = format!("{}\n{}\n{}\n", wanted.length, wanted.locator.namespace, wanted.locator.repository);
        if let Err(error) = fs::write(&aside, text).and_then(|()| fs::rename(&aside, &path)) {
            tracing::warn!(digest = %wanted.digest, %error, "not written down: a restart will not go on with this blob");
        }
    }

    /// Notes that a blob is finished, or given up.
    pub(super) fn remove(&self, digest: &Digest) {
        match fs::remove_file(self.path(digest)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%digest, %error, "still written down as taken on");
            }
            _ => {}
        }
    }

    /// What a former process left. Entries that cannot be read are removed.
    pub(super) fn entries(&self) -> Vec<Wanted> {
        let names = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut entries = Vec::new();
        for path in names.map(|entry| entry.path()).take(MAX_SEED_ENTRIES) {
            match read(&path) {
                Some(wanted) => entries.push(wanted),
                None => {
                    tracing::warn!(path = %path.display(), "not an entry of the seed's ledger: removed");
                    let _ = fs::remove_file(&path);
                }
            }
        }
        entries
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.to_string().trim_start_matches("sha256:"))
    }
}

fn read(path: &Path) -> Option<Wanted> {
    let digest = format!("sha256:{}", path.file_name()?.to_str()?).parse().ok()?;
    if fs::metadata(path).ok()?.len() > MAX_SEED_ENTRY_BYTES {
        return None;
    }
    let text = fs::read_to_string(path).ok()?;
    let mut lines = text.lines();
    let length = lines.next()?.parse().ok()?;
    let locator = Locator { namespace: lines.next()?.to_owned(), repository: lines.next()?.to_owned() };
    lines.next().is_none().then_some(Wanted {
        digest,
        length,
        locator,
        waited_for: false,
        index: false,
        follows: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_is_taken_on_until_it_is_done_and_drops_rubbish() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("seed");
        let wanted = |content: &[u8]| Wanted {
            digest: Digest::of(content),
            length: content.len() as u64,
            locator: Locator { namespace: "reg.example:5000".to_owned(), repository: "a/b".to_owned() },
            waited_for: false,
            index: false,
            follows: false,
        };
        let (one, two) = (wanted(b"one"), wanted(b"three"));
        let ledger = Ledger::open(&dir).unwrap();
        ledger.add(&one);
        ledger.add(&two);
        ledger.remove(&two.digest);
        ledger.remove(&two.digest);
        let half = ledger.path(&two.digest);
        fs::write(&half, "5\nreg.example\n").unwrap();
        fs::write(dir.join("README"), "x").unwrap();
        fs::write(half.with_extension("new"), "5\n").unwrap();

        assert_eq!(Ledger::open(&dir).unwrap().entries(), std::slice::from_ref(&one));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "only the entry is left");
        assert_eq!(Ledger::open(&dir).unwrap().entries(), [one]);
    }
}
