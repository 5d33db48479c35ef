//! Profiles on disk: `<root>/profiles/<hex of the chain id>`, each in its encoded form, replaced in one step. Those that were not changed for
//! [`KEPT_FOR`], and the oldest beyond [`MAX_FILES`], are removed; one that cannot be read counts as none. Blocks on the disk.

use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use lapwing_p2p::digest::Digest;
use lapwing_p2p::limits::MAX_PROFILE_LENGTH;
use lapwing_snapshotter::lazy::replace_file;
use lapwing_snapshotter::profile::Profile;

/// Most profiles kept; one has some ten KiB, and at most 256.
const MAX_FILES: usize = 512;
/// How long one is kept that nothing was added to.
const KEPT_FOR: Duration = Duration::from_secs(90 * 24 * 3600);

/// See the module's documentation.
pub(super) struct Shelf(PathBuf, Mutex<()>);

impl Shelf {
    pub(super) fn new(root: &Path) -> Self {
        Self(root.join("profiles"), Mutex::default())
    }

    /// The profile of an image.
    pub(super) fn get(&self, chain: &Digest) -> Option<Profile> {
        let path = self.0.join(chain.hex());
        let length = std::fs::metadata(&path).ok()?.len();
        let profile = (length <= MAX_PROFILE_LENGTH).then(|| std::fs::read(&path).ok()).flatten()?;
        match Profile::decode(&profile) {
            Ok(profile) if profile.chain == *chain => Some(profile),
            _ => {
                tracing::warn!(path = %path.display(), "what is kept there is no profile of this image; recorded anew");
                None
            }
        }
    }

    /// Keeps a profile in the place of the former one.
    pub(super) fn put(&self, profile: &Profile) -> io::Result<()> {
        let _alone = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        replace_file(&self.0.join(profile.chain.hex()), &profile.encode())?;
        self.forget_some(SystemTime::now())
    }

    fn forget_some(&self, now: SystemTime) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.0)? {
            let entry = entry?;
            files.push((entry.metadata()?.modified()?, entry.path()));
        }
        files.sort_by_key(|(changed, _)| std::cmp::Reverse(*changed));
        for (place, (changed, path)) in files.iter().enumerate() {
            if place >= MAX_FILES || now.duration_since(*changed).is_ok_and(|age| age > KEPT_FOR) {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profiles::tests_support::profile;

    #[test]
    fn a_profile_is_kept_until_it_is_old() {
        let directory = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(directory.path());
        let (one, two) = (profile(b"one", 1), profile(b"two", 2));
        assert_eq!(shelf.get(&one.chain), None);
        shelf.put(&one).unwrap();
        shelf.put(&two).unwrap();
        assert_eq!(Shelf::new(directory.path()).get(&one.chain), Some(one.clone()));
        let path = |profile: &Profile| directory.path().join("profiles").join(profile.chain.hex());
        std::fs::copy(path(&two), path(&one)).unwrap();
        assert_eq!(shelf.get(&one.chain), None, "that of another image");
        std::fs::write(path(&one), b"LAPWPROF").unwrap();
        assert_eq!(shelf.get(&one.chain), None, "damaged");
        shelf.put(&one).unwrap();
        assert_eq!(shelf.get(&one.chain), Some(one.clone()));
        shelf.forget_some(SystemTime::now() + KEPT_FOR - Duration::from_secs(60)).unwrap();
        assert_eq!(shelf.get(&one.chain), Some(one.clone()));
        shelf.forget_some(SystemTime::now() + KEPT_FOR + Duration::from_secs(60)).unwrap();
        assert_eq!(shelf.get(&one.chain), None);
    }

    #[test]
    fn the_oldest_beyond_the_limit_go() {
        let directory = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(directory.path());
        let profiles: Vec<Profile> = (0..=MAX_FILES as u32).map(|number| profile(&number.to_le_bytes(), 1)).collect();
        let old = SystemTime::now() - Duration::from_secs(3600);
        for (place, profile) in profiles.iter().enumerate() {
            shelf.put(profile).unwrap();
            if place == 5 {
                let file = std::fs::File::open(directory.path().join("profiles").join(profile.chain.hex())).unwrap();
                file.set_modified(old).unwrap();
            }
        }
        let kept = profiles.iter().enumerate().filter(|(_, profile)| shelf.get(&profile.chain).is_some());
        assert!(kept.map(|(place, _)| place).eq((0..=MAX_FILES).filter(|place| *place != 5)));
    }
}
