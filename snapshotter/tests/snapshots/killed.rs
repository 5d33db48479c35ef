//! kill -9 in the middle of requests: every acknowledged change is there afterwards, and no half of another.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use lapwing_snapshotter::service::proto::snapshots_client::SnapshotsClient;
use lapwing_snapshotter::service::proto::{
    CommitSnapshotRequest, Kind, MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
};
use lapwing_snapshotter::service::{SnapshotMetrics, Snapshotter, SnapshotterConfig, Socket};
use tonic::transport::Channel;

use super::rig::{connect, list};

const ROOT: &str = "LAPWING_TEST_SNAPSHOT_ROOT";

/// The process that is killed: this test binary again, with only this "test".
#[tokio::test]
#[ignore = "started by a_killed_snapshotter_keeps_what_it_acknowledged as a process of its own"]
async fn serves_until_killed() {
    let root = std::path::PathBuf::from(std::env::var_os(ROOT).expect("set by the test that starts this one"));
    let config = SnapshotterConfig::new(&root);
    let snapshotter = Snapshotter::open(config, None, SnapshotMetrics::default()).unwrap();
    let socket = root.join("s.sock");
    Socket::bind(&socket).unwrap().serve(snapshotter, None, std::future::pending()).await.unwrap();
}

struct Killed(Child);

impl Killed {
    fn start(root: &Path) -> Self {
        let arguments = ["--exact", "killed::serves_until_killed", "--ignored", "--nocapture"];
        let mut command = Command::new(std::env::current_exe().unwrap());
        Self(command.args(arguments).env(ROOT, root).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[derive(Debug, Clone)]
enum Change {
    Prepare { key: String, parent: String },
    Commit { key: String, name: String },
    Remove { key: String },
}

type Names = BTreeMap<String, (Kind, String)>;

impl Change {
    fn number(number: usize, names: &Names) -> Self {
        let of_kind = |kind: Kind| names.iter().filter(move |(_, found)| found.0 == kind).map(|(name, _)| name.clone());
        let leaf = names.keys().find(|name| !names.values().any(|(_, parent)| parent == *name));
        match (number % 4, of_kind(Kind::Active).next_back(), leaf) {
            (1, Some(key), _) => Self::Commit { name: format!("layer-{number}"), key },
            (3, _, Some(leaf)) if names.len() > 6 => Self::Remove { key: leaf.clone() },
            _ => {
                let parent = of_kind(Kind::Committed).next_back().unwrap_or_default();
                Self::Prepare { key: format!("key-{number}"), parent }
            }
        }
    }

    fn apply(&self, names: &mut Names) {
        match self.clone() {
            Self::Prepare { key, parent } => {
                names.insert(key, (Kind::Active, parent));
            }
            Self::Commit { key, name } => {
                let (_, parent) = names.remove(&key).unwrap();
                names.insert(name, (Kind::Committed, parent));
            }
            Self::Remove { key } => {
                names.remove(&key);
            }
        }
    }

    async fn request(self, mut client: SnapshotsClient<Channel>) -> Result<(), tonic::Status> {
        match self {
            Self::Prepare { key, parent } => {
                let request = PrepareSnapshotRequest { key, parent, ..PrepareSnapshotRequest::default() };
                client.prepare(request).await.map(|_| ())
            }
            Self::Commit { key, name } => {
                let request = CommitSnapshotRequest { key, name, ..CommitSnapshotRequest::default() };
                client.commit(request).await.map(|_| ())
            }
            Self::Remove { key } => {
                let request = RemoveSnapshotRequest { key, ..RemoveSnapshotRequest::default() };
                client.remove(request).await.map(|_| ())
            }
        }
    }
}

async fn names(client: &mut SnapshotsClient<Channel>) -> Names {
    let found = list(client, &[]).await.unwrap();
    found.into_iter().map(|info| (info.name.clone(), (info.kind(), info.parent))).collect()
}

#[tokio::test]
async fn a_killed_snapshotter_keeps_what_it_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let (mut acknowledged, mut number) = (Names::new(), 0);
    let mut unfinished: Option<Change> = None;
    for round in 0..8 {
        let child = Killed::start(root);
        let mut client = connect(&root.join("s.sock")).await;
        let found = names(&mut client).await;
        let mut with_unfinished = acknowledged.clone();
        if let Some(change) = unfinished.take() {
            change.apply(&mut with_unfinished);
        }
        assert!(found == acknowledged || found == with_unfinished, "round {round}: {found:?}\n{acknowledged:?}");
        acknowledged = found;
        for (name, (kind, _)) in &acknowledged {
            if *kind == Kind::Active {
                let request = MountsRequest { key: name.clone(), ..MountsRequest::default() };
                let mounts = client.mounts(request).await.unwrap().into_inner().mounts;
                let directories = mounts[0].options.iter().flat_map(|option| option.split(['=', ':']));
                let directories = directories.chain([mounts[0].source.as_str()]).filter(|path| path.starts_with('/'));
                directories.for_each(|path| assert!(Path::new(path).is_dir(), "{name}: {path} is gone"));
            }
        }
        for _ in 0..5 + round {
            let change = Change::number(number, &acknowledged);
            change.clone().request(client.clone()).await.unwrap();
            change.apply(&mut acknowledged);
            number += 1;
        }
        let change = Change::number(number, &acknowledged);
        number += 1;
        let request = tokio::spawn(change.clone().request(client));
        for _ in 0..round * 8 {
            tokio::task::yield_now().await;
        }
        drop(child);
        if request.await.unwrap().is_ok() {
            change.apply(&mut acknowledged);
        } else {
            unfinished = Some(change);
        }
    }
    assert!(number > 60 && acknowledged.len() > 3, "{acknowledged:?}");
}
