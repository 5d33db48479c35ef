//! Takes away what is kept of layers that nothing names and nothing uses any more.
//!
//! A layer can be in use though no snapshot names it and nothing is to be seen of it here: a container's own mount namespace keeps what was
//! detached from this one, and an overlay keeps the mounts that it was made of. So the tables of all namespaces are looked at:
//! for images and trees of layers, and for overlays on directories of snapshots that are gone, whose layers nobody knows any more.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

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

impl LazyMounts {
    /// Deletes what is kept of layers that are neither `named`, nor `spared`, nor in use, and gives them. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// When the tables of mounts cannot be read, or something cannot be deleted.
    pub fn collect(&self, named: &Named, spared: &HashSet<Digest>) -> Result<Vec<Digest>, MountError> {
        let superfluous = |layer: &Digest| !named.layers.contains(layer) && !spared.contains(layer);
        let candidates: Vec<_> = self.on_disk().into_iter().filter(superfluous).collect();
        if candidates.is_empty() {
            return Ok(Vec::new());
        }
        let table = mountpoint::mounts_of_all().map_err(system("read", Path::new("/proc")))?;
        let snapshots = self.root().join("snapshots");
        if let Some(id) = table.iter().flat_map(|mount| lower_ids(mount, &snapshots)).find(|id| !named.ids.contains(id))
        {
            tracing::debug!(snapshot = id, "an overlay still uses a removed snapshot: no layer is deleted now");
            return Ok(Vec::new());
        }
        let mut collected = Vec::new();
        for layer in candidates {
            let directory = self.directory(&layer);
            let used =
                table.iter().any(|mount| former::is_erofs_of(mount, &directory) || self.is_tree_of(mount, &layer));
            if used || self.is_mounted(&layer) {
                continue;
            }
            self.remove(&layer)?;
            collected.push(layer);
        }
        Ok(collected)
    }
}

/// The snapshots below `top` that an overlay stands on. containerd shortens long lists of them to paths within `top`.
fn lower_ids<'a>(mount: &'a Mount, top: &'a Path) -> impl Iterator<Item = u64> + 'a {
    let options = if mount.kind == b"overlay" { mount.options.as_slice() } else { &[] };
    let lowers = options.split(|byte| *byte == b',').filter_map(|option| {
        // Newer kernels list lower directories one by one, with a plus (Linux 6.5).
        option.strip_prefix(b"lowerdir=").or_else(|| option.strip_prefix(b"lowerdir+="))
    });
    let directories = lowers.flat_map(|lowers| lowers.split(|byte| *byte == b':'));
    directories.filter_map(move |directory| {
        let path = Path::new(std::ffi::OsStr::from_bytes(directory));
        let inside = if path.is_absolute() { path.strip_prefix(top).ok()? } else { path };
        inside.to_str()?.strip_suffix("/fs")?.parse().ok()
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
        assert_eq!(ids("overlay", "rw,lowerdir+=/r/snapshots/7/fs,lowerdir+=/r/snapshots/5/fs"), [7, 5]);
        assert_eq!(ids("overlay", "rw,lowerdir=/other/snapshots/7/fs"), [] as [u64; 0]);
        assert_eq!(ids("erofs", "lowerdir=/r/snapshots/7/fs"), [] as [u64; 0]);
    }
}
