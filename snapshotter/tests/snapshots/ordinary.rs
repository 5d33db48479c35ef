//! Ordinary snapshots: what containerd's own suite leaves out.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use lapwing_snapshotter::service::proto::{
    CleanupRequest, Info, UpdateSnapshotRequest, UsageRequest, ViewSnapshotRequest,
};
use lapwing_snapshotter::service::{ServeError, SnapshotMetrics, Snapshotter, SnapshotterConfig, Socket};
use tonic::{Code, Request};

use super::rig::{Rig, code, until};

#[tokio::test]
async fn errors_are_those_of_containerd() {
    let mut rig = Rig::start().await;
    rig.prepare("a", "", &[]).await.unwrap();
    rig.commit("a", "base", "").await.unwrap();
    rig.prepare("b", "base", &[]).await.unwrap();
    assert_eq!(code(rig.prepare("b", "base", &[]).await), Code::AlreadyExists);
    assert_eq!(code(rig.prepare("c", "absent", &[]).await), Code::NotFound);
    assert_eq!(code(rig.prepare("c", "b", &[]).await), Code::InvalidArgument);
    assert_eq!(code(rig.prepare("", "", &[]).await), Code::InvalidArgument);
    assert_eq!(code(rig.prepare("c", "", &[("long", &"x".repeat(4096))]).await), Code::InvalidArgument);
    let mapped = ("containerd.io/snapshot/uidmapping", "0:1000:65536");
    assert_eq!(code(rig.prepare("c", "", &[mapped]).await), Code::InvalidArgument, "uids without gids");
    assert_eq!(code(rig.mounts("base").await), Code::FailedPrecondition);
    assert_eq!(code(rig.mounts("absent").await), Code::NotFound);
    assert_eq!(code(rig.commit("absent", "x", "").await), Code::NotFound);
    assert_eq!(code(rig.commit("b", "base", "").await), Code::AlreadyExists);
    assert_eq!(code(rig.commit("base", "x", "").await), Code::FailedPrecondition);
    assert_eq!(code(rig.commit("b", "x", "other").await), Code::InvalidArgument);
    assert_eq!(code(rig.stat("absent").await), Code::NotFound);
    assert_eq!(code(rig.remove("absent").await), Code::NotFound);
    assert_eq!(code(rig.list(&["name=="]).await), Code::InvalidArgument);
    let busy = rig.remove("base").await.unwrap_err();
    assert_eq!(busy.code(), Code::FailedPrecondition);
    assert!(busy.message().contains("cannot remove snapshot \"base\" with child"), "{busy}");
}

/// A snapshot for a user namespace stands on the image as it is, or on a copy whose owners containerd has changed.
#[tokio::test]
async fn ids_are_mapped_by_the_mount_unless_the_files_below_are() {
    use std::os::unix::fs::{MetadataExt as _, chown};

    let mut rig = Rig::start().await;
    for name in ["image", "copy"] {
        let mounts = rig.prepare("unpacked", "", &[]).await.unwrap();
        if name == "copy" {
            chown(&mounts[0].source, Some(1000), Some(2000)).unwrap();
        }
        rig.commit("unpacked", name, "").await.unwrap();
    }
    let labels =
        [("containerd.io/snapshot/uidmapping", "0:1000:65536"), ("containerd.io/snapshot/gidmapping", "0:2000:65536")];
    for (parent, is_mapped) in [("image", true), ("copy", false)] {
        let key = format!("container of {parent}");
        let prepared = rig.prepare(&key, parent, &labels).await.unwrap();
        assert_eq!(rig.mounts(&key).await.unwrap(), prepared);
        let options = &prepared[0].options;
        let asked = options.iter().filter(|option| option.starts_with("uidmap=") || option.starts_with("gidmap="));
        let expected: &[&str] = if is_mapped { &["uidmap=0:1000:65536", "gidmap=0:2000:65536"] } else { &[] };
        assert_eq!(asked.collect::<Vec<_>>(), expected, "{parent}");
        let upper = options.iter().find_map(|option| option.strip_prefix("upperdir=")).unwrap();
        let root = fs::metadata(upper).unwrap();
        assert_eq!((root.uid(), root.gid()), (1000, 2000), "the namespace's root owns its root");
    }
}

#[tokio::test]
async fn a_failed_prepare_leaves_no_directory() {
    let mut rig = Rig::start().await;
    rig.prepare("a", "", &[]).await.unwrap();
    let names = |rig: &Rig| {
        let names = fs::read_dir(rig.top()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name != "graph.redb").collect();
        names.sort();
        names
    };
    let before = names(&rig);
    for _ in 0..3 {
        assert_eq!(code(rig.prepare("a", "", &[]).await), Code::AlreadyExists);
    }
    until(|| names(&rig) == before).await;
    rig.remove("a").await.unwrap();
    until(|| names(&rig).is_empty()).await;
}

#[tokio::test]
async fn usage_is_measured_while_active_and_kept_when_committed() {
    let mut rig = Rig::start().await;
    let mounts = rig.prepare("a", "", &[]).await.unwrap();
    fs::write(format!("{}/file", mounts[0].source), vec![7; 300_000]).unwrap();
    let usage = async |rig: &mut Rig, key: &str| {
        let request = UsageRequest { key: key.to_owned(), ..UsageRequest::default() };
        rig.client.usage(request).await.unwrap().into_inner()
    };
    let active = usage(&mut rig, "a").await;
    assert!(active.size >= 300_000 && active.inodes == 2, "{active:?}");
    rig.commit("a", "base", "").await.unwrap();
    fs::remove_file(format!("{}/file", mounts[0].source)).unwrap();
    assert_eq!(usage(&mut rig, "base").await, active);
}

