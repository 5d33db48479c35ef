//! The remote-snapshot protocol, with directories in place of layers.

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::graph::REF_LABEL;
use lapwing_snapshotter::remote::Started;
use lapwing_snapshotter::service::proto::{Kind, Mount, UsageRequest};
use rustix::mount::{MountFlags, UnmountFlags};
use tonic::{Code, Request};

use super::rig::{Rig, code, may_mount, mounts_below, until};

fn chain_id(name: &str) -> String {
    Digest::of(name.as_bytes()).to_string()
}

/// Claims `names` one upon the other and gives the name of the topmost snapshot.
async fn claim(rig: &mut Rig, names: &[&str]) -> String {
    let mut parent = String::new();
    for name in names {
        let chain_id = chain_id(name);
        rig.layer(&chain_id, name);
        assert_eq!(code(rig.extract(&format!("extract {name}"), &parent, &chain_id).await), Code::AlreadyExists);
        let target = rig.target(&chain_id, &parent).await;
        assert_eq!(target.len(), 1, "{target:?}");
        parent = target[0].name.clone();
    }
    parent
}

/// Mounts what containerd would mount, and gives the place.
fn mount(rig: &Rig, mounts: &[Mount]) -> std::path::PathBuf {
    let at = rig.directory.path().join("container");
    fs::create_dir_all(&at).unwrap();
    let options = std::ffi::CString::new(mounts[0].options.join(",")).unwrap();
    rustix::mount::mount("overlay", &at, "overlay", MountFlags::empty(), options.as_c_str()).unwrap();
    at
}

#[tokio::test]
async fn a_known_layer_is_claimed_and_found_as_containerd_looks_for_it() {
    if !may_mount("a_known_layer_is_claimed_and_found_as_containerd_looks_for_it") {
        return;
    }
    let mut rig = Rig::start().await;
    let top = claim(&mut rig, &["lower", "upper"]).await;
    let info = rig.stat(&top).await.unwrap();
    assert_eq!(info.kind(), Kind::Committed);
    assert_eq!(info.labels[REF_LABEL], chain_id("upper"));
    assert_eq!(info.labels["containerd.io/snapshot/hint"], "../../etc");
    let namespace = "k8s.io".to_owned();
    let asked = [(chain_id("lower"), None, namespace.clone()), (chain_id("upper"), Some(chain_id("lower")), namespace)];
    assert_eq!(*rig.layers.asked.lock().unwrap(), asked);
    assert_eq!(rig.metrics.claimed(), 2);
    assert_eq!(code(rig.stat("extract upper").await), Code::NotFound);

    let mounts = rig.prepare("container", &top, &[]).await.unwrap();
    let root = mount(&rig, &mounts);
    assert_eq!(fs::read_to_string(root.join("lower")).unwrap(), chain_id("lower"));
    assert_eq!(fs::read_to_string(root.join("upper")).unwrap(), chain_id("upper"));
    fs::write(root.join("upper"), "changed").unwrap();
    let layer = rig.directory.path().join("layers/upper/upper");
    assert_eq!(fs::read_to_string(layer).unwrap(), chain_id("upper"));
}

#[tokio::test]
async fn who_mounts_layers_is_told_of_containers_and_of_nothing_else() {
    if !may_mount("who_mounts_layers_is_told_of_containers_and_of_nothing_else") {
        return;
    }
    let mut rig = Rig::start().await;
    let top = claim(&mut rig, &["lower", "upper"]).await;
    rig.extract("extract more", &top, &chain_id("more")).await.unwrap();
    rig.prepare("k8s.io/7/scratch", "", &[]).await.unwrap();
    assert_eq!(*rig.layers.started.lock().unwrap(), [], "nobody reads a layer while the next is unpacked");
    rig.prepare("k8s.io/8/web", &top, &[]).await.unwrap();
    let layer = |name: &str| Digest::of(rig.directory.path().join("layers").join(name).as_os_str().as_encoded_bytes());
    let started = Started {
        chain: chain_id("upper").parse().unwrap(),
        layers: vec![layer("lower"), layer("upper")],
        namespace: "k8s.io".to_owned(),
        key: "web".to_owned(),
    };
    assert_eq!(*rig.layers.started.lock().unwrap(), [started]);
}

