//! The requests, without the wire: each blocks on local disks only.

use std::time::SystemTime;

use super::mounts::mounts;
use super::proto::Mount;
use super::usage::usage;
use super::{Shared, SnapshotError};
use crate::filter::Filters;
use crate::graph::{Info, Kind, Labels, NewSnapshot, Usage};

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
        let owner = ancestors.first().map(|ancestor| self.directories.owner(ancestor.id)).transpose()?;
        let id = self.graph.allocate_id();
        self.directories.create(id, kind, owner)?;
        match self.graph.create(kind, key, &NewSnapshot { id, parent, labels, now: SystemTime::now() }) {
            Ok(snapshot) => Ok(mounts(&self.directories, &snapshot, &self.overlay)),
            Err(error) => {
                self.discard(id, false);
                Err(error.into())
            }
        }
    }

    pub(super) fn mounts(&self, key: &str) -> Result<Vec<Mount>, SnapshotError> {
        let snapshot = self.graph.mountable(key)?;
        self.ensure_chain(&snapshot.ancestors)?;
        Ok(mounts(&self.directories, &snapshot, &self.overlay))
    }

    pub(super) fn commit(&self, key: &str, name: &str, parent: &str, labels: &Labels) -> Result<(), SnapshotError> {
        let (id, info, _) = self.graph.stat(key)?;
        let usage = if info.kind == Kind::Active { self.measure(id)? } else { Usage::default() };
        Ok(self.graph.commit(key, name, parent, labels, usage, SystemTime::now())?)
    }

    pub(super) fn remove(&self, key: &str) -> Result<(), SnapshotError> {
        let (id, layer) = self.graph.remove(key)?;
        self.discard(id, layer.is_some());
        Ok(())
    }

    pub(super) fn usage(&self, key: &str) -> Result<Usage, SnapshotError> {
        let (id, info, stored) = self.graph.stat(key)?;
        if info.kind == Kind::Active { self.measure(id) } else { Ok(stored) }
    }

    fn measure(&self, id: u64) -> Result<Usage, SnapshotError> {
        let path = self.directories.files(id);
        usage(&path).map_err(|source| SnapshotError::Directory { path, source })
    }

    pub(super) fn update(&self, name: &str, labels: &Labels, paths: &[String]) -> Result<Info, SnapshotError> {
        Ok(self.graph.update(name, labels, paths, SystemTime::now())?)
    }

    pub(super) fn list(&self, filters: &[String]) -> Result<Vec<Info>, SnapshotError> {
        let filters = Filters::parse(filters)?;
        Ok(self.graph.list(|info| filters.accepts(info))?)
    }
}
