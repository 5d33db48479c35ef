//! The configuration of a seed's storage.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

use lapwing_p2p::storage::SeedStorage;
use serde::{Deserialize, Serialize};

use crate::limits::MAX_CREDENTIAL_FILE;

/// Services that can be named.
const SERVICES: [&str; 6] = ["azblob", "fs", "gcs", "memory", "oss", "s3"];

/// `[seed.storage]`: where a seed keeps completed blobs besides its own disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageConfig {
    /// `azblob`, `fs`, `gcs`, `memory`, `oss` or `s3`; empty for the local disk alone.
    pub service: String,
    /// What the service needs to know, by opendal's names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// More of them, whose values stand in files.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, PathBuf>,
}

/// The `[seed.storage]` section cannot be used as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidStorage {
    /// There is no such service.
    #[error(
        "seed.storage.service: {0:?} is none of azblob, fs, gcs, memory, oss, s3; leave it empty for the local disk alone"
    )]
    Service(String),
    /// The build lacks it.
    #[error("seed.storage.service: this build has no object stores; build with the feature object-storage")]
    NotBuilt,
    /// Options without a service.
    #[error("seed.storage: options and secrets need a service")]
    NoService,
    /// An option is named twice.
    #[error("seed.storage.secrets.{0}: this option stands among the options, too")]
    Twice(String),
    /// A file cannot be read.
    #[error("seed.storage.secrets.{option}: {path} cannot be read: {reason}")]
    Unreadable {
        /// The option.
        option: String,
        /// The file.
        path: String,
        /// What happened.
        reason: String,
    },
    /// The service refuses its options.
    #[error("seed.storage.options: {0}")]
    Options(String),
}

impl StorageConfig {
    /// Checks what can be checked without looking at files or networks.
    pub fn check(&self) -> Result<(), InvalidStorage> {
        if self.service.is_empty() {
            let bare = self.options.is_empty() && self.secrets.is_empty();
            return if bare { Ok(()) } else { Err(InvalidStorage::NoService) };
        }
        if !SERVICES.contains(&self.service.as_str()) {
            return Err(InvalidStorage::Service(self.service.clone()));
        }
        if cfg!(not(feature = "object-storage")) {
            return Err(InvalidStorage::NotBuilt);
        }
        match self.secrets.keys().find(|option| self.options.contains_key(*option)) {
            Some(option) => Err(InvalidStorage::Twice(option.clone())),
            None => Ok(()),
        }
    }

    /// All options, with those that stand in files.
    pub(super) fn all_options(&self) -> Result<BTreeMap<String, String>, InvalidStorage> {
        self.check()?;
        let mut options = self.options.clone();
        for (option, path) in &self.secrets {
            let unreadable = |reason: String| InvalidStorage::Unreadable {
                option: option.clone(),
                path: path.display().to_string(),
                reason,
            };
            let mut text = String::new();
            let file = std::fs::File::open(path).map_err(|error| unreadable(error.to_string()))?;
            file.take(MAX_CREDENTIAL_FILE).read_to_string(&mut text).map_err(|error| unreadable(error.to_string()))?;
            options.insert(option.clone(), text.trim_end_matches(['\n', '\r']).to_owned());
        }
        Ok(options)
    }
}

/// The storage that `config` names; none for the local disk alone.
#[cfg(feature = "object-storage")]
pub fn open(config: &StorageConfig) -> Result<Option<Arc<dyn SeedStorage>>, InvalidStorage> {
    config.check()?;
    if config.service.is_empty() {
        return Ok(None);
    }
    Ok(Some(Arc::new(super::ObjectStorage::open(config)?)))
}

/// The storage that `config` names; none for the local disk alone.
#[cfg(not(feature = "object-storage"))]
pub fn open(config: &StorageConfig) -> Result<Option<Arc<dyn SeedStorage>>, InvalidStorage> {
    config.all_options().map(|_| None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> StorageConfig {
        let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
        let mut config = StorageConfig::default();
        for (key, value) in pairs {
            match key.split_once('.') {
                Some(("secrets", option)) => drop(config.secrets.insert(option.to_owned(), value.into())),
                Some((_, option)) => drop(config.options.insert(option.to_owned(), value.to_owned())),
                None => value.clone_into(&mut config.service),
            }
        }
        config
    }

    #[test]
    fn what_cannot_work_is_refused_by_the_key() {
        assert_eq!(config("").check(), Ok(()));
        for (text, hint) in [
            ("service=ftp", "ftp"),
            ("options.bucket=b", "need a service"),
            ("service=s3 options.bucket=b secrets.bucket=/x", "secrets.bucket"),
        ] {
            let error = config(text).check().unwrap_err().to_string();
            assert!(error.contains("seed.storage") && error.contains(hint), "{error}");
        }
        let missing = config("service=s3 secrets.secret_access_key=/does/not/exist");
        assert!(missing.all_options().unwrap_err().to_string().contains("/does/not/exist"));
    }

    #[test]
    fn secrets_are_read_from_their_files_without_the_line_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hush\n").unwrap();
        let config = config(&format!("service=s3 options.bucket=b secrets.k={}", file.path().display()));
        let options = config.all_options().unwrap();
        assert_eq!((options["bucket"].as_str(), options["k"].as_str()), ("b", "hush"));
    }
}
