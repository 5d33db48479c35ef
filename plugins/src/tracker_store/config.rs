//! The configuration of the store that trackers share.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

use lapwing_discovery::store::HolderStore;
use serde::{Deserialize, Serialize};

use super::RedisStore;
use crate::limits::{MAX_CREDENTIAL_FILE, MAX_TRACKER_DATABASES};

/// Where trackers keep what they share.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrackerStoreKind {
    /// Nowhere: each tracker has its own memory.
    #[default]
    Memory,
    /// Redis or Valkey.
    Redis,
    /// MySQL or MariaDB.
    Mysql,
}

/// `[tracker.store]`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrackerStoreConfig {
    /// Which.
    pub kind: TrackerStoreKind,
    /// Where; of several databases, groups are divided among them.
    pub urls: Vec<String>,
    /// A file with the password, for all of them; empty if there is none or it stands in the URL.
    pub password_file: PathBuf,
    /// Groups whose place among `urls`, from 0, is not left to chance.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, usize>,
}

/// Without passwords.
impl std::fmt::Debug for TrackerStoreConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrackerStoreConfig").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// The `[tracker.store]` section cannot be used as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTrackerStore {
    /// A key does not fit.
    #[error("tracker.store.{key}: {reason}")]
    Key {
        /// Which.
        key: &'static str,
        /// Why, and what to do.
        reason: String,
    },
    /// The file with the password cannot be read.
    #[error("tracker.store.password_file: {path} cannot be read: {reason}")]
    Unreadable {
        /// The file.
        path: String,
        /// What happened.
        reason: String,
    },
}

fn invalid(key: &'static str, reason: impl Into<String>) -> InvalidTrackerStore {
    InvalidTrackerStore::Key { key, reason: reason.into() }
}

impl TrackerStoreConfig {
    /// Checks what can be checked without looking at files or networks.
    pub fn check(&self) -> Result<(), InvalidTrackerStore> {
        let schemes: &[&str] = match self.kind {
            TrackerStoreKind::Memory if self.urls.is_empty() && self.groups.is_empty() => return Ok(()),
            TrackerStoreKind::Memory => return Err(invalid("kind", "\"memory\" has no urls and no groups")),
            TrackerStoreKind::Redis => &["redis", "rediss", "valkey", "valkeys", "unix", "redis+unix"],
            TrackerStoreKind::Mysql => &["mysql", "mariadb"],
        };
        if self.kind == TrackerStoreKind::Mysql && cfg!(not(feature = "mysql")) {
            return Err(invalid("kind", "this build has no MySQL; build with the feature mysql"));
        }
        let most = if self.kind == TrackerStoreKind::Redis { 1 } else { MAX_TRACKER_DATABASES };
        if !(1..=most).contains(&self.urls.len()) {
            return Err(invalid("urls", format!("{} given; expected 1 to {most}", self.urls.len())));
        }
        for (place, url) in self.urls.iter().enumerate() {
            // A URL may hold a password: it is never shown.
            let fits =
                url.split_once("://").is_some_and(|(scheme, rest)| schemes.contains(&scheme) && !rest.is_empty());
            if !fits {
                let reason = format!("number {place} is no URL that begins with {}://", schemes.join(":// or "));
                return Err(invalid("urls", reason));
            }
        }
        match self.groups.iter().find(|(_, place)| **place >= self.urls.len()) {
            Some((group, place)) => Err(invalid(
                "groups",
                format!("{group:?} is to be in urls[{place}], and there are {}", self.urls.len()),
            )),
            None => Ok(()),
        }
    }

    fn password(&self) -> Result<Option<String>, InvalidTrackerStore> {
        if self.password_file.as_os_str().is_empty() {
            return Ok(None);
        }
        let path = self.password_file.display().to_string();
        let unreadable =
            |error: std::io::Error| InvalidTrackerStore::Unreadable { path: path.clone(), reason: error.to_string() };
        let mut text = String::new();
        let file = std::fs::File::open(&self.password_file).map_err(unreadable)?;
        file.take(MAX_CREDENTIAL_FILE).read_to_string(&mut text).map_err(unreadable)?;
        Ok(Some(text.trim_end_matches(['\n', '\r']).to_owned()))
    }
}

/// The store that `config` names, not connected yet; none if each tracker has its own memory.
pub fn open(config: &TrackerStoreConfig) -> Result<Option<Arc<dyn HolderStore>>, InvalidTrackerStore> {
    config.check()?;
    let password = config.password()?;
    match config.kind {
        TrackerStoreKind::Memory => Ok(None),
        TrackerStoreKind::Redis => {
            let url = config.urls.first().map(String::as_str).unwrap_or_default();
            let store =
                RedisStore::new(url, password.as_deref()).map_err(|error| invalid("urls", error.to_string()))?;
            Ok(Some(Arc::new(store)))
        }
        TrackerStoreKind::Mysql => open_mysql(config, password.as_deref()),
    }
}

#[cfg(feature = "mysql")]
fn open_mysql(
    config: &TrackerStoreConfig,
    password: Option<&str>,
) -> Result<Option<Arc<dyn HolderStore>>, InvalidTrackerStore> {
    let store = super::MysqlStore::new(&config.urls, &config.groups, password)
        .map_err(|error| invalid("urls", error.to_string()))?;
    Ok(Some(Arc::new(store)))
}

#[cfg(not(feature = "mysql"))]
fn open_mysql(_: &TrackerStoreConfig, _: Option<&str>) -> Result<Option<Arc<dyn HolderStore>>, InvalidTrackerStore> {
    Err(invalid("kind", "this build has no MySQL; build with the feature mysql"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(kind: TrackerStoreKind, urls: &[&str]) -> TrackerStoreConfig {
        let urls = urls.iter().map(|url| (*url).to_owned()).collect();
        TrackerStoreConfig { kind, urls, ..TrackerStoreConfig::default() }
    }

    #[test]
    fn what_cannot_work_is_refused_by_the_key_and_without_the_password() {
        assert_eq!(TrackerStoreConfig::default().check(), Ok(()));
        let misplaced = TrackerStoreConfig {
            groups: BTreeMap::from([("blue".to_owned(), 1)]),
            ..config(TrackerStoreKind::Mysql, &["mysql://u:hush@h/d"])
        };
        for (config, hint) in [
            (config(TrackerStoreKind::Memory, &["redis://:hush@h"]), "memory"),
            (config(TrackerStoreKind::Redis, &[]), "expected 1"),
            (config(TrackerStoreKind::Redis, &["redis://:hush@h", "redis://h"]), "expected 1"),
            (config(TrackerStoreKind::Redis, &["http://:hush@h"]), "redis://"),
            (config(TrackerStoreKind::Mysql, &["redis://:hush@h"]), "mysql"),
            (misplaced, "urls[1]"),
        ] {
            let error = open(&config).err().unwrap().to_string();
            assert!(error.contains("tracker.store.") && error.contains(hint) && !error.contains("hush"), "{error}");
            assert!(!format!("{config:?}").contains("hush"));
        }
        let mut missing = config(TrackerStoreKind::Redis, &["redis://h"]);
        missing.password_file = "/does/not/exist".into();
        assert!(open(&missing).err().unwrap().to_string().contains("/does/not/exist"));
    }

    #[test]
    fn no_connection_is_needed_to_open_one() {
        for (kind, url) in
            [(TrackerStoreKind::Redis, "redis://u:hush@127.0.0.1:1/3"), (TrackerStoreKind::Redis, "rediss://h")]
        {
            assert!(open(&config(kind, &[url])).unwrap().is_some());
        }
    }
}
