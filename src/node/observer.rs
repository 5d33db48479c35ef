//! What the node does with what it sees pass its mirror.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::node::Blob;
use lapwing_plugins::registry::{Reference, RegistryName, RepositoryName};

use crate::catalog::{Catalog, Image};
use crate::explain::Pulls;
use crate::layers::Layers;
use crate::layers::build::Builder;
use crate::mirror::ImageObserver;

/// Most blobs under way that are remembered until an image claims them; forgotten when nobody holds them.
const MAX_UNCLAIMED: usize = 4096;

/// Remembers images, looks for the indexes of their layers ahead, and has missing ones built.
pub(super) struct Observer {
    catalog: Arc<Catalog>,
    layers: Arc<Layers>,
    pulls: Arc<Pulls>,
    /// None where this node builds no indexes.
    builder: Option<Arc<Builder>>,
    /// Blobs asked for before their image was known: some clients ask for the layers and the config at once.
    unclaimed: Mutex<HashMap<Digest, Weak<Blob>>>,
}

impl Observer {
    pub(super) fn new(
        catalog: Arc<Catalog>,
        layers: Arc<Layers>,
        pulls: Arc<Pulls>,
        builder: Option<Arc<Builder>>,
    ) -> Self {
        Self { catalog, layers, pulls, builder, unclaimed: Mutex::default() }
    }

    fn unclaimed(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Weak<Blob>>> {
        self.unclaimed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ImageObserver for Observer {
    fn image_seen(&self, image: &Image) {
        match self.catalog.learn(image) {
            Ok(records) => {
                let is_ours = !image.is_foreign();
                if is_ours {
                    self.layers.image_seen(&records, image.arguments());
                }
                for record in &records {
                    if is_ours {
                        self.layers.expect(record);
                    }
                    let blob = self.unclaimed().remove(&record.layer).and_then(|blob| blob.upgrade());
                    if let (Some(builder), Some(blob)) = (&self.builder, blob) {
                        builder.layer_pulled(&blob);
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, "an image was not taken into the catalog: its layers are pulled whole");
            }
        }
    }

    fn manifest_resolved(&self, registry: &RegistryName, repo: &RepositoryName, reference: &Reference, began: Instant) {
        self.pulls.resolved(registry, repo, reference, began);
    }

    fn pull_begun(&self, image: &Image) {
        self.pulls.begin(image);
    }

    fn blob_opened(&self, _: &RegistryName, _: &RepositoryName, blob: &Arc<Blob>) {
        let Some(builder) = &self.builder else { return };
        if self.catalog.by_layer(&blob.digest()).is_some() {
            builder.layer_pulled(blob);
            return;
        }
        let mut unclaimed = self.unclaimed();
        unclaimed.retain(|_, blob| blob.strong_count() > 0);
        if unclaimed.len() < MAX_UNCLAIMED {
            unclaimed.insert(blob.digest(), Arc::downgrade(blob));
        }
    }
}
