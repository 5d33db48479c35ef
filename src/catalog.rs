//! Which chain id is which layer: learnt from the manifests and configs that pass the mirror.
//!
//! containerd names a snapshot by its chain id (OCI image spec, "Layer ChainID") and tells nobody which blob that is,
//! unless annotations happen to be switched on. A manifest lists the layers, the config it names lists their diff ids,
//! and both together give every chain id of the image.
//!
//! One redb file, written in one transaction per image, synced before the call returns. Everything in it can be learnt
//! again by pulling again, so a file that cannot be read is set aside and begun anew. The oldest records go when there
//! are more than [`MAX_RECORDS`].

use std::path::{Path, PathBuf};

use lapwing_p2p::digest::Digest;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _, TableDefinition};

mod image;
mod record;

pub(crate) use image::{Image, is_layer};
pub(crate) use record::LayerRecord;

/// Most layers remembered.
const MAX_RECORDS: u64 = 100_000;

/// chain id -> record
const CHAINS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("chains_v1");
/// layer digest -> chain id it was last seen under
const LAYERS: TableDefinition<'_, &str, &str> = TableDefinition::new("layers_v1");
/// age -> chain id; the lowest is the oldest
const AGES: TableDefinition<'_, u64, &str> = TableDefinition::new("ages_v1");

/// The catalog cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("catalog {path}: {reason}")]
pub(crate) struct CatalogError {
    path: String,
    reason: String,
}

/// See the module's documentation.
pub(crate) struct Catalog {
    database: Database,
    path: PathBuf,
    most_records: u64,
}

impl Catalog {
    /// Opens or creates the file at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, CatalogError> {
        let failed = |reason: String| CatalogError { path: path.display().to_string(), reason };
        let database = match Database::create(path) {
            Ok(database) => database,
            Err(error @ redb::DatabaseError::DatabaseAlreadyOpen) => {
                return Err(failed(format!("{error}; is another node running on this root?")));
            }
            Err(error) if !is_damage(&error) => return Err(failed(error.to_string())),
            Err(error) => {
                let aside = path.with_extension("redb.broken");
                tracing::warn!(path = %path.display(), aside = %aside.display(), %error, "catalog is unreadable: begun anew");
                std::fs::rename(path, &aside)
                    .map_err(|rename| failed(format!("{error}; setting it aside: {rename}")))?;
                Database::create(path).map_err(|error| failed(error.to_string()))?
            }
        };
        let catalog = Self { database, path: path.to_owned(), most_records: MAX_RECORDS };
        catalog.write(&[]).map_err(|error| catalog.error(&error))?;
        Ok(catalog)
    }

    /// Learns every layer of an image, base first, and returns their records.
    pub(crate) fn learn(&self, image: &Image) -> Result<Vec<LayerRecord>, CatalogError> {
        let records = image.records();
        self.store(&records)?;
        Ok(records)
    }

    /// Takes up or replaces one record. A failure is logged: the record can be learnt again.
    pub(crate) fn remember(&self, record: LayerRecord) {
        let digest = record.layer;
        if let Err(error) = self.store(&[record]) {
            tracing::warn!(%digest, %error, "layer could not be written down");
        }
    }

    /// The layer that this chain id stands for.
    pub(crate) fn by_chain(&self, chain_id: &str) -> Option<LayerRecord> {
        self.logged(self.read(chain_id))
    }

    /// What is known of this layer, from the image it was last seen in.
    pub(crate) fn by_layer(&self, layer: &Digest) -> Option<LayerRecord> {
        self.logged(self.read_layer(layer))
    }

    fn store(&self, records: &[LayerRecord]) -> Result<(), CatalogError> {
        let known =
            |record: &LayerRecord| self.read(&record.chain_id).is_ok_and(|known| known.as_ref() == Some(record));
        if records.iter().all(known) {
            return Ok(());
        }
        self.write(records).map_err(|error| self.error(&error))
    }

    fn write(&self, records: &[LayerRecord]) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut chains = transaction.open_table(CHAINS)?;
            let mut layers = transaction.open_table(LAYERS)?;
            let mut ages = transaction.open_table(AGES)?;
            let mut age = ages.last()?.map_or(0, |(age, _)| age.value());
            for record in records {
                let is_new = chains.insert(record.chain_id.as_str(), record.encode().as_slice())?.is_none();
                layers.insert(record.layer.to_string().as_str(), record.chain_id.as_str())?;
                if is_new {
                    age += 1;
                    ages.insert(age, record.chain_id.as_str())?;
                }
            }
            while ages.len()? > self.most_records {
                let Some((_, chain)) = ages.pop_first()?.map(|(age, chain)| (age.value(), chain.value().to_owned()))
                else {
                    break;
                };
                let removed = chains.remove(chain.as_str())?.and_then(|bytes| LayerRecord::decode(bytes.value()));
                let Some(layer) = removed.map(|record| record.layer.to_string()) else { continue };
                let orphan = layers.get(layer.as_str())?.is_some_and(|last| last.value() == chain);
                if orphan {
                    layers.remove(layer.as_str())?;
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }

    fn read(&self, chain_id: &str) -> Result<Option<LayerRecord>, redb::Error> {
        let transaction = self.database.begin_read()?;
        let record = transaction.open_table(CHAINS)?.get(chain_id)?;
        Ok(record.and_then(|bytes| LayerRecord::decode(bytes.value())))
    }

    fn read_layer(&self, layer: &Digest) -> Result<Option<LayerRecord>, redb::Error> {
        let transaction = self.database.begin_read()?;
        let Some(chain) = transaction.open_table(LAYERS)?.get(layer.to_string().as_str())? else {
            return Ok(None);
        };
        let record = transaction.open_table(CHAINS)?.get(chain.value())?;
        Ok(record.and_then(|bytes| LayerRecord::decode(bytes.value())))
    }

    fn error(&self, error: &redb::Error) -> CatalogError {
        CatalogError { path: self.path.display().to_string(), reason: error.to_string() }
    }

    fn logged<T>(&self, outcome: Result<Option<T>, redb::Error>) -> Option<T> {
        outcome.unwrap_or_else(|error| {
            tracing::warn!(path = %self.path.display(), %error, "catalog could not be read");
            None
        })
    }
}