#[tokio::test]
async fn a_claimed_layer_uses_what_is_on_disk_of_it_now() {
    if !may_mount("a_claimed_layer_uses_what_is_on_disk_of_it_now") {
        return;
    }
    let mut rig = Rig::start().await;
    let top = claim(&mut rig, &["lower", "upper"]).await;
    let key = UsageRequest { key: top, ..UsageRequest::default() };
    let before = rig.client.usage(Request::new(key.clone())).await.unwrap().into_inner();
    assert_eq!(before.inodes, 2, "the directory and the file in it");
    fs::write(rig.directory.path().join("layers/upper/more"), vec![1; 1 << 20]).unwrap();
    let after = rig.client.usage(Request::new(key)).await.unwrap().into_inner();
    assert_eq!(after.inodes, 3);
    assert!(after.size >= before.size + (1 << 20), "{before:?} {after:?}");
}

#[tokio::test]
async fn the_same_target_is_claimed_once_for_each_parent() {
    if !may_mount("the_same_target_is_claimed_once_for_each_parent") {
        return;
    }
    let mut rig = Rig::start().await;
    let lower = claim(&mut rig, &["lower", "upper"]).await;
    for attempt in 0..3 {
        let key = format!("again {attempt}");
        assert_eq!(code(rig.extract(&key, "", &chain_id("lower")).await), Code::AlreadyExists);
    }
    assert_eq!(rig.layers.mounts.load(Ordering::SeqCst), 2);
    assert_eq!(rig.layers.asked.lock().unwrap().len(), 2);

    rig.prepare("unpack", "", &[]).await.unwrap();
    rig.commit("unpack", "unpacked", "").await.unwrap();
    assert_eq!(code(rig.extract("other", "unpacked", &chain_id("upper")).await), Code::AlreadyExists);
    let targets = rig.target(&chain_id("upper"), "unpacked").await;
    assert_eq!(targets.len(), 1);
    assert_ne!(targets[0].name, lower);
}

#[tokio::test]
async fn the_claimed_snapshot_is_listed_before_an_unpacked_one() {
    if !may_mount("the_claimed_snapshot_is_listed_before_an_unpacked_one") {
        return;
    }
    let mut rig = Rig::start().await;
    let label = (REF_LABEL, chain_id("layer"));
    rig.prepare("0/1/extract", "", &[(label.0, &label.1)]).await.unwrap();
    rig.commit_with("0/1/extract", "0/2/unpacked", &[(label.0, &label.1)]).await.unwrap();
    rig.layer(&label.1, "layer");
    assert_eq!(code(rig.extract("a/3/extract", "", &label.1).await), Code::AlreadyExists);
    let names: Vec<_> = rig.target(&label.1, "").await.into_iter().map(|info| info.name).collect();
    let claimed = rig.snapshotter.remote_snapshots().unwrap().remove(0).name;
    assert_eq!(names, [claimed, "0/2/unpacked".to_owned()]);
}

#[tokio::test]
async fn concurrent_claims_of_one_target_make_one_snapshot() {
    if !may_mount("concurrent_claims_of_one_target_make_one_snapshot") {
        return;
    }
    let rig = Rig::start().await;
    rig.layer(&chain_id("layer"), "layer");
    let mut claims = tokio::task::JoinSet::new();
    for number in 0..8 {
        let mut client = rig.client.clone();
        claims.spawn(async move {
            let request = lapwing_snapshotter::service::proto::PrepareSnapshotRequest {
                key: format!("extract {number}"),
                labels: [(REF_LABEL.to_owned(), chain_id("layer"))].into(),
                ..Default::default()
            };
            client.prepare(request).await.map(|_| ())
        });
    }
    while let Some(outcome) = claims.join_next().await {
        assert_eq!(code(outcome.unwrap()), Code::AlreadyExists);
    }
    let mut rig = rig;
    assert_eq!(rig.target(&chain_id("layer"), "").await.len(), 1);
    assert_eq!(rig.list(&[]).await.unwrap().len(), 1);
    until(|| mounts_below(rig.directory.path()).len() == 1).await;
}

