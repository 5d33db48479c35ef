//! Questions to the graph. Each sees one consistent state and blocks no writer.

use std::collections::HashSet;

use lapwing_p2p::digest::Digest;
use redb::{ReadableDatabase as _, ReadableTable};

use super::record::Record;
use super::{Graph, GraphError, Info, Kind, REF_LABEL, REMOTES, RemoteSnapshot, SNAPSHOTS, Usage};
use crate::lazy::Named;
use crate::limits::MAX_SNAPSHOT_CHAIN;

/// One of the snapshots below another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ancestor {
    /// Its directory's id.
    pub id: u64,
    /// The layer mounted there, unless it has files of its own.
    pub layer: Option<Digest>,
}

/// What is needed to mount an active snapshot or a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its directory's id.
    pub id: u64,
    /// Never committed.
    pub kind: Kind,
    /// Nearest first.
    pub ancestors: Vec<Ancestor>,
}

pub(super) fn record(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &str,
) -> Result<Option<Record>, GraphError> {
    table.get(name)?.map(|stored| Record::decode_stored(name, stored.value())).transpose()
}

/// The chain that begins with the snapshot `first`, which is included.
pub(super) fn chain(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    first: &str,
) -> Result<Vec<Ancestor>, GraphError> {
    let mut found = Vec::new();
    let mut name = first.to_owned();
    while !name.is_empty() {
        let parent = record(table, &name)?.ok_or_else(|| GraphError::NotFound(format!("missing parent {name:?}")))?;
        found.push(Ancestor { id: parent.id, layer: parent.layer()? });
        if found.len() > MAX_SNAPSHOT_CHAIN {
            return Err(GraphError::FailedPrecondition(format!(
                "snapshot {first:?} stands on more than {MAX_SNAPSHOT_CHAIN} others"
            )));
        }
        name = parent.parent;
    }
    Ok(found)
}