#[tokio::test]
async fn commit_may_give_a_parent_to_a_snapshot_without_one() {
    let mut rig = Rig::start().await;
    rig.prepare("a", "", &[]).await.unwrap();
    rig.commit("a", "base", "").await.unwrap();
    rig.prepare("b", "", &[]).await.unwrap();
    assert_eq!(code(rig.commit("b", "top", "absent").await), Code::NotFound);
    rig.commit("b", "top", "base").await.unwrap();
    assert_eq!(rig.stat("top").await.unwrap().parent, "base");
    assert_eq!(code(rig.remove("base").await), Code::FailedPrecondition);
    let request = ViewSnapshotRequest { key: "v".into(), parent: "top".into(), ..ViewSnapshotRequest::default() };
    let mounts = rig.client.view(request).await.unwrap().into_inner().mounts;
    let top = rig.top();
    let lower = format!("lowerdir={0}/2/fs:{0}/1/fs", top.display());
    assert!(mounts[0].options.contains(&lower), "{mounts:?}");
}

#[tokio::test]
async fn update_changes_labels_and_nothing_else() {
    let mut rig = Rig::start().await;
    rig.prepare("a", "", &[("one", "1"), ("two", "2")]).await.unwrap();
    let before = rig.stat("a").await.unwrap();
    let update = async |rig: &mut Rig, labels: &[(&str, &str)], paths: &[&str]| {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let info = Some(Info { name: "a".to_owned(), parent: "x".to_owned(), labels, ..Info::default() });
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let update_mask = Some(prost_types::FieldMask { paths });
        let request = UpdateSnapshotRequest { info, update_mask, ..UpdateSnapshotRequest::default() };
        rig.client.update(request).await.map(|answer| answer.into_inner().info.unwrap())
    };
    let after = update(&mut rig, &[("two", "zwei")], &["labels.one", "labels.two"]).await.unwrap();
    assert_eq!(after.labels.into_iter().collect::<Vec<_>>(), [("two".to_owned(), "zwei".to_owned())]);
    assert_eq!((after.created_at, after.parent.as_str(), after.kind), (before.created_at, "", before.kind));
    assert_eq!(code(update(&mut rig, &[], &["parent"]).await), Code::InvalidArgument);
    assert!(update(&mut rig, &[], &[]).await.unwrap().labels.is_empty());
}

#[tokio::test]
async fn lists_arrive_in_batches() {
    let mut rig = Rig::start().await;
    for number in 0..101 {
        rig.prepare(&format!("key-{number:03}"), "", &[]).await.unwrap();
    }
    let names: Vec<_> = rig.list(&[]).await.unwrap().into_iter().map(|info| info.name).collect();
    assert_eq!(names, (0..101).map(|number| format!("key-{number:03}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_socket_is_private_and_replaces_a_stale_one_only() {
    let rig = Rig::start().await;
    let socket = rig.directory.path().join("run/s.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let other = tempfile::tempdir().unwrap();
    let config = SnapshotterConfig::new(other.path());
    let second = Snapshotter::open(config, None, SnapshotMetrics::default()).unwrap();
    let outcome = Socket::bind(&socket);
    assert!(matches!(outcome, Err(ServeError::InUse(_))), "{outcome:?}");
    let file = other.path().join("file");
    fs::write(&file, "precious").unwrap();
    let outcome = Socket::bind(&file);
    assert!(matches!(outcome, Err(ServeError::NoSocket(_))), "{outcome:?}");
    let stale = other.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    Socket::bind(&stale).unwrap().serve(second, None, std::future::ready(())).await.unwrap();
    assert!(!stale.exists());
}

#[tokio::test]
async fn a_restart_keeps_snapshots_and_collects_what_none_has() {
    let mut rig = Rig::start().await;
    let mounts = rig.prepare("a", "", &[("l", "1")]).await.unwrap();
    let before = rig.list(&[]).await.unwrap();
    let mut rig = rig
        .restart(|rig| {
            fs::create_dir_all(rig.top().join("99/fs/deep")).unwrap();
            fs::create_dir_all(rig.top().join("removed-98/fs/deep")).unwrap();
        })
        .await;
    assert_eq!(rig.list(&[]).await.unwrap(), before);
    assert_eq!(rig.mounts("a").await.unwrap(), mounts);
    let top = rig.top();
    until(|| fs::read_dir(&top).unwrap().count() == 2).await;
}

#[tokio::test]
async fn cleanup_deletes_what_was_removed_and_is_still_there() {
    let mut rig = Rig::start().await;
    rig.prepare("a", "", &[]).await.unwrap();
    fs::create_dir_all(rig.top().join("removed-98/fs/deep")).unwrap();
    rig.client.cleanup(Request::new(CleanupRequest::default())).await.unwrap();
    let top = rig.top();
    until(|| !top.join("removed-98").exists()).await;
    assert_eq!(fs::read_dir(&top).unwrap().count(), 2, "the graph, and what is in use");
}