#[tokio::test]
async fn what_cannot_be_claimed_is_prepared_for_unpacking() {
    let mut rig = Rig::start().await;
    let mounts = rig.extract("unknown", "", &chain_id("unknown")).await.unwrap();
    assert_eq!(mounts[0].r#type, "bind");
    assert_eq!(rig.metrics.fallbacks("no-index"), 1);

    for hostile in ["../../etc/passwd", "sha256:../../x", "x"] {
        rig.extract(&format!("hostile {hostile}"), "", hostile).await.unwrap();
    }
    assert_eq!(rig.metrics.fallbacks("chain-id"), 3);

    rig.layer(&chain_id("known"), "known");
    rig.layers.broken.store(true, Ordering::SeqCst);
    rig.extract("broken", "", &chain_id("known")).await.unwrap();
    assert_eq!(rig.metrics.fallbacks("local"), 1);

    assert_eq!(rig.metrics.claimed(), 0);
    assert!(rig.target(&chain_id("known"), "").await.iter().all(|info| info.kind() == Kind::Active));
    assert_eq!(mounts_below(rig.directory.path()), Vec::<std::path::PathBuf>::new());
}

/// containerd unpacks layers side by side where a snapshotter is said to be able to ("rebase"): each without a parent, which it gets by its
/// commit. What is claimed is not committed, and would be the whole image without the layers below.
#[tokio::test]
async fn a_layer_whose_parent_comes_with_its_commit_is_not_claimed() {
    if !may_mount("a_layer_whose_parent_comes_with_its_commit_is_not_claimed") {
        return;
    }
    let mut rig = Rig::start().await;
    let lower = claim(&mut rig, &["lower"]).await;
    let (upper, parent) = (chain_id("upper"), chain_id("lower"));
    rig.layer(&upper, "upper");
    let labels = [(REF_LABEL, &*upper), ("containerd.io/snapshot/parent-chain-id", &*parent)];
    let mounts = rig.prepare("extract upper", "", &labels).await.unwrap();
    assert_eq!(mounts.len(), 1);
    let committed = |info: &lapwing_snapshotter::service::proto::Info| info.kind() == Kind::Committed;
    assert!(!rig.target(&upper, "").await.iter().any(committed));
    assert_eq!(code(rig.prepare("again", &lower, &labels).await), Code::AlreadyExists, "with its parent it is");
}

#[tokio::test]
async fn a_decision_that_takes_too_long_is_not_waited_for() {
    let mut rig = Rig::start_with_timeout(Duration::from_millis(20)).await;
    rig.layer(&chain_id("known"), "known");
    rig.layers.silent.store(true, Ordering::SeqCst);
    let mounts = rig.extract("silent", "", &chain_id("known")).await.unwrap();
    assert_eq!((mounts[0].r#type.as_str(), rig.metrics.fallbacks("timeout")), ("bind", 1));
}

#[tokio::test]
async fn removal_of_a_layer_in_use_succeeds_and_spares_the_layer() {
    if !may_mount("removal_of_a_layer_in_use_succeeds_and_spares_the_layer") {
        return;
    }
    let mut rig = Rig::start().await;
    let name = claim(&mut rig, &["layer"]).await;
    let id = rig.snapshotter.remote_snapshots().unwrap()[0].id;
    let directory = rig.top().join(id.to_string());
    let open = fs::File::open(directory.join("fs/layer")).unwrap();
    rig.prepare("container", &name, &[]).await.unwrap();
    assert_eq!(code(rig.remove(&name).await), Code::FailedPrecondition);
    assert!(directory.join("fs/layer").exists());
    rig.remove("container").await.unwrap();
    rig.remove(&name).await.unwrap();
    assert_eq!(mounts_below(rig.directory.path()), Vec::<std::path::PathBuf>::new());
    until(|| fs::read_dir(rig.top()).unwrap().count() == 1).await;
    assert_eq!(std::io::read_to_string(open).unwrap(), chain_id("layer"));
    assert!(rig.directory.path().join("layers/layer/layer").exists());
    assert_eq!(code(rig.remove(&name).await), Code::NotFound);
    assert_eq!(code(rig.extract("again", "", &chain_id("layer")).await), Code::AlreadyExists);
}

#[tokio::test]
async fn a_restart_has_all_mounts_looked_at_and_restores_lost_ones() {
    if !may_mount("a_restart_has_all_mounts_looked_at_and_restores_lost_ones") {
        return;
    }
    let mut rig = Rig::start().await;
    let top = claim(&mut rig, &["lower", "upper"]).await;
    let before = mounts_below(rig.directory.path());
    assert_eq!(before.len(), 2);

    let rig = rig.restart(|_| {}).await;
    assert_eq!(
        rig.layers.mounts.load(Ordering::SeqCst),
        4,
        "a mount whose server is dead looks alive: who mounts decides"
    );
    assert_eq!(mounts_below(rig.directory.path()), before, "and nothing is stacked");

    let mut rig = rig.restart(|rig| unmount_all(rig.directory.path())).await;
    assert_eq!(mounts_below(rig.directory.path()), before);
    let mounts = rig.prepare("container", &top, &[]).await.unwrap();
    assert!(mount(&rig, &mounts).join("lower").exists());
}

#[tokio::test]
async fn a_layer_that_cannot_be_restored_is_tried_again_when_it_is_needed() {
    if !may_mount("a_layer_that_cannot_be_restored_is_tried_again_when_it_is_needed") {
        return;
    }
    let mut rig = Rig::start().await;
    let top = claim(&mut rig, &["layer"]).await;
    rig.prepare("container", &top, &[]).await.unwrap();
    let lose_all = |rig: &Rig| {
        unmount_all(rig.directory.path());
        rig.layers.broken.store(true, Ordering::SeqCst);
    };
    let mut rig = rig.restart(lose_all).await;
    let refused = rig.mounts("container").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("out of order") && refused.message().contains("sha256:"), "{refused}");
    assert_eq!(code(rig.prepare("another", &top, &[]).await), Code::Unavailable);
    rig.extract("pull again", "", &chain_id("layer")).await.unwrap();

    rig.layers.broken.store(false, Ordering::SeqCst);
    rig.mounts("container").await.unwrap();
    assert_eq!(mounts_below(rig.directory.path()).len(), 1);
}

#[tokio::test]
async fn a_mount_that_no_snapshot_has_is_detached_at_the_start() {
    if !may_mount("a_mount_that_no_snapshot_has_is_detached_at_the_start") {
        return;
    }
    let rig = Rig::start().await;
    let layer = rig.layer(&chain_id("layer"), "layer");
    let rig = rig
        .restart(|rig| {
            let orphan = rig.top().join("77/fs");
            fs::create_dir_all(&orphan).unwrap();
            rustix::mount::mount_bind(&layer, &orphan).unwrap();
        })
        .await;
    until(|| fs::read_dir(rig.top()).unwrap().count() == 1).await;
    assert_eq!(mounts_below(rig.directory.path()), Vec::<std::path::PathBuf>::new());
    assert!(layer.join("layer").exists(), "nothing may be deleted through a mount");
}

fn unmount_all(path: &Path) {
    for mount in mounts_below(path) {
        rustix::mount::unmount(&mount, UnmountFlags::DETACH).unwrap();
    }
}
