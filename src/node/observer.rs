//! What the node does with what it sees pass its mirror.

use std::sync::Arc;

use lapwing_p2p::node::Blob;
use lapwing_plugins::registry::{RegistryName, RepositoryName};

use crate::catalog::{Catalog, Image};
use crate::layers::Layers;
use crate::layers::build::Builder;
use crate::mirror::ImageObserver;

/// Remembers images, looks for the indexes of their layers ahead, and has missing ones built.
pub(super) struct Observer {
    catalog: Arc<Catalog>,
    layers: Arc<Layers>,
    /// None where this node builds no indexes.
    builder: Option<Arc<Builder>>,
}

impl Observer {
    pub(super) fn new(catalog: Arc<Catalog>, layers: Arc<Layers>, builder: Option<Arc<Builder>>) -> Self {
        Self { catalog, layers, builder }
    }
}

impl ImageObserver for Observer {
    fn image_seen(&self, image: &Image) {
        match self.catalog.learn(image) {
            Ok(records) => {
                for record in &records {
                    self.layers.expect(record);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "an image was not taken into the catalog: its layers are pulled whole");
            }
        }
    }

    fn blob_opened(&self, _: &RegistryName, _: &RepositoryName, blob: &Arc<Blob>) {
        if let Some(builder) = &self.builder
            && self.catalog.by_layer(&blob.digest()).is_some()
        {
            builder.layer_pulled(blob);
        }
    }
}