/// Whether the file itself is at fault, rather than the system around it.
fn is_damage(error: &redb::DatabaseError) -> bool {
    use redb::{DatabaseError, StorageError};
    match error {
        DatabaseError::RepairAborted | DatabaseError::UpgradeRequired(_) => true,
        DatabaseError::Storage(StorageError::Corrupted(_)) => true,
        DatabaseError::Storage(StorageError::Io(error)) => error.kind() == std::io::ErrorKind::InvalidData,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use lapwing_snapshotter::remote::chain_id;

    use super::*;

    fn record(number: u32) -> LayerRecord {
        let layer = Digest::of(&number.to_be_bytes());
        LayerRecord {
            chain_id: chain_id(None, &layer),
            parent_chain: number.is_multiple_of(2).then(|| format!("parent{number}")),
            diff_id: layer,
            layer,
            length: u64::from(number),
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
            registry: "docker.io".parse().unwrap(),
            repo: "library/x".parse().unwrap(),
            manifest: Some(Digest::of(b"m")),
            toc: None,
            soci: None,
        }
    }

    #[test]
    fn records_outlive_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalog.redb");
        let catalog = Catalog::open(&path).unwrap();
        catalog.remember(record(1));
        catalog.remember(record(2));
        assert!(Catalog::open(&path).is_err(), "a second opener");
        drop(catalog);
        let catalog = Catalog::open(&path).unwrap();
        assert_eq!(catalog.by_chain(&record(1).chain_id), Some(record(1)));
        assert_eq!(catalog.by_layer(&record(2).layer), Some(record(2)));
        assert_eq!(catalog.by_chain("sha256:none"), None);
        let changed = LayerRecord { length: 77, ..record(1) };
        catalog.remember(changed.clone());
        assert_eq!(catalog.by_layer(&record(1).layer), Some(changed));
    }

    #[test]
    fn an_unreadable_file_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalog.redb");
        std::fs::write(&path, b"not a database at all, but long enough to be looked at".repeat(100)).unwrap();
        let catalog = Catalog::open(&path).unwrap();
        catalog.remember(record(1));
        assert_eq!(catalog.by_layer(&record(1).layer), Some(record(1)));
        assert!(directory.path().join("catalog.redb.broken").exists());
    }

    #[test]
    fn the_oldest_go_first() {
        let directory = tempfile::tempdir().unwrap();
        let mut catalog = Catalog::open(&directory.path().join("catalog.redb")).unwrap();
        catalog.most_records = 100;
        let count = 105;
        let records: Vec<_> = (0..count).map(record).collect();
        for some in records.chunks(40) {
            catalog.store(some).unwrap();
        }
        assert!((0..5).all(|number| catalog.by_layer(&record(number).layer).is_none()));
        assert!((0..5).all(|number| catalog.by_chain(&record(number).chain_id).is_none()));
        assert!([5, count - 1].iter().all(|&number| catalog.by_layer(&record(number).layer).is_some()));
    }
}
