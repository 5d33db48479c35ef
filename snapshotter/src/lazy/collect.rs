//! Takes away what is kept of layers that nothing names and nothing uses any more.
//!
//! A layer can be in use though no snapshot names it and nothing is to be seen of it here: a container's own mount namespace keeps what was
//! detached from this one, and an overlay keeps the mounts that it was made of. So the tables of all namespaces are looked at:
//! for images and trees of layers, and for overlays on directories of snapshots that are gone, whose layers nobody knows any more.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use lapwing_p2p::digest::Digest;

use super::former;
use super::mounts::{LazyMounts, MountError, system};
use crate::mountpoint::{self, Mount};

/// What the graph of snapshots names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Named {
    /// Directories of snapshots.
    pub ids: HashSet<u64>,
    /// Layers that snapshots stand for.
    pub layers: HashSet<Digest>,
}

/// What became of layers that nothing names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Nothing is kept of these any more.
    pub deleted: Vec<Digest>,
    /// Whether others are still in use: to be tried again.
    pub in_use: bool,
}

impl LazyMounts {
    /// Deletes what is kept of layers that are neither `named` nor in use, and that `may_go`, which is asked last of all. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// When the tables of mounts cannot be read, or something cannot be deleted.
    pub fn collect(&self, named: &Named, may_go: impl Fn(&Digest) -> bool) -> Result<Collected, MountError> {
        self.delete_aside();
        let candidates: Vec<_> =
            self.on_disk().into_iter().filter(|layer| !named.layers.contains(layer) && may_go(layer)).collect();
        if candidates.is_empty() {
            return Ok(Collected::default());
        }
        let table = mountpoint::mounts_of_all().map_err(system("read", Path::new("/proc")))?;
        let snapshots = self.root().join("snapshots");
        if let Some(id) = table.iter().flat_map(|mount| lower_ids(mount, &snapshots)).find(|id| !named.ids.contains(id))
        {
            tracing::debug!(snapshot = id, "an overlay still uses a removed snapshot: no layer is deleted now");
            return Ok(Collected { deleted: Vec::new(), in_use: true });
        }
        let mut collected = Collected::default();
        for layer in candidates {
            let directory = self.directory(&layer);
            let shows = |mount: &Mount| former::is_erofs_of(mount, &directory) || self.is_tree_of(mount, &layer);
            if table.iter().any(shows) {
                collected.in_use = true;
                continue;
            }
            // Asked for, or mounted, since.
            if !may_go(&layer) {
                continue;
            }
            match self.remove(&layer) {
                Ok(()) => collected.deleted.push(layer),
                Err(MountError::Busy { .. }) => collected.in_use = true,
                Err(error) => return Err(error),
            }
        }
        Ok(collected)
    }
}

/// The snapshots below `top` that an overlay stands on. Their directories may have other names: containerd shortens long lists of them to paths
/// within their common directory, and shows ids mapped through mounts of its own; then the upper directory tells whose they are, if there
/// is one.
fn lower_ids<'a>(mount: &'a Mount, top: &'a Path) -> impl Iterator<Item = u64> + 'a {
    let options = if mount.kind == b"overlay" { mount.options.as_slice() } else { &[] };
    let all = move || options.split(|byte| *byte == b',');
    let upper = all().find_map(|option| option.strip_prefix(b"upperdir=")).map(mountpoint::unescape);
    let upper_is_ours = upper.as_ref().map(|upper| upper.starts_with(top));
    // Newer kernels list lower directories one by one, with a plus (Linux 6.5).
    let lowers =
        all().filter_map(|option| option.strip_prefix(b"lowerdir=").or_else(|| option.strip_prefix(b"lowerdir+=")));
    let directories = lowers.flat_map(|lowers| lowers.split(|byte| *byte == b':')).map(mountpoint::unescape);
    directories.filter_map(move |directory: PathBuf| {
        let ours = upper_is_ours.unwrap_or(directory.is_relative()) || directory.starts_with(top);
        let snapshot =
            (ours && directory.file_name()? == "fs").then(|| directory.parent()?.file_name()?.to_str())??;
        snapshot.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlays_tell_the_snapshots_below_them() {
        let mount = |kind: &str, options: &str| Mount {
            at: "/at".into(),
            root: "/".into(),
            device: (0, 1),
            kind: kind.as_bytes().to_vec(),
            source: "overlay".into(),
            options: options.as_bytes().to_vec(),
        };
        let ids =
            |kind: &str, options: &str| lower_ids(&mount(kind, options), Path::new("/r/snapshots")).collect::<Vec<_>>();
        assert_eq!(
            ids("overlay", "rw,lowerdir=/r/snapshots/7/fs:/r/snapshots/5/fs,upperdir=/r/snapshots/9/fs"),
            [7, 5]
        );
        assert_eq!(ids("overlay", "rw,lowerdir=7/fs:5/fs,index=off"), [7, 5]);
        assert_eq!(ids("overlay", "rw,lowerdir=7/fs:5/fs,upperdir=/r/snapshots/9/fs"), [7, 5]);
        let mapped = "rw,lowerdir=/tmp/ovl-idmapped1/7/fs:/tmp/ovl-idmapped1/5/fs,upperdir=/r/snapshots/9/fs";
        assert_eq!(ids("overlay", mapped), [7, 5]);
        let escaped = mount("overlay", "rw,lowerdir=/r\\040s/7/fs");
        assert_eq!(lower_ids(&escaped, Path::new("/r s")).collect::<Vec<_>>(), [7]);
        assert_eq!(ids("overlay", "rw,lowerdir=7/fs:5/fs,upperdir=/other/snapshots/9/fs"), [] as [u64; 0]);
        assert_eq!(ids("overlay", "rw,lowerdir+=/r/snapshots/7/fs,lowerdir+=/r/snapshots/5/fs"), [7, 5]);
        assert_eq!(ids("overlay", "rw,lowerdir=/other/snapshots/7/fs"), [] as [u64; 0]);
        assert_eq!(ids("erofs", "lowerdir=/r/snapshots/7/fs"), [] as [u64; 0]);
    }
}