/// The first remote snapshot with this chain id and parent. There is one at most, unless two were extracted at once or labels were changed.
pub(super) fn first_remote(
    table: &impl ReadableTable<(&'static str, &'static str, &'static str), ()>,
    chain_id: &str,
    parent: &str,
) -> Result<Option<String>, GraphError> {
    let Some(first) = table.range((chain_id, parent, "")..)?.next().transpose()? else { return Ok(None) };
    let (found_chain_id, found_parent, name) = first.0.value();
    Ok((found_chain_id == chain_id && found_parent == parent).then(|| name.to_owned()))
}

fn missing(name: &str) -> GraphError {
    GraphError::NotFound(format!("snapshot {name:?}"))
}

impl Graph {
    /// Id, description and stored usage of the snapshot `name`.
    pub fn stat(&self, name: &str) -> Result<(u64, Info, Usage), GraphError> {
        let table = self.database.begin_read()?.open_table(SNAPSHOTS)?;
        let record = record(&table, name)?.ok_or_else(|| missing(name))?;
        Ok((record.id, record.info(name)?, record.usage()))
    }

    /// The layer that the snapshot `name` stands for, unless it has files of its own.
    pub fn layer(&self, name: &str) -> Result<Option<Digest>, GraphError> {
        let table = self.database.begin_read()?.open_table(SNAPSHOTS)?;
        record(&table, name)?.ok_or_else(|| missing(name))?.layer()
    }

    /// The active snapshot with that id, if there is one.
    pub fn active(&self, id: u64) -> Result<Option<Info>, GraphError> {
        let table = self.database.begin_read()?.open_table(SNAPSHOTS)?;
        for entry in table.iter()? {
            let (name, stored) = entry?;
            let record = Record::decode_stored(name.value(), stored.value())?;
            if record.id == id {
                return Ok(Some(record.info(name.value())?).filter(|info| info.kind == Kind::Active));
            }
        }
        Ok(None)
    }

    /// The active snapshot or view `key`, ready to be mounted.
    pub fn mountable(&self, key: &str) -> Result<Snapshot, GraphError> {
        let table = self.database.begin_read()?.open_table(SNAPSHOTS)?;
        let record = record(&table, key)?.ok_or_else(|| missing(key))?;
        let kind = record.stored_kind()?;
        if kind == Kind::Committed {
            return Err(GraphError::FailedPrecondition(format!("snapshot {key:?} is not active or view")));
        }
        Ok(Snapshot { id: record.id, kind, ancestors: chain(&table, &record.parent)? })
    }

    /// The chain of a new snapshot's parent, nearest first: empty for no parent, an error unless it is committed.
    pub fn parent_chain(&self, parent: &str) -> Result<Vec<Ancestor>, GraphError> {
        if parent.is_empty() {
            return Ok(Vec::new());
        }
        let table = self.database.begin_read()?.open_table(SNAPSHOTS)?;
        super::write::committed_parent(record(&table, parent)?, parent)?;
        chain(&table, parent)
    }

    /// All snapshots that `wanted` accepts, in the order of their names.
    pub fn list(&self, wanted: impl Fn(&Info) -> bool) -> Result<Vec<Info>, GraphError> {
        let table = self.database.begin_read()?.open_table(SNAPSHOTS)?;
        let mut found = Vec::new();
        for entry in table.iter()? {
            let (name, stored) = entry?;
            let info = Record::decode_stored(name.value(), stored.value())?.info(name.value())?;
            if wanted(&info) {
                found.push(info);
            }
        }
        Ok(found)
    }

    /// The ids of all snapshots: the directories that must stay.
    pub fn ids(&self) -> Result<HashSet<u64>, GraphError> {
        let table = self.database.begin_read()?.open_table(SNAPSHOTS)?;
        table.iter()?.map(|entry| entry.map_err(GraphError::from).and_then(|(k, v)| id(k.value(), v.value()))).collect()
    }

    /// All committed snapshots that stand for layers mounted on demand.
    pub fn remotes(&self) -> Result<Vec<RemoteSnapshot>, GraphError> {
        let table = self.database.begin_read()?.open_table(SNAPSHOTS)?;
        let mut found = Vec::new();
        for entry in table.iter()? {
            let (name, stored) = entry?;
            let record = Record::decode_stored(name.value(), stored.value())?;
            if let Some(layer) =
                record.layer()?.filter(|_| record.stored_kind().is_ok_and(|kind| kind == Kind::Committed))
            {
                found.push(RemoteSnapshot { id: record.id, name: name.value().to_owned(), layer });
            }
        }
        Ok(found)
    }

    /// All ids, and all layers that snapshots stand for.
    pub fn named(&self) -> Result<Named, GraphError> {
        let table = self.database.begin_read()?.open_table(SNAPSHOTS)?;
        let mut named = Named::default();
        for entry in table.iter()? {
            let (name, stored) = entry?;
            let record = Record::decode_stored(name.value(), stored.value())?;
            named.ids.insert(record.id);
            named.layers.extend(record.layer()?);
        }
        Ok(named)
    }

    /// The remote snapshot with the label [`REF_LABEL`]` = chain_id` and exactly this parent.
    pub fn remote(&self, chain_id: &str, parent: &str) -> Result<Option<RemoteSnapshot>, GraphError> {
        let transaction = self.database.begin_read()?;
        let Some(name) = first_remote(&transaction.open_table(REMOTES)?, chain_id, parent)? else { return Ok(None) };
        let record = record(&transaction.open_table(SNAPSHOTS)?, &name)?.ok_or_else(|| missing(&name))?;
        Ok(record.layer()?.map(|layer| RemoteSnapshot { id: record.id, name, layer }))
    }

    /// The chain id that the snapshot `name` was made for, if its label says so.
    pub fn chain_id(&self, name: &str) -> Result<Option<String>, GraphError> {
        let table = self.database.begin_read()?.open_table(SNAPSHOTS)?;
        Ok(record(&table, name)?.and_then(|record| record.labels.get(REF_LABEL).cloned()))
    }
}

fn id(name: &str, stored: &[u8]) -> Result<u64, GraphError> {
    Ok(Record::decode_stored(name, stored)?.id)
}
