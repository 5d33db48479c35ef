//! Changes to the graph: each is one transaction, durable when the call returns.

use std::time::SystemTime;

use lapwing_p2p::digest::Digest;
use prost::Message as _;
use redb::{ReadableTable as _, Table};

use super::read::{chain, first_remote, record};
use super::record::{Record, kind_number, nanoseconds};
use super::{CHILDREN, Graph, GraphError, Info, Kind, Labels, META, NewSnapshot, REF_LABEL, REMOTES, SNAPSHOTS};
use super::{RemoteSnapshot, Snapshot, Usage};

/// Begins the names of snapshots that were claimed.
const CLAIMED: &str = "+remote-";

/// What [`Graph::insert_remote`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claimed {
    /// The snapshot is in the graph.
    Inserted,
    /// Another with the same chain id and parent was there first; nothing has changed.
    ThereAlready,
}

struct Tables<'t> {
    snapshots: Table<'t, &'static str, &'static [u8]>,
    children: Table<'t, (u64, u64), ()>,
    remotes: Table<'t, (&'static str, &'static str, &'static str), ()>,
    meta: Table<'t, &'static str, u64>,
}

impl Tables<'_> {
    fn put(&mut self, name: &str, record: &Record) -> Result<(), GraphError> {
        self.snapshots.insert(name, record.encode_to_vec().as_slice())?;
        Ok(())
    }

    fn put_new(&mut self, name: &str, record: &Record) -> Result<(), GraphError> {
        let stored = self.meta.get("next_id")?.map_or(1, |id| id.value());
        self.meta.insert("next_id", stored.max(record.id.saturating_add(1)))?;
        if record.parent_id != 0 {
            self.children.insert((record.parent_id, record.id), ())?;
        }
        self.put(name, record)
    }

    fn has_children(&self, id: u64) -> Result<bool, GraphError> {
        Ok(self.children.range((id, 0)..=(id, u64::MAX))?.next().transpose()?.is_some())
    }

    /// The parent's id, or zero for no parent.
    fn parent_id(&self, parent: &str) -> Result<u64, GraphError> {
        if parent.is_empty() {
            return Ok(0);
        }
        Ok(committed_parent(record(&self.snapshots, parent)?, parent)?.id)
    }

    fn unlink_remote(&mut self, name: &str, record: &Record) -> Result<(), GraphError> {
        if let Some(chain_id) = remote_chain_id(record) {
            self.remotes.remove((chain_id, record.parent.as_str(), name))?;
        }
        Ok(())
    }

    fn link_remote(&mut self, name: &str, record: &Record) -> Result<(), GraphError> {
        if let Some(chain_id) = remote_chain_id(record) {
            self.remotes.insert((chain_id, record.parent.as_str(), name), ())?;
        }
        Ok(())
    }
}

fn remote_chain_id(record: &Record) -> Option<&str> {
    let stands_for_layer = record.kind_number == kind_number(Kind::Committed) && !record.layer_digest.is_empty();
    record.labels.get(REF_LABEL).filter(|_| stands_for_layer).map(String::as_str)
}

pub(super) fn committed_parent(found: Option<Record>, parent: &str) -> Result<Record, GraphError> {
    let record = found.ok_or_else(|| GraphError::NotFound(format!("missing parent {parent:?}")))?;
    if record.stored_kind()? != Kind::Committed {
        return Err(GraphError::InvalidArgument(format!("parent {parent:?} is not committed snapshot")));
    }
    Ok(record)
}

