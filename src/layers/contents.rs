//! Indexes made of the tables of contents that layers have in themselves.
//!
//! They are not published: every node reads the table itself, out of the swarm like any range of the layer.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lapwing_snapshotter::index::Index;
use lapwing_snapshotter::lazy::LazyMounts;
use lapwing_snapshotter::source::{LayerSource, Urgency};
use lapwing_snapshotter::toc::{Announced, Toc, TocError};

use super::kept::KeptKind;
use super::{Knowledge, Layers, SwarmLayer, absent, decoding};
use crate::catalog::LayerRecord;
use crate::config::LazyFormat;

/// How long reading a table may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

impl Layers {
    /// What the layer's own table of contents makes of it, or why that is nothing.
    ///
    /// What is kept of a layer comes first: its device may be mounted, and another index may have another one.
    pub(super) async fn by_contents(
        &self,
        mounts: &Arc<LazyMounts>,
        record: &LayerRecord,
    ) -> Result<Knowledge, String> {
        match self.kept.kind(&record.layer) {
            Some(KeptKind::Index) => return Err("an index of it is kept here".to_owned()),
            Some(KeptKind::Table) => {
                let (kept, layer) = (self.kept.clone(), record.layer);
                let loaded = decoding(move || kept.load(&layer)).await;
                return match loaded.and_then(|loaded| loaded) {
                    Ok(index) => Ok(self.take_up(mounts, record, Arc::new(index), None).await),
                    Err(message) => Ok(absent("not_mountable", message)),
                };
            }
            None => {}
        }
        let announced = record.toc.filter(|announced| self.formats.used.contains(&LazyFormat::of(announced)));
        let announced = announced.ok_or("its manifest names no table of contents")?;
        let (index, kept) = self.read_contents(record, announced).await?;
        Ok(self.take_up(mounts, record, index, Some(kept.into())).await)
    }

    /// The index, and what is to be kept of it.
    async fn read_contents(&self, record: &LayerRecord, announced: Announced) -> Result<(Arc<Index>, Vec<u8>), String> {
        let source = self.source(record, record.length);
        let reading = async {
            let footer = read(&source, Toc::footer(&announced, record.length)).await?;
            let toc = Toc::locate(record.layer, record.length, record.diff_id, announced, &footer);
            let toc = toc.map_err(|error| error.to_string())?;
            let stored = read(&source, toc.range()).await?;
            Ok::<_, String>((toc, stored))
        };
        let read = tokio::time::timeout(DEADLINE, reading).await;
        let (toc, stored) = read.map_err(|_| format!("nothing came within {} s", DEADLINE.as_secs()))??;
        index(toc, stored).await
    }
}

/// The index of a table, and what is to be kept of it.
pub(super) async fn index(toc: Toc, stored: Bytes) -> Result<(Arc<Index>, Vec<u8>), String> {
    let made = decoding(move || Ok((Arc::new(toc.index(&stored)?), toc.keep(&stored)))).await?;
    made.map_err(|error: TocError| error.to_string())
}

pub(super) async fn read(source: &SwarmLayer, range: Range<u64>) -> Result<Bytes, String> {
    if range.is_empty() {
        return Ok(Bytes::new());
    }
    source.read(range, Urgency::Fault).await.map_err(|error| error.to_string())
}
