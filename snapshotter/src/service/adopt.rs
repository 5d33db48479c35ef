//! Layers that containerd has fetched and asks to unpack: mounted in the directory that they would be unpacked into.
//!
//! Order: mount, then the record that the active snapshot stands for the layer. Its commit makes it a remote snapshot like those that were
//! claimed ([`crate::remote`]), its removal takes the mount away, and after a crash between the two its directory is an ordinary one with
//! a mount that is detached before anything is deleted.

use std::fs;
use std::path::{Component, Path};
use std::sync::PoisonError;

use lapwing_p2p::digest::Digest;

use super::idmap::IdMapping;
use super::proto::Mount;
use super::{Shared, SnapshotError};
use crate::graph::REF_LABEL;

/// The directory that gets what is written below these mounts.
fn written(mounts: &[Mount]) -> Option<&Path> {
    let [mount] = mounts else { return None };
    match mount.r#type.as_str() {
        "bind" if mount.options.iter().any(|option| option == "rw") => Some(Path::new(&mount.source)),
        "overlay" => mount.options.iter().find_map(|option| option.strip_prefix("upperdir=")).map(Path::new),
        _ => None,
    }
}

/// The id of the snapshot below `top` that has the directory `files`.
fn id_of(top: &Path, files: &Path) -> Option<u64> {
    let mut inside = files.strip_prefix(top).ok()?.components();
    let (Some(Component::Normal(id)), Some(Component::Normal(name)), None) =
        (inside.next(), inside.next(), inside.next())
    else {
        return None;
    };
    id.to_str().filter(|_| name == "fs")?.parse().ok()
}

/// An active snapshot that a layer is to be unpacked into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extraction {
    pub(super) key: String,
    pub(super) id: u64,
    /// What the snapshot is to become.
    pub(super) chain_id: String,
    /// What it stands on; none for the lowest layer.
    pub(super) parent_chain_id: Option<String>,
}

impl Shared {
    /// The extraction that these mounts were given for, if its ids are not mapped.
    pub(super) fn extraction(&self, mounts: &[Mount]) -> Result<Option<Extraction>, SnapshotError> {
        let Some(id) = written(mounts).and_then(|files| id_of(self.directories.top(), files)) else { return Ok(None) };
        let Some(active) = self.graph.active(id)? else { return Ok(None) };
        let Some(chain_id) = active.labels.get(REF_LABEL).cloned() else { return Ok(None) };
        if IdMapping::of(&active.labels)?.is_some() {
            return Ok(None);
        }
        let parent_chain_id = match active.parent.as_str() {
            "" => None,
            parent => match self.graph.chain_id(parent)? {
                None => return Ok(None),
                known => known,
            },
        };
        Ok(Some(Extraction { key: active.name, id, chain_id, parent_chain_id }))
    }

    /// Has an extraction stand for `layer`. Its directory must be empty.
    pub(super) fn adopt(&self, extraction: &Extraction, layer: &Digest) -> Result<(), SnapshotError> {
        let Extraction { key, id, .. } = extraction;
        // Two requests for one snapshot: the second finds what the first did. Local mounts only are waited for.
        let _one_at_a_time = self.adopting.lock().unwrap_or_else(PoisonError::into_inner);
        let ancestors = self.graph.mountable(key)?.ancestors;
        if self.graph.layer(key)? == Some(*layer) {
            return self.ensure_mounted(*id, layer, &ancestors);
        }
        let files = self.directories.files(*id);
        let failed = |source| SnapshotError::Directory { path: files.clone(), source };
        if fs::read_dir(&files).map_err(failed)?.next().is_some() {
            return Err(SnapshotError::Request(format!("snapshot {key:?} has files already")));
        }
        self.ensure_chain(&ancestors)?;
        let adopted = self.ensure_mounted(*id, layer, &ancestors).and_then(|()| Ok(self.graph.adopt(key, layer)?));
        if adopted.is_err() {
            self.layers.release(*id, &files);
        }
        adopted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        Mount { r#type: kind.to_owned(), source: source.to_owned(), target: String::new(), options }
    }

    #[test]
    fn tells_the_snapshot_that_mounts_write_to() {
        let bind = mount("bind", "/r/snapshots/7/fs", &["rw", "rbind"]);
        let overlay =
            mount("overlay", "overlay", &["workdir=/r/snapshots/8/work", "upperdir=/r/snapshots/8/fs", "lowerdir=/x"]);
        let id = |mounts: &[Mount]| written(mounts).and_then(|files| id_of(Path::new("/r/snapshots"), files));
        assert_eq!(id(std::slice::from_ref(&bind)), Some(7));
        assert_eq!(id(std::slice::from_ref(&overlay)), Some(8));
        for other in [
            vec![],
            vec![bind, overlay],
            vec![mount("bind", "/r/snapshots/7/fs", &["ro", "rbind"])],
            vec![mount("bind", "/r/snapshots/7/work", &["rw"])],
            vec![mount("bind", "/r/snapshots/7/fs/etc", &["rw"])],
            vec![mount("bind", "/r/snapshots/../7/fs", &["rw"])],
            vec![mount("bind", "/other/7/fs", &["rw"])],
            vec![mount("overlay", "overlay", &["lowerdir=/r/snapshots/7/fs"])],
        ] {
            assert_eq!(id(&other), None, "{other:?}");
        }
    }
}
