//! Layers that containerd has fetched, mounted where it would unpack them; with directories in place of layers.

use std::fs;
use std::sync::atomic::Ordering;

use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::graph::REF_LABEL;
use lapwing_snapshotter::service::proto::{Kind, Mount};
use tonic::Code;

use super::rig::{Rig, code, may_mount, mounts_below};

fn chain_id(name: &str) -> String {
    Digest::of(name.as_bytes()).to_string()
}

/// A layer of which nobody knew before it was fetched.
fn fetched(rig: &Rig, name: &str) -> Digest {
    let directory = rig.layer(&format!("not {}", chain_id(name)), name);
    Digest::of(directory.as_os_str().as_encoded_bytes())
}

/// What containerd does for one layer; gives the mounts that it was to be unpacked into.
async fn pull(rig: &mut Rig, name: &str, parent: &str) -> Vec<Mount> {
    let (layer, chain_id) = (fetched(rig, name), chain_id(name));
    let key = format!("k8s.io/1/extract-{name}");
    let mounts = rig.extract(&key, parent, &chain_id).await.unwrap();
    let applied = rig.apply(&layer, &mounts).await.unwrap();
    assert_eq!((applied.digest, applied.size), (layer.to_string(), 14));
    assert_eq!(applied.media_type, "application/vnd.oci.image.layer.v1.tar");
    rig.commit_with(&key, name, &[(REF_LABEL, &chain_id)]).await.unwrap();
    mounts
}

#[tokio::test]
async fn a_fetched_layer_is_mounted_and_its_commit_stands_for_it() {
    if !may_mount("a_fetched_layer_is_mounted_and_its_commit_stands_for_it") {
        return;
    }
    let mut rig = Rig::start().await;
    pull(&mut rig, "lower", "").await;
    pull(&mut rig, "upper", "lower").await;
    assert_eq!((rig.metrics.adopted(), rig.unpacks.asked.lock().unwrap().len()), (2, 0));
    assert_eq!(rig.stat("upper").await.unwrap().kind(), Kind::Committed);
    assert_eq!(rig.snapshotter.remote_snapshots().unwrap().len(), 2);
    let view = rig.prepare("k8s.io/2/container", "upper", &[]).await.unwrap();
    let lower = view[0].options.iter().find_map(|option| option.strip_prefix("lowerdir=")).unwrap();
    let shown: Vec<_> =
        lower.split(':').zip(["upper", "lower"]).map(|(at, name)| fs::read(format!("{at}/{name}"))).collect();
    assert!(shown.len() == 2 && shown.iter().all(Result::is_ok), "{lower}: {shown:?}");
    assert_eq!(rig.layers.started.lock().unwrap().len(), 1, "who mounts layers is told of the container");

    // Another namespace finds what is there.
    assert_eq!(code(rig.extract("other/3/extract", "", &chain_id("lower")).await), Code::AlreadyExists);
    assert_eq!(rig.target(&chain_id("lower"), "").await[0].name, "lower");

    for name in ["k8s.io/2/container", "upper", "lower"] {
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
    let mounts = rig.extract("k8s.io/1/extract", "", &chain_id("a")).await.unwrap();
    assert_eq!(rig.apply(&stranger, &mounts).await.unwrap().digest, stranger.to_string());
    let layer = fetched(&rig, "known");
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

    let reasons = ["no_index", "foreign", "local"].map(|reason| rig.metrics.unpacked(reason));
    assert_eq!((reasons, rig.metrics.adopted()), ([1; 3], 0));
    let asked = rig.unpacks.asked.lock().unwrap().clone();
    assert!(asked.iter().all(|(namespace, _)| namespace == "k8s.io"));
    assert_eq!(asked[0].1.mounts, mounts);
    assert_eq!(*rig.unpacks.came_back.lock().unwrap(), [Code::Unimplemented; 3]);
}

#[tokio::test]
async fn an_extraction_that_is_given_up_leaves_no_mount() {
    if !may_mount("an_extraction_that_is_given_up_leaves_no_mount") {
        return;
    }
    let mut rig = Rig::start().await;
    let layer = fetched(&rig, "layer");
    let mounts = rig.extract("k8s.io/1/extract", "", &chain_id("layer")).await.unwrap();
    rig.apply(&layer, &mounts).await.unwrap();
    rig.apply(&layer, &mounts).await.unwrap();
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
    pull(&mut rig, "lower", "").await;
    let layer = fetched(&rig, "upper");
    let mounts = rig.extract("k8s.io/2/extract", "lower", &chain_id("upper")).await.unwrap();
    rig.apply(&layer, &mounts).await.unwrap();
    let mut rig = rig.restart(|rig| super::rig::detach_below(&rig.top())).await;
    rig.commit_with("k8s.io/2/extract", "upper", &[(REF_LABEL, &chain_id("upper"))]).await.unwrap();
    rig.prepare("k8s.io/3/container", "upper", &[]).await.unwrap();
    assert_eq!(mounts_below(&rig.top()).len(), 2);
    let upper = rig.snapshotter.remote_snapshots().unwrap().into_iter().find(|remote| remote.name == "upper").unwrap();
    assert_eq!(upper.layer, layer);
    assert!(rig.top().join(upper.id.to_string()).join("fs/upper").exists());
}
