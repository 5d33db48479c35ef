//! Layers that containerd has fetched, mounted where it would unpack them; with directories in place of layers.

use std::fs;
use std::sync::atomic::Ordering;

use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::graph::REF_LABEL;
use lapwing_snapshotter::remote::chain_id;
use lapwing_snapshotter::service::proto::{Kind, Mount};
use tonic::Code;

use super::rig::{Rig, code, may_mount, mounts_below};

/// A layer of which nobody knew before it was fetched; its diffID is its digest.
fn fetched(rig: &Rig, name: &str) -> Digest {
    let directory = rig.layer(&format!("not {name}"), name);
    Digest::of(directory.as_os_str().as_encoded_bytes())
}

/// What containerd calls the snapshot of that layer in the namespace of these tests.
fn committed(name: &str) -> String {
    format!("k8s.io/9/{name}")
}

/// What containerd does for one layer, on the chain id and name of another; gives its own.
async fn pull(rig: &mut Rig, name: &str, parent: Option<&(String, String)>) -> (String, String) {
    let layer = fetched(rig, name);
    let chain_id = chain_id(parent.map(|(chain_id, _)| chain_id.as_str()), &layer);
    let (key, name) = (format!("k8s.io/1/extract-{name}"), committed(name));
    let below = parent.map_or("", |(_, name)| name);
    let mounts = rig.extract(&key, below, &chain_id).await.unwrap();
    let applied = rig.apply(&layer, &mounts).await.unwrap();
    assert_eq!((applied.digest, applied.size), (layer.to_string(), 14));
    assert_eq!(applied.media_type, "application/vnd.oci.image.layer.v1.tar");
    rig.commit_with(&key, &name, &[(REF_LABEL, &chain_id)]).await.unwrap();
    (chain_id, name)
}

