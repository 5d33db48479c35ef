//! The requests, without the wire: each blocks on local disks only.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use lapwing_p2p::digest::Digest;

use super::idmap::IdMapping;
use super::mounts::mounts;
use super::proto::Mount;
use super::usage::{usage, usage_here};
use super::{Shared, SnapshotError};
use crate::filter::Filters;
use crate::graph::{Ancestor, Info, Kind, Labels, NewSnapshot, REF_LABEL, Snapshot, Usage};
use crate::remote::Started;

fn count(path: PathBuf, count: impl FnOnce(&Path) -> io::Result<Usage>) -> Result<Usage, SnapshotError> {
    count(&path).map_err(|source| SnapshotError::Directory { path, source })
}

impl Shared {
    pub(super) fn create(
        &self,
        kind: Kind,
        key: &str,
        parent: &str,
        labels: &Labels,
    ) -> Result<Vec<Mount>, SnapshotError> {
        let ancestors = self.graph.parent_chain(parent)?;
        self.ensure_chain(&ancestors)?;
        let mapping = IdMapping::of(labels)?;
        let parent_owner = ancestors.first().map(|ancestor| self.directories.owner(ancestor.id)).transpose()?;
        let owner = mapping.as_ref().map(|mapping| mapping.root).or(parent_owner);
        let id = self.graph.allocate_id();
        self.directories.create(id, kind, owner)?;
        match self.graph.create(kind, key, &NewSnapshot { id, parent, labels, now: SystemTime::now() }) {
            Ok(snapshot) => {
                self.tell_of_start(key, parent, labels, &ancestors);
                self.mounts_of(&snapshot, mapping)
            }
            Err(error) => {
                self.discard(id, false);
                Err(error.into())
            }
        }
    }

    /// Tells who mounts layers that somebody will probably read those of `ancestors` now. Where a layer is to be unpacked, nobody will.
    fn tell_of_start(&self, key: &str, parent: &str, labels: &Labels, ancestors: &[Ancestor]) {
        let layers: Vec<Digest> = ancestors.iter().rev().filter_map(|ancestor| ancestor.layer).collect();
        let Some(remote) = self.layers.layers().filter(|_| !layers.is_empty() && !labels.contains_key(REF_LABEL))
        else {
            return;
        };
        let named = self.graph.chain_id(parent).ok().flatten();
        // containerd calls snapshots `<namespace>/<number>/<name>`, and those of images by their chain ids.
        let last = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
        let Ok(chain) = named.unwrap_or_else(|| last(parent)).parse() else { return };
        let namespace = key.split_once('/').map_or("", |(namespace, _)| namespace).to_owned();
        remote.started(Started { chain, layers, namespace, key: last(key) });
    }

    pub(super) fn mounts(&self, key: &str) -> Result<Vec<Mount>, SnapshotError> {
        let snapshot = self.graph.mountable(key)?;
        self.ensure_chain(&snapshot.ancestors)?;
        let (_, info, _) = self.graph.stat(key)?;
        self.mounts_of(&snapshot, IdMapping::of(&info.labels)?)
    }

    /// Ids are mapped by the mount unless what it stands on has been given mapped owners itself.
    fn mounts_of(&self, snapshot: &Snapshot, mapping: Option<IdMapping>) -> Result<Vec<Mount>, SnapshotError> {
        let below = match (&mapping, snapshot.ancestors.first()) {
            (Some(_), Some(ancestor)) => Some(self.directories.owner(ancestor.id)?),
            _ => None,
        };
        let mapping = mapping.filter(|mapping| below != Some(mapping.root));
        Ok(mounts(&self.directories, snapshot, &self.overlay, mapping.as_ref()))
    }

    pub(super) fn commit(&self, key: &str, name: &str, parent: &str, labels: &Labels) -> Result<(), SnapshotError> {
        let (id, info, _) = self.graph.stat(key)?;
        let usage = match self.graph.layer(key)? {
            None if info.kind == Kind::Active => self.measure(id)?,
            None => Usage::default(),
            // Mounted by a former process, perhaps.
            Some(layer) => {
                self.ensure_mounted(id, &layer, &self.graph.mountable(key)?.ancestors)?;
                Usage::default()
            }
        };
        Ok(self.graph.commit(key, name, parent, labels, usage, SystemTime::now())?)
    }

    pub(super) fn remove(&self, key: &str) -> Result<(), SnapshotError> {
        let (id, layer) = self.graph.remove(key)?;
        self.discard(id, layer.is_some());
        Ok(())
    }

    pub(super) fn usage(&self, key: &str) -> Result<Usage, SnapshotError> {
        let (id, info, stored) = self.graph.stat(key)?;
        match info.kind {
            Kind::Active if self.graph.layer(key)?.is_none() => self.measure(id),
            Kind::Active | Kind::View => Ok(stored),
            Kind::Committed => Ok(self.lazy_usage(key)?.unwrap_or(stored)),
        }
    }

    /// What is on disk of a layer that is mounted on demand: it grows while the layer is read. `None` for any other snapshot.
    fn lazy_usage(&self, name: &str) -> Result<Option<Usage>, SnapshotError> {
        let Some(layer) = self.graph.parent_chain(name)?.first().and_then(|snapshot| snapshot.layer) else {
            return Ok(None);
        };
        let kept = self.layers.layers().and_then(|layers| layers.directory(&layer));
        // These files are the daemon's own: counting them needs no rights.
        kept.map_or(Ok(None), |path| count(path, usage_here).map(Some))
    }

    fn measure(&self, id: u64) -> Result<Usage, SnapshotError> {
        count(self.directories.files(id), usage)
    }

    pub(super) fn update(&self, name: &str, labels: &Labels, paths: &[String]) -> Result<Info, SnapshotError> {
        Ok(self.graph.update(name, labels, paths, SystemTime::now())?)
    }

    pub(super) fn list(&self, filters: &[String]) -> Result<Vec<Info>, SnapshotError> {
        let filters = Filters::parse(filters)?;
        Ok(self.graph.list(|info| filters.accepts(info))?)
    }
}