/// containerd's stores keep no label with an empty value.
fn without_empty(labels: &Labels) -> Labels {
    labels.iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn new_record(new: &NewSnapshot<'_>, kind: Kind, parent_id: u64) -> Record {
    let now_ns = nanoseconds(new.now);
    Record {
        id: new.id,
        kind_number: kind_number(kind),
        parent: new.parent.to_owned(),
        parent_id,
        labels: without_empty(new.labels),
        created_ns: now_ns,
        updated_ns: now_ns,
        ..Record::default()
    }
}

impl Graph {
    fn change<T>(&self, change: impl FnOnce(&mut Tables<'_>) -> Result<T, GraphError>) -> Result<T, GraphError> {
        let transaction = self.database.begin_write()?;
        let outcome = change(&mut Tables {
            snapshots: transaction.open_table(SNAPSHOTS)?,
            children: transaction.open_table(CHILDREN)?,
            remotes: transaction.open_table(REMOTES)?,
            meta: transaction.open_table(META)?,
        })?;
        transaction.commit()?;
        Ok(outcome)
    }

    /// Adds an active snapshot or a view.
    pub fn create(&self, kind: Kind, key: &str, new: &NewSnapshot<'_>) -> Result<Snapshot, GraphError> {
        if kind == Kind::Committed {
            return Err(GraphError::InvalidArgument("only active snapshots and views can be created".to_owned()));
        }
        self.change(|tables| {
            let parent_id = tables.parent_id(new.parent)?;
            if tables.snapshots.get(key)?.is_some() {
                return Err(GraphError::AlreadyExists(format!("snapshot {key:?}")));
            }
            tables.put_new(key, &new_record(new, kind, parent_id))?;
            Ok(Snapshot { id: new.id, kind, ancestors: chain(&tables.snapshots, new.parent)? })
        })
    }

    /// Adds a committed snapshot for `layer`, which is mounted already. The labels must hold [`REF_LABEL`].
    pub fn insert_remote(&self, name: &str, layer: &Digest, new: &NewSnapshot<'_>) -> Result<Claimed, GraphError> {
        let chain_id = new.labels.get(REF_LABEL).filter(|chain_id| !chain_id.is_empty());
        let chain_id = chain_id.ok_or_else(|| GraphError::InvalidArgument(format!("{name:?} lacks {REF_LABEL}")))?;
        self.change(|tables| {
            if first_remote(&tables.remotes, chain_id, new.parent)?.is_some() {
                return Ok(Claimed::ThereAlready);
            }
            let parent_id = tables.parent_id(new.parent)?;
            if tables.snapshots.get(name)?.is_some() {
                return Err(GraphError::AlreadyExists(format!("snapshot {name:?}")));
            }
            let mut record = new_record(new, Kind::Committed, parent_id);
            record.layer_digest = layer.as_bytes().to_vec();
            tables.put_new(name, &record)?;
            tables.link_remote(name, &record)?;
            Ok(Claimed::Inserted)
        })
    }

    /// Has the active snapshot `key` stand for `layer`, which is mounted in its directory already.
    pub fn adopt(&self, key: &str, layer: &Digest) -> Result<(), GraphError> {
        self.change(|tables| {
            let active = record(&tables.snapshots, key)?;
            let mut record = active.ok_or_else(|| GraphError::NotFound(format!("active snapshot {key:?}")))?;
            if record.stored_kind()? != Kind::Active || !record.layer_digest.is_empty() {
                return Err(GraphError::FailedPrecondition(format!("snapshot {key:?} has its files already")));
            }
            record.layer_digest = layer.as_bytes().to_vec();
            tables.put(key, &record)
        })
    }

    /// Makes the active snapshot `key` the committed snapshot `name`. `parent` may give it a parent if it has none.
    pub fn commit(
        &self,
        key: &str,
        name: &str,
        parent: &str,
        labels: &Labels,
        usage: Usage,
        now: SystemTime,
    ) -> Result<(), GraphError> {
        self.change(|tables| {
            if tables.snapshots.get(name)?.is_some() {
                return Err(GraphError::AlreadyExists(format!("committed snapshot {name:?}")));
            }
            let active = record(&tables.snapshots, key)?;
            let mut record = active.ok_or_else(|| GraphError::NotFound(format!("active snapshot {key:?}")))?;
            if record.stored_kind()? != Kind::Active {
                return Err(GraphError::FailedPrecondition(format!("snapshot {key:?} is not active")));
            }
            if record.parent.is_empty() {
                parent.clone_into(&mut record.parent);
            } else if !parent.is_empty() && parent != record.parent {
                return Err(GraphError::InvalidArgument(format!("cannot change parent of {key:?} on commit")));
            }
            record.parent_id = tables.parent_id(&record.parent).map_err(|error| match error {
                GraphError::InvalidArgument(message) => GraphError::FailedPrecondition(message),
                other => other,
            })?;
            record.kind_number = kind_number(Kind::Committed);
            record.created_ns = nanoseconds(now);
            record.updated_ns = record.created_ns;
            record.labels = without_empty(labels);
            (record.size_bytes, record.inodes) = (usage.size_bytes, usage.inodes);
            tables.snapshots.remove(key)?;
            tables.put_new(name, &record)?;
            tables.link_remote(name, &record)
        })
    }

    /// Takes the snapshot `key` out of the graph and says which directory is free now, and what was mounted there.
    pub fn remove(&self, key: &str) -> Result<(u64, Option<Digest>), GraphError> {
        self.change(|tables| {
            let found = record(&tables.snapshots, key)?;
            let record = found.ok_or_else(|| GraphError::NotFound(format!("snapshot {key:?}")))?;
            if tables.has_children(record.id)? {
                return Err(GraphError::FailedPrecondition(format!("cannot remove snapshot {key:?} with child")));
            }
            tables.children.remove((record.parent_id, record.id))?;
            tables.unlink_remote(key, &record)?;
            tables.snapshots.remove(key)?;
            Ok((record.id, record.layer()?))
        })
    }

    /// Changes labels: all of them without `paths`, else `labels` as a whole or `labels.<key>` one by one.
    pub fn update(&self, name: &str, labels: &Labels, paths: &[String], now: SystemTime) -> Result<Info, GraphError> {
        self.change(|tables| {
            let found = record(&tables.snapshots, name)?;
            let mut record = found.ok_or_else(|| GraphError::NotFound(format!("snapshot {name:?}")))?;
            tables.unlink_remote(name, &record)?;
            apply(&mut record, name, labels, paths)?;
            record.updated_ns = nanoseconds(now);
            tables.put(name, &record)?;
            tables.link_remote(name, &record)?;
            record.info(name)
        })
    }
}

fn apply(record: &mut Record, name: &str, labels: &Labels, paths: &[String]) -> Result<(), GraphError> {
    if paths.is_empty() {
        record.labels = without_empty(labels);
    }
    for path in paths {
        if path == "labels" {
            record.labels = without_empty(labels);
        } else if let Some(key) = path.strip_prefix("labels.") {
            match labels.get(key).filter(|value| !value.is_empty()) {
                Some(value) => record.labels.insert(key.to_owned(), value.clone()),
                None => record.labels.remove(key),
            };
        } else {
            return Err(GraphError::InvalidArgument(format!("cannot update {path:?} field on snapshot {name:?}")));
        }
    }
    Ok(())
}

impl RemoteSnapshot {
    /// The name under which a remote snapshot with the directory `id` is committed.
    ///
    /// It sorts before all names of containerd, which begin with a namespace and so with a letter or digit: of several
    /// snapshots with the wanted label and parent, containerd takes the first in the list, and another namespace may
    /// have unpacked the same layer.
    pub fn name_for(id: u64) -> String {
        format!("{CLAIMED}{id}")
    }

    /// Whether it was made because the node may mount the layer; else containerd had fetched it.
    pub fn is_claimed(&self) -> bool {
        self.name.starts_with(CLAIMED)
    }

    /// Whether containerd made it for this namespace.
    pub fn is_of(&self, namespace: &str) -> bool {
        self.name.split_once('/').is_some_and(|(own, _)| own == namespace)
    }
}