#[tokio::test]
async fn a_fetched_layer_is_mounted_and_its_commit_stands_for_it() {
    if !may_mount("a_fetched_layer_is_mounted_and_its_commit_stands_for_it") {
        return;
    }
    let mut rig = Rig::start().await;
    let lower = pull(&mut rig, "lower", None).await;
    let upper = pull(&mut rig, "upper", Some(&lower)).await;
    assert_eq!((rig.metrics.adopted(), rig.unpacks.asked.lock().unwrap().len()), (2, 0));
    assert_eq!(rig.stat(&upper.1).await.unwrap().kind(), Kind::Committed);
    assert_eq!(rig.snapshotter.remote_snapshots().unwrap().len(), 2);
    let view = rig.prepare("k8s.io/2/container", &upper.1, &[]).await.unwrap();
    let below = view[0].options.iter().find_map(|option| option.strip_prefix("lowerdir=")).unwrap();
    let shown: Vec<_> =
        below.split(':').zip(["upper", "lower"]).map(|(at, name)| fs::read(format!("{at}/{name}"))).collect();
    assert!(shown.len() == 2 && shown.iter().all(Result::is_ok), "{below}: {shown:?}");
    assert_eq!(rig.layers.started.lock().unwrap().len(), 1, "who mounts layers is told of the container");

    // It is its namespace's: another may have no right to it.
    assert_eq!(code(rig.extract("k8s.io/3/extract", "", &lower.0).await), Code::AlreadyExists);
    assert_eq!(rig.target(&lower.0, "").await[0].name, lower.1);
    rig.namespace = "other".to_owned();
    rig.extract("other/4/extract", "", &lower.0).await.unwrap();
    rig.remove("other/4/extract").await.unwrap();

    for name in ["k8s.io/2/container", &upper.1, &lower.1] {
        rig.remove(name).await.unwrap();
    }
    assert_eq!(mounts_below(&rig.top()), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn what_cannot_be_mounted_is_passed_on_and_what_comes_back_is_not() {
    if !may_mount("what_cannot_be_mounted_is_passed_on_and_what_comes_back_is_not") {
        return;
    }
    let mut rig = Rig::start().await;
    let stranger = Digest::of(b"nobody fetched this here");
    let layer = fetched(&rig, "known");
    let mounts = rig.extract("k8s.io/1/extract", "", &layer.to_string()).await.unwrap();
    assert_eq!(rig.apply(&stranger, &mounts).await.unwrap().digest, stranger.to_string());
    let elsewhere = [Mount {
        r#type: "bind".to_owned(),
        source: "/elsewhere".to_owned(),
        options: vec!["rw".to_owned()],
        target: String::new(),
    }];
    rig.apply(&layer, &elsewhere).await.unwrap();
    // Somebody has written there: nothing may be hidden.
    fs::write(format!("{}/file", mounts[0].source), "mine").unwrap();
    rig.apply(&layer, &mounts).await.unwrap();
    assert_eq!(fs::read_to_string(format!("{}/file", mounts[0].source)).unwrap(), "mine");

    // A snapshot that is to become something else, and one that is no extraction.
    let other = rig.extract("k8s.io/2/extract", "", &stranger.to_string()).await.unwrap();
    rig.apply(&layer, &other).await.unwrap();
    let writable = rig.prepare("k8s.io/3/scratch", "", &[]).await.unwrap();
    rig.apply(&layer, &writable).await.unwrap();
    assert_eq!(mounts_below(&rig.top()).len(), 0);

    let reasons = ["no_index", "foreign", "local", "wrong_chain"].map(|reason| rig.metrics.unpacked(reason));
    assert_eq!((reasons, rig.metrics.adopted()), ([1, 2, 1, 1], 0));
    let asked = rig.unpacks.asked.lock().unwrap().clone();
    assert!(asked.iter().all(|(namespace, _)| namespace == "k8s.io"));
    assert_eq!(asked[0].1.mounts, mounts);
    assert_eq!(*rig.unpacks.came_back.lock().unwrap(), [Code::Unimplemented; 5]);
}

#[tokio::test]
async fn an_extraction_that_is_given_up_leaves_no_mount() {
    if !may_mount("an_extraction_that_is_given_up_leaves_no_mount") {
        return;
    }
    let mut rig = Rig::start().await;
    let layer = fetched(&rig, "layer");
    let mounts = rig.extract("k8s.io/1/extract", "", &layer.to_string()).await.unwrap();
    let (one, other) = tokio::join!(rig.apply(&layer, &mounts), rig.apply(&layer, &mounts));
    assert_eq!(one.unwrap(), other.unwrap());
    assert_eq!((mounts_below(&rig.top()).len(), rig.layers.mounts.load(Ordering::SeqCst)), (1, 1), "twice is once");
    rig.remove("k8s.io/1/extract").await.unwrap();
    assert_eq!(mounts_below(&rig.top()).len(), 0);
}

#[tokio::test]
async fn a_layer_adopted_before_a_restart_is_committed_after_it() {
    if !may_mount("a_layer_adopted_before_a_restart_is_committed_after_it") {
        return;
    }
    let mut rig = Rig::start().await;
    let lower = pull(&mut rig, "lower", None).await;
    let layer = fetched(&rig, "upper");
    let chain_id = chain_id(Some(&lower.0), &layer);
    let mounts = rig.extract("k8s.io/2/extract", &lower.1, &chain_id).await.unwrap();
    rig.apply(&layer, &mounts).await.unwrap();
    let mut rig = rig.restart(|rig| super::rig::detach_below(&rig.top())).await;
    rig.commit_with("k8s.io/2/extract", "upper", &[(REF_LABEL, &chain_id)]).await.unwrap();
    rig.prepare("k8s.io/3/container", "upper", &[]).await.unwrap();
    assert_eq!(mounts_below(&rig.top()).len(), 2);
    let upper = rig.snapshotter.remote_snapshots().unwrap().into_iter().find(|remote| remote.name == "upper").unwrap();
    assert_eq!(upper.layer, layer);
    assert!(rig.top().join(upper.id.to_string()).join("fs/upper").exists());
}
