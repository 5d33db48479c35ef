//! Stores that trackers share, behind [`lapwing_discovery::store::HolderStore`].
//!
//! * [`RedisStore`]: Redis or Valkey, one server or one with replicas behind one name (no cluster)
//! * `MysqlStore`: MySQL or MariaDB, one database or several among which groups are divided; a feature of the build, on by
//!   default
//!
//! Every implementation passes the module of tests in `tests/tracker_store/conformance.rs`.

mod config;
#[cfg(feature = "mysql")]
mod mysql;
mod redis;

pub use self::config::{InvalidTrackerStore, TrackerStoreConfig, TrackerStoreKind, open};
#[cfg(feature = "mysql")]
pub use self::mysql::{InvalidMysql, MysqlStore};
pub use self::redis::{InvalidRedis, RedisStore};
