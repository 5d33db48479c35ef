//! Every storage of seeds against the same module of tests: local disk, memory, a directory, and a real S3-compatible server.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

#[path = "storage/conformance.rs"]
mod conformance;

use std::collections::BTreeMap;
use std::sync::Arc;

use lapwing_lab::{Lab, Need, ObjectStore, require};
use lapwing_p2p::store::{ChunkStore, StoreConfig};
use lapwing_plugins::storage::{DiskStorage, ObjectStorage, StorageConfig};

fn config(service: &str, options: &[(&str, &str)]) -> StorageConfig {
    // The first to come installs it; the others find it there.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let options: BTreeMap<String, String> =
        options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    StorageConfig { service: service.to_owned(), options, ..StorageConfig::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chunk_store_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let store = ChunkStore::open(dir.path(), StoreConfig::default()).unwrap();
    conformance::run(Arc::new(DiskStorage::new(store))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_conforms() {
    conformance::run(Arc::new(ObjectStorage::open(&config("memory", &[])).unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("blobs");
    let storage = ObjectStorage::open(&config("fs", &[("root", root.to_str().unwrap())])).unwrap();
    conformance::run(Arc::new(storage)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_s3_compatible_server_conforms() {
    if !require("an_s3_compatible_server_conforms", &[Need::S3, Need::Disk]) {
        return;
    }
    let lab = Lab::new("s3").unwrap();
    let server = ObjectStore::start_local(lab.dir()).unwrap();
    let storage = ObjectStorage::open(&s3(&server.endpoint(), ObjectStore::SECRET_KEY)).unwrap();
    conformance::run(Arc::new(storage)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_or_a_dead_server_is_an_error_that_shows_no_secret() {
    if !require("a_wrong_key_or_a_dead_server_is_an_error_that_shows_no_secret", &[Need::S3, Need::Disk]) {
        return;
    }
    let lab = Lab::new("s3-errors").unwrap();
    let mut server = ObjectStore::start_local(lab.dir()).unwrap();
    let wrong = ObjectStorage::open(&s3(&server.endpoint(), "a-wrong-secret")).unwrap();
    conformance::fails_openly(&wrong, "a-wrong-secret").await;
    let right = ObjectStorage::open(&s3(&server.endpoint(), ObjectStore::SECRET_KEY)).unwrap();
    server.process().kill9().unwrap();
    conformance::fails_openly(&right, ObjectStore::SECRET_KEY).await;
}

fn s3(endpoint: &str, secret: &str) -> StorageConfig {
    config(
        "s3",
        &[
            ("endpoint", endpoint),
            ("bucket", ObjectStore::BUCKET),
            ("region", ObjectStore::REGION),
            ("root", "/cache"),
            ("access_key_id", ObjectStore::ACCESS_KEY),
            ("secret_access_key", secret),
            ("disable_config_load", "true"),
            ("disable_ec2_metadata", "true"),
        ],
    )
}

#[test]
fn the_other_services_take_their_options() {
    let gcs = [("bucket", "b"), ("credential", "e30="), ("disable_vm_metadata", "true")];
    let azblob = [
        ("container", "c"),
        ("endpoint", "https://account.blob.example"),
        ("account_name", "n"),
        ("account_key", "aGk="),
    ];
    let oss =
        [("bucket", "b"), ("endpoint", "https://oss.example"), ("access_key_id", "k"), ("access_key_secret", "s")];
    for (service, options) in [("gcs", &gcs[..]), ("azblob", &azblob), ("oss", &oss)] {
        assert!(ObjectStorage::open(&config(service, options)).is_ok(), "{service}");
        assert!(ObjectStorage::open(&config(service, &[])).is_err(), "{service} without a place to put anything");
    }
}
