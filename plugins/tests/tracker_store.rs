//! Trackers that share a store: one module of tests for each kind, with the real servers.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail as the test itself may")]

#[path = "tracker_store/conformance.rs"]
mod conformance;
#[cfg(feature = "mysql")]
#[path = "tracker_store/mysql.rs"]
mod mysql;
#[path = "tracker_store/outage.rs"]
mod outage;
#[path = "tracker_store/rig.rs"]
mod rig;

use std::sync::Arc;

use lapwing_discovery::store::HolderStore;
use lapwing_lab::{Database, Need, require};
use lapwing_plugins::tracker_store::RedisStore;

use self::rig::Rig;

fn redis(server: &Database) -> Rig {
    let url = server.url("0");
    Rig::sharing(move || Arc::new(RedisStore::new(&url, None).unwrap()) as Arc<dyn HolderStore>)
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_conforms() {
    conformance::run(&Rig::alone()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_conforms() {
    if !require("redis_conforms", &[Need::Program("redis-server")]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Database::redis(dir.path()).unwrap();
    conformance::run(&redis(&server)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trackers_outlive_a_redis_that_goes_away() {
    if !require("trackers_outlive_a_redis_that_goes_away", &[Need::Program("redis-server")]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut server = Database::redis(dir.path()).unwrap();
    outage::run(&redis(&server), &mut server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_told_and_not_shown() {
    if !require("a_wrong_password_is_told_and_not_shown", &[Need::Program("redis-server")]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Database::redis(dir.path()).unwrap();
    let store = RedisStore::new(&server.url("0"), Some("not the secret")).unwrap();
    let error = HolderStore::expire(&store, std::time::Duration::ZERO).await.unwrap_err().to_string();
    assert!(error.contains("127.0.0.1") && !error.contains("secret"), "{error}");
    let store = RedisStore::new(&server.url("0").replace(Database::PASSWORD, "x"), Some(Database::PASSWORD)).unwrap();
    assert_eq!(HolderStore::expire(&store, std::time::Duration::ZERO).await, Ok(0), "the file's password counts");
}
