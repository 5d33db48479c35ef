//! SOCI indexes: zTOCs of an image's larger layers, in an artifact of their own (soci-snapshotter, `docs/soci-index-manifest-v2.md`).
//!
//! In the second version the image's manifest names the artifact's digest, and all of it is then as good as the manifest. In the
//! first one the artifact refers to the image, and whoever may push to the repository can have put it there: it is looked for only
//! where the configuration says so.

use std::collections::HashMap;
use std::sync::Arc;

use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::lazy::LazyMounts;
use lapwing_snapshotter::toc::Toc;
use serde::Deserialize;

use super::contents::{self, DEADLINE};
use super::kept::KeptKind;
use super::{Knowledge, Layers, SwarmLayer};
use crate::catalog::LayerRecord;
use crate::config::LazyFormat;
use crate::limits::MAX_REFERRERS;

const INDEX_V1: &str = "application/vnd.amazon.soci.index.v1+json";
const INDEX_V2: &str = "application/vnd.amazon.soci.index.v2+json";
const LAYER_DIGEST: &str = "com.amazon.soci.image-layer-digest";

/// An artifact, or the list of those that refer to an image.
#[derive(Deserialize)]
struct Manifest {
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    artifact_type: Option<String>,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

impl Layers {
    /// What a SOCI index makes of the layer; none where there is none to look into.
    pub(super) async fn by_soci(
        &self,
        mounts: &Arc<LazyMounts>,
        record: &LayerRecord,
    ) -> Result<Option<Knowledge>, String> {
        let is_used = self.formats.used.contains(&LazyFormat::Soci);
        if !is_used || self.kept.kind(&record.layer) == Some(KeptKind::Index) {
            return Ok(None);
        }
        let finding = async {
            let Some((ztoc, length)) = self.find_ztoc(record).await? else { return Ok::<_, String>(None) };
            let toc = Toc::ztoc(record.layer, record.length, record.diff_id, ztoc, length);
            let toc = toc.map_err(|error| error.to_string())?;
            let origin = self.origins.of(&record.registry, &record.repo, ztoc, length);
            let source = SwarmLayer::new(Arc::clone(&self.node), ztoc, length, origin);
            let stored = contents::read(&source, 0..length).await?;
            Ok(Some(contents::index(toc, stored).await?))
        };
        let found = tokio::time::timeout(DEADLINE, finding).await;
        match found.map_err(|_| format!("nothing came within {} s", DEADLINE.as_secs()))?? {
            Some((index, kept)) => Ok(Some(self.take_up(mounts, record, index, Some(kept.into())).await)),
            None => Ok(None),
        }
    }

    /// Digest and length of the layer's zTOC.
    async fn find_ztoc(&self, record: &LayerRecord) -> Result<Option<(Digest, u64)>, String> {
        if let Some(index) = record.soci {
            return self.ztoc_in(record, index, INDEX_V2).await;
        }
        let Some(image) = record.manifest.filter(|_| self.formats.soci_referrers) else { return Ok(None) };
        let Some(list) = self.origins.referrers(record, image).await? else { return Ok(None) };
        let is_index = |found: &&Descriptor| {
            // Registries without referrers list an artifact by the type of its configuration, as they were told.
            [found.artifact_type.as_deref(), Some(&found.media_type)].contains(&Some(INDEX_V1))
        };
        for found in parse(&list)?.manifests.iter().filter(is_index).take(MAX_REFERRERS) {
            let index = found.digest.parse().map_err(|_| format!("a SOCI index with the digest {:?}", found.digest))?;
            if let Some(ztoc) = self.ztoc_in(record, index, INDEX_V1).await? {
                return Ok(Some(ztoc));
            }
        }
        Ok(None)
    }

    async fn ztoc_in(&self, record: &LayerRecord, index: Digest, kind: &str) -> Result<Option<(Digest, u64)>, String> {
        let manifest = parse(&self.origins.manifest(record, index).await?)?;
        if manifest.config.is_none_or(|config| config.media_type != kind) {
            return Err(format!("{index} is no SOCI index of the type {kind}"));
        }
        let layer = record.layer.to_string();
        let ztoc = manifest.layers.iter().find(|ztoc| ztoc.annotations.get(LAYER_DIGEST) == Some(&layer));
        let Some(ztoc) = ztoc else { return Ok(None) };
        let digest = ztoc.digest.parse().map_err(|_| format!("a zTOC with the digest {:?}", ztoc.digest))?;
        Ok(Some((digest, ztoc.size)))
    }
}

fn parse(manifest: &[u8]) -> Result<Manifest, String> {
    serde_json::from_slice(manifest).map_err(|error| format!("not the manifest of a SOCI index: {error}"))
}
